//! The meaning of the numbers in operations, shared by all implementations.

use envfs::object::Kind;
use envfs::union::{AllocateMode, RenameMode, XattrMode};

use super::bench::{BLOCK, noise};
use super::machine::CAPABILITY;
use super::ops::Make;

/// The target of new symbolic links.
pub(super) const TARGET: &str = "some/where";

impl Make {
    /// Returns the kind and, for devices, the number.
    pub(super) fn node(self) -> (Kind, u64) {
        match self {
            Make::File => (Kind::File, 0),
            Make::Directory => (Kind::Directory, 0),
            Make::Symlink => (Kind::Symlink, 0),
            Make::Fifo => (Kind::Fifo, 0),
            Make::Socket => (Kind::Socket, 0),
            Make::Device => (Kind::CharDevice, 0x103),
            Make::BlockDevice => (Kind::BlockDevice, 0x803),
        }
    }
}

pub(super) fn mode(mode: u16) -> u16 {
    mode & 0o7777
}

/// Returns the data of a write.
pub(super) fn data(len: u16, seed: u8) -> Vec<u8> {
    noise(seed.into(), usize::from(len) % 6000)
}

/// Returns the offset of a write, or the size of a file.
pub(super) fn offset(offset: u16) -> usize {
    usize::from(offset) % (5 * BLOCK)
}

/// Returns the size of a truncated file, often 0 as with `O_TRUNC`.
pub(super) fn cut(size: u16) -> usize {
    offset(size) * usize::from(!size.is_multiple_of(4))
}

pub(super) fn nanos(nanos: u32) -> u32 {
    nanos % 1_000_000_000
}

/// An `fallocate`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocate {
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) mode: AllocateMode,
    pub(super) kill: bool,
}

impl Allocate {
    pub(super) fn new(offset: u16, len: u16, mode: u8) -> Allocate {
        let modes = [
            AllocateMode::Reserve { keep_size: false },
            AllocateMode::Reserve { keep_size: true },
            AllocateMode::PunchHole,
            AllocateMode::ZeroRange { keep_size: false },
            AllocateMode::ZeroRange { keep_size: true },
        ];
        Allocate {
            offset: usize::from(offset) % (4 * BLOCK),
            len: 1 + usize::from(len) % (2 * BLOCK),
            mode: modes[usize::from(mode) % modes.len()],
            kill: mode & 0x80 != 0,
        }
    }
}

/// A `copy_file_range` between two files, or within one.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyRange {
    pub(super) from: u16,
    pub(super) to: u16,
    from_offset: u16,
    to_offset: u16,
    len: u16,
}

impl CopyRange {
    pub(super) fn new(
        (from, from_offset): (u16, u16),
        (to, to_offset): (u16, u16),
        len: u16,
    ) -> CopyRange {
        CopyRange {
            from,
            to,
            from_offset,
            to_offset,
            len,
        }
    }

    pub(super) fn source_offset(self) -> usize {
        usize::from(self.from_offset) % (4 * BLOCK)
    }

    pub(super) fn target_offset(self) -> usize {
        usize::from(self.to_offset) % (4 * BLOCK)
    }

    pub(super) fn len(self) -> usize {
        usize::from(self.len) % (3 * BLOCK)
    }

    pub(super) fn kill(self) -> bool {
        self.len & 0x8000 != 0
    }

    /// Returns whether the ranges overlap if both files are the same.
    pub(super) fn overlaps(self) -> bool {
        self.source_offset().abs_diff(self.target_offset()) < self.len()
    }
}

pub(super) fn rename_mode(mode: u8) -> RenameMode {
    match mode % 6 {
        0 => RenameMode::NoReplace,
        1 | 2 => RenameMode::Exchange,
        _ => RenameMode::Replace,
    }
}

/// Returns name, value and mode of an attribute to set.
pub(super) fn attribute(name: u8, len: u16) -> (Vec<u8>, Vec<u8>, XattrMode) {
    let name = match name % 4 {
        3 => CAPABILITY.to_vec(),
        n => format!("user.{n}").into_bytes(),
    };
    let value = noise(len.into(), usize::from(len) % 300);
    let mode = [XattrMode::Either, XattrMode::Create, XattrMode::Replace][usize::from(len) % 3];
    (name, value, mode)
}

/// Returns the name of an attribute to remove, one of the existing ones if possible.
pub(super) fn removed<'a>(
    name: u8,
    mut there: impl ExactSizeIterator<Item = &'a Vec<u8>>,
) -> Vec<u8> {
    match there.len() {
        0 => b"user.none".to_vec(),
        len => there.nth(usize::from(name) % len).cloned().unwrap(),
    }
}
