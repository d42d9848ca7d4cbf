//! The limit of the space that changes may take, for those that are kept in memory.
//!
//! A change adds what it may need to a count, which takes one atomic operation; what is overwritten
//! or removed is not subtracted. Only when the count reaches the limit are the files measured. So
//! the limit is exact, but for changes that are in progress at that moment.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use super::{Result, Union};
use crate::sys::walk;

/// Space is given in units of this size, in bytes.
const PAGE: u64 = 4096;

/// The space that changes may take, in bytes, and the directory of all that counts.
#[derive(Debug, Clone)]
pub struct SpaceLimit {
    /// The number of bytes.
    pub bytes: u64,
    /// The directory.
    pub dir: PathBuf,
}

/// A limit, and what was used of it.
#[derive(Debug)]
pub(super) struct Space {
    limit: SpaceLimit,
    /// At least what is used, but for changes in progress.
    used: AtomicU64,
    measuring: Mutex<()>,
    is_told: AtomicBool,
}

impl Space {
    pub(super) fn new(limit: SpaceLimit) -> Space {
        let used = AtomicU64::new(walk::space_used(&limit.dir));
        Space {
            limit,
            used,
            measuring: Mutex::default(),
            is_told: AtomicBool::new(false),
        }
    }

    /// Counts bytes if they fit.
    fn add(&self, bytes: u64) -> bool {
        let fits = |used: u64| {
            let sum = used.saturating_add(bytes);
            (sum <= self.limit.bytes).then_some(sum)
        };
        let added = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        added.is_ok()
    }

    fn measure(&self) -> u64 {
        let used = walk::space_used(&self.limit.dir);
        self.used.store(used, Ordering::Relaxed);
        used
    }

    /// Counts bytes, or as many of them as fit if that is at least `part`. Returns how many.
    fn charge(&self, bytes: u64, part: u64) -> Result<u64> {
        if self.add(bytes) {
            return Ok(bytes);
        }
        let measuring = self.measuring.lock();
        let _measuring = measuring.unwrap_or_else(PoisonError::into_inner);
        // Another thread may have measured meanwhile.
        if self.add(bytes) {
            return Ok(bytes);
        }
        let used = self.measure();
        let rest = self.limit.bytes.saturating_sub(used) / PAGE * PAGE;
        for fitting in [bytes, rest] {
            if fitting >= part && self.add(fitting) {
                return Ok(fitting);
            }
        }
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                used,
                limit = self.limit.bytes,
                wanted = bytes,
                "the changes have reached their limit (session.memory_limit in config.toml): writes fail with ENOSPC"
            );
        }
        Err(Errno::ENOSPC.into())
    }

    /// Returns the limit and what is free of it, in bytes.
    pub(super) fn left(&self) -> (u64, u64) {
        let total = self.limit.bytes;
        let mut used = self.used.load(Ordering::Relaxed);
        // The count may be much too high.
        if used > total / 2 {
            used = self.measure();
        }
        (total, total.saturating_sub(used))
    }
}

impl Union {
    /// Counts space that a change may need. `ENOSPC` if it is beyond the limit, if there is one.
    pub(super) fn charge(&self, bytes: u64) -> Result<()> {
        let space = self.space.as_ref();
        space.map_or(Ok(()), |space| space.charge(bytes, bytes).map(drop))
    }

    /// Returns the part of `data` that is within the limit, and counts it. `ENOSPC` if there is
    /// none.
    pub(super) fn chargeable<'a>(&self, data: &'a [u8]) -> Result<&'a [u8]> {
        let Some(space) = &self.space else {
            return Ok(data);
        };
        let bytes = space.charge(data.len() as u64, PAGE.min(data.len() as u64))?;
        Ok(data.get(..bytes as usize).unwrap_or(data))
    }

    /// Returns the limit of the space for changes and what is free of it, in bytes, if there is
    /// one.
    pub(crate) fn space_left(&self) -> Option<(u64, u64)> {
        self.space.as_ref().map(Space::left)
    }

    /// As [`charge`](Self::charge), for a new object.
    pub(super) fn charge_object(&self) -> Result<()> {
        self.charge(walk::OBJECT_SPACE)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_removed_can_be_used_again_and_a_limit_holds() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(SpaceLimit {
            bytes: 1 << 20,
            dir: dir.path().to_path_buf(),
        });
        let write = |name: &str, bytes: usize| -> Result<()> {
            space.charge(bytes as u64, bytes as u64)?;
            std::fs::write(dir.path().join(name), vec![1; bytes]).unwrap();
            Ok(())
        };
        // Overwriting needs no more space.
        for _ in 0..8 {
            write("a", 500 << 10).unwrap();
        }
        assert!(write("b", 600 << 10).unwrap_err().is_no_space());
        write("b", 300 << 10).unwrap();
        assert!(write("c", 300 << 10).unwrap_err().is_no_space());
        // A part may fit.
        let part = space.charge(300 << 10, PAGE).unwrap();
        assert!((150 << 10..300 << 10).contains(&part), "{part}");
        let (total, free) = space.left();
        assert_eq!(total, 1 << 20);
        assert!((100 << 10..300 << 10).contains(&free), "{free}");
        std::fs::remove_file(dir.path().join("a")).unwrap();
        write("c", 600 << 10).unwrap();
    }
}
