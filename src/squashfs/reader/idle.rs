//! A pool of idle values that are expensive to create.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// At most `most` idle values.
pub(super) struct Idle<T> {
    most: usize,
    /// Locked only to take a value or to put one back.
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

    pub(super) fn put_back(&self, value: T) {
        let mut kept = self.kept();
        if kept.len() < self.most {
            kept.push(value);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept().len()
    }
}
