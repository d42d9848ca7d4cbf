//! Identity, kind and attributes of a file system object, as all modules use them.

use std::fmt;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The identity of an object: its FUSE node id, its `st_ino`, and the key of its rows.
///
/// It survives copy-up, rename, remount and commit, and is never reused in the same environment.
/// Objects of the first image have their SquashFS inode number (exchanged with 1 for the root);
/// new objects get the next number of a counter above those.
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
#[serde(rename_all = "kebab-case")]
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

    /// Returns the kind that the `S_IFMT` bits of `st_mode` specify, or `None` if they are invalid.
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

/// A point in time as file systems store it.
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
    /// Returns the time that the kernel would set on a file now.
    ///
    /// Objects with a backing file get their times from the kernel, the others from here, and times
    /// must not go backwards between the two. The kernel uses its coarse clock, and since Linux
    /// 6.13 a finer one for files whose times were read before; no readable clock agrees with both.
    /// So this sets the times of a file in memory and reads them.
    pub fn now() -> Timestamp {
        match file_time().or_else(|_| coarse_time()) {
            Ok((secs, nanos)) => Timestamp {
                secs,
                nanos: u32::try_from(nanos).unwrap_or(0),
            },
            Err(_) => Timestamp::from(std::time::SystemTime::now()),
        }
    }
}

impl Timestamp {
    /// Returns the time at which a file was created just now, for other objects that change with
    /// it, the last of them at `last`.
    ///
    /// The kernel is asked for the time instead if that of the file is not comparable: if another
    /// host has set it, if the clock was changed meanwhile, or if the file system uses a coarser
    /// clock than [`now`](Self::now), so that time would go backwards.
    pub fn at_creation(file: &Metadata, last: Timestamp) -> Timestamp {
        let created = Timestamp {
            secs: file.mtime(),
            nanos: u32::try_from(file.mtime_nsec()).unwrap_or(0),
        };
        let coarse = coarse_time().map(|(secs, nanos)| Timestamp {
            secs,
            nanos: u32::try_from(nanos).unwrap_or(0),
        });
        let latest = Timestamp::from(std::time::SystemTime::now());
        match coarse {
            Ok(now)
                if created.secs >= now.secs.saturating_sub(1)
                    && created >= last
                    && created <= latest =>
            {
                created
            }
            _ => Timestamp::now(),
        }
    }
}

/// Returns the current time of files, as seconds and nanoseconds.
fn file_time() -> Result<(i64, i64), Errno> {
    static FILE: LazyLock<Result<OwnedFd, Errno>> =
        LazyLock::new(|| memfd_create("clock", MFdFlags::MFD_CLOEXEC));
    let file = FILE.as_ref().map_err(|error| *error)?;
    futimens(file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)?;
    let stat = fstat(file)?;
    Ok((stat.st_mtime, stat.st_mtime_nsec))
}

/// Returns the current time of the coarse clock, as seconds and nanoseconds.
fn coarse_time() -> Result<(i64, i64), Errno> {
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

/// The attributes of an object that `stat` returns.
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
    /// Number of names; for a directory, the number of subdirectories plus 2.
    pub nlink: u32,
    /// Size in bytes; for a symbolic link, the length of its target.
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
    /// Returns these attributes with the size and blocks of `lower`, which has the content.
    pub fn with_content_of(self, lower: &Attr) -> Attr {
        Attr {
            size: lower.size,
            blocks: lower.blocks,
            ..self
        }
    }
}
