//! Runs a sequence on kernel overlayfs, too, which confirms the model.
//!
//! Operations without a counterpart in overlayfs (commits, frozen uppers, kills) run on the union
//! only. Operations that need the interface of the union, or undo others, are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use envfs::object::{Ino, Kind, Timestamp};
use envfs::union::{AllocateMode, RenameMode, XattrMode};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, copy_file_range, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::UnlinkatFlags;
use rustix::fs::XattrFlags;

use super::bench::Bench;
use super::machine::{CAPABILITY, Machine, Outcome};
use super::numbers::{self, Allocate, CopyRange};
use super::ops::{Make, Op, Place, SetMask};
use super::tree::{Body, Node, Tree, show};
use crate::support::TestEnv;
use crate::support::overlay::Overlay;

/// With these options, overlayfs is closest to a plain directory.
const OPTIONS: &str = "index=on,redirect_dir=on,xino=on";

type Run = Box<dyn FnOnce(&Path) -> Outcome>;

/// The calls on a directory that correspond to an operation.
enum Call {
    /// The operation runs on the union only.
    OursOnly,
    /// The operation is skipped on both sides.
    Skipped,
    /// The calls, and a path whose owner and mode are then copied from the model.
    Both(Run, Option<PathBuf>),
}

impl Call {
    fn on_both(run: impl FnOnce(&Path) -> Outcome + 'static) -> Call {
        Call::Both(Box::new(run), None)
    }
}

/// The union, the model, and an overlayfs of the same image.
pub(super) struct WithOverlayfs {
    machine: Machine,
    overlay: Overlay,
    /// The number of operations that overlayfs does not support.
    pub(super) refused: usize,
    _env: TestEnv,
}

impl WithOverlayfs {
    /// Skips the test and returns None without overlayfs.
    pub(super) fn new(bench: Bench) -> Option<WithOverlayfs> {
        let env = TestEnv::new()?;
        let images = bench.home().join("images");
        let image = fs::read_dir(images).unwrap().next().unwrap().unwrap();
        let overlay = Overlay::mount(&env, &[image.path()], &env.root().join("changes"), OPTIONS)?;
        Some(WithOverlayfs {
            machine: Machine::new(bench),
            overlay,
            refused: 0,
            _env: env,
        })
    }

    pub(super) fn run(&mut self, ops: &[Op]) {
        for op in ops {
            self.step(*op);
        }
        self.compare();
        self.overlay.remount();
        self.compare();
    }

    fn step(&mut self, op: Op) {
        if matches!(op, Op::Remount) {
            self.overlay.remount();
        }
        let (run, adjusted) = match call_for(&self.machine, op) {
            Call::Skipped => return,
            Call::OursOnly => return self.machine.step(op),
            Call::Both(run, adjusted) => (run, adjusted),
        };
        let theirs = run(self.overlay.at());
        if let Err(Errno::EXDEV | Errno::EOPNOTSUPP) = theirs {
            self.refused += 1;
            return;
        }
        self.machine.step(op);
        // The kernel itself refuses to rename a file to one of its parents, with another error.
        if (self.machine.done, theirs) != (Err(Errno::EISDIR), Err(Errno::ENOTEMPTY)) {
            assert_eq!(
                self.machine.done, theirs,
                "{op:?}: the union, then overlayfs"
            );
        }
        if let (Ok(()), Some(path)) = (theirs, adjusted) {
            self.copy_owner_and_mode(&path);
        }
    }

    /// Copies owner and mode of an object to overlayfs: there the kernel derives them from the
    /// caller, which other tests cover.
    fn copy_owner_and_mode(&self, path: &Path) {
        let paths = self.machine.tree.paths();
        let node = self.machine.tree.node(paths[path.as_os_str().as_bytes()]);
        let at = self.overlay.at().join(path);
        std::os::unix::fs::lchown(&at, Some(node.owner.0), Some(node.owner.1)).unwrap();
        if node.kind() != Kind::Symlink {
            fs::set_permissions(&at, fs::Permissions::from_mode(node.mode.into())).unwrap();
        }
    }

    /// Compares the whole trees: names, types, content, attributes and hard links.
    fn compare(&self) {
        let tree = &self.machine.tree;
        let mut numbers: BTreeMap<Ino, u64> = BTreeMap::new();
        let mut expected: BTreeSet<OsString> = BTreeSet::new();
        for (path, ino) in tree.paths() {
            let at = self.overlay.at().join(OsStr::from_bytes(&path));
            let what = format!("{} on overlayfs", show(&path));
            let found = at
                .symlink_metadata()
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            compare_node(tree, ino, &at, &found, &what);
            if !found.is_dir() {
                assert_eq!(
                    *numbers.entry(ino).or_insert(found.ino()),
                    found.ino(),
                    "{what}: not the same object"
                );
            }
            expected.insert(at.into_os_string());
        }
        let distinct: BTreeSet<u64> = numbers.values().copied().collect();
        assert_eq!(
            distinct.len(),
            numbers.len(),
            "several objects have the same inode number"
        );
        for entry in walkdir::WalkDir::new(self.overlay.at()).min_depth(1) {
            let path = entry.unwrap().into_path();
            assert!(
                expected.contains(path.as_os_str()),
                "{} is only on overlayfs",
                path.display()
            );
        }
    }
}

fn compare_node(tree: &Tree, ino: Ino, at: &Path, found: &fs::Metadata, what: &str) {
    let node = tree.node(ino);
    let kind = found.file_type();
    let is_kind = match node.kind() {
        Kind::Directory => kind.is_dir(),
        Kind::File => kind.is_file(),
        Kind::Symlink => kind.is_symlink(),
        Kind::Fifo => kind.is_fifo(),
        Kind::Socket => kind.is_socket(),
        Kind::CharDevice => kind.is_char_device(),
        Kind::BlockDevice => kind.is_block_device(),
    };
    assert!(is_kind, "{what}: {:?} is {kind:?}", node.kind());
    match &node.body {
        Body::File(content) => assert!(*content == fs::read(at).unwrap(), "content of {what}"),
        Body::Symlink(target) => {
            assert_eq!(fs::read_link(at).unwrap().as_os_str().as_bytes(), target);
        }
        Body::Special(_, rdev) => assert_eq!(found.rdev(), *rdev, "device of {what}"),
        Body::Directory(_) => {}
    }
    if !kind.is_symlink() {
        assert_eq!(
            found.mode() & 0o7777,
            u32::from(node.mode),
            "mode of {what}"
        );
    }
    if !kind.is_dir() {
        // A merged directory of overlayfs has one link.
        assert_eq!(found.nlink(), u64::from(tree.nlink(ino)), "links of {what}");
    }
    assert_eq!((found.uid(), found.gid()), node.owner, "owner of {what}");
    if let Some(mtime) = node.mtime {
        // A commit stores whole seconds.
        let kept = mtime.nanos != 0;
        let theirs = Timestamp {
            secs: found.mtime(),
            nanos: if kept { found.mtime_nsec() as u32 } else { 0 },
        };
        assert_eq!(theirs, mtime, "mtime of {what}");
    }
    assert_eq!(xattrs(at), node.xattrs, "attributes of {what}");
}

fn xattrs(at: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let names = xattr::list(at).unwrap();
    names
        .filter(|name| name.as_bytes().starts_with(b"user."))
        .map(|name| {
            let value = xattr::get(at, &name).unwrap().unwrap();
            (name.into_vec(), value)
        })
        .collect()
}

/// Returns a path of an object.
fn path_of(tree: &Tree, ino: Ino) -> PathBuf {
    if ino == Ino::ROOT {
        return PathBuf::new();
    }
    let named = tree.paths().into_iter().find(|(_, found)| *found == ino);
    PathBuf::from(OsString::from_vec(named.unwrap().0))
}

fn path_in(tree: &Tree, dir: Ino, name: &[u8]) -> PathBuf {
    path_of(tree, dir).join(OsStr::from_bytes(name))
}

fn posix<T>(result: io::Result<T>) -> Outcome {
    result
        .map(drop)
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap()))
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// Returns the calls for an operation on a directory that equals the model.
fn call_for(machine: &Machine, op: Op) -> Call {
    let tree = &machine.tree;
    let file = |n: u16| machine.file(n).map(|object| path_of(tree, object.0));
    let object = |n: u16, wanted: &dyn Fn(&Node) -> bool| {
        let object = machine.object(n, |_| true)?;
        wanted(tree.node(object.0)).then(|| path_of(tree, object.0))
    };
    let has_mode = |node: &Node| node.kind() != Kind::Symlink;
    let has_attributes = |node: &Node| matches!(node.kind(), Kind::File | Kind::Directory);
    let entry = |n: u16| {
        let (dir, name, _) = machine.entry(n);
        (!name.is_empty()).then(|| path_in(tree, dir, &name))
    };
    let place = |place: Place| {
        let (dir, name) = machine.place(place);
        path_in(tree, dir, &name)
    };
    let found = match op {
        Op::Make(at, make, _) => Some(self::make(place(at), make)),
        Op::Write {
            file: n,
            offset,
            len,
            seed,
            kill,
        } => file(n).map(|path| {
            let data = numbers::data(len, seed);
            write(path, numbers::offset(offset), data, kill)
        }),
        Op::Append { file: n, len, seed } => machine.file(n).map(|object| {
            let (size, data) = (tree.file_len(object.0), numbers::data(len, seed));
            write(path_of(tree, object.0), size, data, false)
        }),
        Op::Truncate { file: n, size } => file(n).map(|path| {
            let size = numbers::cut(size) as u64;
            Call::on_both(move |at| posix(open(&at.join(path)).and_then(|file| file.set_len(size))))
        }),
        Op::Allocate {
            file: n,
            offset,
            len,
            mode,
        } => file(n).map(|path| allocate(path, Allocate::new(offset, len, mode))),
        Op::CopyRange(range) => file(range.from)
            .zip(file(range.to))
            .and_then(|(from, to)| copy_range(from, to, range)),
        Op::Remove { entry: n, as_dir } => entry(n).map(|path| remove(path, as_dir)),
        Op::RemoveAny { entry: n } => entry(n).map(|path| {
            let is_dir = tree.node(machine.entry(n).2).kind() == Kind::Directory;
            remove(path, is_dir)
        }),
        Op::Rename { entry: n, to, mode } => entry(n).map(|from| rename(from, place(to), mode)),
        Op::Link { entry: n, to } => object(n, &|_| true).map(|from| {
            let to = place(to);
            Call::on_both(move |at| posix(fs::hard_link(at.join(from), at.join(to))))
        }),
        Op::Chmod { entry: n, mode } => object(n, &has_mode).map(|path| {
            let mode = fs::Permissions::from_mode(numbers::mode(mode).into());
            Call::on_both(move |at| posix(fs::set_permissions(at.join(path), mode)))
        }),
        Op::Chown { entry: n, uid, gid } => object(n, &|_| true)
            .map(|path| Call::on_both(move |at| chown(&at.join(path), Some(uid), Some(gid)))),
        Op::Utimes {
            entry: n,
            secs,
            nanos,
        } => object(n, &|_| true).map(|path| {
            let time = TimeSpec::new(secs.into(), numbers::nanos(nanos).into());
            Call::on_both(move |at| set_times(&at.join(path), TimeSpec::UTIME_OMIT, time))
        }),
        Op::SetAttr {
            entry: n,
            mask,
            mode,
            owner,
            size,
            secs,
        } => object(n, &|node| has_mode(node) || !mask.mode).map(|path| {
            let is_file = machine
                .object(n, |_| true)
                .map(|object| tree.node(object.0).kind())
                == Some(Kind::File);
            let size = (mask.size && is_file).then_some(numbers::offset(size) as u64);
            set_attr(path, mask, mode, owner, size, secs)
        }),
        Op::SetXattr {
            entry: n,
            name,
            len,
        } => object(n, &has_attributes).and_then(|path| set_xattr(path, name, len)),
        Op::RemoveXattr { entry: n, name } => object(n, &has_attributes).map(|path| {
            let (ino, _) = machine.object(n, |_| true).unwrap();
            let name = numbers::removed(name, tree.node(ino).xattrs.keys());
            assert_ne!(name, CAPABILITY);
            let name = OsString::from_vec(name);
            Call::on_both(move |at| posix(xattr::remove(at.join(path), name)))
        }),
        Op::Sync { .. }
        | Op::Commit { .. }
        | Op::CommitDuring { .. }
        | Op::Rotate
        | Op::Unrotate
        | Op::Remount
        | Op::Checkpoint
        | Op::Kill => Some(Call::OursOnly),
        Op::Hold { .. }
        | Op::Release { .. }
        | Op::DiscardAll
        | Op::CommitPath { .. }
        | Op::DiscardPath { .. }
        | Op::Restore { .. }
        | Op::Rollback { .. }
        | Op::Undo { .. }
        // Composed of the operations above.
        | Op::Relocate { .. }
        | Op::Recreate { .. } => None,
    };
    found.unwrap_or(Call::Skipped)
}

fn make(path: PathBuf, make: Make) -> Call {
    let adjusted = path.clone();
    let run = move |at: &Path| {
        let at = at.join(path);
        let (kind, device) = make.node();
        let node = |flag| mknod(&at, flag, Mode::from_bits_truncate(0o600), device);
        match kind {
            Kind::File => posix(File::create_new(&at)),
            Kind::Directory => posix(fs::create_dir(&at)),
            Kind::Symlink => posix(std::os::unix::fs::symlink(numbers::TARGET, &at)),
            Kind::Fifo => node(SFlag::S_IFIFO),
            Kind::Socket => node(SFlag::S_IFSOCK),
            Kind::CharDevice => node(SFlag::S_IFCHR),
            Kind::BlockDevice => node(SFlag::S_IFBLK),
        }
    };
    Call::Both(Box::new(run), Some(adjusted))
}

fn write(path: PathBuf, offset: usize, data: Vec<u8>, kill: bool) -> Call {
    let adjusted = kill.then(|| path.clone());
    let run = move |at: &Path| {
        posix(open(&at.join(path)).and_then(|file| file.write_all_at(&data, offset as u64)))
    };
    Call::Both(Box::new(run), adjusted)
}

fn allocate(path: PathBuf, what: Allocate) -> Call {
    let adjusted = what.kill.then(|| path.clone());
    let mut flags = match what.mode {
        AllocateMode::Reserve { .. } => FallocateFlags::empty(),
        AllocateMode::PunchHole => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        AllocateMode::ZeroRange { .. } => FallocateFlags::FALLOC_FL_ZERO_RANGE,
    };
    let keep_size = match what.mode {
        AllocateMode::Reserve { keep_size } | AllocateMode::ZeroRange { keep_size } => keep_size,
        AllocateMode::PunchHole => true,
    };
    flags.set(FallocateFlags::FALLOC_FL_KEEP_SIZE, keep_size);
    let run = move |at: &Path| {
        let file = open(&at.join(path)).unwrap();
        fallocate(&file, flags, what.offset as i64, what.len as i64)
    };
    Call::Both(Box::new(run), adjusted)
}

fn copy_range(from: PathBuf, to: PathBuf, range: CopyRange) -> Option<Call> {
    if from == to && range.overlaps() {
        return None;
    }
    let adjusted = range.kill().then(|| to.clone());
    let run = move |at: &Path| {
        let (source, target) = (open(&at.join(from)).unwrap(), open(&at.join(to)).unwrap());
        let (mut one, mut other) = (range.source_offset() as i64, range.target_offset() as i64);
        // The size before the call: if both are the same file, copying may extend it.
        let there = (source.metadata().unwrap().len() as usize).saturating_sub(one as usize);
        let mut left = range.len().min(there);
        while left > 0 {
            match copy_file_range(&source, Some(&mut one), &target, Some(&mut other), left)? {
                0 => panic!("{left} bytes of {range:?} were not copied"),
                copied => left -= copied,
            }
        }
        Ok(())
    };
    Some(Call::Both(Box::new(run), adjusted))
}

fn remove(path: PathBuf, as_dir: bool) -> Call {
    let flag = if as_dir {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    Call::on_both(move |at| nix::unistd::unlinkat(AT_FDCWD, &at.join(path), flag))
}

fn rename(from: PathBuf, to: PathBuf, mode: u8) -> Call {
    let flags = match numbers::rename_mode(mode) {
        RenameMode::Replace => RenameFlags::empty(),
        RenameMode::NoReplace => RenameFlags::RENAME_NOREPLACE,
        RenameMode::Exchange => RenameFlags::RENAME_EXCHANGE,
    };
    Call::on_both(move |at| renameat2(AT_FDCWD, &at.join(from), AT_FDCWD, &at.join(to), flags))
}

fn chown(path: &Path, uid: Option<u8>, gid: Option<u8>) -> Outcome {
    let (uid, gid) = (uid.map(u32::from), gid.map(u32::from));
    posix(std::os::unix::fs::lchown(path, uid, gid))
}

fn set_times(path: &Path, atime: TimeSpec, mtime: TimeSpec) -> Outcome {
    utimensat(
        AT_FDCWD,
        path,
        &atime,
        &mtime,
        UtimensatFlags::NoFollowSymlink,
    )
}

fn set_attr(
    path: PathBuf,
    mask: SetMask,
    mode: u16,
    owner: (u8, u8),
    size: Option<u64>,
    secs: u32,
) -> Call {
    let adjusted = (mask.kill && size.is_some()).then(|| path.clone());
    let run = move |at: &Path| {
        let at = at.join(path);
        if let Some(size) = size {
            posix(open(&at).and_then(|file| file.set_len(size)))?;
        }
        if mask.uid || mask.gid {
            chown(
                &at,
                mask.uid.then_some(owner.0),
                mask.gid.then_some(owner.1),
            )?;
        }
        if mask.mode {
            let mode = fs::Permissions::from_mode(numbers::mode(mode).into());
            posix(fs::set_permissions(&at, mode))?;
        }
        let time = if mask.to_now {
            TimeSpec::UTIME_NOW
        } else {
            TimeSpec::new(secs.into(), numbers::nanos(secs).into())
        };
        let time_if = |wanted: bool| if wanted { time } else { TimeSpec::UTIME_OMIT };
        set_times(&at, time_if(mask.atime), time_if(mask.mtime))
    };
    Call::Both(Box::new(run), adjusted)
}

fn set_xattr(path: PathBuf, name: u8, len: u16) -> Option<Call> {
    let (name, value, mode) = numbers::attribute(name, len);
    if name == CAPABILITY {
        return None; // The kernel refuses invalid capabilities.
    }
    let flags = match mode {
        XattrMode::Either => XattrFlags::empty(),
        XattrMode::Create => XattrFlags::CREATE,
        XattrMode::Replace => XattrFlags::REPLACE,
    };
    Some(Call::on_both(move |at| {
        let set = rustix::fs::lsetxattr(at.join(path), name, &value, flags);
        set.map_err(|e| Errno::from_raw(e.raw_os_error()))
    }))
}
