//! Keeping the redo log, and giving its records to the database.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use rusqlite::Connection;

use super::redo::{Batch, Redo};
use super::rows::apply_one;
use super::{LayerId, Result, RowChange, StateDb, StateError};
use crate::fault;
use crate::sys::durable::sync_data;

const DOING: &str = "give the records of the redo log to the database";

/// Bytes of records after which a thread gives them to the database: some thousand operations, so that the
/// syncs of a transaction are seldom, and the rest is soon given when a commit wants the rows.
const SETTLE_AT: usize = 1 << 20;
/// Bytes of records after which whoever appends waits for the database: it may be failing.
const WAIT_AT: usize = 16 << 20;
/// Size after which the file begins anew.
const BEGIN_ANEW_AT: u64 = 8 << 20;

/// The redo log of an open environment.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    redo: Mutex<Redo>,
    /// Number of the last record that is known to be durable.
    synced: AtomicU64,
    /// Wakes the thread that settles. It ends when this is dropped.
    wake: SyncSender<()>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Redo> {
        // Between two steps of a method nothing is half done but the scratch buffer.
        self.redo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StateError + use<> {
        let path = self.path.clone();
        move |source| StateError::Io {
            path,
            doing,
            source,
        }
    }
}

impl StateDb {
    /// From now on changes of rows go to the redo log first; the records that an earlier process
    /// left there are applied. The caller holds the environment's lock: there is one log keeper.
    ///
    /// Measured on two slow cores with ext4: a change costs a few microseconds instead of 26.
    pub fn keep_redo_log(self: &Arc<Self>) -> Result<()> {
        if self.mode == super::JournalMode::Memory || self.redo.get().is_some() {
            return Ok(());
        }
        let path = self.redo_path();
        let left_over = path.symlink_metadata().is_ok();
        self.left_over.store(left_over, Ordering::Release);
        let applied = self.last_redo()?;
        let failed = |source| StateError::Io {
            path: path.clone(),
            doing: "open the redo log",
            source,
        };
        let (mut redo, left) = match Redo::open(&path, applied) {
            Err(e) if !left_over && failed_for_room(&e) => {
                // Changes are transactions then, which have room in the journal.
                tracing::warn!("there is no room for the redo log: changes take longer");
                // What could not be made whole must not be there when it is opened next.
                std::fs::remove_file(&path).unwrap_or_default();
                return Ok(());
            }
            opened => opened.map_err(failed)?,
        };
        if !left.is_empty() {
            let conn = self.lock();
            self.give(&conn, &left)?;
            drop(conn);
            tracing::info!(records = left.last() - applied, "applied the redo log");
        }
        redo.begin_anew().map_err(failed)?;

        let (wake, woken) = sync_channel(1);
        let log = Log {
            path,
            synced: AtomicU64::new(redo.last()),
            redo: Mutex::new(redo),
            wake,
        };
        if self.redo.set(log).is_err() {
            return Err(self.conflict("open the redo log", "it is open already"));
        }
        let db = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name(String::from("settle"))
            .spawn(move || {
                while woken.recv().is_ok() {
                    let Some(db) = db.upgrade() else { return };
                    // The records are safe in the file; who needs the rows gets the error. After a panic
                    // the transaction is rolled back and the records are pending again.
                    match catch_unwind(AssertUnwindSafe(|| db.settle())) {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::error!(%error, "the database takes no records of the redo log");
                        }
                        Err(_) => tracing::error!(
                            "a fault of envfs kept records of the redo log from the database"
                        ),
                    }
                }
            });
        spawned.map(drop).map_err(|source| StateError::Io {
            path: self.path.clone(),
            doing: "start the thread that settles the redo log",
            source,
        })
    }

    /// Appends a change of rows to the redo log. Returns false if none is kept. After an error the
    /// change is not in it: nobody will apply it.
    pub(super) fn log(&self, layer: LayerId, changes: &[RowChange<'_>]) -> Result<bool> {
        let Some(log) = self.redo.get() else {
            return Ok(false);
        };
        self.unless_in_doubt()?;
        // Before the record is there: what fails after that has happened all the same.
        let is_waiting = log.lock().pending() >= WAIT_AT;
        if is_waiting {
            self.settle()?;
        }
        let append = || {
            let mut redo = log.lock();
            redo.append(layer, changes).map(|()| redo.pending())
        };
        let pending = match append() {
            Err(e) if failed_for_room(&e) => {
                // The file may be long although the database has all of it.
                self.begin_anew(&self.lock(), log)?;
                append()
            }
            appended => appended,
        };
        let pending = pending.map_err(log.failed("write rows of a layer to the redo log"))?;
        if pending >= SETTLE_AT {
            // Full: it is awake already. Closed: it could not be started, and WAIT_AT does its work.
            log.wake.try_send(()).unwrap_or_default();
        }
        Ok(true)
    }

    /// Gives all records of the redo log to the database.
    pub(super) fn settle(&self) -> Result<()> {
        let conn = self.lock();
        self.settle_in(&conn)
    }

    pub(super) fn settle_in(&self, conn: &Connection) -> Result<()> {
        let Some(log) = self.redo.get() else {
            return Ok(());
        };
        let batch = log.lock().take();
        self.give_or_put_back(conn, batch, |batch| log.lock().put_back(batch))?;
        if log.lock().len() < BEGIN_ANEW_AT {
            return Ok(());
        }
        // Now with the file held, so that no record comes after those the database has.
        self.begin_anew(conn, log)
    }

    /// Removes the redo log, at a clean end: the database has everything, and nothing can be changed any
    /// more.
    pub fn remove_redo_log(&self) -> Result<()> {
        let Some(log) = self.redo.get() else {
            return Ok(());
        };
        let conn = self.lock();
        self.begin_anew(&conn, log)?;
        let removed = log.lock().remove(&log.path);
        removed.map_err(log.failed("remove the redo log"))
    }

    /// Returns true if an earlier process, or one that is at work, left a redo log.
    pub(super) fn has_left_over(&self) -> bool {
        match self.redo.get() {
            Some(_) => self.left_over.load(Ordering::Acquire),
            None if self.mode == super::JournalMode::Memory => false,
            None => self.redo_path().symlink_metadata().is_ok(),
        }
    }

    fn redo_path(&self) -> PathBuf {
        super::beside(&self.path, "-redo")
    }

    fn begin_anew(&self, conn: &Connection, log: &Log) -> Result<()> {
        let mut redo = log.lock();
        let batch = redo.take();
        self.give_or_put_back(conn, batch, |batch| redo.put_back(batch))?;
        let last = redo.last();
        log.synced.fetch_max(last, Ordering::AcqRel);
        redo.begin_anew()
            .map_err(log.failed("begin the redo log anew"))
    }

    fn give_or_put_back(
        &self,
        conn: &Connection,
        batch: Batch,
        put_back: impl FnOnce(Batch),
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        // A panic puts them back, too: the file has them, but only what is pending is given.
        let given = catch_unwind(AssertUnwindSafe(|| self.give(conn, &batch)));
        if !matches!(given, Ok(Ok(()))) {
            put_back(batch);
        }
        given.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Applies records, in one transaction with the number of the last.
    pub(super) fn give(&self, conn: &Connection, batch: &Batch) -> Result<()> {
        self.transaction(conn, DOING, |conn| {
            let known = self.uppers_in(conn, DOING)?;
            let (mut highest, mut last) = (0, None);
            for record in batch.records() {
                let (number, layer, changes) = record.map_err(|e| StateError::Corrupt {
                    path: self.path.clone(),
                    detail: format!("a record of the redo log cannot be read: {e}"),
                })?;
                last = Some(number);
                for change in &changes {
                    if let RowChange::PutInode(ino, _) = change {
                        highest = highest.max(ino.0);
                    }
                    // One that was discarded and collected meanwhile needs no rows.
                    if known.contains(&layer) {
                        apply_one(conn, LayerId(layer), change).map_err(|e| self.sql(DOING, e))?;
                    }
                }
            }
            // Else what could not be read would count as given, and be lost.
            if last != Some(batch.last()) {
                return Err(StateError::Corrupt {
                    path: self.path.clone(),
                    detail: format!(
                        "records of the redo log end with number {last:?} instead of {}",
                        batch.last()
                    ),
                });
            }
            fault::panic_once("panic.settle");
            // After power loss the counter may be older than the records.
            self.raise(conn, "ino", highest.saturating_add(1), DOING)?;
            self.set_last_redo_in(conn, batch.last(), DOING)
        })
    }

    /// Makes the records of the redo log durable.
    pub(super) fn sync_log(&self) -> Result<()> {
        let Some(log) = self.redo.get() else {
            return Ok(());
        };
        let (file, last) = {
            let redo = log.lock();
            (redo.file(), redo.last())
        };
        if log.synced.load(Ordering::Acquire) < last {
            sync_data(&*file).map_err(log.failed("sync the redo log"))?;
            log.synced.fetch_max(last, Ordering::AcqRel);
        }
        Ok(())
    }
}

fn failed_for_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
