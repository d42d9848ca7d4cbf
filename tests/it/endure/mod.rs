//! What was acknowledged stays: through power loss, kills of the daemon, and hours of use.
//!
//! Processes work in a mount while the environment is committed, discarded, rolled back and collected.
//! A model knows what each completed call promised ([`model`]). The same machinery ([`stage`]) serves two
//! tests: in [`power`] the machine loses its power, and what was synced or committed must be there; in
//! [`soak`] the daemon is killed, and all that a completed call changed must be there.

mod acts;
mod leaks;
mod model;
mod power;
mod soak;
mod stage;

/// Random numbers, the same for one seed.
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

    /// Returns true `percent` times of a hundred.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Returns a number from the environment, or the usual one.
fn asked(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}
