//! What a file system object is to every room: its identity, its kind, its attributes.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The identity of one object for its whole life: FUSE node id, `st_ino`, and key of every row.
///
/// It survives copy-up, rename, remount and commit, and is never given to another object of the
/// same environment. Objects of the first image have their SquashFS inode number (with the root
/// and number 1 exchanged where the root has another); new objects come from a counter above.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory of every merged view.
    pub const ROOT: Ino = Ino(1);
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The type of an object. The numbers are stored in rows and never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
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
    /// A Unix socket node.
    Socket = 7,
}

impl Kind {
    /// Returns the kind with this stored number.
    pub fn from_number(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::Directory,
            2 => Kind::File,
            3 => Kind::Symlink,
            4 => Kind::BlockDevice,
            5 => Kind::CharDevice,
            6 => Kind::Fifo,
            7 => Kind::Socket,
            _ => return None,
        })
    }

    /// Returns the `S_IFMT` bits of this kind, as in `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::Directory => 0o040000,
            Kind::File => 0o100000,
            Kind::Symlink => 0o120000,
            Kind::BlockDevice => 0o060000,
            Kind::CharDevice => 0o020000,
            Kind::Fifo => 0o010000,
            Kind::Socket => 0o140000,
        }
    }

    /// Returns the kind that `st_mode` names, if it names one.
    pub fn from_mode(mode: u32) -> Option<Kind> {
        Some(match mode & 0o170000 {
            0o040000 => Kind::Directory,
            0o100000 => Kind::File,
            0o120000 => Kind::Symlink,
            0o060000 => Kind::BlockDevice,
            0o020000 => Kind::CharDevice,
            0o010000 => Kind::Fifo,
            0o140000 => Kind::Socket,
            _ => return None,
        })
    }
}

/// A point in time as file systems keep it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Seconds since 1970, possibly negative.
    pub secs: i64,
    /// Nanoseconds within the second, always below 1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    /// Returns the time that the kernel stamps a file with now.
    ///
    /// Objects without a backing file get their times from here, the others from the kernel, and what is
    /// made later must not be older. The kernel's stamps follow its coarse clock, since Linux 6.13 a
    /// finer one where somebody has looked at the file before; no clock that can be read agrees with
    /// both. So it is asked to stamp a file, in memory.
    pub fn now() -> Timestamp {
        match stamp().or_else(|_| coarse()) {
            Ok((secs, nanos)) => Timestamp {
                secs,
                nanos: u32::try_from(nanos).unwrap_or(0),
            },
            Err(_) => Timestamp::from(std::time::SystemTime::now()),
        }
    }
}

/// Seconds and nanoseconds that a file in memory is stamped with now.
fn stamp() -> Result<(i64, i64), Errno> {
    static FILE: LazyLock<Result<OwnedFd, Errno>> =
        LazyLock::new(|| memfd_create("clock", MFdFlags::MFD_CLOEXEC));
    let file = FILE.as_ref().map_err(|error| *error)?;
    futimens(file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)?;
    let stat = fstat(file)?;
    Ok((stat.st_mtime, stat.st_mtime_nsec))
}

/// The same of the coarse clock.
fn coarse() -> Result<(i64, i64), Errno> {
    let time = clock_gettime(ClockId::CLOCK_REALTIME_COARSE)?;
    Ok((time.tv_sec(), time.tv_nsec()))
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Timestamp {
                secs: after.as_secs() as i64,
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let (secs, nanos) = (before.as_secs() as i64, before.subsec_nanos());
                if nanos == 0 {
                    Timestamp {
                        secs: -secs,
                        nanos: 0,
                    }
                } else {
                    Timestamp {
                        secs: -secs - 1,
                        nanos: 1_000_000_000 - nanos,
                    }
                }
            }
        }
    }
}

impl From<Timestamp> for std::time::SystemTime {
    fn from(time: Timestamp) -> Self {
        use std::time::{Duration, UNIX_EPOCH};
        let nanos = Duration::from_nanos(u64::from(time.nanos));
        if time.secs >= 0 {
            UNIX_EPOCH + Duration::from_secs(time.secs as u64) + nanos
        } else {
            UNIX_EPOCH - Duration::from_secs(time.secs.unsigned_abs()) + nanos
        }
    }
}

/// What `stat` tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Type of the object.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number in the encoding of `dev_t`; 0 for all but device nodes.
    pub rdev: u64,
    /// Number of names; for a directory its subdirectories and 2.
    pub nlink: u32,
    /// Size in bytes; of a symbolic link, the length of its target.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Time of last access.
    pub atime: Timestamp,
    /// Time of last change of content.
    pub mtime: Timestamp,
    /// Time of last change of content or attributes.
    pub ctime: Timestamp,
}

impl Attr {
    /// These attributes, of an object whose content is where `below` was read.
    pub fn with_content_of(self, below: &Attr) -> Attr {
        Attr {
            size: below.size,
            blocks: below.blocks,
            ..self
        }
    }
}
