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
    ImageId, ImageRow, LayerId, OperationKind, Revision, RevisionId, RowChange, StateDb,
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

    /// Returns its image as the only layer of a stack.
    pub(crate) fn stack(&self) -> LowerStack {
        LowerStack::new(vec![self.layer.clone()])
    }
}

/// Returns the changes from one revision to another.
pub fn difference(old: &OpenRevision, new: &OpenRevision) -> Result<Difference> {
    let shared = shared(
        (&old.layer, old.digests.as_deref()),
        (&new.layer, new.digests.as_deref()),
    )?;
    Ok(union::between(&old.layer, &new.layer, shared)?)
}

/// Returns the changes from a revision to the current view, with those that are not committed.
pub fn difference_since(workspace: &Workspace, old: RevisionId) -> Result<Difference> {
    let (db, layout) = (workspace.db(), workspace.env().layout());
    let old = OpenRevision::open(db, layout, Some(old))?;
    workspace.union().changes_since(&old.layer, |new| {
        let digests = match image_of(db, layout, new)? {
            Some(image) => db.image_digests(image)?,
            None => None,
        };
        shared(
            (&old.layer, old.digests.as_deref()),
            (new, digests.as_deref()),
        )
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
        let digests = match image_of(db, layout, new).ok()? {
            Some(image) => db.image_digests(image).ok()?,
            None => None,
        };
        let (old, one) = (&old.layer, old.digests.as_deref());
        shared((old, one), (new, digests.as_deref())).ok()
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

/// Finds what two images have in common. Digests tell it of most of the data without reading it.
fn shared(
    (old, one): (&ImageLayer, Option<&[u8]>),
    (new, other): (&ImageLayer, Option<&[u8]>),
) -> Result<Shared> {
    let (old, new) = (old.image(), new.image());
    let is_at_start = old.offset() == 0 && new.offset() == 0;
    let is_known = |range| {
        let (Some(one), Some(other)) = (one, other) else {
            return false;
        };
        is_at_start && digests::are_equal(one, other, range)
    };
    Ok(Shared::of(old, new, is_known)?)
}
