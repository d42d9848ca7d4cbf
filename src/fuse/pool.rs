//! A pool of threads for slow requests, so that the thread that receives requests from the kernel
//! is soon ready for the next one.
//!
//! Most requests take microseconds and are answered fastest by one thread: with several, the kernel
//! wakes them in turn, on one processor after the other. Only requests that decompress a block or
//! wait for a disk are handed over, and those run on all processors.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, select, unbounded};

use super::guard::{Gate, Job, contain};
use crate::fault;
use crate::union::{Released, Union};

/// Delay before removed files are closed, so that they are closed in batches: waking a thread for
/// each costs more than closing a file.
const CLOSE_DELAY: Duration = Duration::from_millis(2);

/// The most background jobs that may be queued.
const MOST_LATER: usize = 32;

/// What the thread `closer` frees.
enum Remains {
    /// A removed object that the kernel has forgotten.
    Released(Released),
    /// Content of removed names, after this time.
    Removed(Weak<Union>, Duration),
}

/// Frees what removed objects occupy, until the senders are dropped.
fn free(remains: &Receiver<Remains>) {
    let mut removals: Option<(Weak<Union>, Instant)> = None;
    loop {
        let first = match &removals {
            None => remains.recv().map_err(RecvTimeoutError::from),
            Some((_, due)) => remains.recv_deadline(*due),
        };
        match &first {
            Ok(Remains::Released(_)) => thread::sleep(CLOSE_DELAY),
            Ok(Remains::Removed(..)) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for remains in first.into_iter().chain(remains.try_iter()) {
            match remains {
                Remains::Released(released) => contain("removal", || drop(released)),
                Remains::Removed(union, delay) => {
                    let due = Instant::now() + delay;
                    if removals.as_ref().is_none_or(|(_, other)| due < *other) {
                        removals = Some((union, due));
                    }
                }
            }
        }
        if let Some((union, _)) = removals.take_if(|(_, due)| *due <= Instant::now()) {
            contain("removal", || {
                if let Some(Err(error)) = union.upgrade().map(|union| union.finish_removals()) {
                    tracing::error!(%error, "removed files still occupy space");
                }
            });
        }
    }
}

/// Worker threads that run jobs in no particular order.
///
/// They end when the pool is dropped and all jobs are done.
pub(super) struct Pool {
    jobs: Sender<Job>,
    /// Background jobs: no request depends on them.
    later: Sender<Job>,
    threads: NonZeroUsize,
    releaseds: Sender<Remains>,
    gate: Arc<Gate>,
}

impl Pool {
    /// Starts the threads.
    pub(super) fn start(threads: NonZeroUsize, gate: Arc<Gate>) -> io::Result<Pool> {
        let (sender, jobs) = unbounded::<Job>();
        let (later_sender, later) = unbounded::<Job>();
        for number in 0..threads.get() {
            let (jobs, later) = (jobs.clone(), later.clone());
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    while let Some(job) = next(&jobs, &later) {
                        contain("request", || {
                            fault::panic_once("panic.pool");
                            job();
                        });
                    }
                })?;
        }
        let (releaseds, batch) = unbounded();
        thread::Builder::new()
            .name(String::from("closer"))
            .spawn(move || free(&batch))?;
        Ok(Pool {
            jobs: sender,
            later: later_sender,
            threads,
            releaseds,
            gate,
        })
    }

    /// Drops what is left of a removed object on another thread, soon: closing its file frees its
    /// space.
    pub(super) fn close_later(&self, released: Released) {
        // If it cannot be sent, it is dropped here.
        drop(self.releaseds.send(Remains::Released(released)));
    }

    /// Finishes removals on another thread, if some became due.
    pub(super) fn finish_removals_later(&self, union: &Arc<Union>) {
        if let Some(delay) = union.removals_due() {
            let union = Arc::downgrade(union);
            drop(self.releaseds.send(Remains::Removed(union, delay)));
        }
    }

    /// Returns whether there is more than one thread.
    pub(super) fn has_several(&self) -> bool {
        self.threads.get() > 1
    }

    /// Runs `job` on one of the threads when they have no other. Not at all if too many such jobs
    /// wait, or if the threads have ended.
    pub(super) fn run_later(&self, job: impl FnOnce() + Send + 'static) {
        if self.later.len() < MOST_LATER {
            let pass = self.gate.hand_over();
            let job = move || {
                let _pass = pass;
                job();
            };
            drop(self.later.send(Box::new(job)));
        }
    }

    /// Runs `job` on one of the threads, or on this one if they have ended.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.gate.send(&self.jobs, job);
    }
}

/// Waits for the next job. Returns `None` when the pool was dropped and only background jobs are
/// left.
fn next(jobs: &Receiver<Job>, later: &Receiver<Job>) -> Option<Job> {
    match jobs.try_recv() {
        Ok(job) => return Some(job),
        Err(TryRecvError::Disconnected) => return None,
        Err(TryRecvError::Empty) => {}
    }
    select! {
        recv(jobs) -> job => job.ok(),
        // Both senders are dropped together.
        recv(later) -> job => job.or_else(|_| jobs.recv()).ok(),
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("waiting", &self.jobs.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Barrier, mpsc};

    use super::*;

    #[test]
    fn a_panic_ends_one_job_but_no_thread() {
        let gate = Arc::new(Gate::default());
        let pool = Pool::start(NonZeroUsize::new(2).unwrap(), gate.clone()).unwrap();
        let (sender, done) = mpsc::channel();
        for number in 0..20 {
            let sender = sender.clone();
            pool.run(move || {
                assert!(number % 2 == 0, "panic of a test job");
                sender.send(number).unwrap();
            });
        }
        drop(sender);
        assert_eq!(done.iter().count(), 10);
        assert!(gate.close(Duration::from_secs(20)));
    }

    #[test]
    fn all_jobs_run_and_run_concurrently() {
        let pool = Pool::start(NonZeroUsize::new(2).unwrap(), Arc::default()).unwrap();
        let (sender, done) = mpsc::channel();
        // Each of the first two waits for the other: a single thread would wait forever.
        let both = Arc::new(Barrier::new(2));
        for number in 0..50 {
            let (sender, both) = (sender.clone(), both.clone());
            pool.run(move || {
                if number < 2 {
                    both.wait();
                }
                sender.send(number).unwrap();
            });
        }
        drop((pool, sender));
        let mut all: Vec<i32> = done.iter().collect();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
