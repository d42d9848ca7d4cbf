//! The rows of one upper layer in memory: the differences to the layers below it.

use std::collections::{BTreeMap, HashMap};

use super::layer::{HeldIn, LayerInode, LayerListing, Lookup};
use super::readdir::Bounds;
use crate::object::{Attr, Ino, Kind};
use crate::state::{DataPlace, InodeRow, LayerRows, RowChange};

/// The names of one directory that differ.
#[derive(Debug, Default)]
pub struct DirDelta {
    /// Object by name, or `None` for a whiteout. The age numbers links in the order in which they were
    /// created. It is the readdir position of names that no lower layer has.
    entries: BTreeMap<Box<[u8]>, (Option<Ino>, u64)>,
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
    pub fn get(&self, name: &[u8]) -> Option<Option<Ino>> {
        self.entries.get(name).map(|(target, _)| *target)
    }

    /// Iterates over links and whiteouts in byte order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<Ino>)> {
        self.entries
            .iter()
            .map(|(name, (target, _))| (&**name, *target))
    }

    /// Iterates over links from age `from` on, oldest first.
    pub fn links_from(&self, from: u64) -> impl Iterator<Item = (u64, &[u8], Ino)> {
        self.by_age.range(from..).filter_map(|(age, name)| {
            let (target, _) = self.entries.get(name)?;
            Some((*age, &**name, (*target)?))
        })
    }

    fn put(&mut self, name: Box<[u8]>, target: Option<Ino>) {
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

    fn drop_name(&mut self, name: &[u8]) {
        if let Some((_, age)) = self.entries.remove(name) {
            self.by_age.remove(&age);
        }
    }
}

/// Extended attributes by full name.
pub(super) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// The rows of one upper layer.
#[derive(Debug, Default)]
pub struct Delta {
    /// Objects with a row.
    pub inodes: HashMap<Ino, InodeRow>,
    /// Directories with names that differ.
    pub dirs: HashMap<Ino, DirDelta>,
    /// Extended attributes of the objects whose row has `owns_xattrs`.
    pub xattrs: HashMap<Ino, Xattrs>,
}

impl Delta {
    /// Builds the delta from rows that were loaded from the database.
    pub fn from_rows(rows: LayerRows) -> Delta {
        let mut delta = Delta {
            inodes: rows.inodes.into_iter().collect(),
            ..Delta::default()
        };
        for (dir, name, target) in rows.entries {
            delta.dirs.entry(dir).or_default().put(name, target);
        }
        for (ino, name, value) in rows.xattrs {
            delta.xattrs.entry(ino).or_default().insert(name, value);
        }
        delta
    }

    /// Returns true if the layer changes nothing.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.dirs.values().all(|d| d.entries.is_empty())
    }

    /// Returns the number of rows, without those of extended attributes.
    pub fn rows(&self) -> usize {
        self.inodes.len()
            + self
                .dirs
                .values()
                .map(|dir| dir.entries.len())
                .sum::<usize>()
    }

    /// Applies a change that the database contains already.
    pub fn apply(&mut self, change: &RowChange<'_>) {
        match change {
            RowChange::PutInode(ino, row) => {
                self.inodes.insert(*ino, row.as_ref().clone());
            }
            RowChange::DropInode(ino) => {
                self.inodes.remove(ino);
            }
            RowChange::PutEntry { dir, name, target } => {
                self.dirs
                    .entry(*dir)
                    .or_default()
                    .put(Box::from(&**name), *target);
            }
            RowChange::DropEntry { dir, name } => {
                if let Some(entries) = self.dirs.get_mut(dir) {
                    entries.drop_name(name);
                }
            }
            RowChange::DropEntriesOf(dir) => {
                self.dirs.remove(dir);
            }
            RowChange::PutXattr { ino, name, value } => {
                let own = self.xattrs.entry(*ino).or_default();
                own.insert(Box::from(&**name), Box::from(&**value));
            }
            RowChange::DropXattr { ino, name } => {
                if let Some(own) = self.xattrs.get_mut(ino) {
                    own.remove(&**name);
                }
            }
            RowChange::DropXattrs(ino) => {
                self.xattrs.remove(ino);
            }
        }
    }

    /// Returns the place of an object in this layer: the directory and the name of its content.
    pub fn place(&self, ino: Ino) -> Option<(Ino, Box<[u8]>)> {
        self.inodes.get(&ino)?.place.clone()
    }

    /// Looks up a name in this layer.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Lookup {
        match self.dirs.get(&dir).and_then(|d| d.get(name)) {
            None => Lookup::Unknown,
            Some(None) => Lookup::Whiteout,
            Some(Some(ino)) => Lookup::Found(ino),
        }
    }

    /// Returns the links and whiteouts of a directory. The kind is [`Kind::File`] if the object has no row.
    pub fn list(&self, dir: Ino) -> Option<LayerListing> {
        let entries = self.dirs.get(&dir)?;
        let kind_of = |ino: Ino| self.inodes.get(&ino).map_or(Kind::File, |row| row.kind);
        Some(
            entries
                .iter()
                .map(|(name, target)| (Box::from(name), target.map(|ino| (ino, kind_of(ino)))))
                .collect(),
        )
    }
}

/// Returns the attributes that a row holds. Those of content are in the backing file or a lower layer.
pub(super) fn row_attr(row: &InodeRow) -> Attr {
    Attr {
        kind: row.kind,
        mode: row.mode,
        uid: row.uid,
        gid: row.gid,
        rdev: row.rdev,
        nlink: row.nlink,
        size: match row.kind {
            Kind::Symlink => row.target.as_ref().map_or(0, |t| t.len() as u64),
            Kind::Directory => 4096,
            _ => 0,
        },
        blocks: 0,
        atime: row.atime,
        mtime: row.mtime,
        ctime: row.ctime,
    }
}

/// Returns an object by its row, without the attributes of its content.
pub(super) fn row_inode(row: &InodeRow) -> LayerInode {
    LayerInode {
        attr: row_attr(row),
        content: match row.data {
            DataPlace::Upper => HeldIn::ThisLayer,
            DataPlace::Lower if row.kind == Kind::File => HeldIn::LowerLayer,
            DataPlace::Lower => HeldIn::ThisLayer,
        },
        xattrs: if row.owns_xattrs {
            HeldIn::ThisLayer
        } else {
            HeldIn::LowerLayer
        },
    }
}

/// Returns a row with these attributes, for content that stays in a lower layer.
pub(super) fn row_from(
    attr: &Attr,
    target: Option<Box<[u8]>>,
    place: Option<(Ino, Box<[u8]>)>,
) -> InodeRow {
    InodeRow {
        kind: attr.kind,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        nlink: attr.nlink,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        data: DataPlace::Lower,
        target,
        place,
        backing_ino: 0,
        owns_xattrs: false,
    }
}
