//! The operations, each a system call.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, renameat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mknod, stat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    AccessFlags, Gid, Uid, UnlinkatFlags, access, fchownat, linkat, symlinkat, truncate, unlinkat,
};

/// The result of a call, for comparison.
pub(super) type Answer = Result<String, Errno>;

/// What is done with an opened file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    Read,
    Write,
}

/// An operation on `x` and, if it takes two objects, on `t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Open(OFlag, Then),
    Truncate(i64),
    Mkdir,
    Rmdir,
    Unlink,
    Mkfifo,
    Symlink,
    Chmod,
    Chown,
    Lchown,
    Touch {
        follow: bool,
    },
    SetXattr {
        follow: bool,
    },
    RemoveXattr,
    GetXattr,
    ReadLink,
    ReadDir,
    Stat,
    Access(AccessFlags),
    Link {
        follow: bool,
    },
    LinkAnew {
        follow: bool,
    },
    Rename(RenameFlags),
    /// Renames to a free name: in the same directory, in one of the image, in a new one, or in
    /// itself.
    Move(Target),
    MakeIn,
    UnlinkIn,
    MakeDirIn,
    RemoveDirIn,
    MoveOutOf,
    /// With a slash at the end of the path.
    WithSlash(Slash),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Free,
    InLower,
    InUpper,
    InItself,
    Itself,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slash {
    Stat,
    Mkdir,
    Rmdir,
    Unlink,
    Create,
    Rename,
    RenameTo,
}

fn done<T>(result: Result<T, Errno>) -> Answer {
    result.map(|_| String::new())
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn slashed(path: &Path) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push("/");
    PathBuf::from(text)
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Answer {
    done(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags))
}

fn open_and(path: &Path, flags: OFlag, then: Then) -> Answer {
    // The other end of a FIFO is not open.
    let mode = Mode::from_bits_truncate(0o640);
    let fd = open(path, flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, mode)?;
    let mut file = File::from(fd);
    match then {
        Then::Nothing => Ok(String::new()),
        Then::Read => {
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(errno)?;
            Ok(text)
        }
        Then::Write => {
            let count = file.write(b"written").map_err(errno)?;
            Ok(count.to_string())
        }
    }
}

fn touch(path: &Path, follow: bool) -> Answer {
    let flag = if follow {
        UtimensatFlags::FollowSymlink
    } else {
        UtimensatFlags::NoFollowSymlink
    };
    let (atime, mtime) = (TimeSpec::new(111, 1), TimeSpec::new(222, 2));
    done(utimensat(AT_FDCWD, path, &atime, &mtime, flag))
}

fn list(path: &Path) -> Answer {
    let entries = std::fs::read_dir(path).map_err(errno)?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(
            entry
                .map_err(errno)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names.join(" "))
}

fn link(from: &Path, to: &Path, follow: bool) -> Answer {
    let flags = if follow {
        AtFlags::AT_SYMLINK_FOLLOW
    } else {
        AtFlags::empty()
    };
    done(linkat(AT_FDCWD, from, AT_FDCWD, to, flags))
}

/// Performs an operation in the directory of a case.
pub(super) fn act(base: &Path, op: Op) -> Answer {
    let (x, t) = (base.join("x"), base.join("t"));
    let mode = |bits| Mode::from_bits_truncate(bits);
    match op {
        Op::Open(flags, then) => open_and(&x, flags, then),
        Op::Truncate(size) => done(truncate(&x, size)),
        Op::Mkdir => done(nix::unistd::mkdir(&x, mode(0o750))),
        Op::Rmdir => done(unlinkat(AT_FDCWD, &x, UnlinkatFlags::RemoveDir)),
        Op::Unlink => done(unlinkat(AT_FDCWD, &x, UnlinkatFlags::NoRemoveDir)),
        Op::Mkfifo => done(mknod(&x, SFlag::S_IFIFO, mode(0o600), 0)),
        Op::Symlink => done(symlinkat("somewhere", AT_FDCWD, &x)),
        Op::Chmod => done(fchmodat(
            AT_FDCWD,
            &x,
            mode(0o705),
            FchmodatFlags::FollowSymlink,
        )),
        Op::Chown => chown(&x, AtFlags::empty()),
        Op::Lchown => chown(&x, AtFlags::AT_SYMLINK_NOFOLLOW),
        Op::Touch { follow } => touch(&x, follow),
        Op::SetXattr { follow: true } => done(xattr::set_deref(&x, "user.k", b"v").map_err(errno)),
        Op::SetXattr { follow: false } => done(xattr::set(&x, "user.k", b"v").map_err(errno)),
        Op::RemoveXattr => done(xattr::remove_deref(&x, "user.k").map_err(errno)),
        Op::GetXattr => xattr::get_deref(&x, "user.k")
            .map(|value| format!("{value:?}"))
            .map_err(errno),
        Op::ReadLink => {
            nix::fcntl::readlink(&x).map(|target| target.to_string_lossy().into_owned())
        }
        Op::ReadDir => list(&x),
        Op::Stat => stat(&x).map(|seen| format!("{:o}", seen.st_mode)),
        Op::Access(flags) => done(access(&x, flags)),
        Op::Link { follow } => link(&x, &t, follow),
        Op::LinkAnew { follow } => link(&x, &base.join("anew"), follow),
        Op::Rename(flags) => rename(&x, &t, flags),
        Op::Move(target) => {
            let to = match target {
                Target::Free => base.join("free"),
                Target::InLower => base.join("low/free"),
                Target::InUpper => {
                    std::fs::create_dir(base.join("up")).map_err(errno)?;
                    base.join("up/free")
                }
                Target::InItself => x.join("free"),
                Target::Itself => x.clone(),
            };
            rename(&x, &to, RenameFlags::empty())
        }
        Op::MakeIn => open_and(
            &x.join("made"),
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL,
            Then::Write,
        ),
        Op::UnlinkIn => done(unlinkat(
            AT_FDCWD,
            &x.join("in"),
            UnlinkatFlags::NoRemoveDir,
        )),
        Op::MakeDirIn => done(nix::unistd::mkdir(&x.join("made"), mode(0o700))),
        Op::RemoveDirIn => done(unlinkat(AT_FDCWD, &x.join("sub"), UnlinkatFlags::RemoveDir)),
        Op::MoveOutOf => rename(&x.join("sub"), &base.join("out"), RenameFlags::empty()),
        Op::WithSlash(slash) => {
            let x = slashed(&x);
            match slash {
                Slash::Stat => stat(&x).map(|seen| format!("{:o}", seen.st_mode)),
                Slash::Mkdir => done(nix::unistd::mkdir(&x, mode(0o750))),
                Slash::Rmdir => done(unlinkat(AT_FDCWD, &x, UnlinkatFlags::RemoveDir)),
                Slash::Unlink => done(unlinkat(AT_FDCWD, &x, UnlinkatFlags::NoRemoveDir)),
                Slash::Create => open_and(&x, OFlag::O_WRONLY | OFlag::O_CREAT, Then::Nothing),
                Slash::Rename => rename(&x, &base.join("free"), RenameFlags::empty()),
                Slash::RenameTo => rename(&x, &slashed(&base.join("free")), RenameFlags::empty()),
            }
        }
    }
}

fn chown(path: &Path, flags: AtFlags) -> Answer {
    // An ordinary user may only name oneself.
    let (uid, gid) = match nix::unistd::geteuid() {
        uid if uid.is_root() => (Uid::from_raw(12), Gid::from_raw(34)),
        uid => (uid, nix::unistd::getegid()),
    };
    done(fchownat(AT_FDCWD, path, Some(uid), Some(gid), flags))
}

/// The number of steps of [`afterwards`].
pub(super) const AFTERWARDS: usize = 9;

/// Performs a follow-up operation in the directory of a case, whatever exists there.
pub(super) fn afterwards(base: &Path, step: usize) -> Answer {
    let (x, t, y) = (base.join("x"), base.join("t"), base.join("y"));
    let none = RenameFlags::empty();
    match step {
        0 => rename(&x, &y, none),
        1 => open_and(
            &x,
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL,
            Then::Write,
        ),
        2 => rename(&x, &t, RenameFlags::RENAME_EXCHANGE),
        3 => done(unlinkat(AT_FDCWD, &x, UnlinkatFlags::NoRemoveDir)),
        4 => done(nix::unistd::mkdir(&x, Mode::from_bits_truncate(0o755))),
        5 => rename(&y, &x, none),
        6 => rename(&x, &base.join("low/x"), none),
        7 => done(nix::unistd::mkdir(&t, Mode::from_bits_truncate(0o711))),
        _ => {
            let found = base.join("low/x");
            match std::fs::symlink_metadata(&found) {
                Ok(meta) if meta.is_dir() => done(std::fs::remove_dir_all(found).map_err(errno)),
                _ => link(&found, &base.join("last"), false),
            }
        }
    }
}
