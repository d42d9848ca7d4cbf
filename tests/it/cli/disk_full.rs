//! Operations on a full file system: they fail cleanly or work, and lose nothing.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use envfs::environment::{EnvLock, Layout};

use super::errors::word;
use crate::support::tree::{self, Look};
use crate::support::{TestEnv, run, samples, skip_allowed, wait_for};

/// A small tmpfs for a store, unmounted when dropped.
pub(super) struct Small(pub(super) PathBuf);

impl Small {
    pub(super) fn new(env: &TestEnv, size: &str) -> Option<Small> {
        if !env.user().is_root() {
            skip_allowed("mounting a tmpfs needs root");
            return None;
        }
        let path = env.root().join("small");
        fs::create_dir(&path).unwrap();
        let mut command = env.command("mount");
        command
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=0700"),
                "none",
            ])
            .arg(&path);
        let mounted = run(command);
        if mounted.code != 0 {
            skip_allowed(&format!("no tmpfs: {}", mounted.err));
            return None;
        }
        Some(Small(path))
    }

    /// Fills the file system except for `leave` bytes.
    pub(super) fn fill(&self, leave: usize) {
        let file = self.0.join("filler");
        let mut content = Vec::new();
        let mut step = 1 << 20;
        while step >= 4096 {
            content.resize(content.len() + step, 1);
            if fs::write(&file, &content).is_err() {
                content.truncate(content.len() - step);
                step /= 2;
            }
        }
        fs::write(&file, &content[..content.len().saturating_sub(leave)]).unwrap();
    }

    pub(super) fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

/// Returns an environment for tests whose store is on a tmpfs of this size.
pub(super) fn store_of(size: &str) -> Option<(TestEnv, Small)> {
    let env = TestEnv::new()?;
    let small = Small::new(&env, size)?;
    let env = env.with_store(&small.0.join("store"));
    Some((env, small))
}

#[test]
fn import_on_a_full_disk_leaves_nothing_behind() {
    let Some((env, small)) = store_of("4m") else {
        return;
    };
    let source = env.work().join("source");
    env.write(&source.join("big"), samples::noise(8 << 20, 3));
    env.envfs(&["create", "first"]).ok();
    let before = env.store_listing();
    env.envfs(&["import", word(&source), "e"])
        .fails(8, &["space"]);
    assert_eq!(env.store_listing(), before);
    env.sh("tar -cf big.tar source").ok();
    env.envfs(&["import", word(&env.work().join("big.tar")), "e"])
        .fails(8, &["space"]);
    assert_eq!(env.store_listing(), before);
    small.fill(0);
    env.envfs(&["create", "second"])
        .fails(8, &["full", "free some space"]);
    small.free();
    assert_eq!(env.store_listing(), before);
    env.envfs(&["create", "second"]).ok();
}

#[test]
fn space_of_removed_and_replaced_files_is_freed_without_a_sync() {
    // Content that was synced stays until its removal is durable.
    let Some((env, small)) = store_of("24m") else {
        return;
    };
    env.envfs(&["create", "-q", "e"]).ok();
    let prefix = env.mount("e");
    let large = samples::noise(10 << 20, 7);
    let write = |name: &str| {
        let mut file = fs::File::create(prefix.join(name)).unwrap();
        file.write_all(&large).unwrap();
        file.sync_all().unwrap();
    };
    let wait_for_space = || {
        let free = || {
            let stat = nix::sys::statvfs::statvfs(&small.0).unwrap();
            stat.blocks_available() * stat.fragment_size()
        };
        wait_for("free space", || free() > 11 << 20);
    };
    write("first");
    for round in 0..3 {
        fs::remove_file(prefix.join("first")).unwrap();
        wait_for_space();
        write("first");
        fs::write(prefix.join("small"), format!("{round}")).unwrap();
        fs::rename(prefix.join("small"), prefix.join("first")).unwrap();
        wait_for_space();
        write("second");
        fs::rename(prefix.join("second"), prefix.join("first")).unwrap();
    }
    assert_eq!(fs::read(prefix.join("first")).unwrap(), large);
    env.verify("e");
}

#[test]
fn removed_files_are_gone_soon_and_after_a_close() {
    let Some(env) = TestEnv::new() else { return };
    env.envfs(&["create", "-q", "e"]).ok();
    let prefix = env.mount("e");
    let synced = |name: &str| {
        let mut file = fs::File::create(prefix.join(name)).unwrap();
        file.write_all(b"content").unwrap();
        file.sync_all().unwrap();
    };
    let work = || {
        let layers = fs::read_dir(env.home_of("e").join("layers")).unwrap();
        let works = layers.map(|layer| layer.unwrap().path().join("work"));
        let files = works.flat_map(|work| fs::read_dir(work).unwrap());
        files
            .map(|file| file.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    for name in ["a", "b"] {
        synced(name);
        fs::remove_file(prefix.join(name)).unwrap();
        if name == "a" {
            wait_for("the removed file", || work().is_empty());
        }
    }
    env.envfs(&["unmount", "e"]).ok();
    assert!(work().is_empty());
    // Nothing durable refers to a file that was never synced.
    let prefix = env.mount("e");
    fs::write(prefix.join("temporary"), "x").unwrap();
    fs::remove_file(prefix.join("temporary")).unwrap();
    assert!(work().is_empty());
    env.verify("e");
}

#[test]
fn files_can_be_removed_on_a_full_disk() {
    let Some((env, small)) = store_of("8m") else {
        return;
    };
    let source = env.work().join("source");
    for number in 0..600 {
        env.write(&source.join(format!("many/{number}")), "x");
    }
    env.envfs(&["import", "-q", word(&source), "e"]).ok();
    let prefix = env.mount("e");
    small.fill(0);
    fs::remove_dir_all(prefix.join("many")).unwrap();
    assert_eq!(fs::read_dir(&prefix).unwrap().count(), 0);
    small.free();
    env.verify("e");
}

#[test]
fn copy_up_and_commit_on_a_full_disk_lose_nothing() {
    let Some((env, small)) = store_of("28m") else {
        return;
    };
    let source = env.work().join("source");
    samples::small(&env, &source);
    env.write(&source.join("big"), samples::noise(3 << 20, 3));
    env.envfs(&["import", "-q", word(&source), "e"]).ok();
    let prefix = env.mount("e");
    fs::write(prefix.join("kept"), samples::noise(1 << 20, 4)).unwrap();
    let before = tree::read(&prefix);

    small.fill(64 << 10);
    let append = || {
        let file = fs::File::options().append(true).open(prefix.join("big"));
        file.and_then(|mut file| file.write_all(b"more"))
    };
    assert_eq!(
        append().unwrap_err().kind(),
        std::io::ErrorKind::StorageFull
    );
    tree::assert_same(
        &before,
        &tree::read(&prefix),
        Look::ALL,
        "after a failed copy-up",
    );
    env.envfs(&["commit", "e"]).fails(8, &["space"]);
    tree::assert_same(
        &before,
        &tree::read(&prefix),
        Look::ALL,
        "after a failed commit",
    );
    env.envfs(&["unmount", "e"]).ok();
    // The image or the database may run out of space; both report it.
    env.envfs(&["commit", "e"])
        .fails(8, &["nothing was changed"]);
    small.fill(0);
    env.envfs(&["commit", "e"])
        .fails(8, &["nothing was changed"]);
    env.mount("e");
    tree::assert_same(&before, &tree::read(&prefix), Look::ALL, "on a full disk");

    small.free();
    env.mount("e");
    tree::assert_same(
        &before,
        &tree::read(&prefix),
        Look::ALL,
        "after space was freed",
    );
    append().unwrap();
    let after = tree::read(&prefix);
    assert_ne!(before[Path::new("big")], after[Path::new("big")]);
    env.envfs(&["commit", "e"]).ok();
    tree::assert_same(&after, &tree::read(&prefix), Look::ALL, "committed");
    env.verify("e");
    assert_eq!(env.count(&["log", "e"]), 2);
}

#[test]
fn paths_can_be_discarded_after_a_failed_commit() {
    let Some((env, small)) = store_of("28m") else {
        return;
    };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), samples::noise(1 << 20, 4)).unwrap();
    small.fill(64 << 10);
    env.envfs(&["commit", "e"]).fails(8, &["space"]);
    small.free();
    env.envfs(&["discard", "-y", "e", "new"]).ok();
    assert!(!prefix.join("new").exists());
}

#[test]
fn locking_and_gc_work_on_a_full_disk() {
    let Some((env, small)) = store_of("28m") else {
        return;
    };
    env.import_sample("e");
    let prefix = env.mount("e");
    for round in 0..3 {
        fs::write(prefix.join("new"), samples::noise(1 << 20, round)).unwrap();
        env.envfs(&["commit", "e"]).ok();
    }
    env.envfs(&["unmount", "e"]).ok();
    small.fill(0);
    let home = Layout::new(env.home_of("e"));
    let before = env.store_listing();
    drop(EnvLock::try_lock(&home, "testing").unwrap());
    assert_eq!(env.store_listing(), before, "a partial lock note was left");
    let gone = env.store().join("store/.gone-old-0123456789ab");
    fs::create_dir(&gone).unwrap();
    env.envfs(&["gc", "--keep", "1"]).ok();
    assert!(!gone.exists());
    assert_eq!(env.count(&["log", "e"]), 1);
    env.verify("e");
}
