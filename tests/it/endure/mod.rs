//! Durability under power loss, kills of the daemon, and hours of use.
//!
//! Processes change files in a mount while the environment is committed, discarded, rolled back and
//! garbage-collected. A model tracks the guarantees of each completed call ([`model`]). The same
//! machinery ([`stage`]) serves two tests: [`power`] simulates power failures, after which synced
//! and committed data must exist; [`soak`] kills the daemon, after which the results of all
//! completed calls must exist.

mod leaks;
mod model;
mod power;
mod soak;
mod stage;
mod worker;

/// A reproducible generator of random numbers.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Returns true with a probability of `percent`.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Returns a number from an environment variable, or the default.
fn number_from_env(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}
