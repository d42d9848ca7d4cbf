//! Opening a large upper layer without reading all of it.
//!
//! Opening a layer compares its rows with its files, because another program may have changed the
//! files. For a large layer the comparison is done at a clean end instead, and marks of the
//! directories are stored with the rows. If the marks are the same at the next open, no name has
//! changed since the comparison, and rows are read on demand ([`stored`](super::stored)).

use std::sync::Arc;

use super::delta::Delta;
use super::file_check::compare_files;
use super::paths::Paths;
use super::stack::LowerStack;
use super::stored::Stored;
use super::{Result, Union, dir_check};
use crate::fault;
use crate::state::{LayerId, StateDb};
use crate::upper::{Marks, UpperDir};

/// A layer with at most this many rows is read and compared at every open: that takes some 10 ms.
const FEW: usize = 4096;
/// Most bytes of marks that are stored: of some 100,000 directories.
const MOST_BYTES: usize = 8 << 20;

fn few() -> usize {
    match fault::is_enabled("rows.stored") {
        true => 0,
        false => FEW,
    }
}

/// Opens a layer that has not changed since it was compared at a clean end. Returns `None` if it
/// has, or may have.
pub(super) fn open(
    db: &Arc<StateDb>,
    paths: &Paths,
    layer: LayerId,
    below: &Arc<LowerStack>,
) -> Result<Option<(Delta, UpperDir)>> {
    let Some(marks) = marks_of(db, layer)? else {
        return Ok(None);
    };
    // A failure is reported by the ordinary way to open it.
    let Ok(upper) = UpperDir::open(&paths.layer(layer), &paths.strays) else {
        return Ok(None);
    };
    if !upper.is_as_marked(&marks) {
        return Ok(None);
    }
    let stored = Stored::open(db, layer, below.clone())?;
    Ok(stored.map(|stored| (Delta::from_stored(stored, dir_check::check), upper)))
}

/// Returns the stored marks of a layer. Damaged ones count as none.
fn marks_of(db: &StateDb, layer: LayerId) -> Result<Option<Marks>> {
    let bytes = db.checked_directories(layer)?;
    Ok(bytes.and_then(|bytes| postcard::from_bytes(&bytes).ok()))
}

impl Union {
    /// Compares rows and files of a large writable layer and stores its marks, at a clean end after
    /// everything was synced. An error only means that the next open compares them.
    pub(super) fn note_checked(&self) {
        let layer = self.read().layer;
        let noted = self.marks_to_note().and_then(|marks| match marks {
            Noted::AsBefore => Ok(()),
            Noted::None if self.db.checked_directories(layer)?.is_none() => Ok(()),
            Noted::None => Ok(self.db.set_checked_directories(layer, None)?),
            Noted::Marks(bytes) => Ok(self.db.set_checked_directories(layer, Some(&bytes))?),
        });
        if let Err(error) = noted {
            tracing::debug!(%error, "the next open compares rows and files");
        }
    }

    fn marks_to_note(&self) -> Result<Noted> {
        let state = self.read();
        // Where the store is on a network file system, the times of directories may be cached or
        // coarse.
        if self.syncs_singly || state.has_frozen() {
            return Ok(Noted::None);
        }
        if let Some(before) = marks_of(&self.db, state.layer)?
            && state.upper.is_as_marked(&before)
        {
            return Ok(Noted::AsBefore);
        }
        if state.delta.is_loaded() && state.delta.rows()? <= few() {
            return Ok(Noted::None);
        }
        // Marks first: names that change after this are noticed at the next open.
        let Some(marks) = state.upper.marks()? else {
            return Ok(Noted::None);
        };
        if !compare_files(&state.delta, &state.upper, &state.lower)?.is_empty() {
            return Ok(Noted::None);
        }
        Ok(match postcard::to_allocvec(&marks) {
            Ok(bytes) if bytes.len() <= MOST_BYTES => Noted::Marks(bytes),
            _ => Noted::None,
        })
    }
}

/// What is to be stored.
enum Noted {
    AsBefore,
    None,
    Marks(Vec<u8>),
}
