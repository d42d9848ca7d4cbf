//! Keeps the redo log, and applies its records to the database.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use rusqlite::Connection;

use super::redo::{Batch, Redo};
use super::rows::queries::apply_one;
use super::{LayerId, Result, RowChange, StateDb, StateError};
use crate::fault;
use crate::sys::durable::sync_data;

const DOING: &str = "apply the redo log to the database";

/// Bytes of records after which a thread applies them: some thousand operations, so that
/// transactions with their syncs are rare, and a commit that needs the rows waits little for the
/// rest.
const CHECKPOINT_AT: usize = 1 << 20;
/// Bytes of records after which an append waits for the database, which may be failing.
const WAIT_AT: usize = 16 << 20;
/// Size of the file after which it is emptied.
const RESET_AT: u64 = 8 << 20;

/// The redo log of an open environment.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    redo: Mutex<Redo>,
    /// Number of the last record that is known to be durable.
    synced: AtomicU64,
    /// Wakes the thread that checkpoints. It ends when this is dropped.
    wake: SyncSender<()>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Redo> {
        // A panic inside a method can leave nothing inconsistent but the scratch buffer.
        self.redo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StateError + use<> {
        let path = self.path.clone();
        move |error| StateError::Io { path, doing, error }
    }
}

impl StateDb {
    /// Opens the redo log, so that changes of rows go there first, and applies the records that an
    /// earlier process left in it. The caller holds the environment's lock: only one process keeps
    /// the log.
    ///
    /// Measured on two slow cores with ext4: a change costs a few microseconds instead of 26.
    pub fn keep_redo_log(self: &Arc<Self>) -> Result<()> {
        if self.mode == super::JournalMode::Memory || self.redo.get().is_some() {
            return Ok(());
        }
        let path = self.redo_path();
        let has_leftover = path.symlink_metadata().is_ok();
        self.has_leftover.store(has_leftover, Ordering::Release);
        let applied = self.last_redo()?;
        let failed = |error| StateError::Io {
            path: path.clone(),
            doing: "open the redo log",
            error,
        };
        let (mut redo, left) = match Redo::open(&path, applied) {
            Err(e) if !has_leftover && is_out_of_space(&e) => {
                // Changes are then transactions, for which the journal has space.
                tracing::warn!("no space for the redo log: changes take longer");
                // An incomplete file must not be there at the next open.
                std::fs::remove_file(&path).unwrap_or_default();
                return Ok(());
            }
            opened => opened.map_err(failed)?,
        };
        if !left.is_empty() {
            let conn = self.lock();
            self.apply_redo(&conn, &left)?;
            drop(conn);
            tracing::info!(records = left.last() - applied, "applied the redo log");
        }
        redo.reset().map_err(failed)?;

        let (wake, woken) = sync_channel(1);
        let log = Log {
            path,
            synced: AtomicU64::new(redo.last()),
            redo: Mutex::new(redo),
            wake,
        };
        if self.redo.set(log).is_err() {
            return Err(self.conflict("open the redo log", "it is already open"));
        }
        let db = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name(String::from("checkpoint"))
            .spawn(move || {
                while woken.recv().is_ok() {
                    let Some(db) = db.upgrade() else { return };
                    // The records are safe in the file, and a caller that needs the rows gets the
                    // error. After a panic the transaction is rolled back and the records are
                    // pending again.
                    match catch_unwind(AssertUnwindSafe(|| db.checkpoint())) {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::error!(%error, "the redo log could not be applied to the database");
                        }
                        Err(_) => tracing::error!(
                            "an internal error prevented applying the redo log to the database"
                        ),
                    }
                }
            });
        spawned.map(drop).map_err(|error| StateError::Io {
            path: self.path.clone(),
            doing: "start the thread that applies the redo log",
            error,
        })
    }

    /// Appends a change of rows to the redo log. Returns false if no log is kept. After an error
    /// the log does not contain the change.
    pub(super) fn log(&self, layer: LayerId, changes: &[RowChange<'_>]) -> Result<bool> {
        let Some(log) = self.redo.get() else {
            return Ok(false);
        };
        self.refuse_in_doubt()?;
        // Before the append: an error after it would report a change that has been made.
        let is_waiting = log.lock().pending() >= WAIT_AT;
        if is_waiting {
            self.checkpoint()?;
        }
        let append = || {
            let mut redo = log.lock();
            redo.append(layer, changes).map(|()| redo.pending())
        };
        let pending = match append() {
            Err(e) if is_out_of_space(&e) => {
                // The database may already have most of the file.
                self.reset(&self.lock(), log)?;
                append()
            }
            appended => appended,
        };
        let pending = pending.map_err(log.failed("write rows of a layer to the redo log"))?;
        if pending >= CHECKPOINT_AT {
            // Full: the thread is already awake. Closed: it could not be started, and WAIT_AT
            // bounds the log.
            log.wake.try_send(()).unwrap_or_default();
        }
        Ok(true)
    }

    /// Applies all records of the redo log to the database.
    pub(super) fn checkpoint(&self) -> Result<()> {
        let conn = self.lock();
        self.checkpoint_in(&conn)
    }

    pub(super) fn checkpoint_in(&self, conn: &Connection) -> Result<()> {
        let Some(log) = self.redo.get() else {
            return Ok(());
        };
        let batch = log.lock().take();
        self.apply_or_put_back(conn, batch, |batch| log.lock().put_back(batch))?;
        if log.lock().len() < RESET_AT {
            return Ok(());
        }
        // Apply the rest with the file locked, so that nothing is appended before it is emptied.
        self.reset(conn, log)
    }

    /// Applies the redo log and removes it when the environment is closed. Nothing can be changed
    /// after this.
    pub fn remove_redo_log(&self) -> Result<()> {
        let Some(log) = self.redo.get() else {
            return Ok(());
        };
        let conn = self.lock();
        self.reset(&conn, log)?;
        let removed = log.lock().remove(&log.path);
        removed.map_err(log.failed("remove the redo log"))
    }

    /// Returns true if a redo log of another process was found, whether it still runs or not.
    pub(super) fn has_leftover_log(&self) -> bool {
        match self.redo.get() {
            Some(_) => self.has_leftover.load(Ordering::Acquire),
            None if self.mode == super::JournalMode::Memory => false,
            None => self.redo_path().symlink_metadata().is_ok(),
        }
    }

    fn redo_path(&self) -> PathBuf {
        super::beside(&self.path, "-redo")
    }

    fn reset(&self, conn: &Connection, log: &Log) -> Result<()> {
        let mut redo = log.lock();
        let batch = redo.take();
        self.apply_or_put_back(conn, batch, |batch| redo.put_back(batch))?;
        let last = redo.last();
        log.synced.fetch_max(last, Ordering::AcqRel);
        redo.reset().map_err(log.failed("empty the redo log"))
    }

    fn apply_or_put_back(
        &self,
        conn: &Connection,
        batch: Batch,
        put_back: impl FnOnce(Batch),
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        // Also after a panic: only pending records are applied.
        let applied = catch_unwind(AssertUnwindSafe(|| self.apply_redo(conn, &batch)));
        if !matches!(applied, Ok(Ok(()))) {
            put_back(batch);
        }
        applied.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Applies records to SQLite, in one transaction that also stores the number of the last.
    pub(super) fn apply_redo(&self, conn: &Connection, batch: &Batch) -> Result<()> {
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
                    // A layer that was discarded and collected in the meantime needs no rows.
                    if known.contains(&layer) {
                        apply_one(conn, LayerId(layer), change).map_err(|e| self.sql(DOING, e))?;
                    }
                }
            }
            // Otherwise records that could not be read would count as applied and be lost.
            if last != Some(batch.last()) {
                return Err(StateError::Corrupt {
                    path: self.path.clone(),
                    detail: format!(
                        "records of the redo log end with number {last:?} instead of {}",
                        batch.last()
                    ),
                });
            }
            fault::panic_once("panic.checkpoint");
            // After a power failure the counter may be older than the records.
            self.raise(conn, "ino", highest.saturating_add(1), DOING)?;
            self.set_last_redo_in(conn, batch.last(), DOING)
        })
    }

    /// Returns whether the records of the redo log are durable.
    pub(super) fn log_is_synced(&self) -> bool {
        self.redo.get().is_none_or(|log| {
            let last = log.lock().last();
            log.synced.load(Ordering::Acquire) >= last
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

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
