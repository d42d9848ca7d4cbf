//! Long streams of operations on a mount and on ext4, which must leave the same trees.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, truncate};

use super::snapshot::{Snapshot, differences};
use crate::fs::direct::{Direct, plain_directory};
use crate::support::{TestEnv, User, samples};

/// The same numbers for the same seed, everywhere.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

/// A path of a few names, so that operations meet each other's results.
fn path(random: &mut Random) -> PathBuf {
    let mut path = PathBuf::new();
    let depth = 1 + random.below(3);
    for level in 1..depth {
        path.push(format!("d{level}{}", random.below(4)));
    }
    path.push(format!("n{}", random.below(12)));
    path
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn write_at(path: &Path, create: bool, offset: u64, data: &[u8]) -> Result<(), Errno> {
    // A fifo without a reader would be waited for.
    let kind = fs::symlink_metadata(path).map(|meta| meta.file_type());
    if kind.is_ok_and(|kind| !kind.is_file() && !kind.is_dir()) {
        return Ok(());
    }
    let opened = File::options()
        .create(create)
        .truncate(false)
        .write(true)
        .open(path);
    opened
        .and_then(|file| file.write_all_at(data, offset))
        .map_err(errno)
}

/// Does one operation below `root`; the random numbers alone decide which.
fn step(root: &Path, random: &mut Random) -> (&'static str, Result<(), Errno>) {
    let (a, b) = (root.join(path(random)), root.join(path(random)));
    let (number, size) = (random.below(1 << 20), random.below(300_000));
    match random.below(24) {
        0..=3 => (
            "create",
            write_at(&a, true, 0, &samples::noise((size % 9000) as usize, number)),
        ),
        4 => (
            "write",
            write_at(
                &a,
                false,
                size,
                &samples::noise((number % 70_000) as usize, size),
            ),
        ),
        5 => (
            "truncate",
            match fs::symlink_metadata(&a) {
                Ok(meta) if !meta.is_file() => Ok(()),
                _ => truncate(&a, size as i64),
            },
        ),
        6..=8 => {
            let dir = root.join(format!("d1{}", number % 4));
            let dir = if size % 2 == 0 {
                dir
            } else {
                dir.join(format!("d2{}", size % 4))
            };
            ("mkdir", fs::create_dir(dir).map_err(errno))
        }
        9 => ("mkdir at a name", fs::create_dir(&a).map_err(errno)),
        10 => ("rmdir", fs::remove_dir(&a).map_err(errno)),
        11 | 12 => ("unlink", fs::remove_file(&a).map_err(errno)),
        13 | 14 => ("rename", fs::rename(&a, &b).map_err(errno)),
        15 => {
            let (from, to) = (
                root.join(format!("d1{}", number % 4)),
                root.join(format!("d1{}", size % 4)),
            );
            let to = if number % 3 == 0 {
                to.join(format!("d2{}", number % 4))
            } else {
                to
            };
            ("rename of a directory", fs::rename(from, to).map_err(errno))
        }
        16 => {
            let flags = [RenameFlags::RENAME_EXCHANGE, RenameFlags::RENAME_NOREPLACE];
            let flag = flags[(number % 2) as usize];
            ("renameat2", renameat2(AT_FDCWD, &a, AT_FDCWD, &b, flag))
        }
        17 => ("link", linkat(AT_FDCWD, &a, AT_FDCWD, &b, AtFlags::empty())),
        18 => (
            "symlink",
            std::os::unix::fs::symlink(format!("to-{number}"), &a).map_err(errno),
        ),
        19 => (
            "mkfifo",
            mknod(&a, SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0),
        ),
        20 => (
            "chmod",
            match fs::symlink_metadata(&a) {
                Ok(meta) if meta.is_symlink() => Ok(()),
                _ => fs::set_permissions(
                    &a,
                    PermissionsExt::from_mode(0o700 | (number as u32 & 0o77)),
                )
                .map_err(errno),
            },
        ),
        21 => {
            let owner = if User::current().is_root() {
                (number % 5) as u32
            } else {
                User::current().uid()
            };
            (
                "chown",
                fchownat(
                    AT_FDCWD,
                    &a,
                    Some(Uid::from_raw(owner)),
                    None::<Gid>,
                    AtFlags::AT_SYMLINK_NOFOLLOW,
                ),
            )
        }
        22 => {
            let time = TimeSpec::new(size as i64, 0);
            (
                "utimens",
                utimensat(AT_FDCWD, &a, &time, &time, UtimensatFlags::NoFollowSymlink),
            )
        }
        _ => match fs::symlink_metadata(&a) {
            Ok(meta) if meta.is_file() && number % 2 == 0 => {
                let file = File::options().write(true).open(&a).unwrap();
                let flags =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                ("punch", fallocate(&file, flags, size as i64 / 2, 5000))
            }
            Ok(meta) if meta.is_file() || meta.is_dir() => {
                let name = format!("user.k{}", number % 3);
                let value = samples::noise((size % 50) as usize, number);
                ("setxattr", xattr::set(&a, name, &value).map_err(errno))
            }
            other => ("nothing", other.map(drop).map_err(errno)),
        },
    }
}

/// A tree to begin with: every name has something.
fn begin(root: &Path) {
    let mut random = Random::new(99);
    for _ in 0..400 {
        // The answer is of no interest yet.
        step(root, &mut random).1.ok();
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("ENVFS_STREAM_SEEDS") {
        Ok(text) => text.split(',').map(|seed| seed.parse().unwrap()).collect(),
        Err(_) => vec![42, 7],
    }
}

fn steps() -> usize {
    std::env::var("ENVFS_STREAM_STEPS").map_or(6000, |text| text.parse().unwrap())
}

fn pair(workers: usize) -> Option<(Direct, PathBuf)> {
    let env = TestEnv::new()?;
    let plain = plain_directory(&env)?;
    for worker in 0..workers {
        let dir = plain.join(format!("w{worker}"));
        fs::create_dir(&dir).unwrap();
        begin(&dir);
    }
    let direct = Direct::of(env, &plain, "")?;
    Some((direct, plain))
}

#[track_caller]
fn assert_same(direct: &Direct, plain: &Path, what: &str) {
    let (ours, theirs) = (Snapshot::read(&direct.at()), Snapshot::read(plain));
    let mut found = differences(&ours, &theirs);
    found.extend(ours.is_inconsistent());
    let count = found.len();
    found.truncate(5);
    assert!(
        found.is_empty(),
        "{what}: {count} differences\n{}",
        found.join("\n")
    );
}

#[test]
fn a_stream_of_operations_leaves_what_it_leaves_on_ext4() {
    for seed in seeds() {
        let Some((direct, plain)) = pair(1) else {
            return;
        };
        let (mut ours, mut theirs) = (Random::new(seed), Random::new(seed));
        for number in 0..steps() {
            let answers = (
                step(&direct.at().join("w0"), &mut ours),
                step(&plain.join("w0"), &mut theirs),
            );
            assert_eq!(answers.0, answers.1, "seed {seed}, step {number}");
            if number % 2000 == 1000 {
                direct.remount();
            }
        }
        assert_same(&direct, &plain, &format!("seed {seed}"));
        direct.remount();
        assert_same(&direct, &plain, &format!("seed {seed}, mounted anew"));
        direct.kill();
        direct.mount();
        assert_same(&direct, &plain, &format!("seed {seed}, after a kill"));
    }
}

#[test]
fn streams_side_by_side_leave_what_they_leave_on_ext4() {
    const WORKERS: usize = 4;
    let Some((direct, plain)) = pair(WORKERS) else {
        return;
    };
    let (at, count) = (direct.at(), steps() / 2);
    let work = |root: PathBuf, seed: u64| {
        let mut random = Random::new(seed);
        for _ in 0..count {
            step(&root, &mut random).1.ok();
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let name = format!("w{worker}");
            let (ours, theirs) = (at.join(&name), plain.join(&name));
            let work = &work;
            scope.spawn(move || work(ours, worker as u64 + 100));
            scope.spawn(move || work(theirs, worker as u64 + 100));
        }
    });
    assert_same(&direct, &plain, "side by side");
    direct.remount();
    assert_same(&direct, &plain, "side by side, mounted anew");
}
