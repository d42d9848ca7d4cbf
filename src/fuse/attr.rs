//! Attributes and kinds in fuser's words, and back.

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::union::SetTime;

/// The unit of `st_blksize`: one SquashFS block, so that copying tools ask for whole blocks.
const BLOCK_SIZE: u32 = 128 << 10;

pub(super) fn file_attr(ino: Ino, attr: &Attr) -> FileAttr {
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
        uid: attr.uid,
        gid: attr.gid,
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

/// Device numbers travel in the kernel's 32-bit encoding, which is the low half of glibc's as long
/// as the major number fits 12 bits and the minor 20, as they do on Linux.
fn kernel_rdev(rdev: u64) -> u32 {
    rdev as u32
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(Timestamp::from(time)),
    }
}
