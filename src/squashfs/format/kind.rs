//! The kinds of objects in an image.

/// The seven kinds, with the numbers of their basic forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum InodeKind {
    /// A directory.
    Directory = 1,
    /// A regular file.
    File = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A block device node.
    BlockDevice = 4,
    /// A character device node.
    CharDevice = 5,
    /// A named pipe.
    Fifo = 6,
    /// A socket.
    Socket = 7,
}

impl InodeKind {
    /// Returns the kind with this number of a basic form. Directory entries use only these.
    pub fn from_basic(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => InodeKind::Directory,
            2 => InodeKind::File,
            3 => InodeKind::Symlink,
            4 => InodeKind::BlockDevice,
            5 => InodeKind::CharDevice,
            6 => InodeKind::Fifo,
            7 => InodeKind::Socket,
            _ => return None,
        })
    }
    /// Returns the file type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            InodeKind::Directory => 0o040_000,
            InodeKind::File => 0o100_000,
            InodeKind::Symlink => 0o120_000,
            InodeKind::BlockDevice => 0o060_000,
            InodeKind::CharDevice => 0o020_000,
            InodeKind::Fifo => 0o010_000,
            InodeKind::Socket => 0o140_000,
        }
    }
}
