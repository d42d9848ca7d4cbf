//! Checks the files that SQLite opens by name, before it does.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{Result, StateError};
use crate::sys::regular;

/// The last bytes of a journal that names a super-journal.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// Returns an error if the database does not exist, or if it or a file beside it is not a regular
/// file: SQLite would follow a link, and block on a FIFO.
pub(super) fn check(path: &Path) -> Result<()> {
    if !is_there(path)? {
        return Err(StateError::Missing {
            path: path.to_owned(),
        });
    }
    for suffix in ["-journal", "-wal", "-shm"] {
        let beside = super::beside(path, suffix);
        if is_there(&beside)? && suffix == "-journal" {
            check_journal(&beside)?;
        }
    }
    Ok(())
}

fn is_there(path: &Path) -> Result<bool> {
    regular::exists(path).map_err(|error| {
        if regular::as_not_regular(&error).is_some() {
            StateError::NotADatabase {
                path: path.to_owned(),
                detail: error.to_string(),
            }
        } else {
            failed(path, error)
        }
    })
}

/// Returns an error for the journal of a transaction over several databases: envfs never creates
/// one, and SQLite would remove the file that it names, wherever that is.
fn check_journal(path: &Path) -> Result<()> {
    let ends_with_magic = || -> io::Result<bool> {
        let file = regular::open(path)?;
        let Some(at) = file.metadata()?.len().checked_sub(8) else {
            return Ok(false);
        };
        let mut end = [0; 8];
        file.read_exact_at(&mut end, at)?;
        // A journal of only the magic bytes names no file.
        Ok(at > 0 && end == JOURNAL_MAGIC)
    };
    match ends_with_magic() {
        Ok(false) => Ok(()),
        Ok(true) => Err(StateError::Corrupt {
            path: path.to_owned(),
            detail: "its journal names another file".to_owned(),
        }),
        // Another process has just ended its transaction.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(failed(path, error)),
    }
}

fn failed(path: &Path, error: io::Error) -> StateError {
    StateError::Io {
        path: path.to_owned(),
        doing: "open the state database",
        error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_journal_that_names_a_file_is_refused_and_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        drop(super::super::StateDb::create(&path).unwrap());
        let precious = dir.path().join("precious");
        std::fs::write(&precious, "kept").unwrap();
        // A journal without pages that ends with the name of a file, its length and checksum.
        let name = precious.to_str().unwrap().as_bytes();
        let sum: u32 = name.iter().map(|byte| u32::from(*byte)).sum();
        let mut journal = JOURNAL_MAGIC.to_vec();
        journal.resize(512, 0);
        journal.extend_from_slice(&[0x40, 0, 0, 1]);
        journal.extend_from_slice(name);
        journal.extend_from_slice(&(name.len() as u32).to_be_bytes());
        journal.extend_from_slice(&sum.to_be_bytes());
        journal.extend_from_slice(&JOURNAL_MAGIC);
        std::fs::write(dir.path().join("state.db-journal"), journal).unwrap();
        let refused = super::super::StateDb::open(&path).unwrap_err().to_string();
        assert!(refused.contains("names another file"), "{refused}");
        assert_eq!(std::fs::read(&precious).unwrap(), b"kept");
    }
}
