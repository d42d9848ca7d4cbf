//! The objects that the kernel holds: their lookup counts, and the directory of the last lookup.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use crate::object::Ino;

const SHARDS: usize = 16;

/// The objects that the kernel holds. An object takes about 32 bytes.
///
/// The parent is a hint for finding the name of a lower file when it is copied up, since images do
/// not store the parents of files.
///
/// The locks of this table are taken last.
#[derive(Debug, Default)]
pub struct Nodes {
    shards: [Mutex<HashMap<Ino, Node>>; SHARDS],
    /// How often an object was restored after it had lost its last name, if it ever was.
    revived: RwLock<HashMap<Ino, u64>>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    lookups: u64,
    parent: Option<Ino>,
}

impl Nodes {
    fn shard(&self, ino: Ino) -> MutexGuard<'_, HashMap<Ino, Node>> {
        let shard = (ino.0 as usize) % SHARDS;
        // Each change is one step, so the table is consistent even if the lock is poisoned.
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds 1 to the lookup count of an object. `parent` is `None` if the object was looked up by
    /// its identity.
    pub fn remember(&self, ino: Ino, parent: impl Into<Option<Ino>>) {
        let parent = parent.into();
        let mut shard = self.shard(ino);
        let node = shard.entry(ino).or_insert(Node { lookups: 0, parent });
        node.lookups += 1;
        node.parent = parent.or(node.parent);
    }

    /// Subtracts `count` from the lookup count. Returns true if the kernel no longer holds the
    /// object.
    pub fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut shard = self.shard(ino);
        match shard.entry(ino) {
            Entry::Vacant(_) => true,
            Entry::Occupied(mut node) => {
                let left = node.get().lookups.saturating_sub(count);
                node.get_mut().lookups = left;
                if left == 0 {
                    node.remove();
                }
                left == 0
            }
        }
    }

    /// Returns true if the kernel holds the object.
    pub(crate) fn is_held(&self, ino: Ino) -> bool {
        self.shard(ino).contains_key(&ino)
    }

    /// Returns the directory in which the object was last looked up.
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        self.shard(ino).get(&ino)?.parent
    }

    /// Records that a name of the object was moved to another directory.
    pub fn moved(&self, ino: Ino, parent: Ino) {
        if let Some(node) = self.shard(ino).get_mut(&ino) {
            node.parent = Some(parent);
        }
    }

    /// Records that a discard restored an object that had lost its last name. The kernel never uses
    /// a removed directory again while a process is in it, so the directory gets a new generation.
    pub(crate) fn revive(&self, ino: Ino) {
        let mut revived = self.revived.write().unwrap_or_else(PoisonError::into_inner);
        *revived.entry(ino).or_default() += 1;
    }

    /// Returns the generation of a directory. The kernel regards two generations of one inode
    /// number as two inodes.
    pub(crate) fn generation(&self, ino: Ino) -> u64 {
        let revived = self.revived.read().unwrap_or_else(PoisonError::into_inner);
        revived.get(&ino).copied().unwrap_or(0)
    }

    /// Returns all objects that the kernel holds, in no particular order.
    pub(crate) fn held(&self) -> Vec<Ino> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.keys().copied());
        }
        all
    }
}
