//! Threads for what takes long, so that the one thread that takes requests from the kernel is soon
//! back for the next.
//!
//! Most requests are answered in microseconds, and fastest by one thread: with several, the kernel
//! wakes them in turn, on one processor after the other. Only what expands a block or waits for a
//! disk is worth handing over, and that is worth doing on all processors at once.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};

use super::guard::{Gate, contain};
use crate::fault;
use crate::union::Remainder;

type Job = Box<dyn FnOnce() + Send>;

/// How long what nobody waits for may lie about: long enough to be dealt with in heaps, since
/// waking a thread for each costs more than closing a file.
const LEISURE: Duration = Duration::from_millis(2);

/// Threads that run what is handed to them, in no particular order.
///
/// They end when it is dropped and everything handed over has been done.
pub(super) struct Pool {
    jobs: Sender<Job>,
    left: Sender<Remainder>,
    gate: Arc<Gate>,
}

impl Pool {
    /// Starts the threads.
    pub(super) fn start(threads: NonZeroUsize, gate: Arc<Gate>) -> io::Result<Pool> {
        let (sender, jobs) = unbounded::<Job>();
        for number in 0..threads.get() {
            let jobs = jobs.clone();
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    for job in &jobs {
                        contain("request", || {
                            fault::panic_once("panic.pool");
                            job();
                        });
                    }
                })?;
        }
        let (left, heap) = unbounded();
        thread::Builder::new()
            .name(String::from("closer"))
            .spawn(move || {
                for first in &heap {
                    thread::sleep(LEISURE);
                    contain("removal", || {
                        drop(first);
                        heap.try_iter().for_each(drop);
                    });
                }
            })?;
        Ok(Pool {
            jobs: sender,
            left,
            gate,
        })
    }

    /// Drops what is left of a removed object, soon: closing its file is what frees its space.
    pub(super) fn let_go(&self, left: Remainder) {
        // Unsent, it is dropped here.
        drop(self.left.send(left));
    }

    /// Runs `job` on one of the threads, or here if they are gone.
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
    fn a_panic_ends_one_job_and_none_of_the_threads() {
        let gate = Arc::new(Gate::default());
        let pool = Pool::start(NonZeroUsize::new(2).unwrap(), gate.clone()).unwrap();
        let (sender, done) = mpsc::channel();
        for number in 0..20 {
            let sender = sender.clone();
            pool.run(move || {
                assert!(number % 2 == 0, "a job of a test");
                sender.send(number).unwrap();
            });
        }
        drop(sender);
        assert_eq!(done.iter().count(), 10);
        assert!(gate.close(Duration::from_secs(20)));
    }

    #[test]
    fn jobs_run_at_the_same_time_and_all_run() {
        let pool = Pool::start(NonZeroUsize::new(2).unwrap(), Arc::default()).unwrap();
        let (sender, done) = mpsc::channel();
        // Each of the first two waits for the other: one thread alone would wait for ever.
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
