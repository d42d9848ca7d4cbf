//! Garbage collection: removes old revisions, discarded changes, and unreferenced files.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::{CommitError, Context, Result};
use super::retired;
use super::trial::remains::{Undecided, remove_ended};
use super::workspace::Workspace;
use crate::environment::{AnnouncedRemoval, Layout, NotedSession, SessionNotes};
use crate::fault;
use crate::object::Timestamp;
use crate::state::{
    ImageId, ImageRow, LayerId, LayerRole, RecordedLayer, RevisionId, StackPart, StateDb,
};
use crate::sys::extents::Space;
use crate::sys::regular;
use crate::sys::text::quoted;
use crate::sys::walk;

/// The options of a garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GcOptions {
    /// Number of the newest revisions to keep, including the current one. 0 means 1.
    pub keep: u32,
    /// Removes only revisions made before this time, in seconds since 1970.
    pub before: Option<i64>,
    /// Keeps revisions that were current at this time or later, in seconds since 1970: sessions
    /// that began since then may use them without a note.
    #[serde(default)]
    pub current_since: Option<i64>,
    /// Reports what would be removed, and removes nothing.
    pub dry_run: bool,
    /// What is removed.
    #[serde(default)]
    pub scope: Scope,
}

/// What a garbage collection removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Everything that is not kept.
    #[default]
    Everything,
    /// Only revisions that no undo needs. Discarded changes stay.
    Revisions,
}

/// The result of a garbage collection.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Collected {
    /// The removed revisions.
    pub revisions: Vec<i64>,
    /// Number of removed images.
    pub images: u64,
    /// Bytes of those images that no clone shares.
    pub image_bytes: u64,
    /// Number of removed layers of discarded changes.
    pub uppers: u64,
    /// Bytes of the files in these layers and in `strays/`.
    pub upper_bytes: u64,
    /// What each removed revision frees.
    #[serde(default)]
    pub frees: Vec<Frees>,
    /// Revisions that would have been removed, but that sessions use.
    #[serde(default)]
    pub in_use: Vec<InUse>,
}

/// What removing one revision frees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Frees {
    /// The revision.
    pub revision: i64,
    /// Bytes on the disk that only its image has. 0 if another revision or a clone has the image.
    /// Extents that several images share are freed with the last of them, so the sum may be less
    /// than what is freed.
    pub bytes: u64,
}

/// Returns the bytes on the disk that only one of the images of a history has.
pub fn own_bytes(layout: &Layout, image: &ImageRow) -> u64 {
    let path = layout.image(&image.file);
    let Ok(file) = regular::open(&path) else {
        return 0;
    };
    if !file.metadata().is_ok_and(|meta| meta.nlink() == 1) {
        return 0;
    }
    Space::of(&file).map_or(0, |space| {
        space.bytes.saturating_sub(space.shared.unwrap_or(0))
    })
}

/// A revision that a session uses.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InUse {
    /// The revision.
    pub revision: i64,
    /// The session, for messages.
    pub by: String,
}

/// Removes old revisions, unreferenced images, discarded changes, and strays. Keeps the current
/// revision, those with a tag, and those that sessions use.
///
/// Except for a dry run the caller holds the environment's lock and the operation lock, since a
/// rollback could make a revision current that is being removed.
///
/// Fails with [`CommitError::ImageLost`] while an image of the stack is missing or truncated, since
/// an older image may be the only copy.
pub fn gc(db: &StateDb, layout: &Layout, options: GcOptions) -> Result<Collected> {
    layout.check_directories()?;
    if let Some(image) = retired::missing_image(db, layout)? {
        return Err(CommitError::ImageLost(image));
    }
    if !options.dry_run {
        remove_ended(db, layout, Undecided::Leave);
    }
    let notes = SessionNotes::new(layout.sessions());
    let read_notes = || notes.read().context("read", &layout.sessions());
    let mut noted = read_notes()?;
    let mut garbage = Garbage::find(db, options, &noted)?;
    let strays = layout.strays();
    let mut done = garbage.measure(
        layout,
        (options.scope == Scope::Everything).then_some(&*strays),
    );
    if options.dry_run {
        return Ok(done);
    }
    // First, so that no undo restores a layer without its files.
    db.forget_recorded(&garbage.layers)?;
    // The order matters on a full disk: removing files frees the space that changing rows needs.
    if options.scope == Scope::Everything {
        walk::remove_tree(&strays).context("remove", &strays)?;
    }
    for layer in &garbage.layers {
        retired::remove_layer_files(layout, *layer)?;
    }
    fault::pause("pause.gc.read");
    // A session may have begun since its notes were read. From the announcement on, a session that
    // begins waits for the end of this; the notes of those that did not see it are there by now.
    let _announced = match garbage.images.is_empty() {
        true => None,
        false => {
            let announced = announce(&notes, &garbage, layout)?;
            noted = read_notes()?;
            garbage.spare(Garbage::find(db, options, &noted)?);
            garbage.measure_images(layout, &mut done);
            announced
        }
    };
    fault::pause("pause.gc.removing");
    for revision in garbage.revisions {
        db.forget_revision(revision)?;
    }
    for image in garbage.images {
        // The row first: a file without a row is garbage, but a row without a file is a loss.
        db.forget_image(image.id)?;
        let path = layout.image(&image.file);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).context("remove", &path);
            }
            _ => {}
        }
    }
    // Those of sessions that were killed.
    for ended in noted.iter().filter(|noted| !noted.is_live) {
        if let Err(error) = fs::remove_file(&ended.path) {
            tracing::info!(%error, path = %ended.path.display(), "cannot remove a note");
        }
    }
    for layer in garbage.layers {
        retired::remove_layer(db, layout, layer)?;
    }
    db.restore_reserve();
    Ok(done)
}

/// Tells sessions on all hosts what will be removed, if that is possible: not on a full disk.
fn announce(
    notes: &SessionNotes,
    garbage: &Garbage,
    layout: &Layout,
) -> Result<Option<AnnouncedRemoval>> {
    let files = garbage.images.iter().map(|image| image.file.clone());
    match notes.announce_removal(files.collect()) {
        Ok(announced) => Ok(Some(announced)),
        Err(error) if may_be_untold(&error) => {
            tracing::warn!(%error, "sessions cannot be told what is removed");
            Ok(None)
        }
        Err(error) => Err(error).context("write to", &layout.sessions()),
    }
}

fn may_be_untold(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::PermissionDenied
    )
}

/// What a garbage collection removes, apart from strays.
struct Garbage {
    revisions: Vec<RevisionId>,
    images: Vec<ImageRow>,
    /// Layers of discarded changes, and committed ones that were kept for an undo.
    layers: Vec<LayerId>,
    in_use: Vec<InUse>,
    /// All revisions, with their images and the number of revisions that have the image.
    users: Vec<(RevisionId, ImageId, usize)>,
}

impl Garbage {
    fn find(db: &StateDb, options: GcOptions, noted: &[NotedSession]) -> Result<Garbage> {
        let current = db.current_revision()?.map(|revision| revision.id);
        let tagged: HashSet<RevisionId> = db.tags()?.into_iter().map(|tag| tag.revision).collect();
        let mut newest_first = db.revisions()?;
        newest_first.sort_unstable_by_key(|revision| std::cmp::Reverse(revision.id));
        let (mut kept_images, undoable) = match options.scope {
            Scope::Everything => Default::default(),
            Scope::Revisions => needed_for_undo(db)?,
        };
        let mut revisions = Vec::new();
        let files: HashMap<ImageId, String> = db
            .images()?
            .into_iter()
            .map(|image| (image.id, image.file))
            .collect();
        let mut in_use = Vec::new();
        let (below_trials, heads) = db.below_trials()?;
        // When the next newer revision was made.
        let mut replaced = i64::MAX;
        for (age, revision) in newest_first.iter().enumerate() {
            let keep = age < options.keep.max(1) as usize
                || options.before.is_some_and(|limit| revision.time >= limit)
                || Some(revision.id) == current
                || options.current_since.is_some_and(|limit| replaced >= limit)
                || tagged.contains(&revision.id)
                || undoable.contains(&revision.id)
                || heads.contains(&revision.id);
            replaced = revision.time;
            let user = files
                .get(&revision.image)
                .and_then(|file| user_of(file, noted));
            if keep {
                kept_images.insert(revision.image);
            } else if let Some(by) = user {
                kept_images.insert(revision.image);
                in_use.push(InUse {
                    revision: revision.id.0,
                    by,
                });
            } else {
                revisions.push(revision.id);
            }
        }
        for layer in db.stack()? {
            if let StackPart::Image(image) = layer.part {
                kept_images.insert(image);
            }
        }
        let count = |image| {
            newest_first
                .iter()
                .filter(|other| other.image == image)
                .count()
        };
        let all = newest_first.iter();
        let users = all.map(|one| (one.id, one.image, count(one.image)));
        let users = users.collect();
        kept_images.extend(below_trials.iter().filter_map(|layer| match layer {
            RecordedLayer::Image(image) => Some(*image),
            RecordedLayer::Upper(_) => None,
        }));
        let mut images = db.images()?;
        images.retain(|image| !kept_images.contains(&image.id));
        let layers = db.layers()?.into_iter();
        Ok(Garbage {
            revisions,
            images,
            layers: layers
                .filter(|_| options.scope == Scope::Everything)
                .filter(|layer| matches!(layer.role, LayerRole::Trash | LayerRole::Retired))
                .map(|layer| layer.id)
                .filter(|layer| !below_trials.contains(&RecordedLayer::Upper(*layer)))
                .collect(),
            in_use,
            users,
        })
    }

    fn measure(&self, layout: &Layout, strays: Option<&Path>) -> Collected {
        let mut done = Collected::default();
        self.measure_images(layout, &mut done);
        let layers = self.layers.iter().map(|layer| layout.layer(*layer));
        let in_layers: u64 = layers.map(|path| walk::content_size(&path)).sum();
        done.uppers = self.layers.len() as u64;
        done.upper_bytes = in_layers + strays.map_or(0, walk::content_size);
        done
    }

    /// Keeps what is no garbage any more.
    fn spare(&mut self, now: Garbage) {
        self.revisions.retain(|id| now.revisions.contains(id));
        self.images
            .retain(|image| now.images.iter().any(|other| other.id == image.id));
        self.in_use = now.in_use;
    }

    fn measure_images(&self, layout: &Layout, done: &mut Collected) {
        // Removing an image that a clone shares frees no space.
        let is_shared = |image: &ImageRow| {
            let meta = fs::metadata(layout.image(&image.file));
            meta.is_ok_and(|meta| meta.nlink() > 1)
        };
        let freed = self.images.iter().filter(|image| !is_shared(image));
        done.revisions = self.revisions.iter().map(|id| id.0).collect();
        done.images = self.images.len() as u64;
        done.image_bytes = freed.map(|image| image.size).sum();
        done.frees.clear();
        for (revision, image, users) in &self.users {
            let gone = self.images.iter().find(|row| row.id == *image);
            if self.revisions.contains(revision) {
                done.frees.push(Frees {
                    revision: revision.0,
                    bytes: gone
                        .filter(|_| *users == 1)
                        .map_or(0, |row| own_bytes(layout, row)),
                });
            }
        }
        done.in_use = self.in_use.clone();
    }
}

/// Returns the images and revisions to which an undo may return.
fn needed_for_undo(db: &StateDb) -> Result<(HashSet<ImageId>, HashSet<RevisionId>)> {
    let (mut images, mut revisions) = (HashSet::new(), HashSet::new());
    for operation in db.operations()? {
        if !operation.is_complete {
            continue;
        }
        revisions.insert(operation.head_before);
        let layers = operation.before.iter().chain(&operation.after);
        images.extend(layers.filter_map(|layer| match layer {
            RecordedLayer::Image(image) => Some(*image),
            RecordedLayer::Upper(_) => None,
        }));
    }
    Ok((images, revisions))
}

/// Forgets revisions that the configuration does not keep, after a commit. Returns what was
/// removed, if anything was. The commit is done, so a failure is only logged.
pub(super) fn forget_old(workspace: &Workspace) -> Option<Collected> {
    let policy = workspace.settings().forget?;
    let kept_since = policy
        .keep_for
        .and_then(|time| i64::try_from(time.as_secs()).ok());
    let options = GcOptions {
        keep: policy.keep,
        before: None,
        current_since: kept_since.map(|time| Timestamp::now().secs.saturating_sub(time)),
        dry_run: false,
        scope: Scope::Revisions,
    };
    match gc(workspace.db(), workspace.env().layout(), options) {
        Ok(done) if done.revisions.is_empty() => None,
        Ok(done) => Some(done),
        Err(e) => {
            tracing::warn!("cannot forget old revisions after a commit: {e}");
            None
        }
    }
}

/// Describes a session that uses an image.
fn user_of(image: &str, noted: &[NotedSession]) -> Option<String> {
    let used = noted
        .iter()
        .find(|noted| noted.is_live && noted.note.image == image)?;
    let note = &used.note;
    Some(format!(
        "{} session at {}, {}",
        note.kind.word(),
        quoted(&note.mount_point.0),
        note.process
    ))
}
