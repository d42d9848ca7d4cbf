//! Compares revisions, and restores paths from them.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::digests;
use super::error::{CommitError, Result};
use super::workspace::{Workspace, new_revision, paths};
use crate::environment::Layout;
use crate::object::{Attr, Ino, Kind};
use crate::squashfs::Image;
use crate::squashfs::reader::Shared;
use crate::state::{
    ImageId, ImageRow, LayerId, OperationKind, Revision, RevisionId, RevisionKind, RowChange,
    StateDb,
};
use crate::union::{
    self, Difference, ImageLayer, Invalidation, LowerStack, OpenOptions, Restored, Source,
};

/// Bytes of a file that are read at once.
const READ: usize = 1 << 20;

/// An image of the history, open for comparing and reading.
#[derive(Debug)]
pub struct OpenRevision {
    /// Its row.
    pub revision: Revision,
    layer: Arc<ImageLayer>,
    /// The digests of the file, where they are known.
    digests: Option<Vec<u8>>,
}

impl OpenRevision {
    /// Opens a revision; without a number the current one.
    pub fn open(db: &StateDb, layout: &Layout, id: Option<RevisionId>) -> Result<OpenRevision> {
        let revision = match id {
            Some(id) => db.revision(id)?.ok_or(CommitError::NoRevision(id.0))?,
            None => db.current_revision()?.ok_or(CommitError::NoEarlier)?,
        };
        let options = OpenOptions::default();
        let layer = union::open_image(db, &paths(layout), revision.image, &options)?;
        Ok(OpenRevision {
            layer: Arc::new(layer),
            digests: db.image_digests(revision.image)?,
            revision,
        })
    }

    /// Returns the object at a path, without following symbolic links. `None` if there is none.
    pub fn find(&self, path: &[u8]) -> Result<Option<(Ino, Attr)>> {
        let stack = self.stack();
        let mut at = Ino::ROOT;
        for name in path.split(|byte| *byte == b'/') {
            if name.is_empty() {
                continue;
            }
            let above = stack.attr(at)?;
            if above.is_none_or(|attr| attr.kind != Kind::Directory) {
                return Ok(None);
            }
            match stack.lookup(at, name)? {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        Ok(stack.attr(at)?.map(|attr| (at, attr)))
    }

    /// Returns the names in a directory.
    pub fn names(&self, dir: Ino) -> Result<Vec<Box<[u8]>>> {
        let listing = self.stack().list(dir)?;
        Ok(listing.iter().map(|(name, _, _)| Box::from(name)).collect())
    }

    /// Calls `take` with the content of a regular file, part by part. Holes are zeros.
    pub fn read<E: From<CommitError>>(
        &self,
        ino: Ino,
        mut take: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let stack = self.stack();
        let mut at = 0;
        loop {
            let part = stack.read(ino, at, READ).map_err(CommitError::from)?;
            let part = (*part).as_ref();
            if part.is_empty() {
                return Ok(());
            }
            take(part)?;
            at += part.len() as u64;
        }
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Box<[u8]>> {
        Ok(self.stack().read_link(ino)?)
    }

    /// Returns its image.
    pub(crate) fn image(&self) -> &Image {
        self.layer.image()
    }

    fn as_side(&self) -> Side<'_> {
        Side {
            layer: &self.layer,
            image: Some(self.revision.image),
            digests: self.digests.clone(),
        }
    }

    /// Returns its image as the only layer of a stack.
    pub(crate) fn stack(&self) -> LowerStack {
        LowerStack::new(vec![self.layer.clone()])
    }
}

/// Returns the changes from one revision to another of the same environment.
pub fn difference(
    db: &StateDb,
    layout: &Layout,
    old: &OpenRevision,
    new: &OpenRevision,
) -> Result<Difference> {
    let shared = shared(db, layout, &old.as_side(), &new.as_side())?;
    Ok(union::between(&old.layer, &new.layer, shared)?)
}

/// Returns the changes from a revision of one environment to a revision of another.
pub fn difference_between(old: &OpenRevision, new: &OpenRevision) -> Result<Difference> {
    let shared = shared_by(&old.as_side(), &new.as_side())?;
    Ok(union::between_environments(&old.layer, &new.layer, shared)?)
}

/// Returns the changes from a revision to the current view, with those that are not committed.
pub fn difference_since(workspace: &Workspace, old: RevisionId) -> Result<Difference> {
    let (db, layout) = (workspace.db(), workspace.env().layout());
    let old = OpenRevision::open(db, layout, Some(old))?;
    workspace.union().changes_since(&old.layer, |new| {
        let new = Side::of(db, layout, new)?;
        shared(db, layout, &old.as_side(), &new)
    })
}

/// Restores paths (without a leading slash) as they were in a revision, as uncommitted changes.
/// Returns what was restored and the cache entries that the kernel must drop. `command` is
/// recorded.
///
/// Where the revision is what is committed now, this discards the changes of the paths.
pub fn restore(
    workspace: &Workspace,
    old: RevisionId,
    paths: &[Vec<u8>],
    command: &str,
) -> Result<(Restored, Vec<Invalidation>)> {
    let (db, layout, union) = (workspace.db(), workspace.env().layout(), workspace.union());
    let old = OpenRevision::open(db, layout, Some(old))?;
    let note = new_revision(
        &format!("restore paths from revision {}", old.revision.id),
        command,
    );
    let current = db.current_revision()?.map(|revision| revision.image);
    let whole = paths.iter().any(Vec::is_empty);
    let record = |layer: LayerId, rows: &[RowChange<'_>]| -> union::Result<()> {
        db.change_paths(layer, rows, OperationKind::RestorePaths, &note)?;
        Ok(())
    };
    if current == Some(old.revision.image) && !whole {
        let (changes, stale) = union.discard_paths(paths, record)?;
        return Ok((Restored::by_discarding(&changes), stale));
    }
    let shared = |new: &ImageLayer| {
        let new = Side::of(db, layout, new).ok()?;
        shared(db, layout, &old.as_side(), &new).ok()
    };
    let source = Source {
        image: &old.layer,
        shared: &shared,
    };
    Ok(union.restore_paths(&source, paths, record)?)
}

/// Returns the image of the environment whose file a layer has open.
fn image_of(db: &StateDb, layout: &Layout, layer: &ImageLayer) -> Result<Option<ImageId>> {
    let identity = |meta: &std::fs::Metadata| (meta.dev(), meta.ino());
    let Ok(open) = layer.image().as_file().metadata() else {
        return Ok(None);
    };
    let is_open = |row: &ImageRow| {
        let found = std::fs::metadata(layout.image(&row.file));
        found.is_ok_and(|meta| identity(&meta) == identity(&open))
    };
    Ok(db.images()?.into_iter().find(is_open).map(|row| row.id))
}

/// An image that is compared.
struct Side<'a> {
    layer: &'a ImageLayer,
    /// Its row, if it has one.
    image: Option<ImageId>,
    /// The digests of the file, where they are known.
    digests: Option<Vec<u8>>,
}

impl<'a> Side<'a> {
    fn of(db: &StateDb, layout: &Layout, layer: &'a ImageLayer) -> Result<Side<'a>> {
        let image = image_of(db, layout, layer)?;
        let digests = match image {
            Some(image) => db.image_digests(image)?,
            None => None,
        };
        Ok(Side {
            layer,
            image,
            digests,
        })
    }
}

/// Finds what two images have in common: as one continues the other, or as both continue the image
/// from which they were made.
fn shared(db: &StateDb, layout: &Layout, old: &Side<'_>, new: &Side<'_>) -> Result<Shared> {
    let direct = shared_by(old, new)?;
    let (Some(one), Some(other)) = (old.image, new.image) else {
        return Ok(direct);
    };
    if direct.is_nested() {
        return Ok(direct);
    }
    let Some(image) = common_origin(db, one, other)? else {
        return Ok(direct);
    };
    let options = OpenOptions::default();
    let layer = match union::open_image(db, &paths(layout), image, &options) {
        Ok(layer) => layer,
        Err(error) => {
            // Without it, both trees are read as a whole.
            tracing::info!(%error, "cannot open the image from which two revisions were made");
            return Ok(direct);
        }
    };
    let origin = Side {
        layer: &layer,
        image: Some(image),
        digests: db.image_digests(image)?,
    };
    Ok(direct.and_through(shared_by(&origin, old)?, shared_by(&origin, new)?))
}

/// Finds what two images have in common. Digests tell it of most of the data without reading it.
fn shared_by(old: &Side<'_>, new: &Side<'_>) -> Result<Shared> {
    let (one, other) = (old.digests.as_deref(), new.digests.as_deref());
    let (old, new) = (old.layer.image(), new.layer.image());
    let is_at_start = old.offset() == 0 && new.offset() == 0;
    let is_known = |range| {
        let (Some(one), Some(other)) = (one, other) else {
            return false;
        };
        is_at_start && digests::are_equal(one, other, range)
    };
    Ok(Shared::of(old, new, is_known)?)
}

/// Returns the newest image from which both of two images were made, if there is one besides them.
fn common_origin(db: &StateDb, one: ImageId, other: ImageId) -> Result<Option<ImageId>> {
    let revisions = db.revisions()?;
    let origins = origins(&revisions, one);
    let mut others = self::origins(&revisions, other).into_iter();
    let found = others.find(|image| origins.contains(image));
    Ok(found.filter(|image| *image != one && *image != other))
}

/// Returns an image, and those from which it was made, the newest first. A rollback makes no image.
fn origins(revisions: &[Revision], image: ImageId) -> Vec<ImageId> {
    let mut images = vec![image];
    let mut last = image;
    loop {
        let made = revisions
            .iter()
            .find(|one| one.image == last && one.kind != RevisionKind::Rollback);
        let Some(made) = made else { return images };
        let parent = revisions
            .iter()
            .find(|one| Some(one.id) == made.parent && one.id < made.id);
        match parent {
            // Images are numbered in the order in which they are made.
            Some(parent) if parent.image < last => last = parent.image,
            _ => return images,
        }
        images.push(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(id: i64, parent: Option<i64>, image: i64, kind: RevisionKind) -> Revision {
        Revision {
            id: RevisionId(id),
            parent: parent.map(RevisionId),
            image: ImageId(image),
            kind,
            source: None,
            message: String::new(),
            time: 0,
            user: String::new(),
            host: String::new(),
            command: String::new(),
            packages: None,
        }
    }

    #[test]
    fn origins_follow_images_through_rollbacks_and_end_where_the_history_does() {
        let all = [
            revision(1, None, 1, RevisionKind::Import),
            revision(2, Some(1), 2, RevisionKind::Commit),
            revision(3, Some(2), 3, RevisionKind::Commit),
            revision(4, Some(3), 2, RevisionKind::Rollback),
            revision(5, Some(4), 4, RevisionKind::Commit),
        ];
        let of = |all: &[Revision], image| -> Vec<i64> {
            origins(all, ImageId(image)).iter().map(|id| id.0).collect()
        };
        assert_eq!(of(&all, 3), [3, 2, 1]);
        assert_eq!(of(&all, 4), [4, 2, 1]);
        assert_eq!(of(&all[2..], 4), [4, 2], "older revisions were forgotten");
        assert_eq!(of(&all[4..], 4), [4]);
        // A damaged history ends, too.
        let own = [revision(2, Some(2), 2, RevisionKind::Commit)];
        assert_eq!(of(&own, 2), [2]);
    }
}
