//! The part of the changes that a commit takes: paths, and what no pattern ignores.

use std::sync::Arc;

use super::CommitOptions;
use super::error::Result;
use super::exclude::Exclude;
use super::workspace::Workspace;
use crate::sys::text::Text;
use crate::union::{Change, ChangeKind, LowerStack, Part, Split, Tracked};

/// What a commit does with paths that a pattern of the configuration ignores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ignored {
    /// They are committed as all others.
    #[default]
    Include,
    /// They stay uncommitted.
    LeaveOut,
}

/// Which changes are chosen.
#[derive(Debug)]
pub struct Chosen<'a> {
    paths: Vec<Vec<u8>>,
    patterns: Option<&'a Exclude>,
}

/// Frozen uppers: those that a commit takes, and those above them that stay.
#[derive(Debug)]
pub(super) struct Taken {
    /// What is committed: uppers over the current image.
    pub(super) view: Arc<LowerStack>,
    /// The number of frozen uppers above those, which stay.
    pub(super) rest: usize,
    /// The stack before it was split.
    pub(super) old: Arc<LowerStack>,
}

impl<'a> Chosen<'a> {
    /// Chooses paths (relative to the prefix; none for all) of a workspace.
    pub fn new(workspace: &'a Workspace, paths: &[Text], ignored: Ignored) -> Chosen<'a> {
        let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        let patterns = workspace.ignore();
        Chosen {
            paths,
            patterns: (ignored == Ignored::LeaveOut && !patterns.is_empty()).then_some(patterns),
        }
    }

    pub(super) fn of(workspace: &'a Workspace, options: &CommitOptions) -> Chosen<'a> {
        Chosen::new(workspace, &options.paths, options.ignored)
    }

    /// Returns true if every change is chosen.
    pub fn is_all(&self) -> bool {
        self.patterns.is_none() && self.paths.iter().all(Vec::is_empty)
    }

    fn is_ignored(&self, path: &[u8]) -> bool {
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        self.patterns
            .is_some_and(|patterns| patterns.covers(&parts))
    }

    fn with<T>(&self, f: impl FnOnce(Part<'_>) -> T) -> T {
        let is_ignored = |path: &[u8]| self.is_ignored(path);
        f(Part {
            paths: &self.paths,
            is_ignored: &is_ignored,
        })
    }

    /// Returns true if a change is chosen.
    pub fn contains(&self, change: &Change) -> bool {
        self.with(|part| match &change.what {
            ChangeKind::Added => part.contains(&change.path, Tracked::New),
            ChangeKind::Renamed { from } => {
                part.contains(&change.path, Tracked::Committed)
                    || part.contains(from, Tracked::Committed)
            }
            _ => part.contains(&change.path, Tracked::Committed),
        })
    }

    /// Returns true if any change is chosen.
    pub(super) fn has_changes(&self, workspace: &Workspace) -> Result<bool> {
        let union = workspace.union();
        if self.is_all() {
            return Ok(union.has_changes()?);
        }
        Ok(union.changes()?.iter().any(|change| self.contains(change)))
    }

    /// Separates the chosen changes in the frozen uppers from the others.
    pub(super) fn take(&self, workspace: &Workspace) -> Result<Taken> {
        let union = workspace.union();
        let old = union.lower();
        let (view, rest) = match self.is_all() {
            true => (old.clone(), 0),
            false => match self.with(|part| union.split(part))? {
                Split::All => (old.clone(), 0),
                Split::Nothing => (old.committed(), old.frozen().len()),
                Split::Done(selected) => (selected, 1),
            },
        };
        Ok(Taken { view, rest, old })
    }
}
