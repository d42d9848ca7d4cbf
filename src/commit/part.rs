//! The part of the changes that a commit takes: paths, and what no pattern ignores.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::CommitOptions;
use super::error::{CommitError, Result};
use super::exclude::Exclude;
use super::workspace::Workspace;
use crate::object::{Ino, Kind};
use crate::sys::text::Text;
use crate::union::{Change, ChangeKind, LowerStack, Part, Split, Tracked};

/// The file at the top of an environment with patterns of its own, one a line.
const IGNORE_FILE: &str = ".envfsignore";
/// The size up to which it is read.
const LONGEST_IGNORE_FILE: u64 = 1 << 20;

/// What a commit does with paths that a pattern ignores.
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
    /// The patterns of the configuration.
    patterns: Option<&'a Exclude>,
    /// Those of the environment.
    own: Option<Exclude>,
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
    pub fn new(workspace: &'a Workspace, paths: &[Text], ignored: Ignored) -> Result<Chosen<'a>> {
        let mut chosen = Chosen {
            paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
            patterns: None,
            own: None,
        };
        if ignored == Ignored::LeaveOut {
            let own = own_patterns(workspace)?;
            chosen.patterns = Some(workspace.ignore()).filter(|patterns| !patterns.is_empty());
            chosen.own = Some(own).filter(|patterns| !patterns.is_empty());
        }
        Ok(chosen)
    }

    pub(super) fn of(workspace: &'a Workspace, options: &CommitOptions) -> Result<Chosen<'a>> {
        Chosen::new(workspace, &options.paths, options.ignored)
    }

    /// Returns true if every change is chosen.
    pub fn is_all(&self) -> bool {
        self.patterns.is_none() && self.own.is_none() && self.paths.iter().all(Vec::is_empty)
    }

    fn is_ignored(&self, path: &[u8]) -> bool {
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let mut all = self.patterns.into_iter().chain(&self.own);
        all.any(|patterns| patterns.covers(&parts))
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

/// Reads the patterns in the file of an environment, as it is now.
fn own_patterns(workspace: &Workspace) -> Result<Exclude> {
    let union = workspace.union();
    let found = union.lookup(Ino::ROOT, IGNORE_FILE.as_bytes())?;
    let Some((ino, attr)) = found.filter(|(_, attr)| attr.kind == Kind::File) else {
        return Ok(Exclude::default());
    };
    let invalid = |pattern: &str, reason: &str| CommitError::InvalidPattern {
        pattern: pattern.to_owned(),
        reason: format!("{reason} (in {IGNORE_FILE})"),
    };
    if attr.size > LONGEST_IGNORE_FILE {
        return Err(invalid("", "the file is larger than 1 MiB"));
    }
    let mut text = Vec::new();
    while let Some(rest) = attr
        .size
        .checked_sub(text.len() as u64)
        .filter(|rest| *rest > 0)
    {
        let part = union.read_at(ino, text.len() as u64, rest as usize)?;
        let part: &[u8] = (*part).as_ref();
        if part.is_empty() {
            break;
        }
        text.extend_from_slice(part);
    }
    let mut patterns = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii_end();
        match line.first() {
            None | Some(b'#') => {}
            Some(b'!') => {
                let shown = String::from_utf8_lossy(line);
                return Err(invalid(&shown, "patterns cannot be negated"));
            }
            Some(_) => patterns.push(PathBuf::from(OsStr::from_bytes(line))),
        }
    }
    Exclude::new(&patterns).map_err(|error| match error {
        CommitError::InvalidPattern { pattern, reason } => invalid(&pattern, &reason),
        other => other,
    })
}
