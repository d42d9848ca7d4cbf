//! Several threads change files while another one commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use envfs::commit::{self, CommitError, CommitOptions};
use envfs::object::{Ino, Kind};
use envfs::union::{Creator, Error, NewObject, RenameMode, SetAttr, SetIdBits, Union, XattrMode};
use nix::errno::Errno;

use super::bench::{BLOCK, Bench, noise};
use super::tree::{Body, Tree};

const ROUNDS: usize = 300;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

/// The names in the directory of one thread, and the content of the objects.
type Contents = (BTreeMap<Vec<u8>, Ino>, BTreeMap<Ino, Vec<u8>>);

fn work(union: &Union, dir: Ino, seed: u64) -> Contents {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut names, mut contents): Contents = Default::default();
    let creator = Creator { uid: 1, gid: 1 };
    for round in 0..ROUNDS {
        let name = format!("f{}", random.below(8)).into_bytes();
        let other = format!("f{}", random.below(8)).into_bytes();
        let known = names.get(&name).copied();
        match (random.below(6), known) {
            (0 | 1, None) => {
                let (ino, _) = union
                    .create(dir, &name, &NewObject::new(Kind::File, 0o644, creator))
                    .unwrap();
                union.nodes().remember(ino, dir);
                names.insert(name, ino);
                contents.insert(ino, Vec::new());
            }
            (0..=2, Some(ino)) => {
                let (offset, data) = (
                    random.below(2 * BLOCK),
                    noise(round as u64, random.below(BLOCK)),
                );
                union
                    .write_at(ino, offset as u64, &data, SetIdBits::Keep)
                    .unwrap();
                let content = contents.get_mut(&ino).unwrap();
                if !data.is_empty() {
                    content.resize(content.len().max(offset + data.len()), 0);
                    content[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
            (3, Some(ino)) => {
                let size = random.below(2 * BLOCK);
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                union.set_attr(ino, &set).unwrap();
                contents.get_mut(&ino).unwrap().resize(size, 0);
            }
            (4, Some(ino)) => {
                union
                    .rename(dir, &name, dir, &other, RenameMode::Replace)
                    .unwrap();
                if name != other {
                    names.remove(&name);
                    if let Some(gone) = names.insert(other, ino) {
                        contents.remove(&gone);
                        union.forget(gone, 1);
                    }
                }
            }
            (5, Some(ino)) => {
                union.unlink(dir, &name).unwrap();
                names.remove(&name);
                // Still readable, because the kernel knows it.
                let left = union.read_at(ino, 0, 3 * BLOCK).unwrap();
                assert_eq!((*left).as_ref(), contents.remove(&ino).unwrap());
                union.forget(ino, 1);
            }
            _ => {}
        }
        if let Some((name, ino)) = names.iter().nth(random.below(8)) {
            let (found, attr) = union.lookup(dir, name).unwrap().unwrap();
            assert_eq!((found, attr.size), (*ino, contents[ino].len() as u64));
            let content = union.read_at(*ino, 0, attr.size as usize).unwrap();
            assert!((*content).as_ref() == contents[ino], "content of {ino}");
        }
        let listed = union.read_dir(dir, 0, 100).unwrap();
        assert_eq!(listed.len(), names.len() + 2);
    }
    (names, contents)
}

#[test]
fn threads_change_files_during_commits() {
    let bench = Bench::imported();
    let union = bench.union();
    let creator = Creator { uid: 1, gid: 1 };
    let mut dirs = Vec::new();
    for n in 0..4 {
        let name = format!("thread{n}").into_bytes();
        let (ino, _) = union
            .create(
                Ino::ROOT,
                &name,
                &NewObject::new(Kind::Directory, 0o755, creator),
            )
            .unwrap();
        union.nodes().remember(ino, Ino::ROOT);
        dirs.push((name, ino));
    }
    let over = AtomicBool::new(false);
    let mine: Vec<Contents> = std::thread::scope(|scope| {
        let threads: Vec<_> = dirs
            .iter()
            .enumerate()
            .map(|(n, (_, dir))| scope.spawn(move || work(union, *dir, n as u64 + 1)))
            .collect();
        let committer = scope.spawn(|| {
            let mut done = 0;
            // At least once, however the threads are scheduled.
            loop {
                let options = CommitOptions {
                    compact: done % 3 == 2,
                    ..CommitOptions::default()
                };
                done += u32::from(bench.commit(&options).is_some());
                let root = union.read_dir(Ino::ROOT, 0, 100).unwrap();
                assert_eq!(root.len(), 2 + 7 + 4);
                if over.load(Ordering::Relaxed) {
                    return done;
                }
            }
        });
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        // Also after a failed thread, or the committer would never end.
        over.store(true, Ordering::Relaxed);
        assert!(committer.join().unwrap() > 0);
        ended.into_iter().map(|mine| mine.unwrap()).collect()
    });
    let check = |union: &Union| {
        let tree = Tree::read(union);
        for ((name, dir), (names, contents)) in dirs.iter().zip(&mine) {
            assert_eq!(tree.dir(Ino::ROOT)[name], *dir);
            assert_eq!(tree.dir(*dir), names);
            for (ino, content) in contents {
                assert!(tree.node(*ino).body == Body::File(content.clone()), "{ino}");
            }
        }
    };
    check(union);
    bench.commit(&CommitOptions::default());
    check(union);
    let mut bench = bench;
    bench.remount();
    check(bench.union());
}

/// Runs random operations on directories that other threads change, too. They may fail with the
/// errors that POSIX specifies.
fn compete(union: &Union, seed: u64, answers: &Mutex<BTreeSet<i32>>) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let creator = Creator { uid: 1, gid: 1 };
    let name = |random: &mut Random| format!("n{}", random.below(5)).into_bytes();
    for _ in 0..ROUNDS {
        // Walks to some directory like the kernel.
        let mut held = Vec::new();
        let mut walk = |random: &mut Random| {
            let mut at = Ino::ROOT;
            for _ in 0..random.below(4) {
                match union.lookup(at, &name(random)).unwrap() {
                    Some((ino, attr)) if attr.kind == Kind::Directory => {
                        union.nodes().remember(ino, at);
                        held.push(ino);
                        at = ino;
                    }
                    _ => break,
                }
            }
            at
        };
        let (dir, other) = (walk(&mut random), walk(&mut random));
        let (from, to) = (name(&mut random), name(&mut random));
        let file = union.lookup(dir, &from).unwrap().map(|(ino, _)| ino);
        if let Some(ino) = file {
            union.nodes().remember(ino, dir);
            held.push(ino);
        }
        let mode = [
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ][random.below(3)];
        let done = match (random.below(12), file) {
            (0 | 1, _) => union
                .create(dir, &from, &NewObject::new(Kind::File, 0o644, creator))
                .map(drop),
            (2 | 3, _) => union
                .create(dir, &from, &NewObject::new(Kind::Directory, 0o755, creator))
                .map(drop),
            (4, _) => union.unlink(dir, &from),
            (5, _) => union.rmdir(dir, &from),
            (6..=8, _) => union.rename(dir, &from, other, &to, mode),
            (9, Some(ino)) => union.link(ino, other, &to).map(drop),
            (10, Some(ino)) => union
                .write_at(ino, 5, b"written", SetIdBits::Clear)
                .map(drop),
            (_, Some(ino)) => union.set_xattr(ino, b"user.x", &from, XattrMode::Either),
            _ => union.read_dir(dir, 0, 100).map(drop),
        };
        match done {
            Ok(()) => {}
            Err(Error::Posix(errno)) => drop(answers.lock().unwrap().insert(errno as i32)),
            Err(e) => panic!("{e}"),
        }
        for ino in held {
            union.forget(ino, 1);
        }
    }
}

#[test]
fn threads_race_for_names_during_commits_and_discards() {
    let mut bench = Bench::imported();
    let answers = Mutex::new(BTreeSet::new());
    let over = AtomicBool::new(false);
    {
        let (union, answers, over, bench) = (bench.union(), &answers, &over, &bench);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=4)
                .map(|seed| scope.spawn(move || compete(union, seed, answers)))
                .collect();
            let whole = scope.spawn(move || {
                let mut random = Random(99);
                let mut done = 0;
                while done < 4 || !over.load(Ordering::Relaxed) {
                    let name = format!("n{}", random.below(5)).into_bytes();
                    match done % 4 {
                        0 | 1 => drop(bench.commit(&CommitOptions::default())),
                        2 => match commit::discard(bench.workspace(), &[name], "") {
                            Ok(_) | Err(CommitError::Union(Error::Replaced(_))) => {}
                            Err(e) => panic!("{e}"),
                        },
                        _ => {
                            union.rotate().unwrap();
                            union.unrotate().unwrap();
                            bench.commit(&CommitOptions::default());
                        }
                    }
                    union.changes().unwrap();
                    done += 1;
                }
            });
            let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            over.store(true, Ordering::Relaxed);
            whole.join().unwrap();
            ended.into_iter().for_each(|thread| thread.unwrap());
        });
    }
    // ESTALE: a discard removed the object meanwhile.
    let known = [
        Errno::ENOENT,
        Errno::EEXIST,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::ENOTEMPTY,
        Errno::EINVAL,
        Errno::EPERM,
        Errno::ESTALE,
    ];
    for answer in answers.into_inner().unwrap() {
        assert!(
            known.iter().any(|errno| *errno as i32 == answer),
            "{answer}"
        );
    }
    assert_eq!(bench.union().verify_upper().unwrap(), Vec::<String>::new());
    let tree = Tree::read(bench.union());
    bench.kill();
    let reconciled = bench.open();
    assert!(reconciled.lost.is_empty(), "{reconciled:?}");
    tree.assert_is(&Tree::read(bench.union()));
    bench.commit(&CommitOptions::default());
    bench.remount();
    assert_eq!(Tree::read(bench.union()).paths(), tree.paths());
}
