//! Sends notifications to the kernel on behalf of a request in progress.
//!
//! A notification may block until the kernel has finished other requests, which in turn may wait
//! for the workers of the pool. So notifications are sent by a thread of their own, on which only
//! the request that caused them waits.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::guard::{Gate, Job, contain};
use super::session::Invalidator;
use crate::fault;
use crate::object::Ino;

/// Sends notifications for request handlers, once the file system is mounted.
pub(crate) struct Notices {
    invalidator: OnceLock<Invalidator>,
    jobs: Sender<Job>,
    gate: Arc<Gate>,
}

impl Notices {
    /// Starts the thread, which ends when the value is dropped.
    pub(super) fn start(gate: Arc<Gate>) -> io::Result<Notices> {
        let (sender, jobs) = unbounded::<Job>();
        thread::Builder::new()
            .name(String::from("notices"))
            .spawn(move || {
                for job in &jobs {
                    contain("request", || {
                        fault::panic_once("panic.notices");
                        job();
                    });
                }
            })?;
        Ok(Notices {
            invalidator: OnceLock::new(),
            jobs: sender,
            gate,
        })
    }

    /// Enables notifications. Before the file system is mounted the kernel caches nothing.
    pub(crate) fn connect(&self, invalidator: Invalidator) {
        // A second invalidator would belong to the same mount.
        self.invalidator.get_or_init(|| invalidator);
    }

    /// Runs `job` on the thread that may send notifications.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.gate.send(&self.jobs, job);
    }

    /// Invalidates the attributes of an object in the kernel. Unlike content, attributes are
    /// invalidated without a lock, so a handler of a request for the object may call this.
    pub(super) fn invalidate_attributes(&self, ino: Ino) {
        let Some(invalidator) = self.invalidator.get() else {
            return;
        };
        if let Err(e) = invalidator.attributes(ino)
            && e.raw_os_error() != Some(nix::libc::ENOENT)
        {
            tracing::warn!(%ino, "cannot invalidate attributes in the kernel: {e}");
        }
    }

    /// Makes the kernel write back and invalidate its pages of a range of a file; without an `end`,
    /// up to the end of the file.
    pub(super) fn invalidate_range(&self, ino: Ino, start: u64, end: Option<u64>) {
        let Some(invalidator) = self.invalidator.get() else {
            return;
        };
        if let Err(e) = invalidator.range(ino, start, end)
            && e.raw_os_error() != Some(nix::libc::ENOENT)
        {
            tracing::warn!(%ino, "cannot invalidate pages in the kernel: {e}");
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices")
            .field("waiting", &self.jobs.len())
            .finish_non_exhaustive()
    }
}
