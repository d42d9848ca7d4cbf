//! Long random sequences of operations on a mount and on ext4, which must leave equal trees.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, truncate};

use super::snapshot::{Snapshot, details, differences};
use crate::fs::direct::{Direct, plain_directory};
use crate::support::overlay::Overlay;
use crate::support::{TestEnv, User, finish, samples};

/// A reproducible generator of random numbers.
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

/// Returns a path of few possible ones, so that operations work on the results of others.
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
    // Opening a FIFO would block.
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

/// Performs an operation below `root` that depends on the random numbers only.
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

/// Creates an initial tree.
fn make_initial_tree(root: &Path) {
    let mut random = Random::new(99);
    for _ in 0..400 {
        // Many of these fail.
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
        make_initial_tree(&dir);
    }
    let direct = Direct::of(env, &plain, "")?;
    Some((direct, plain))
}

#[track_caller]
fn assert_same(direct: &Direct, plain: &Path, what: &str) {
    let (ours, theirs) = (Snapshot::read(&direct.at()), Snapshot::read(plain));
    let mut found = differences(&ours, &theirs);
    found.extend(ours.inconsistencies());
    let count = found.len();
    found.truncate(5);
    assert!(
        found.is_empty(),
        "{what}: {count} differences\n{}",
        found.join("\n")
    );
}

#[test]
fn operation_sequences_match_ext4() {
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
        assert_same(&direct, &plain, &format!("seed {seed}, after a remount"));
        direct.kill();
        direct.mount();
        assert_same(&direct, &plain, &format!("seed {seed}, after a kill"));
    }
}

#[test]
fn concurrent_operation_sequences_match_ext4() {
    const WORKERS: usize = 4;
    let Some((direct, plain)) = pair(WORKERS) else {
        return;
    };
    let at = direct.at();
    for root in [&at, &plain] {
        fs::create_dir(root.join(SHARED)).unwrap();
        File::create(root.join(SHARED).join("log")).unwrap();
    }
    let spawn = |root: &Path, worker: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "matrix::sequence::sequence_process"])
            .args(["--ignored", "--nocapture"])
            .env("ENVFS_STREAM_WORKER", worker.to_string())
            .env("ENVFS_STREAM_ROOT", root)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let line = format!("{command:?}");
        (command.spawn().unwrap(), line)
    };
    let mut processes = Vec::new();
    for worker in 0..WORKERS {
        processes.push((0, spawn(&at, worker)));
        processes.push((1, spawn(&plain, worker)));
    }
    let mut claims = [0, 0];
    for (side, (child, line)) in processes {
        let said = finish(child, line).ok();
        let line = said
            .out
            .lines()
            .find_map(|line| line.split_once("claims: "));
        claims[side] += line.unwrap().1.parse::<usize>().unwrap();
    }
    // Exactly one process created each file.
    assert_eq!(claims, [steps() / 2, steps() / 2]);
    for root in [&at, &plain] {
        let log = root.join(SHARED).join("log");
        let text = fs::read_to_string(&log).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), WORKERS * (steps() / 2), "appended lines");
        // The order is unspecified.
        lines.sort_unstable();
        fs::write(&log, lines.join("\n")).unwrap();
    }
    assert_same(&direct, &plain, "after concurrent sequences");
    direct.remount();
    assert_same(&direct, &plain, "after concurrent sequences and a remount");
}

/// The directory that all processes change.
const SHARED: &str = "shared";

/// One process: a sequence in a directory of its own, and between its steps operations in a shared
/// directory whose combined result does not depend on their order.
#[test]
#[ignore = "run by concurrent_operation_sequences_match_ext4"]
fn sequence_process() {
    let Ok(worker) = std::env::var("ENVFS_STREAM_WORKER") else {
        return;
    };
    let root = PathBuf::from(std::env::var_os("ENVFS_STREAM_ROOT").unwrap());
    let (own, shared) = (root.join(format!("w{worker}")), root.join(SHARED));
    let mut random = Random::new(worker.parse::<u64>().unwrap() + 100);
    let mut log = File::options()
        .append(true)
        .open(shared.join("log"))
        .unwrap();
    let mut claims = 0;
    for number in 0..steps() / 2 {
        step(&own, &mut random).1.ok();
        log.write_all(format!("{worker} {number}\n").as_bytes())
            .unwrap();
        let claim = shared.join(format!("claim-{number}"));
        match File::options().write(true).create_new(true).open(&claim) {
            Ok(_) => claims += 1,
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists),
        }
        // The first process creates the directory; entries in it are created, renamed and removed.
        let dir = shared.join(format!("d{}", number % 9));
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists),
        }
        let name = dir.join(format!("w{worker}-{}", number % 31));
        match number % 5 {
            0 | 1 => fs::write(&name, format!("{number}")).unwrap(),
            2 => drop(fs::remove_file(&name)),
            3 => drop(fs::rename(&name, dir.join(format!("w{worker}-moved")))),
            _ => drop(fs::hard_link(
                &name,
                dir.join(format!("w{worker}-{number}")),
            )),
        }
        if number % 50 == 0 {
            // An entry that no process changes is listed exactly once.
            let listed = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name());
            let met = listed.filter(|n| Some(&**n) == name.file_name()).count();
            let is_there = name.symlink_metadata().is_ok();
            assert_eq!(met, usize::from(is_there), "{}", name.display());
        }
    }
    println!("\nclaims: {claims}");
}

/// Known differences of kernel overlayfs and their reasons. The text of such a difference contains
/// all words of a row.
const KNOWN: [(&[&str], &str); 6] = [
    (
        &["rename", "EXDEV"],
        "a directory of a lower layer is renamed only with redirect_dir=on",
    ),
    (
        &["hard link"],
        "without index=on a link to a lower file is broken when one of its names is copied up",
    ),
    (&["nlink of a directory"], "a merged directory has one link"),
    (
        &["d_ino", "is st_ino"],
        "listings return the inode number of the layer, unless xino=on",
    ),
    (
        &["several devices"],
        "files of a lower layer have another device number, unless xino=on",
    ),
    (
        &["object", "was"],
        "inode numbers of objects that are not in the upper directory do not survive a remount",
    ),
];

/// Returns the reason for a known difference.
fn known(difference: &str) -> Option<&'static str> {
    let is_it = |words: &[&str]| words.iter().all(|word| difference.contains(word));
    let row = KNOWN.iter().find(|(words, _)| is_it(words));
    row.map(|(_, reason)| *reason)
}

/// Counts of known differences by reason, and unknown differences.
#[derive(Default)]
struct Facts {
    known: BTreeMap<&'static str, usize>,
    unknown: Vec<String>,
}

impl Facts {
    fn note(&mut self, difference: String) {
        match known(&difference) {
            Some(reason) => *self.known.entry(reason).or_default() += 1,
            None => self.unknown.push(difference),
        }
    }
}

/// Runs a sequence on a mount and on overlayfs. Operations that overlayfs does not support are
/// skipped on the mount.
fn compare_with_overlayfs(seed: u64, options: &str, facts: &mut Facts) -> Option<()> {
    let (direct, plain) = pair(1)?;
    let changes = plain.parent().unwrap().join("overlay");
    let overlay = Overlay::mount(&direct.env, &direct.images(), &changes, options)?;
    let linked = Snapshot::read(&direct.at()).linked();
    let mut random = Random::new(seed);
    for number in 0..steps() / 6 {
        let mut same = random.clone();
        let theirs = step(&overlay.at().join("w0"), &mut random);
        if theirs.1 == Err(Errno::EXDEV) {
            facts.note(format!("{theirs:?}"));
            continue;
        }
        let ours = step(&direct.at().join("w0"), &mut same);
        if ours != theirs {
            facts.note(format!("step {number}: {ours:?}, overlayfs {theirs:?}"));
        }
    }
    let (ours, theirs) = (Snapshot::read(&direct.at()), Snapshot::read(overlay.at()));
    for (name, what) in details(&ours, &theirs) {
        let is_linked = ours.number(&name).is_some_and(|ino| linked.contains(&ino));
        let of = if is_linked { "hard link " } else { "" };
        facts.note(format!("{of}{name:?}: {what}"));
    }
    for difference in theirs.inconsistencies() {
        facts.note(difference);
    }
    direct.remount();
    overlay.remount();
    let again = Snapshot::read(&direct.at());
    assert_eq!(again.changes_since(&ours), Vec::<String>::new());
    for difference in Snapshot::read(overlay.at()).changes_since(&theirs) {
        facts.note(difference);
    }
    Some(())
}

#[test]
fn operation_sequences_differ_from_overlayfs_only_as_documented() {
    for options in [
        "index=off,redirect_dir=nofollow",
        "index=on,redirect_dir=on",
    ] {
        let mut facts = Facts::default();
        for seed in seeds() {
            if compare_with_overlayfs(seed, options, &mut facts).is_none() {
                return;
            }
        }
        for (reason, count) in &facts.known {
            println!("overlayfs with {options}, {count} times: {reason}");
        }
        let count = facts.unknown.len();
        facts.unknown.truncate(20);
        assert!(
            facts.unknown.is_empty(),
            "{count} unknown differences from overlayfs with {options} (mount first):\n{}",
            facts.unknown.join("\n")
        );
    }
}
