//! The ends of directory listings in progress; see `readdir.rs`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Numbers of bounds are compared modulo this number.
pub(super) const BOUNDS: u64 = 1 << 12;
/// The number of bounds that a directory keeps: as many as their numbers can distinguish.
const BOUNDS_LIMIT: usize = BOUNDS as usize - 1;

/// The ends of listings of one directory that may be in progress. A listing ends at the first name
/// that was created after the listing began. Bounds are numbered in ascending order; bound 0
/// excludes all names of the writable layer.
#[derive(Debug, Default)]
pub(super) struct Bounds(Mutex<Ends>);

#[derive(Debug, Default)]
struct Ends {
    /// The number before that of the first bound in `ends`.
    before: u64,
    /// Ages, ascending.
    ends: VecDeque<u64>,
}

impl Bounds {
    fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        // Changed in steps that cannot panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a listing without names from age `end` on. Returns the number of its bound.
    pub(super) fn begin(&self, end: u64) -> u64 {
        let mut bounds = self.ends();
        if bounds.ends.back().copied().unwrap_or(0) != end {
            bounds.ends.push_back(end);
            if bounds.ends.len() > BOUNDS_LIMIT {
                bounds.ends.pop_front();
                bounds.before += 1;
            }
        }
        bounds.before + bounds.ends.len() as u64
    }

    /// Returns the age at which a listing ends, by the number of its bound modulo [`BOUNDS`]. If
    /// the bound is no longer kept, the listing ends at the oldest one.
    pub(super) fn end(&self, number: u64) -> u64 {
        let bounds = self.ends();
        let newest = bounds.before + bounds.ends.len() as u64;
        let back = newest.wrapping_sub(number) % BOUNDS;
        let index = (bounds.ends.len() as u64).checked_sub(back + 1);
        let index = index.and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| bounds.ends.get(index)) {
            Some(end) => *end,
            None if bounds.before == 0 => 0,
            None => bounds.ends.front().copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_ends_at_the_names_that_existed_when_it_began() {
        let bounds = Bounds::default();
        assert_eq!(bounds.end(0), 0, "no name was created yet");
        assert_eq!(bounds.begin(0), 0);
        let first = bounds.begin(5);
        assert_eq!(
            bounds.begin(5),
            first,
            "no name was created between the two listings"
        );
        let second = bounds.begin(9);
        assert_eq!(
            [bounds.end(0), bounds.end(first), bounds.end(second)],
            [0, 5, 9]
        );
    }

    #[test]
    fn numbers_of_bounds_wrap_and_old_listings_still_end() {
        let bounds = Bounds::default();
        let numbers: Vec<u64> = (1..=3 * BOUNDS).map(|age| bounds.begin(age)).collect();
        assert_eq!(bounds.ends().ends.len(), BOUNDS_LIMIT);
        for (age, number) in (1..).zip(&numbers).skip(2 * BOUNDS as usize + 1) {
            assert_eq!(bounds.end(number % BOUNDS), age);
        }
        // The bound before the oldest one that is kept.
        let oldest = 2 * BOUNDS + 2;
        assert_eq!(bounds.end(numbers[2 * BOUNDS as usize] % BOUNDS), oldest);
    }
}
