//! What costs something to make, kept for the next who needs one.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Idle things, no more than `most` of them.
pub(super) struct Idle<T> {
    most: usize,
    /// The lock is held to take one or give it back.
    kept: Mutex<Vec<T>>,
}

impl<T> Idle<T> {
    pub(super) fn new(most: usize) -> Idle<T> {
        Idle {
            most,
            kept: Mutex::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<T>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self) -> Option<T> {
        self.kept().pop()
    }

    pub(super) fn give_back(&self, thing: T) {
        let mut kept = self.kept();
        if kept.len() < self.most {
            kept.push(thing);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept().len()
    }
}
