//! What differs between a view and the committed one.
//!
//! This is the only place that works it out: status, diff, discarding of paths, amending an image
//! and the summary of a commit are made from it. The view is the current one, what a commit has
//! frozen, or a later revision (`revisions.rs`).
//!
//! # What counts as a difference
//!
//! Paths are compared, as git does. An object that stands where another was committed is compared
//! with that one: equal content and attributes are no change, however the object came there. A new
//! directory at the path of a committed one that is gone has that directory's past, so that a tree
//! that was removed and made again is compared name by name.
//!
//! Renames are found by identity: a committed object that has left a name and has a new one was
//! renamed. What lies below a renamed directory is compared with what lay below it at its committed
//! path, so a rename is one change however large the directory is.
//!
//! Times of directories and access times do not count. Modification times count in whole seconds,
//! as an image keeps them; a file that differs in nothing else is reported as [`Aspect::Times`].
//! Hard links that were joined are a change of attributes; links that were separated are not
//! reported unless the files differ.
//!
//! # Cost
//!
//! The cost follows the changes: [`Edits`] looks at names that an upper layer mentions, at what
//! lies below removed directories, and at the committed names of directories that were made again.
//! Content is read only where a file has new content of the same size as the one committed at its
//! path, and only up to the first difference.

mod compare;
mod content;
mod edits;
mod environments;
mod revisions;
mod summary;
mod tree;
mod view;

use crate::object::{Ino, Kind};
use crate::sys::text::as_text;

use super::{LowerStack, Result, Union};

pub(super) use compare::Draft;
pub(super) use content::kept;
pub(crate) use edits::Edits;
pub(super) use edits::is_committed_dir;
pub(crate) use environments::between_environments;
pub use revisions::Difference;
pub(crate) use revisions::between;
pub use summary::{Summary, Tally};
pub(super) use tree::{Counted, Tree};
pub(super) use view::{TopLayer, View, rows_of};

/// A name in a directory.
pub(crate) type Entry = (Ino, Box<[u8]>);

/// How a path differs from what was committed there; the weightiest aspect that applies.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// The modification time alone.
    Times,
    /// Mode, owner, extended attributes or hard links.
    Attributes,
    /// The content: data, the target of a link, a device number, or the kind of object.
    Content,
}

/// What happened to a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It differs from what was committed there.
    Modified {
        /// In what.
        aspect: Aspect,
    },
    /// It no longer exists.
    Removed,
    /// It had another path. It may have changed as well.
    Renamed {
        /// Its committed path.
        #[serde(with = "as_text")]
        from: Vec<u8>,
    },
}

impl ChangeKind {
    /// Returns the letter that stands for it in a list.
    pub fn letter(&self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Modified {
                aspect: Aspect::Times,
            } => 't',
            ChangeKind::Modified { .. } => 'M',
            ChangeKind::Removed => 'D',
            ChangeKind::Renamed { .. } => 'R',
        }
    }
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// Path below the root, without a leading slash. Any bytes.
    #[serde(with = "as_text")]
    pub path: Vec<u8>,
    /// What happened.
    #[serde(flatten)]
    pub what: ChangeKind,
    /// What it is, or was.
    #[serde(rename = "object")]
    pub kind: Kind,
    /// Size of a file's content in bytes (of a removed file, what it was); 0 of everything else.
    pub size: u64,
    /// The object.
    pub ino: Ino,
    /// The committed path, unless there was nothing. Below a renamed directory it is another one.
    #[serde(
        with = "as_text::option",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub committed: Option<Vec<u8>>,
}

impl Change {
    /// Returns whether nothing but the modification time changed.
    pub fn is_touched(&self) -> bool {
        let aspect = Aspect::Times;
        self.what == ChangeKind::Modified { aspect }
    }
}

impl Union {
    /// Lists the uncommitted changes, ordered by path.
    ///
    /// Content is compared after the lock is released, so that writers need not wait: what changes
    /// meanwhile may be reported either way.
    pub fn changes(&self) -> Result<Vec<Change>> {
        Ok(self.changes_and_base()?.0)
    }

    /// Lists the uncommitted changes like [`Union::changes`], with the committed view.
    pub(crate) fn changes_and_base(&self) -> Result<(Vec<Change>, std::sync::Arc<LowerStack>)> {
        let (draft, base) = self.draft()?;
        Ok((draft.resolve(self, &base)?, base))
    }

    /// Lists the changes of the writable layer alone, ordered by path, with the view below it.
    pub(crate) fn top_changes(&self) -> Result<(Vec<Change>, std::sync::Arc<LowerStack>)> {
        let (draft, below) = {
            let state = self.read();
            let below = state.lower.clone();
            (Draft::of(&TopLayer(&state), &below)?, below)
        };
        Ok((draft.resolve(self, &below)?, below))
    }

    /// Returns true if there are uncommitted changes.
    pub fn has_changes(&self) -> Result<bool> {
        let (draft, base) = self.draft()?;
        draft.has_any(self, &base)
    }

    /// Returns true if the content of a file is in an upper layer, and not only in an image.
    pub(crate) fn has_own_content(&self, ino: Ino) -> Result<bool> {
        View::may_have_other_content(&*self.read(), ino, ino)
    }

    fn draft(&self) -> Result<(Draft, std::sync::Arc<LowerStack>)> {
        let state = self.read();
        let base = state.lower.committed();
        Ok((Draft::of(&*state, &base)?, base))
    }
}

/// Returns what the frozen layers of a stack change, ordered by path.
pub(crate) fn frozen_changes(stack: &std::sync::Arc<LowerStack>) -> Result<Vec<Change>> {
    let base = stack.committed();
    Draft::of(&**stack, &base)?.resolve(&**stack, &base)
}

/// Returns true if a path is one of `paths`, or below one. The empty path is the root.
pub(crate) fn is_among(path: &[u8], paths: &[Vec<u8>]) -> bool {
    paths.iter().any(|p| {
        p.is_empty() || path == &p[..] || (path.starts_with(p) && path.get(p.len()) == Some(&b'/'))
    })
}

pub(super) fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(above.len() + 1 + name.len());
    if !above.is_empty() {
        path.extend_from_slice(above);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
