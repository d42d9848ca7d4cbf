//! Adaptive polling: after a reply, the thread that receives requests polls the device for a short
//! time before it sleeps.
//!
//! A program that opens one file after the other waits for each answer, and the daemon waits for
//! each question. On most machines waking a sleeping thread on another processor takes longer than
//! the answer. So while requests come close together, the thread stays awake.
//!
//! [`Rhythm`] decides, and is pure: it is told what happened and when. It polls only
//! - after several requests in a row that came close together;
//! - while no request is in the hands of another thread, which may need the processor;
//! - while at least one processor is left: not for more clients at the same time than the other
//!   processors can run, and never with one processor;
//! - while nothing else wants its processor: not if there were involuntary context switches during
//!   the row of requests; and after one during a poll it pauses, each time for longer;
//! - for a small multiple of the usual gap, and never longer than [`LONGEST`] by default.
//!
//! The descriptor's flags stay as they are: [`Polling`] calls poll(2) without a timeout from the
//! request handler, before the event loop reads again. So a failure here costs only speed.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Counters;
use crate::environment::Poll;
use crate::sys::process;

/// The longest poll, unless it is configured.
const LONGEST: Duration = Duration::from_micros(100);
/// The shortest limit of a poll, unless a shorter one is configured.
const SHORTEST: Duration = Duration::from_micros(30);
/// A poll lasts at most this many times the usual gap.
const GAPS: u32 = 4;
/// Requests within this time after the last reply come close together. Without polling the gap
/// includes two wake-ups.
const CLOSE: Duration = Duration::from_micros(200);
/// Requests in a row that must come close together before the thread polls.
const ROW: u32 = 8;
/// The same after many polls in vain.
const LONGEST_ROW: u32 = 128;
/// Polls in a row that find a request, after which polling is worth while.
const GOOD_RUN: u32 = 32;
/// The time between two steps of a poll from which on something else may have had the processor.
const HOLE: Duration = Duration::from_micros(20);
/// How long polling pauses after something else wanted the processor: the first time, and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Polls in a row for which the involuntary context switches are read once.
const READ_SWITCHES: u32 = 4;
/// Requests whose threads are compared to find out whether clients take turns.
const RECENT: usize = 8;

/// How a poll ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A request has arrived, or the connection has ended.
    Found,
    /// None came in time.
    Missed,
    /// Something else wanted the processor.
    Preempted,
}

/// Decides whether and how long to poll.
#[derive(Debug)]
struct Rhythm {
    longest: Duration,
    processors: usize,
    /// The threads of the last requests; 0 where there is none.
    recent: [u32; RECENT],
    newest: usize,
    /// When the last reply was sent, if its sender then waited for the next request.
    idle_since: Option<Instant>,
    /// The running mean of the gaps between a reply and the next request.
    gap: Duration,
    /// Requests in a row that came close together.
    row: u32,
    /// The involuntary context switches of the thread when the row began.
    switches: Option<i64>,
    /// Requests in a row that are needed.
    needed: u32,
    /// Polls in a row that found a request.
    run: u32,
    paused_until: Option<Instant>,
    pause: Duration,
}

impl Rhythm {
    fn new(longest: Duration, processors: usize) -> Rhythm {
        Rhythm {
            longest,
            processors,
            recent: [0; RECENT],
            newest: 0,
            idle_since: None,
            gap: SHORTEST,
            row: 0,
            switches: None,
            needed: ROW,
            run: 0,
            paused_until: None,
            pause: PAUSE,
        }
    }

    /// Notes that a request of a thread has arrived. The kernel's own requests have thread 0.
    fn arrived(&mut self, now: Instant, thread: u32) {
        let gap = self.idle_since.take().map(|since| now - since);
        match gap {
            Some(gap) if gap <= CLOSE.max(self.longest) => {
                self.row = self.row.saturating_add(1);
                self.gap = (self.gap * 7 + gap) / 8;
            }
            Some(_) => self.row = 0,
            // Another thread had replied to the request before it: when is not known.
            None => {}
        }
        if self.leaves_no_processor(thread) {
            self.row = 0;
        }
    }

    /// Notes the thread of a request. Returns whether so many take turns that they can use all
    /// processors. A thread that follows another for good does not count: it may have been waited
    /// for.
    fn leaves_no_processor(&mut self, thread: u32) -> bool {
        let last = self.recent[self.newest];
        if thread == 0 {
            return false;
        }
        let is_back = thread != last && self.recent.contains(&thread);
        self.newest = (self.newest + 1) % RECENT;
        self.recent[self.newest] = thread;
        if !is_back {
            return false;
        }
        let mut others = self.recent;
        others.sort_unstable();
        let distinct = others.chunk_by(|a, b| a == b).filter(|same| same[0] != 0);
        distinct.count() >= self.processors
    }

    /// Returns how long to poll after a reply. `switches` counts the involuntary context switches
    /// of the thread.
    fn plan(&mut self, now: Instant, switches: impl Fn() -> i64) -> Option<Duration> {
        self.idle_since = Some(now);
        if self.processors < 2 || self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        if self.row == 0 {
            self.switches = None;
            return None;
        }
        let before = *self.switches.get_or_insert_with(&switches);
        if self.row < self.needed {
            return None;
        }
        // Once it polls, the polls notice.
        if self.run == 0 && switches() != before {
            self.row = 0;
            self.switches = None;
            return None;
        }
        Some((self.gap * GAPS).max(SHORTEST).min(self.longest))
    }

    /// Returns the involuntary context switches that do not count for the next poll.
    ///
    /// Reading them costs as much as a step of a poll, so it is not done for each: a switch since
    /// they were read last counts too, if the poll itself was interrupted.
    fn baseline(&mut self) -> i64 {
        if self.run.is_multiple_of(READ_SWITCHES) || self.switches.is_none() {
            self.switches = Some(process::involuntary_switches());
        }
        self.switches.unwrap_or_default()
    }

    /// Learns from the end of a poll.
    fn ended(&mut self, now: Instant, outcome: Outcome) {
        match outcome {
            Outcome::Found => {
                self.run = self.run.saturating_add(1);
                if self.run == GOOD_RUN {
                    self.needed = ROW;
                }
                let worked = self
                    .paused_until
                    .is_none_or(|until| now > until + self.pause);
                if worked {
                    self.pause = PAUSE;
                }
            }
            Outcome::Missed => {
                if self.run < ROW {
                    self.needed = (self.needed * 2).min(LONGEST_ROW);
                }
                self.row = 0;
                self.run = 0;
            }
            Outcome::Preempted => {
                self.row = 0;
                self.run = 0;
                self.paused_until = Some(now + self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Polls the device of a mount for the one thread that receives its requests.
#[derive(Debug)]
pub(crate) struct Polling {
    rhythm: Mutex<Rhythm>,
    /// The number of the last request.
    last: AtomicU64,
    counters: Arc<Counters>,
}

impl Polling {
    /// Returns the means to poll as configured, or `None` if that never pays.
    pub(super) fn new(setting: Poll, counters: Arc<Counters>) -> Option<Polling> {
        let longest = match setting {
            Poll::Off => return None,
            Poll::Auto => LONGEST,
            Poll::Micros(micros) => Duration::from_micros(micros.into()),
        };
        let processors = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        (processors.get() > 1).then(|| Polling {
            rhythm: Mutex::new(Rhythm::new(longest, processors.get())),
            last: AtomicU64::new(0),
            counters,
        })
    }

    /// Notes that a request of a thread has arrived, unless it is the last one again, and returns
    /// whether it is new.
    pub(super) fn arrived(&self, number: u64, thread: u32) -> bool {
        let is_new = self.last.swap(number, Ordering::Relaxed) != number;
        if is_new {
            self.with(|rhythm| rhythm.arrived(Instant::now(), thread));
        }
        is_new
    }

    /// Waits for the next request if that is likely to come soon. Must not be called while other
    /// threads handle requests.
    pub(super) fn wait(&self, device: &OwnedFd) {
        self.with(|rhythm| {
            let began = Instant::now();
            let Some(longest) = rhythm.plan(began, process::involuntary_switches) else {
                return;
            };
            let (outcome, ended) = poll_for(device, began, longest, rhythm.baseline());
            rhythm.ended(ended, outcome);
            let counters = &self.counters.polls;
            counters.all.fetch_add(1, Ordering::Relaxed);
            if outcome == Outcome::Found {
                counters.found.fetch_add(1, Ordering::Relaxed);
            }
            let nanos = u64::try_from((ended - began).as_nanos()).unwrap_or(u64::MAX);
            counters.nanos.fetch_add(nanos, Ordering::Relaxed);
        });
    }

    fn with(&self, work: impl FnOnce(&mut Rhythm)) {
        match self.rhythm.try_lock() {
            Ok(mut rhythm) => work(&mut rhythm),
            // Any state is valid.
            Err(TryLockError::Poisoned(poisoned)) => work(&mut poisoned.into_inner()),
            // Only one thread receives requests. If there were more, they need not poll.
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

/// Polls until a request arrives, the time is over, or something else wanted the processor. Returns
/// when it ended.
///
/// Offers the processor in each step: whatever waits for it, such as the client, need not wait for
/// the end of the poll.
fn poll_for(
    device: &OwnedFd,
    began: Instant,
    longest: Duration,
    switches: i64,
) -> (Outcome, Instant) {
    let mut last = began;
    loop {
        let mut device = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let polled = poll(&mut device, PollTimeout::ZERO);
        let now = Instant::now();
        match polled {
            Ok(0) | Err(Errno::EINTR) => {}
            // An error is for the event loop to find.
            Ok(_) | Err(_) => return (Outcome::Found, now),
        }
        if now - last > HOLE && process::involuntary_switches() > switches {
            return (Outcome::Preempted, now);
        }
        if now - began >= longest {
            return (Outcome::Missed, now);
        }
        last = now;
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CLIENT: u32 = 100;

    /// A rhythm and a clock.
    struct Simulation {
        rhythm: Rhythm,
        now: Instant,
        switches: i64,
    }

    impl Simulation {
        fn new(processors: usize) -> Simulation {
            Simulation {
                rhythm: Rhythm::new(LONGEST, processors),
                now: Instant::now(),
                switches: 0,
            }
        }

        /// A request of a thread arrives some time after the last reply and is answered. Returns
        /// how long to poll.
        fn request(&mut self, thread: u32, gap_micros: u64) -> Option<Duration> {
            self.now += Duration::from_micros(gap_micros);
            self.rhythm.arrived(self.now, thread);
            self.now += Duration::from_micros(10);
            self.rhythm.plan(self.now, || self.switches)
        }

        /// A request of a thread arrives that another thread answers.
        fn handed_over(&mut self, thread: u32, gap_micros: u64) {
            self.now += Duration::from_micros(gap_micros);
            self.rhythm.arrived(self.now, thread);
        }

        /// Sends requests until it polls; returns how many it took.
        fn requests_until_it_polls(&mut self, gap_micros: u64) -> Option<u32> {
            (1..1000).find(|_| self.request(CLIENT, gap_micros).is_some())
        }

        fn end(&mut self, outcome: Outcome) {
            self.rhythm.ended(self.now, outcome);
        }
    }

    #[test]
    fn polls_after_a_row_of_requests_that_come_close_together() {
        let mut it = Simulation::new(2);
        // The gap before the first request is not known.
        assert_eq!(it.requests_until_it_polls(50), Some(ROW + 1));
        assert!(it.request(CLIENT, 20).is_some());
        // After a long gap it takes a row again.
        assert_eq!(it.request(CLIENT, 5000), None);
        assert_eq!(it.requests_until_it_polls(50), Some(ROW));
    }

    #[test]
    fn never_polls_while_requests_come_far_apart_or_with_one_processor() {
        let mut it = Simulation::new(2);
        assert_eq!(it.requests_until_it_polls(300), None);
        let mut it = Simulation::new(1);
        assert_eq!(it.requests_until_it_polls(20), None);
    }

    #[test]
    fn the_length_follows_the_usual_gap_within_limits() {
        let mut it = Simulation::new(2);
        let mut last = |gap| (0..100).filter_map(|_| it.request(CLIENT, gap)).last();
        assert_eq!(last(1), Some(SHORTEST));
        let middle = last(15).unwrap();
        assert!(SHORTEST < middle && middle < LONGEST, "{middle:?}");
        assert_eq!(last(90), Some(LONGEST));
        let mut it = Simulation::new(2);
        it.rhythm.longest = Duration::from_micros(5);
        assert_eq!(
            (0..100).filter_map(|_| it.request(CLIENT, 90)).last(),
            Some(Duration::from_micros(5))
        );
    }

    #[test]
    fn a_request_in_other_hands_stops_polling_until_it_is_answered() {
        let mut it = Simulation::new(2);
        it.requests_until_it_polls(50);
        it.handed_over(CLIENT, 20);
        // The time of its reply is not known, so that the next gap is not judged.
        assert!(it.request(CLIENT, 5000).is_some());
    }

    #[test]
    fn clients_that_take_turns_need_a_processor_each() {
        let mut it = Simulation::new(2);
        it.requests_until_it_polls(50);
        // A second client that takes over: the first may wait for it.
        assert!(it.request(CLIENT + 1, 50).is_some());
        for _ in 0..100 {
            assert_eq!(it.request(CLIENT, 50), None);
            assert_eq!(it.request(CLIENT + 1, 50), None);
        }
        let mut it = Simulation::new(4);
        it.requests_until_it_polls(50);
        for _ in 0..100 {
            assert!(it.request(CLIENT, 50).is_some());
            assert!(it.request(CLIENT + 1, 50).is_some());
        }
        // Requests of the kernel itself come from no client.
        let mut it = Simulation::new(2);
        it.requests_until_it_polls(50);
        for _ in 0..100 {
            assert!(it.request(0, 50).is_some());
            assert!(it.request(CLIENT, 50).is_some());
        }
    }

    #[test]
    fn polls_in_vain_make_it_wait_for_longer_rows() {
        let mut it = Simulation::new(2);
        let mut rows = Vec::new();
        for _ in 0..10 {
            rows.push(it.requests_until_it_polls(50).unwrap());
            it.end(Outcome::Missed);
            assert_eq!(it.request(CLIENT, 1000), None);
        }
        assert!(rows.is_sorted(), "{rows:?}");
        assert_eq!(rows.last(), Some(&LONGEST_ROW));
        // One good run makes up for it.
        it.requests_until_it_polls(50);
        for _ in 0..GOOD_RUN {
            assert!(it.request(CLIENT, 50).is_some());
            it.end(Outcome::Found);
        }
        it.end(Outcome::Missed);
        assert_eq!(it.requests_until_it_polls(50), Some(ROW));
    }

    #[test]
    fn does_not_begin_to_poll_while_others_get_its_processor() {
        let mut it = Simulation::new(2);
        for number in 0..1000 {
            it.switches += i64::from(number % ROW == 0);
            assert_eq!(it.request(CLIENT, 50), None);
        }
        assert!(it.requests_until_it_polls(50).unwrap() <= 2 * ROW);
    }

    #[test]
    fn pauses_while_others_want_the_processor_each_time_for_longer() {
        let mut it = Simulation::new(2);
        it.requests_until_it_polls(50).unwrap();
        let mut expected = PAUSE;
        for _ in 0..10 {
            it.end(Outcome::Preempted);
            let paused_at = it.now;
            // Requests go on meanwhile.
            while it.request(CLIENT, 50).is_none() {}
            assert!(it.now - paused_at >= expected, "{expected:?}");
            expected = (expected * 2).min(LONGEST_PAUSE);
        }
        // Undisturbed for as long again: the next pause is short.
        it.now += LONGEST_PAUSE * 2;
        it.end(Outcome::Found);
        assert_eq!(it.rhythm.pause, PAUSE);
    }

    #[test]
    fn a_poll_ends_with_a_request_with_the_connection_and_with_its_time() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let limit = Duration::from_micros(500);
        let began = Instant::now();
        let (outcome, ended) = poll_for(&reader, began, limit, process::involuntary_switches());
        // On a busy machine it may be preempted.
        assert_ne!(outcome, Outcome::Found);
        assert!(outcome == Outcome::Preempted || ended - began >= limit);
        nix::unistd::write(&writer, b"request").unwrap();
        let (outcome, _) = poll_for(&reader, Instant::now(), limit, 0);
        assert_eq!(outcome, Outcome::Found);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(writer);
        let (outcome, _) = poll_for(&reader, Instant::now(), limit, 0);
        assert_eq!(outcome, Outcome::Found);
    }

    #[test]
    fn calls_for_one_request_count_once() {
        let polling = Polling::new(Poll::Auto, Arc::default());
        let Some(polling) = polling else {
            // One processor.
            return;
        };
        assert!(polling.arrived(7, CLIENT));
        assert!(!polling.arrived(7, CLIENT));
        assert!(polling.arrived(9, CLIENT));
        assert!(Polling::new(Poll::Off, Arc::default()).is_none());
    }
}
