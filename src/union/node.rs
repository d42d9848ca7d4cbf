//! What the kernel holds: how often it was told of each object, and under which directory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use crate::object::Ino;

const SHARDS: usize = 16;

/// Objects the kernel knows, with their lookup counts. About 32 bytes each.
///
/// The parent is a hint for finding a name of a lower file when its content is copied up: lower
/// files do not know where they are.
#[derive(Debug, Default)]
pub struct Nodes {
    shards: [Mutex<HashMap<Ino, Node>>; SHARDS],
    /// How often an object had lost its last name and got one back, for those that did.
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
        // Counts are changed in one step each: a panic elsewhere leaves them true.
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more answer that told the kernel of the object. No `parent` is known where it was found
    /// by its identity alone.
    pub fn remember(&self, ino: Ino, parent: impl Into<Option<Ino>>) {
        let parent = parent.into();
        let mut shard = self.shard(ino);
        let node = shard.entry(ino).or_insert(Node { lookups: 0, parent });
        node.lookups += 1;
        node.parent = parent.or(node.parent);
    }

    /// Takes back `count` answers; returns true if the kernel holds the object no longer.
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

    /// Returns true while the kernel holds the object.
    pub fn is_held(&self, ino: Ino) -> bool {
        self.shard(ino).contains_key(&ino)
    }

    /// The directory through which the object was last looked up.
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        self.shard(ino).get(&ino)?.parent
    }

    /// The object, if it is held, has a name in another directory now.
    pub fn moved(&self, ino: Ino, parent: Ino) {
        if let Some(node) = self.shard(ino).get_mut(&ino) {
            node.parent = Some(parent);
        }
    }

    /// The object had lost its last name, and a discard gives it one back. To the kernel, a directory
    /// that was removed stays dead, for everybody, while somebody is in it: so it is to be a new one there.
    pub fn revive(&self, ino: Ino) {
        let mut revived = self.revived.write().unwrap_or_else(PoisonError::into_inner);
        *revived.entry(ino).or_default() += 1;
    }

    /// The generation of a directory (of others nobody asks): the kernel takes one number with two generations for two inodes.
    pub fn generation(&self, ino: Ino) -> u64 {
        let revived = self.revived.read().unwrap_or_else(PoisonError::into_inner);
        revived.get(&ino).copied().unwrap_or(0)
    }

    /// Every object the kernel holds, in no order.
    pub fn held(&self) -> Vec<Ino> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.keys().copied());
        }
        all
    }
}
