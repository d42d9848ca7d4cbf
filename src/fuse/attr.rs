//! Converts attributes, kinds and times to and from fuser's types.

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use super::owners::Owners;
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::union::SetTime;

/// The value of `st_blksize`: one SquashFS block, so that copying tools read whole blocks.
const BLOCK_SIZE: u32 = 128 << 10;

/// A negative entry: node id 0 means that the name does not exist, which the kernel caches.
pub(super) const NEGATIVE_ENTRY: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: std::time::UNIX_EPOCH,
    mtime: std::time::UNIX_EPOCH,
    ctime: std::time::UNIX_EPOCH,
    crtime: std::time::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

pub(super) fn file_attr(owners: &Owners, ino: Ino, attr: &Attr) -> FileAttr {
    let (uid, gid) = owners.visible((attr.uid, attr.gid));
    FileAttr {
        ino: INodeNo(ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: std::time::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid,
        gid,
        rdev: kernel_rdev(attr.rdev),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::CharDevice => FileType::CharDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// Converts a device number to the kernel's 32-bit encoding. It equals the low half of glibc's
/// encoding, since Linux limits major numbers to 12 bits and minor numbers to 20.
fn kernel_rdev(rdev: u64) -> u32 {
    rdev as u32
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(correct_time(Timestamp::from(time))),
    }
}

/// Corrects a time before 1970: fuser 0.18 subtracts its nanoseconds instead of adding them, so
/// that -2 s + 0.5 s from the kernel arrives as -2.5 s.
fn correct_time(time: Timestamp) -> Timestamp {
    if time.secs < 0 && time.nanos != 0 {
        Timestamp {
            secs: time.secs + 1,
            nanos: 1_000_000_000 - time.nanos,
        }
    } else {
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_before_1970_are_corrected() {
        let arrived = UNIX_EPOCH - Duration::from_secs(2) - Duration::from_millis(500);
        let sent = Timestamp {
            secs: -2,
            nanos: 500_000_000,
        };
        assert_eq!(
            set_time(TimeOrNow::SpecificTime(arrived)),
            SetTime::To(sent)
        );
        let whole = UNIX_EPOCH - Duration::from_secs(2);
        let sent = Timestamp { secs: -2, nanos: 0 };
        assert_eq!(set_time(TimeOrNow::SpecificTime(whole)), SetTime::To(sent));
    }
}
