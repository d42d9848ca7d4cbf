//! Changes by package: packages that were installed, removed, upgraded or edited by hand.
//!
//! Package managers record what they install: conda in `conda-meta/*.json`, Python's installers in
//! `*.dist-info` and `*.egg-info`, Node's in `node_modules/**/package.json`. `differences` reads
//! these records before and after a list of changes, and determines which changed files belong to
//! the changed packages.
//!
//! # Rules
//!
//! - A record is read only if it is among the changes. An upgrade is the removal and installation
//!   of the same name at the same place.
//! - A file belongs to a package if the package's record lists it. A package that conda installed
//!   counts as conda's, although it also has a `*.dist-info`.
//! - A changed file of a package that did not change itself is an edit of that package
//!   (`owners.rs`). If the file now is as recorded, the package was restored.
//!
//! # Cost
//!
//! The cost follows the changes. The records of unchanged packages are read only for committed
//! files that were changed or removed, likely ones first.

mod inventory;
mod metadata;
mod owners;
mod report;
#[cfg(test)]
mod tests;
mod touched;
mod tree;
mod unit;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

use crate::object::Kind;
use crate::sys::text::Text;
use crate::union::{self, Change, Summary, Tally};

pub(crate) use inventory::{Inventory, inventory};
pub(crate) use report::differences;
pub(crate) use tree::Files;

/// The largest record in the history, in bytes.
const MAX_RECORD: usize = 64 << 10;

/// The kind of installer that records packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ecosystem {
    /// conda, mamba, pixi.
    Conda,
    /// pip, uv and other installers of Python packages.
    Python,
    /// npm and other installers of Node packages.
    Node,
}

impl Ecosystem {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Ecosystem::Conda => "conda",
            Ecosystem::Python => "python",
            Ecosystem::Node => "node",
        }
    }
}

/// A package at a place of an environment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name, as in its metadata.
    pub name: String,
    /// Version.
    pub version: String,
    /// The build of a conda package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// The kind of installer that records it.
    pub ecosystem: Ecosystem,
    /// The directory that it is installed into: of conda, the environment.
    pub location: Text,
}

/// A package of which another version or build was installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Upgraded {
    /// The package as it is now.
    #[serde(flatten)]
    pub package: Package,
    /// The version before.
    pub from: String,
    /// The build before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_build: Option<String>,
}

/// A package of which files were changed without its installer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Edited {
    /// The package.
    #[serde(flatten)]
    pub package: Package,
    /// Number of files that are not as the package recorded them.
    pub edited: u64,
    /// Number of its files that were removed.
    pub removed: u64,
    /// Number of files that were not as recorded, and now are.
    pub restored: u64,
}

/// The changes of packages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PackageChanges {
    /// New packages.
    pub installed: Vec<Package>,
    /// Packages that are gone.
    pub removed: Vec<Package>,
    /// Packages with another version or build.
    pub upgraded: Vec<Upgraded>,
    /// Packages of the same version with other files.
    pub reinstalled: Vec<Package>,
    /// Packages of which files were changed by hand.
    pub edited: Vec<Edited>,
    /// Number of packages that this list omits for its size.
    #[serde(skip_serializing_if = "is_zero")]
    pub omitted: u64,
    /// Changed bytecode of Python that belongs to no package above.
    pub bytecode: Tally,
    /// Changes that belong to no package above.
    pub other: Summary,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl PackageChanges {
    /// Returns whether no package changed.
    pub fn is_empty(&self) -> bool {
        self.count() == 0 && self.omitted == 0
    }

    /// Counts the changes that belong to no package.
    fn count_rest(&mut self, changes: &[OwnedChange]) {
        let of = |wanted: Owner| {
            let chosen = changes.iter().filter(move |one| one.owner == wanted);
            chosen.map(|one| &one.change)
        };
        self.other = Summary::of(of(Owner::Other));
        self.bytecode = Tally::default();
        for change in of(Owner::Bytecode) {
            if change.kind != Kind::Directory {
                self.bytecode.add(change.size);
            }
        }
    }

    /// Returns the number of packages.
    fn count(&self) -> usize {
        self.installed.len()
            + self.removed.len()
            + self.upgraded.len()
            + self.reinstalled.len()
            + self.edited.len()
    }

    /// Returns the record of this for the history, if any package changed. Its size is limited.
    pub(crate) fn record(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut limit = self.count();
        loop {
            let text = serde_json::to_string(&self.clone().at_most(limit)).ok()?;
            if text.len() <= MAX_RECORD {
                return Some(text);
            }
            limit /= 2;
        }
    }

    /// Reads a record of the history. A damaged one counts as none.
    pub(crate) fn from_record(text: &str) -> Option<PackageChanges> {
        serde_json::from_str(text).ok()
    }

    /// Omits packages beyond a number of them.
    #[must_use]
    fn at_most(mut self, limit: usize) -> PackageChanges {
        let before = self.count();
        let mut left = limit;
        let mut cut = |len: usize| {
            let kept = len.min(left);
            left -= kept;
            kept
        };
        self.upgraded.truncate(cut(self.upgraded.len()));
        self.installed.truncate(cut(self.installed.len()));
        self.removed.truncate(cut(self.removed.len()));
        self.reinstalled.truncate(cut(self.reinstalled.len()));
        self.edited.truncate(cut(self.edited.len()));
        self.omitted += (before - self.count()) as u64;
        self
    }
}

/// What a change belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// No package that changed.
    #[default]
    Other,
    /// Bytecode of Python.
    Bytecode,
    /// The package with this name.
    Package(String),
}

impl Owner {
    fn is_other(&self) -> bool {
        *self == Owner::Other
    }
}

/// A change with what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedChange {
    /// The change.
    #[serde(flatten)]
    pub change: Change,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Owner::is_other")]
    pub owner: Owner,
}

/// Changes of files, and of the packages that they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// The packages.
    pub packages: PackageChanges,
    /// The changes, ordered by path.
    pub changes: Vec<OwnedChange>,
}

impl Differences {
    /// Keeps the changes at and below some paths, and the packages that they belong to. No paths
    /// select everything.
    #[must_use]
    pub(crate) fn among(self, paths: &[Vec<u8>]) -> Differences {
        match paths {
            [] => self,
            _ => self.only(|change| union::is_among(&change.path, paths)),
        }
    }

    /// Keeps some changes, and the packages that they belong to.
    #[must_use]
    pub(crate) fn only(mut self, keep: impl Fn(&Change) -> bool) -> Differences {
        self.changes.retain(|one| keep(&one.change));
        let named: HashSet<&str> = self
            .changes
            .iter()
            .filter_map(|one| match &one.owner {
                Owner::Package(name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let is_named = |package: &Package| named.contains(package.name.as_str());
        let packages = &mut self.packages;
        packages.installed.retain(is_named);
        packages.removed.retain(is_named);
        packages.reinstalled.retain(is_named);
        packages.upgraded.retain(|one| is_named(&one.package));
        packages.edited.retain(|one| is_named(&one.package));
        packages.count_rest(&self.changes);
        self
    }
}

fn text(path: &[u8]) -> Text {
    Text::from(OsStr::from_bytes(path))
}

/// Splits a path into the directory and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    match above {
        b"" => name.to_vec(),
        _ => [above, b"/", name].concat(),
    }
}

/// Resolves `.` and `..` in a path. `None` if it leads above the root.
fn normal(path: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            _ => names.push(name),
        }
    }
    (!names.is_empty()).then(|| names.join(&b'/'))
}
