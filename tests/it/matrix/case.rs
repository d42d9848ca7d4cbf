//! All cases: each operation on each type of object in each state.

use std::fmt;
use std::fs;
use std::path::Path;

use nix::fcntl::{OFlag, RenameFlags};
use nix::unistd::AccessFlags;

use super::fixture::{self, STATES, State, TYPES, Type, age};
use super::ops::{self, Answer, Op, Slash, Target, Then};

/// One operation on one object, or on two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    op: Op,
    x: (Type, State),
    t: Option<(Type, State)>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of x = {:?} {:?}", self.op, self.x.1, self.x.0)?;
        match self.t {
            Some((what, state)) => write!(f, " with t = {state:?} {what:?}"),
            None => Ok(()),
        }
    }
}

impl Case {
    fn objects(&self) -> impl Iterator<Item = (&'static str, Type, State)> {
        let x = [("x", self.x.0, self.x.1)].into_iter();
        x.chain(self.t.map(|(what, state)| ("t", what, state)))
    }

    pub(super) fn make_lower(&self, dir: &Path) {
        fs::create_dir(dir).unwrap();
        fs::create_dir(dir.join("low")).unwrap();
        for (name, what, state) in self.objects() {
            fixture::make_lower(dir, name, what, state);
        }
        age(&dir.join("low"));
        age(dir);
    }

    pub(super) fn prepare(&self, dir: &Path) {
        let mut is_changed = false;
        for (name, what, state) in self.objects() {
            is_changed |= fixture::prepare(dir, name, what, state);
        }
        if is_changed {
            age(dir);
        }
    }

    pub(super) fn act(&self, dir: &Path) -> Answer {
        ops::act(dir, self.op)
    }

    /// Returns whether the case writes to a FIFO, which changes its time on ext4 only.
    pub(super) fn writes_through_a_fifo(&self) -> bool {
        let is_there = !matches!(self.x.1, State::Whiteout | State::Missing);
        let writes = matches!(self.op, Op::Open(flags, Then::Write) if flags.contains(OFlag::O_RDWR)
            && !flags.intersects(OFlag::O_EXCL | OFlag::O_DIRECTORY));
        self.x.0 == Type::Fifo && is_there && writes
    }

    pub(super) fn afterwards(&self, dir: &Path, step: usize) -> Answer {
        ops::afterwards(dir, step)
    }
}

/// Returns the meaningful combinations of open flags.
fn opens() -> Vec<Op> {
    let mut all = Vec::new();
    let extras = [
        OFlag::empty(),
        OFlag::O_CREAT,
        OFlag::O_CREAT.union(OFlag::O_EXCL),
        OFlag::O_TRUNC,
        OFlag::O_CREAT.union(OFlag::O_TRUNC),
        OFlag::O_APPEND,
        OFlag::O_NOFOLLOW,
        OFlag::O_DIRECTORY,
        OFlag::O_CREAT.union(OFlag::O_EXCL).union(OFlag::O_TRUNC),
        OFlag::O_CREAT.union(OFlag::O_APPEND),
        OFlag::O_CREAT.union(OFlag::O_NOFOLLOW),
    ];
    for extra in extras {
        // O_RDONLY with O_TRUNC is unspecified; the reference is ext4.
        all.push(Op::Open(OFlag::O_RDONLY | extra, Then::Nothing));
        all.push(Op::Open(OFlag::O_RDONLY | extra, Then::Read));
        all.push(Op::Open(OFlag::O_WRONLY | extra, Then::Nothing));
        all.push(Op::Open(OFlag::O_WRONLY | extra, Then::Write));
        all.push(Op::Open(OFlag::O_RDWR | extra, Then::Read));
        all.push(Op::Open(OFlag::O_RDWR | extra, Then::Write));
    }
    all.push(Op::Open(OFlag::O_PATH, Then::Nothing));
    all.push(Op::Open(OFlag::O_PATH | OFlag::O_NOFOLLOW, Then::Nothing));
    all
}

fn on_one() -> Vec<Op> {
    let mut all = opens();
    all.extend([0, 3, 5000].map(Op::Truncate));
    all.extend([
        Op::Mkdir,
        Op::Rmdir,
        Op::Unlink,
        Op::Mkfifo,
        Op::Symlink,
        Op::Chmod,
    ]);
    all.extend([
        Op::Chown,
        Op::Lchown,
        Op::RemoveXattr,
        Op::GetXattr,
        Op::ReadLink,
        Op::ReadDir,
    ]);
    all.extend([
        Op::Stat,
        Op::MakeIn,
        Op::UnlinkIn,
        Op::MakeDirIn,
        Op::RemoveDirIn,
        Op::MoveOutOf,
    ]);
    for follow in [true, false] {
        all.extend([
            Op::Touch { follow },
            Op::SetXattr { follow },
            Op::LinkAnew { follow },
        ]);
    }
    let accesses = [
        AccessFlags::F_OK,
        AccessFlags::R_OK,
        AccessFlags::W_OK,
        AccessFlags::X_OK,
    ];
    all.extend(accesses.map(Op::Access));
    let targets = [
        Target::Free,
        Target::InLower,
        Target::InUpper,
        Target::InItself,
        Target::Itself,
    ];
    all.extend(targets.map(Op::Move));
    let slashes = [
        Slash::Stat,
        Slash::Mkdir,
        Slash::Rmdir,
        Slash::Unlink,
        Slash::Create,
        Slash::Rename,
        Slash::RenameTo,
    ];
    all.extend(slashes.map(Op::WithSlash));
    all
}

fn on_two() -> Vec<Op> {
    vec![
        Op::Rename(RenameFlags::empty()),
        Op::Rename(RenameFlags::RENAME_NOREPLACE),
        Op::Rename(RenameFlags::RENAME_EXCHANGE),
        Op::Link { follow: false },
        Op::Link { follow: true },
    ]
}

/// Returns all cases; those with devices need root.
pub(super) fn all_cases(is_root: bool) -> Vec<Case> {
    let mut objects = vec![(Type::File, State::Missing)];
    for what in TYPES {
        if what != Type::Device || is_root {
            objects.extend(STATES.map(|state| (what, state)));
        }
    }
    let mut cases = Vec::new();
    for &x in &objects {
        cases.extend(on_one().into_iter().map(|op| Case { op, x, t: None }));
        for &t in &objects {
            cases.extend(on_two().into_iter().map(|op| Case { op, x, t: Some(t) }));
        }
    }
    cases
}
