//! Counts and sizes of changes.

use serde::{Deserialize, Serialize};

use super::{Aspect, Change, ChangeKind};

/// Number and size of some entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Number of entries (files, directories, links).
    pub entries: u64,
    /// Content in bytes.
    pub bytes: u64,
}

impl Tally {
    /// Counts one more entry.
    pub fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }
}

/// How much of a view differs from the committed one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// New entries.
    pub added: Tally,
    /// Entries whose content or attributes changed.
    pub modified: Tally,
    /// Entries of which only the modification time changed.
    pub touched: Tally,
    /// Entries that no longer exist, with the size they had.
    pub removed: Tally,
    /// Entries that moved.
    pub renamed: Tally,
}

impl Summary {
    /// Returns the counts of changes.
    pub fn of<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Summary {
        let mut summary = Summary::default();
        for change in changes {
            let tally = match change.what {
                ChangeKind::Added => &mut summary.added,
                ChangeKind::Modified {
                    aspect: Aspect::Times,
                } => &mut summary.touched,
                ChangeKind::Modified { .. } => &mut summary.modified,
                ChangeKind::Removed => &mut summary.removed,
                ChangeKind::Renamed { .. } => &mut summary.renamed,
            };
            tally.add(change.size);
        }
        summary
    }

    /// Returns whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Summary {
            added,
            modified,
            touched,
            removed,
            renamed,
        } = self;
        [added, modified, touched, removed, renamed]
            .iter()
            .all(|tally| tally.entries == 0)
    }
}
