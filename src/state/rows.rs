//! The rows of an upper layer: what the union keeps in memory and writes through.

pub(super) mod queries;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::object::{Ino, Kind, Timestamp};

/// Where the content of a regular file is. The numbers are stored and never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum DataPlace {
    /// In the next layer below that knows the object.
    Lower = 0,
    /// In the backing file of this layer's upper directory.
    Upper = 1,
    /// In the images, whatever the frozen uppers above them have: changes of the content were
    /// discarded.
    Committed = 2,
}

/// The row of an object in a layer. It hides the rows of lower layers for the same object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRow {
    /// Type of the object.
    pub kind: Kind,
    /// The low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, 0 for all but device nodes.
    pub rdev: u64,
    /// Number of names in the merged view.
    pub nlink: u32,
    /// Time of last access. For a file whose data is upper, that of the backing file counts.
    pub atime: Timestamp,
    /// Time of last change of content. For a file whose data is upper, that of the backing file
    /// counts.
    pub mtime: Timestamp,
    /// Time of last change of content or attributes.
    pub ctime: Timestamp,
    /// Where the content is.
    pub data: DataPlace,
    /// Target of a symbolic link.
    pub target: Option<Box<[u8]>>,
    /// The directory and name under which the backing file lies in the upper directory.
    pub place: Option<(Ino, Box<[u8]>)>,
    /// Identifies the backing file on the host by its inode number and time of birth; 0 when there
    /// is none.
    pub backing_ino: u64,
    /// True if the xattr rows of this layer are all extended attributes of the object; false if the
    /// object has those of the layers below.
    pub owns_xattrs: bool,
}

impl InodeRow {
    /// Returns true if the place of the backing file is this name.
    pub fn is_placed_at(&self, dir: Ino, name: &[u8]) -> bool {
        self.place
            .as_ref()
            .is_some_and(|place| place.0 == dir && *place.1 == *name)
    }
}

impl From<InodeRow> for Cow<'_, InodeRow> {
    fn from(row: InodeRow) -> Self {
        Cow::Owned(row)
    }
}

impl<'a> From<&'a InodeRow> for Cow<'a, InodeRow> {
    fn from(row: &'a InodeRow) -> Self {
        Cow::Borrowed(row)
    }
}

/// One change of one row. Borrows or owns its values.
///
/// Records of the redo log contain these: a change of their shape needs a new version of its
/// format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowChange<'a> {
    /// Inserts or replaces the row of an object.
    PutInode(Ino, Cow<'a, InodeRow>),
    /// Removes the row of an object, but not those of its names and xattrs.
    DropInode(Ino),
    /// Inserts or replaces a name in a directory.
    PutEntry {
        /// The directory.
        dir: Ino,
        /// The name.
        name: Cow<'a, [u8]>,
        /// The object it leads to, or None for a whiteout.
        target: Option<Ino>,
    },
    /// Removes the row of a name.
    DropEntry {
        /// The directory.
        dir: Ino,
        /// The name.
        name: Cow<'a, [u8]>,
    },
    /// Removes the rows of all names in a directory.
    DropEntriesOf(Ino),
    /// Inserts or replaces an extended attribute.
    PutXattr {
        /// The object.
        ino: Ino,
        /// Name with its prefix, as in `user.comment`.
        name: Cow<'a, [u8]>,
        /// Value.
        value: Cow<'a, [u8]>,
    },
    /// Removes an extended attribute.
    DropXattr {
        /// The object.
        ino: Ino,
        /// Name with its prefix.
        name: Cow<'a, [u8]>,
    },
    /// Removes all extended attributes of the object.
    DropXattrs(Ino),
}

impl<'a> RowChange<'a> {
    /// Inserts or replaces the row of `ino`.
    pub fn put_inode(ino: Ino, row: impl Into<Cow<'a, InodeRow>>) -> Self {
        RowChange::PutInode(ino, row.into())
    }

    /// Inserts or replaces the name `name` in `dir`; None makes it a whiteout.
    pub fn put_entry(dir: Ino, name: impl Into<Cow<'a, [u8]>>, target: Option<Ino>) -> Self {
        RowChange::PutEntry {
            dir,
            name: name.into(),
            target,
        }
    }

    /// Removes the row of the name `name` in `dir`.
    pub fn drop_entry(dir: Ino, name: impl Into<Cow<'a, [u8]>>) -> Self {
        RowChange::DropEntry {
            dir,
            name: name.into(),
        }
    }

    /// Inserts or replaces an extended attribute of `ino`.
    pub fn put_xattr(
        ino: Ino,
        name: impl Into<Cow<'a, [u8]>>,
        value: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        RowChange::PutXattr {
            ino,
            name: name.into(),
            value: value.into(),
        }
    }

    /// Removes an extended attribute of `ino`.
    pub fn drop_xattr(ino: Ino, name: impl Into<Cow<'a, [u8]>>) -> Self {
        RowChange::DropXattr {
            ino,
            name: name.into(),
        }
    }
}

/// All rows of one layer, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerRows {
    /// Object and row.
    pub inodes: Vec<(Ino, InodeRow)>,
    /// Directory, name, object or None for a whiteout.
    pub entries: Vec<(Ino, Box<[u8]>, Option<Ino>)>,
    /// Object, name, value.
    #[expect(clippy::type_complexity, reason = "three columns, named above")]
    pub xattrs: Vec<(Ino, Box<[u8]>, Box<[u8]>)>,
}

impl LayerRows {
    /// Returns true if there are no rows: the layer changes nothing.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.entries.is_empty() && self.xattrs.is_empty()
    }
}
