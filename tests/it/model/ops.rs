//! The operations of a sequence, and what they apply to.

use super::numbers::CopyRange;
use super::recreated::Variation;

/// A name to create: one of few, or an existing one with `over`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) dir: u16,
    pub(super) name: u8,
    pub(super) over: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Make {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Device,
    BlockDevice,
}

/// One step. Numbers select among the existing objects, modulo their count.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Make(Place, Make, u16),
    Write {
        file: u16,
        offset: u16,
        len: u16,
        seed: u8,
        kill: bool,
    },
    Append {
        file: u16,
        len: u16,
        seed: u8,
    },
    Truncate {
        file: u16,
        size: u16,
    },
    Allocate {
        file: u16,
        offset: u16,
        len: u16,
        mode: u8,
    },
    CopyRange(CopyRange),
    Remove {
        entry: u16,
        as_dir: bool,
    },
    RemoveAny {
        entry: u16,
    },
    /// Removes a tree and creates it again, with or without a difference.
    Recreate {
        entry: u16,
        variation: Variation,
        which: u8,
    },
    Rename {
        entry: u16,
        to: Place,
        mode: u8,
    },
    Link {
        entry: u16,
        to: Place,
    },
    Chmod {
        entry: u16,
        mode: u16,
    },
    Chown {
        entry: u16,
        uid: u8,
        gid: u8,
    },
    Utimes {
        entry: u16,
        secs: u32,
        nanos: u32,
    },
    /// Several attributes at once.
    SetAttr {
        entry: u16,
        mask: SetMask,
        mode: u16,
        owner: (u8, u8),
        size: u16,
        secs: u32,
    },
    SetXattr {
        entry: u16,
        name: u8,
        len: u16,
    },
    RemoveXattr {
        entry: u16,
        name: u8,
    },
    Hold {
        entry: u16,
    },
    Release {
        held: u16,
    },
    Sync {
        entry: u16,
    },
    Commit {
        rebuild: bool,
        compact: bool,
    },
    /// Commits the changes at and below a path.
    CommitPath {
        entry: u16,
        of_base: bool,
    },
    /// Commits, and runs up to that many of the following operations meanwhile.
    CommitDuring {
        next: u8,
    },
    /// The first step of a commit, which then fails; changes follow before the next commit.
    Rotate,
    /// The last step of a failed commit.
    Unrotate,
    Remount,
    Kill,
    DiscardAll,
    DiscardPath {
        entry: u16,
        of_base: bool,
    },
    Restore {
        entry: u16,
        revision: u16,
    },
    Rollback {
        revision: u16,
    },
    Checkpoint,
    /// Writes the path of the environment into a file, commits, and moves the environment.
    Relocate {
        file: u16,
    },
    /// Undoes the last operation, or an older one.
    Undo {
        back: u16,
    },
}

impl Op {
    /// Returns whether programs perform the operation, in contrast to operations on the
    /// environment.
    pub(super) fn is_by_a_program(self) -> bool {
        match self {
            Op::Make(..)
            | Op::Write { .. }
            | Op::Append { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::CopyRange(..)
            | Op::Remove { .. }
            | Op::RemoveAny { .. }
            | Op::Recreate { .. }
            | Op::Rename { .. }
            | Op::Link { .. }
            | Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::Utimes { .. }
            | Op::SetAttr { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::Hold { .. }
            | Op::Release { .. }
            | Op::Sync { .. } => true,
            Op::Commit { .. }
            | Op::CommitPath { .. }
            | Op::CommitDuring { .. }
            | Op::Rotate
            | Op::Unrotate
            | Op::Remount
            | Op::Kill
            | Op::DiscardAll
            | Op::DiscardPath { .. }
            | Op::Restore { .. }
            | Op::Rollback { .. }
            | Op::Checkpoint
            | Op::Relocate { .. }
            | Op::Undo { .. } => false,
        }
    }
}

/// Which attributes are set together.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetMask {
    pub(super) mode: bool,
    pub(super) uid: bool,
    pub(super) gid: bool,
    pub(super) size: bool,
    pub(super) atime: bool,
    pub(super) mtime: bool,
    pub(super) to_now: bool,
    pub(super) kill: bool,
}
