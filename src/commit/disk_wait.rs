//! Waiting for the disk in an operation that can be cancelled.
//!
//! A sync cannot be interrupted. So another thread makes it, and ends when the disk answers, even
//! if the operation has given up by then.

use std::io;
use std::thread::Builder;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::{CommitError, Result};
use crate::progress::{Progress, Report};

/// How long to wait without a word.
pub(crate) const QUIET: Duration = Duration::from_secs(3);
/// The interval at which cancellation is noticed.
const TICK: Duration = Duration::from_millis(100);

/// A sync in progress.
pub(crate) struct Syncing(Receiver<io::Result<()>>);

impl Syncing {
    /// Calls `sync` in another thread.
    pub(crate) fn start(sync: impl FnOnce() -> io::Result<()> + Send + 'static) -> Syncing {
        let (send, done) = bounded(1);
        let failed = send.clone();
        let started = Builder::new().name(String::from("flush")).spawn(move || {
            // Nothing waits any more if the operation was cancelled.
            send.send(sync()).ok();
        });
        if let Err(error) = started {
            // There is room for one.
            failed.send(Err(error)).ok();
        }
        Syncing(done)
    }

    /// Waits for the end. After `quiet` it reports that it waits for the disk. Fails if the
    /// operation is cancelled meanwhile.
    pub(crate) fn wait(self, progress: &dyn Progress, quiet: Duration) -> Result<io::Result<()>> {
        let began = Instant::now();
        loop {
            match self.0.recv_timeout(TICK) {
                Ok(synced) => return Ok(synced),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Err(io::Error::other("the thread that syncs has panicked")));
                }
                Err(RecvTimeoutError::Timeout) if progress.is_cancelled() => {
                    return Err(CommitError::Cancelled);
                }
                Err(RecvTimeoutError::Timeout) if began.elapsed() >= quiet => {
                    progress.report(&Report {
                        phase: String::from("waiting for the disk"),
                        files_done: 0,
                        files_total: 0,
                        bytes_done: 0,
                        bytes_total: 0,
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::progress::NoProgress;

    /// Cancels once it was told that the operation waits.
    #[derive(Default)]
    struct Impatient(AtomicBool);

    impl Progress for Impatient {
        fn report(&self, report: &Report) {
            assert_eq!(report.phase, "waiting for the disk");
            self.0.store(true, Ordering::SeqCst);
        }
        fn is_cancelled(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn an_operation_that_waits_for_the_disk_says_so_and_can_be_cancelled() {
        let (unblock, blocked) = bounded::<()>(0);
        let sync = move || {
            blocked.recv().ok();
            Ok(())
        };
        let ended = Syncing::start(sync).wait(&Impatient::default(), Duration::ZERO);
        assert!(matches!(ended, Err(CommitError::Cancelled)));
        // The thread still waits: nothing has ended it.
        assert!(unblock.send_timeout((), Duration::from_secs(60)).is_ok());
    }

    #[test]
    fn the_result_of_a_sync_is_returned() {
        let full = || Err(io::ErrorKind::StorageFull.into());
        let failed = Syncing::start(full).wait(&NoProgress, QUIET).unwrap();
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        let synced = Syncing::start(|| Ok(())).wait(&NoProgress, QUIET).unwrap();
        assert!(synced.is_ok());
        let panicked = Syncing::start(|| panic!("expected"));
        assert!(panicked.wait(&NoProgress, QUIET).unwrap().is_err());
    }
}
