//! Moves an environment to another prefix: finds the files that contain the old one, and computes
//! what they must contain.
//!
//! [`plan`] reads a tree and changes nothing; its caller applies the [`Plan`]. The rules are those
//! of conda, pip and conda-pack, and need no package cache: `docs/relocation.md` lists them. All
//! files are input that is not trusted.

mod binary;
mod conda;
mod contents;
mod detect;
mod foreign;
mod items;
mod planner;
mod record;
mod search;
mod shebang;
mod splice;
#[cfg(test)]
mod tests;
mod text;
mod tree;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::progress::Progress;
use crate::sys::text::{Text, as_text, quoted};

pub use foreign::{Foreign, ForeignKind, foreign};
pub use splice::{Splice, apply};
pub use tree::{DirTree, Entry, Node, Tree};

/// What to move.
#[derive(Debug, Clone)]
pub struct Request {
    /// Paths that the environment had, as far as the caller knows. More are found in its files.
    pub old: Vec<PathBuf>,
    /// The path that it will have.
    pub new: PathBuf,
    /// Which trees are searched.
    pub scope: Scope,
}

/// Which trees are searched for prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those that conda, a tool for virtual environments or an installer has made. In other trees
    /// a path is data.
    Recognised,
    /// All.
    All,
}

/// What must be changed.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The changes. Each object is changed once.
    pub edits: Vec<Edit>,
    /// Files that must be changed and cannot be.
    pub impossible: Vec<Impossible>,
    /// Binary files of unknown formats that contain an old prefix, and stay as they are.
    pub left: Vec<Vec<u8>>,
    /// The prefixes that were searched for.
    pub prefixes: Vec<Vec<u8>>,
}

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The object.
    pub node: Node,
    /// What to do with it.
    pub action: Action,
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Replace parts of a file.
    Rewrite {
        /// What contained the prefix.
        kind: EditKind,
        /// The parts.
        splices: Vec<Splice>,
    },
    /// Replace a symbolic link.
    Retarget(Vec<u8>),
    /// Remove the compiled form of a Python module that is rewritten.
    Remove,
}

/// What contains a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditKind {
    /// The first line of a script, and possibly more of it.
    Script,
    /// A text file.
    Text,
    /// A binary file.
    Binary,
    /// A list of digests: `RECORD`, `conda-meta/*.json`.
    Digests,
}

/// A file that must be changed and cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impossible {
    /// Its path.
    #[serde(with = "as_text")]
    pub path: Vec<u8>,
    /// The reason.
    pub why: Why,
}

/// Why a file cannot be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// A string is longer than its place, by this number of bytes.
    TooLong(usize),
    /// The file is larger than can be handled.
    TooLarge,
}

impl std::fmt::Display for Impossible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = quoted(Text::from(Path::new(std::ffi::OsStr::from_bytes(&self.path))).0);
        match self.why {
            Why::TooLong(bytes) => {
                let bytes = match bytes {
                    1 => "1 byte".to_owned(),
                    bytes => format!("{bytes} bytes"),
                };
                write!(
                    f,
                    "{path}: the new prefix is {bytes} longer than the space for it"
                )
            }
            Why::TooLarge => write!(f, "{path}: too large"),
        }
    }
}

/// Counts of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Scripts whose first line is rewritten.
    pub scripts: u64,
    /// Other text files.
    pub texts: u64,
    /// Binary files.
    pub binaries: u64,
    /// Lists of digests that contained no prefix.
    pub digests: u64,
    /// Symbolic links.
    pub links: u64,
    /// Compiled Python modules that are removed.
    pub bytecode: u64,
}

impl Plan {
    /// Counts the changes by kind.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for edit in &self.edits {
            *match &edit.action {
                Action::Rewrite { kind, .. } => match kind {
                    EditKind::Script => &mut counts.scripts,
                    EditKind::Text => &mut counts.texts,
                    EditKind::Binary => &mut counts.binaries,
                    EditKind::Digests => &mut counts.digests,
                },
                Action::Retarget(_) => &mut counts.links,
                Action::Remove => &mut counts.bytecode,
            } += 1;
        }
        counts
    }
}

/// Why a tree cannot be searched, or not moved at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}", path = quoted(Text::from(path.as_path()).0))]
    Read {
        /// The file, relative to the root.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The new prefix cannot be written into files.
    #[error("cannot write the prefix {path} into files: it contains {what}", path = quoted(path.as_os_str()))]
    Prefix {
        /// The new prefix.
        path: PathBuf,
        /// What it contains.
        what: String,
    },
    /// The user cancelled the operation.
    #[error("cancelled; nothing was changed")]
    Cancelled,
}

/// Computes what must be changed so that the environment works at another path.
pub fn plan(tree: &dyn Tree, request: &Request, progress: &dyn Progress) -> Result<Plan, Error> {
    planner::plan(tree, request, progress)
}
