//! Conditions of a commit, for timers.

use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::output::{Format, count, size};
use crate::daemon::protocol::{Committable, Service};
use crate::union::Summary;

/// How much must have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// The least number of changed entries.
    pub(super) changed: Option<u64>,
    /// Bytes that the content of changed files must exceed.
    pub(super) larger_than: Option<u64>,
}

/// A condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Unmet {
    not_committed: String,
    /// The number of changed entries.
    changed: u64,
    /// The bytes of changed files.
    bytes: u64,
}

impl Condition {
    /// Compares the changes with the condition. Returns what does not hold.
    pub(super) fn check(&self, service: &dyn Service, part: &Committable) -> Result<Option<Unmet>> {
        if self.changed.is_none() && self.larger_than.is_none() {
            return Ok(None);
        }
        let all = Summary::of(&service.committable(part)?);
        Ok(self.unmet(&all))
    }

    fn unmet(&self, all: &Summary) -> Option<Unmet> {
        // Files of which only the time changed do not count.
        let changed = [all.added, all.modified, all.removed, all.renamed];
        let changed = changed.iter().map(|tally| tally.entries).sum();
        let bytes = all.added.bytes + all.modified.bytes;
        let why = match (self.changed, self.larger_than) {
            (Some(least), _) if changed < least => {
                format!("{} changed, fewer than {least}", count(changed, "path"))
            }
            (_, Some(limit)) if bytes <= limit => {
                format!("{} changed, not more than {}", size(bytes), size(limit))
            }
            _ => return None,
        };
        Some(Unmet {
            not_committed: why,
            changed,
            bytes,
        })
    }
}

impl Unmet {
    /// Prints that nothing was committed, and why.
    pub(super) fn print(&self, context: &Context, name: &str, format: Format) -> Result<()> {
        if format == Format::Json {
            return context.output.json(self);
        }
        let why = &self.not_committed;
        context.output.note(format!("{name}: not committed: {why}"));
        Ok(())
    }
}

/// Parses a number of bytes: `500K`, `10M`, `2G`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let invalid = || String::from("must be a number of bytes, as in 4096, 500K, 10M or 2G");
    let number = text.trim_end_matches("iB").trim_end_matches('B');
    let (digits, shift) = match number.as_bytes().last() {
        Some(b'K' | b'k') => (number.get(..number.len() - 1), 10),
        Some(b'M' | b'm') => (number.get(..number.len() - 1), 20),
        Some(b'G' | b'g') => (number.get(..number.len() - 1), 30),
        Some(b'T' | b't') => (number.get(..number.len() - 1), 40),
        _ => (Some(number), 0),
    };
    let number: u64 = digits.unwrap_or_default().parse().map_err(|_| invalid())?;
    number.checked_mul(1 << shift).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::union::Tally;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("500K", 512_000),
            ("10M", 10 << 20),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        assert_eq!((bytes("2GiB"), bytes("1KB")), (Ok(2 << 30), Ok(1024)));
        for text in ["", "M", "-1", "1.5G", "1X", "99999999999T"] {
            bytes(text).unwrap_err();
        }
    }

    #[test]
    fn touched_files_do_not_meet_a_condition() {
        let tally = |entries, bytes| Tally { entries, bytes };
        let all = Summary {
            added: tally(2, 100),
            removed: tally(1, 50),
            touched: tally(9, 900),
            ..Summary::default()
        };
        let holds = |changed, larger_than| {
            let condition = Condition {
                changed,
                larger_than,
            };
            condition.unmet(&all).is_none()
        };
        assert!(holds(None, None) && holds(Some(3), Some(99)));
        assert!(!holds(Some(4), None) && !holds(None, Some(100)));
    }
}
