//! Rows in memory: objects with their extended attributes, and the names of directories.

use std::collections::{BTreeMap, HashMap};

use super::bounds::Bounds;
use crate::object::Ino;
use crate::state::{InodeRow, LayerRows};

/// The names of one directory that differ.
#[derive(Debug, Default)]
pub(crate) struct DirDelta {
    /// Object by name, or `None` for a whiteout. The age numbers links in the order in which they
    /// were created. It is the readdir position of names that no lower layer has.
    pub(super) entries: BTreeMap<Box<[u8]>, (Option<Ino>, u64)>,
    by_age: BTreeMap<u64, Box<[u8]>>,
    next_age: u64,
    /// The ends of listings in progress.
    pub(super) bounds: Bounds,
}

impl DirDelta {
    /// Begins a listing that excludes names created from now on. Returns the number of its bound.
    pub(super) fn begin_listing(&self) -> u64 {
        self.bounds.begin(self.next_age)
    }

    /// Returns the link (`Some`) or whiteout (`None`) under a name, or `None` if there is neither.
    pub(crate) fn get(&self, name: &[u8]) -> Option<Option<Ino>> {
        self.entries.get(name).map(|(target, _)| *target)
    }

    /// Iterates over links and whiteouts in byte order of names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<Ino>)> {
        self.entries
            .iter()
            .map(|(name, (target, _))| (&**name, *target))
    }

    /// Iterates over links from age `from` on, oldest first.
    pub(crate) fn links_from(&self, from: u64) -> impl Iterator<Item = (u64, &[u8], Ino)> {
        self.by_age.range(from..).filter_map(|(age, name)| {
            let (target, _) = self.entries.get(name)?;
            Some((*age, &**name, (*target)?))
        })
    }

    pub(super) fn put(&mut self, name: Box<[u8]>, target: Option<Ino>) {
        // A replaced link keeps its position, so that a listing in progress returns the name once.
        let age = match self.entries.get(&name) {
            Some((Some(_), age)) if target.is_some() => *age,
            other => {
                if let Some((_, age)) = other {
                    self.by_age.remove(age);
                }
                let age = self.next_age;
                self.next_age += 1;
                if target.is_some() {
                    self.by_age.insert(age, name.clone());
                }
                age
            }
        };
        self.entries.insert(name, (target, age));
    }

    pub(super) fn drop_name(&mut self, name: &[u8]) {
        if let Some((_, age)) = self.entries.remove(name) {
            self.by_age.remove(&age);
        }
    }
}

/// Extended attributes by full name.
pub(super) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Objects with rows, and the extended attributes of those whose rows own them.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) inodes: HashMap<Ino, InodeRow>,
    pub(super) xattrs: HashMap<Ino, Xattrs>,
}

impl Objects {
    pub(super) fn of(rows: LayerRows) -> Objects {
        let mut objects = Objects {
            inodes: rows.inodes.into_iter().collect(),
            xattrs: HashMap::new(),
        };
        for (ino, name, value) in rows.xattrs {
            let own = objects.xattrs.entry(ino).or_default();
            own.insert(name, value);
        }
        objects
    }
}

/// Directories with names that differ.
pub(super) type Dirs = HashMap<Ino, DirDelta>;

pub(super) fn dirs_of(entries: Vec<(Ino, Box<[u8]>, Option<Ino>)>) -> Dirs {
    let mut dirs = Dirs::new();
    for (dir, name, target) in entries {
        dirs.entry(dir).or_default().put(name, target);
    }
    dirs
}
