//! Brings new revisions of an archive into an environment of the same origin.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::image_digest;
use super::manifest::RevisionEntry;
use super::read::{Existing, HistoryArchive, Rebuilder, tags};
use crate::commit::digests;
use crate::commit::error::{CommitError, Result};
use crate::commit::workspace::{Workspace, new_revision, paths};
use crate::fault;
use crate::progress::Progress;
use crate::squashfs::Image;
use crate::state::{ImageId, NewHistory, Revision, RevisionId};
use crate::union::{DiscardMode, ImageLayer, LowerStack, open_image};

/// How the history of an archive relates to that of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relation {
    /// They do not have the same origin.
    Unrelated,
    /// The environment has a revision that the archive does not have, and the archive does not end
    /// before it. The number is the first one at which they differ.
    Diverged(i64),
    /// The archive has no revision that the environment does not have.
    Contained,
    /// The archive continues the history of the environment, with these revisions.
    Newer(Vec<i64>),
}

/// What was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The new revisions.
    pub revisions: Vec<i64>,
    /// The current revision before and now.
    pub before: i64,
    /// The current revision now.
    pub current: i64,
    /// Tags of the archive that the environment has on other revisions.
    pub other_tags: Vec<String>,
}

/// The revisions that an environment and an archive have in common.
struct Common {
    relation: Relation,
    /// Images of the environment by their position in the manifest.
    images: BTreeMap<usize, ImageId>,
}

/// Compares histories.
pub fn relation(
    workspace: &Workspace,
    archive: &HistoryArchive,
    progress: &dyn Progress,
) -> Result<Relation> {
    Ok(Common::of(workspace, archive, progress)?.relation)
}

impl Common {
    fn of(
        workspace: &Workspace,
        archive: &HistoryArchive,
        progress: &dyn Progress,
    ) -> Result<Common> {
        let (db, manifest) = (workspace.db(), &archive.manifest);
        let mut common = Common {
            relation: Relation::Unrelated,
            images: BTreeMap::new(),
        };
        if db.origin()?.as_deref() != Some(&manifest.origin) {
            return Ok(common);
        }
        let own = db.revisions()?;
        // The newest revision of both, and the first that differs.
        let (mut newest, mut differs) = (0, None);
        for revision in &own {
            let number = revision.id.0;
            match manifest.revision(number) {
                Some(entry) if is_same(workspace, entry, revision, archive, progress)? => {
                    newest = number;
                    common.images.insert(entry.image, revision.image);
                }
                Some(_) => differs = differs.or(Some(number)),
                None => {}
            }
        }
        let own_newer = own
            .iter()
            .map(|one| one.id.0)
            .find(|number| *number > newest);
        let new = manifest.revisions.iter().map(|one| one.revision);
        let new: Vec<i64> = new.filter(|number| *number > newest).collect();
        common.relation = match (differs, own_newer) {
            (Some(number), _) => Relation::Diverged(number),
            (None, _) if new.is_empty() => Relation::Contained,
            (None, Some(number)) => Relation::Diverged(number),
            (None, None) => Relation::Newer(new),
        };
        Ok(common)
    }
}

fn is_same(
    workspace: &Workspace,
    entry: &RevisionEntry,
    revision: &Revision,
    archive: &HistoryArchive,
    progress: &dyn Progress,
) -> Result<bool> {
    let digest = image_digest(&digests_of(workspace, revision.image, progress)?);
    Ok(entry.is(revision, &digest, &archive.manifest))
}

fn digests_of(workspace: &Workspace, image: ImageId, progress: &dyn Progress) -> Result<Vec<u8>> {
    let db = workspace.db();
    if let Some(digests) = db.image_digests(image)? {
        return Ok(digests);
    }
    let path = workspace.env().layout().image(&image.file_name());
    digests::compute(&path, None, workspace.settings().threads, progress)
}

/// Adds the new revisions of an archive to an environment without uncommitted changes that is not
/// mounted. Fails without changing anything if the archive does not continue its history.
pub fn forward(
    workspace: &Workspace,
    archive: &HistoryArchive,
    command: &str,
    progress: &dyn Progress,
) -> Result<Forwarded> {
    let (db, union, layout) = (workspace.db(), workspace.union(), workspace.env().layout());
    let manifest = &archive.manifest;
    let common = Common::of(workspace, archive, progress)?;
    let Relation::Newer(new) = common.relation else {
        return Err(archive.refuse("it does not continue the history of the environment"));
    };
    if union.has_changes()? {
        return Err(CommitError::Uncommitted);
    }
    if crate::commit::is_tried(layout) {
        return Err(CommitError::Tried);
    }
    let head = db.current_revision()?.ok_or(CommitError::NoEarlier)?.id;
    let mut ids = common.images;
    let mut rebuilder = Rebuilder {
        archive,
        layout,
        db,
        threads: workspace.settings().threads,
        progress,
        existing: Vec::new(),
        verified: HashSet::new(),
        total: 0,
        done: 0,
    };
    for (index, id) in &ids {
        rebuilder.existing.push(Existing {
            index: *index,
            path: layout.image(&id.file_name()),
            digests: digests_of(workspace, *id, progress)?,
        });
    }
    let entries = || new.iter().filter_map(|number| manifest.revision(*number));
    let (mut images, mut files) = (Vec::new(), Vec::new());
    let needed: Vec<usize> = entries().map(|entry| entry.image).collect();
    let sizes = manifest.images.iter().enumerate();
    let sizes = sizes.filter(|(index, _)| needed.contains(index) && !ids.contains_key(index));
    rebuilder.total = sizes.map(|(_, entry)| entry.size).sum();
    for index in needed {
        if ids.contains_key(&index) {
            continue;
        }
        let (image, file) = rebuilder.rebuild(index)?;
        ids.insert(index, image.image.id);
        images.push(image);
        files.push(file);
    }
    fault::point("forward.rebuilt");
    let own_tags = db.tags()?;
    let tags = tags(manifest);
    let other_tags = tags.iter().filter(|tag| {
        let mut own = own_tags.iter();
        own.any(|own| own.name == tag.name && own.revision != tag.revision)
    });
    let other_tags = other_tags.map(|tag| tag.name.clone()).collect();
    let mut known: HashSet<RevisionId> = db.revisions()?.iter().map(|one| one.id).collect();
    known.extend(new.iter().map(|number| RevisionId(*number)));
    let revisions = entries().filter_map(|one| Some(one.to_revision(*ids.get(&one.image)?)));
    let history = NewHistory {
        revisions: revisions.collect(),
        // Old revisions may have been removed here.
        tags: tags
            .into_iter()
            .filter(|tag| known.contains(&tag.revision))
            .collect(),
        head: RevisionId(manifest.current),
        images,
    };
    if !known.contains(&history.head) {
        return Err(archive.refuse(format!(
            "its current revision {} was removed from the environment",
            manifest.current
        )));
    }
    let note = new_revision("", command);
    let after = lower(workspace, &history)?;
    // The transaction may have been committed even if it returns an error, so the files stay then:
    // the next open removes those without a row.
    let kept: Vec<_> = files
        .into_iter()
        .map(crate::commit::Unfinished::keep)
        .collect();
    let dropped = union.discard_uppers(after, DiscardMode::IfUnchanged, |fresh| {
        db.append_history(head, fresh, &history, &note)?;
        fault::point("forward.flipped");
        Ok(())
    });
    let is_done = match &dropped {
        Ok(done) => done.is_some(),
        Err(crate::union::Error::State(crate::state::StateError::InDoubt { .. })) => true,
        Err(_) => false,
    };
    if !is_done {
        for path in kept {
            drop(crate::commit::Unfinished(path));
        }
    }
    dropped?.ok_or(CommitError::Uncommitted)?;
    Ok(Forwarded {
        revisions: new,
        before: head.0,
        current: manifest.current,
        other_tags,
    })
}

/// Opens the image of the revision that becomes current.
fn lower(workspace: &Workspace, history: &NewHistory) -> Result<Arc<LowerStack>> {
    let (db, layout) = (workspace.db(), workspace.env().layout());
    let missing = || CommitError::NoRevision(history.head.0);
    let new = history.revisions.iter().find(|one| one.id == history.head);
    let image = match new {
        Some(revision) => revision.image,
        None => db.revision(history.head)?.ok_or_else(missing)?.image,
    };
    let layer = match history.images.iter().find(|one| one.image.id == image) {
        Some(new) => {
            let options = workspace.open_options().reader.clone();
            let file = Image::open(layout.image(&new.image.file), options)?;
            ImageLayer::new(file, new.image.id_map.clone())
        }
        None => open_image(db, &paths(layout), image, workspace.open_options())?,
    };
    Ok(Arc::new(LowerStack::new(vec![Arc::new(layer)])))
}
