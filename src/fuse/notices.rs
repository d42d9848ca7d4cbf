//! What the kernel is told in the middle of a request.
//!
//! Being told, it may wait for other requests, and these for the workers: so it is told from a thread
//! that nobody waits for but who asked.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::guard::{Gate, contain};
use super::session::Invalidator;
use crate::fault;
use crate::object::Ino;

type Job = Box<dyn FnOnce() + Send>;

/// A way to the kernel for those who answer its requests, once there is one.
pub struct Notices {
    invalidator: OnceLock<Invalidator>,
    jobs: Sender<Job>,
    gate: Arc<Gate>,
}

impl Notices {
    /// Starts the thread, which ends when this is dropped.
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

    /// From now on the kernel can be told. Before, nothing has changed behind its back.
    pub fn open(&self, invalidator: Invalidator) {
        // A second one is of the same mount.
        self.invalidator.get_or_init(|| invalidator);
    }

    /// Runs `job` where it may tell the kernel.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let pass = self.gate.hand_over();
        let job = move || {
            let _pass = pass;
            job();
        };
        if let Err(unsent) = self.jobs.send(Box::new(job)) {
            unsent.into_inner()();
        }
    }

    /// Has the kernel ask for an object's attributes when it needs them next. In contrast to content they
    /// are forgotten without a lock, so this may be called while a request of the object is answered.
    pub(super) fn attributes(&self, ino: Ino) {
        let Some(invalidator) = self.invalidator.get() else {
            return;
        };
        if let Err(e) = invalidator.attributes(ino)
            && e.raw_os_error() != Some(nix::libc::ENOENT)
        {
            tracing::warn!(%ino, "invalidating attributes: {e}");
        }
    }

    /// Has the kernel write back what it holds of a part of a file, and forget it; without an `end`, of
    /// all that follows.
    pub(super) fn settle(&self, ino: Ino, start: u64, end: Option<u64>) {
        let Some(invalidator) = self.invalidator.get() else {
            return;
        };
        if let Err(e) = invalidator.range(ino, start, end)
            && e.raw_os_error() != Some(nix::libc::ENOENT)
        {
            tracing::warn!(%ino, "settling a part of a file: {e}");
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
