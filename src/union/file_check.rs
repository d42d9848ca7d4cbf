//! Compares the rows of an upper layer with the names in its directory. Reads directories only, and
//! changes nothing.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::delta::Delta;
use super::dir_check::parent;
use super::layer::chain;
use super::stack::LowerStack;
use super::{Error, Result, Union};
use crate::object::{Ino, Kind};
use crate::state::DataPlace;
use crate::upper::{FoundKind, UpperDir};

/// The differences between the rows and the files of a layer, in the order of paths.
#[derive(Debug, Default)]
pub(super) struct FileDifferences {
    /// Content that is missing, or at whose path there is an object of another kind.
    pub(super) missing: Vec<(PathBuf, Option<FoundKind>)>,
    /// Files without a row.
    pub(super) unknown: Vec<PathBuf>,
}

impl FileDifferences {
    /// Returns true if rows and files agree.
    pub(super) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unknown.is_empty()
    }
}

/// Compares the rows of a layer with the names in its directory.
pub(super) fn compare_files(
    delta: &Delta,
    upper: &UpperDir,
    lower: &LowerStack,
) -> Result<FileDifferences> {
    let (mut names, mut work) = upper.names()?;
    let mut dirs: HashMap<Ino, Option<PathBuf>> = HashMap::new();
    let mut differences = FileDifferences::default();
    let rows = delta.inodes()?;
    let mut rows: Vec<_> = rows
        .filter(|(_, row)| row.data == DataPlace::Upper)
        .collect();
    // Neighbours have consecutive identities, and looking up the parent of one caches those of the
    // others.
    rows.sort_unstable_by_key(|(ino, row)| (row.place.as_ref().map(|(dir, _)| *dir), *ino));
    for (ino, row) in rows {
        let path = match &row.place {
            None => None,
            Some((dir, name)) => {
                if !dirs.contains_key(dir) {
                    let path = match chain(*dir, |dir| parent(delta, lower, dir)) {
                        Err(Error::Posix(Errno::ESTALE)) => None,
                        chain => {
                            let names = chain?;
                            let names = names.iter().map(|(_, name)| OsStr::from_bytes(name));
                            Some(names.collect())
                        }
                    };
                    dirs.insert(*dir, path);
                }
                let above: Option<&PathBuf> = dirs.get(dir).and_then(Option::as_ref);
                above.map(|above| above.join(OsStr::from_bytes(name)))
            }
        };
        let found = match &path {
            Some(path) => names.remove(path),
            None => work.remove(Path::new(&ino.to_string())),
        };
        if !found.is_some_and(|found| is_kind_of(row.kind, found)) {
            let detached = || PathBuf::from(format!("(object {ino})"));
            let path = path.unwrap_or_else(detached);
            differences.missing.push((path, found));
        }
    }
    differences.unknown = names.into_keys().collect();
    differences.missing.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    differences.unknown.sort_unstable();
    Ok(differences)
}

/// Returns true if a file can hold the content of an object of this kind.
pub(super) fn is_kind_of(object: Kind, found: FoundKind) -> bool {
    match object {
        Kind::Symlink => found == FoundKind::Symlink,
        _ => found == FoundKind::File,
    }
}

impl Union {
    /// Describes missing content of the writable layer.
    pub fn verify_upper(&self) -> Result<Vec<String>> {
        let state = self.read();
        let differences = compare_files(&state.delta, &state.upper, &state.lower)?;
        let missing = differences.missing.into_iter();
        Ok(missing
            .map(|(path, _)| format!("{}: its content is missing", path.display()))
            .collect())
    }
}
