//! Content that lost its last name, until the removal is durable.
//!
//! The host file system makes a removal durable when it likes, often before the rows that say the
//! same. After a power failure, old rows would then refer to content that no longer exists, and
//! neither the old nor the new object would have the name. So content that may have been synced is
//! moved to `work`, where the next open finds it by its host inode number (`reconcile.rs`), and it
//! is removed once the rows are durable.
//!
//! Content that was created since the last sync is removed at once: nothing that is durable refers
//! to it. Programs create and remove temporary files much more often than they sync.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Result, Union};
use crate::object::Ino;
use crate::upper::{Removed, UpperDir};

/// How long removed content may wait for others, so that one sync serves all.
const DELAY: Duration = Duration::from_secs(2);
/// The number of removed files, and of their bytes, that do not wait for more.
const MANY: usize = 1024;
const LARGE: u64 = 16 << 20;
/// The most new objects that are remembered. Beyond, all count as old.
const MOST_NEW: usize = 1 << 16;

/// Removed files, each with its layer, and the bytes that they occupy.
#[derive(Debug, Default)]
struct Waiting {
    files: Vec<(Arc<UpperDir>, Removed)>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Lists {
    waiting: Waiting,
    /// When the removals are due, as far as [`Union::removals_due`] has told.
    told: Option<Duration>,
    /// Objects of the writable layer that were created since the last sync, at names that exist in
    /// no layer below, and still have just these names.
    new: HashSet<Ino>,
}

/// Removed content of all layers of a view, and what it needs to know to remove more.
#[derive(Debug, Default)]
pub(super) struct Removals(Mutex<Lists>);

impl Removals {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        // Each change of the lists is complete before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an object that was created at a name which no layer below has.
    pub(super) fn note_new(&self, ino: Ino) {
        let mut lists = self.lists();
        if lists.new.len() >= MOST_NEW {
            lists.new.clear();
        }
        lists.new.insert(ino);
    }

    /// Notes that an object is not new any more: it was removed, or got another name, which may
    /// have been that of a durable object.
    pub(super) fn forget_new(&self, ino: Ino) {
        self.lists().new.remove(&ino);
    }

    /// Notes that a sync begins, after which all objects may be durable.
    pub(super) fn note_sync(&self) {
        self.lists().new.clear();
    }

    /// Returns true if nothing durable refers to an object.
    pub(super) fn is_new(&self, ino: Ino) -> bool {
        self.lists().new.contains(&ino)
    }

    /// Adds a removed file, after its row was removed.
    pub(super) fn add(&self, upper: &Arc<UpperDir>, removed: Removed) {
        let bytes = upper.removed_bytes(removed);
        let waiting = &mut self.lists().waiting;
        waiting.bytes += bytes;
        waiting.files.push((upper.clone(), removed));
    }

    fn take(&self) -> Waiting {
        let mut lists = self.lists();
        lists.told = None;
        std::mem::take(&mut lists.waiting)
    }

    fn put_back(&self, mut taken: Waiting) {
        let waiting = &mut self.lists().waiting;
        waiting.bytes += taken.bytes;
        waiting.files.append(&mut taken.files);
    }
}

impl Union {
    /// Returns how long from now [`finish_removals`](Self::finish_removals) should run, if that
    /// has become sooner since the last call.
    pub(crate) fn removals_due(&self) -> Option<Duration> {
        let mut lists = self.removals.lists();
        let due = match lists.waiting.files.len() {
            0 => return None,
            count if count >= MANY || lists.waiting.bytes >= LARGE => Duration::ZERO,
            _ => DELAY,
        };
        if lists.told.is_some_and(|told| told <= due) {
            return None;
        }
        lists.told = Some(due);
        Some(due)
    }

    /// Makes removals durable and then removes the content, which frees its space. Returns the
    /// number of removed files.
    pub(crate) fn finish_removals(&self) -> Result<usize> {
        let waiting = self.removals.take();
        if waiting.files.is_empty() {
            return Ok(0);
        }
        self.removals.note_sync();
        if let Err(e) = self.db.sync() {
            self.removals.put_back(waiting);
            return Err(e.into());
        }
        for (upper, removed) in &waiting.files {
            if let Err(e) = upper.remove_removed(*removed) {
                self.repair_later("cannot remove the content of a removed name", &e);
            }
        }
        Ok(waiting.files.len())
    }

    /// Runs a change of the view. If it fails for lack of space although removed content still
    /// occupies some, frees that and runs it again. A change that failed has changed nothing.
    pub(super) fn with_space<T>(&self, change: impl Fn() -> Result<T>) -> Result<T> {
        match change() {
            Err(e) if e.is_no_space() => match self.finish_removals() {
                Ok(count) if count > 0 => change(),
                _ => Err(e),
            },
            done => done,
        }
    }
}
