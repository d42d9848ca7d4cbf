//! What `fsync` makes durable, traced in the daemon and in the daemon of the file system below it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::direct::Direct;
use super::posix::make_tree;
use crate::support::{TestEnv, User, has, samples, wait_for};

/// Traces the sync calls of a process.
struct Trace {
    file: PathBuf,
    watcher: Child,
    seen: usize,
}

impl Trace {
    fn of(process: Pid, file: PathBuf) -> Trace {
        // Detached before execve: a set-user-ID program such as fusermount3 must not be traced.
        let watcher = Command::new("strace")
            .args([
                "-f",
                "-b",
                "execve",
                "-y",
                "-e",
                "trace=fsync,fdatasync,syncfs",
                "-o",
            ])
            .arg(&file)
            .args(["-p", &process.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = format!("/proc/{process}/status");
        wait_for("strace", || {
            let text = fs::read_to_string(&status).unwrap();
            !text.contains("TracerPid:\t0")
        });
        Trace {
            file,
            watcher,
            seen: 0,
        }
    }

    /// Fails unless each of these files was synced since the previous call. Returns the calls.
    #[track_caller]
    fn assert_synced(&mut self, what: &str, wanted: &[&str]) -> String {
        let text = fs::read_to_string(&self.file).unwrap();
        let new = text.get(self.seen..).unwrap().to_owned();
        self.seen = text.len();
        for word in wanted {
            let is_there = new.lines().any(|call| call.contains(word));
            assert!(is_there, "{what}: no sync of {word} in\n{new}");
        }
        new
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.watcher.id().try_into().unwrap());
        // It may have ended with the traced process.
        kill(pid, Signal::SIGINT).ok();
        self.watcher.wait().ok();
    }
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn traced(options: &str) -> Option<(Direct, Trace)> {
    if !has("strace") {
        return None;
    }
    let env = TestEnv::new()?;
    let source = env.work().join("source");
    make_tree(&env, &source);
    let direct = Direct::of(env, &source, options)?;
    let trace = Trace::of(direct.daemon(), direct.env.work().join("trace"));
    Some((direct, trace))
}

#[test]
fn fsync_makes_content_and_rows_durable() {
    let Some((direct, mut trace)) = traced("") else {
        return;
    };
    let at = direct.at();
    fs::write(at.join("fresh"), "new").unwrap();
    sync(&at.join("fresh"));
    trace.assert_synced("a new file", &["upper/fresh", "state.db-redo"]);
    fs::write(at.join("small"), "changed").unwrap();
    sync(&at.join("small"));
    trace.assert_synced("a copied-up file", &["upper/small", "state.db-redo"]);
    fs::rename(at.join("dir/x"), at.join("empty/x")).unwrap();
    sync(&at.join("empty"));
    trace.assert_synced("a rename", &["state.db-redo"]);
    fs::remove_file(at.join("dir/y")).unwrap();
    sync(&at.join("dir"));
    trace.assert_synced("a removal", &["state.db-redo"]);
}

#[test]
fn synchronous_mount_makes_each_change_durable() {
    let Some((direct, mut trace)) = traced("sync") else {
        return;
    };
    let at = direct.at();
    fs::write(at.join("fresh"), "new").unwrap();
    trace.assert_synced("a new file", &["upper/fresh", "upper>", "state.db-redo"]);
    fs::create_dir(at.join("made")).unwrap();
    trace.assert_synced("a new directory", &["state.db-redo"]);
    fs::rename(at.join("made"), at.join("moved")).unwrap();
    trace.assert_synced("a rename", &["state.db-redo"]);
    xattr::set(at.join("fresh"), "user.a", b"b").unwrap();
    trace.assert_synced("an attribute", &["state.db-redo"]);
    fs::remove_dir(at.join("moved")).unwrap();
    trace.assert_synced("a removal", &["state.db-redo"]);
}

#[test]
fn fsync_after_a_kill_makes_content_and_name_durable() {
    let Some((direct, trace)) = traced("") else {
        return;
    };
    let at = direct.at();
    fs::create_dir(at.join("made")).unwrap();
    fs::write(at.join("made/fresh"), "new").unwrap();
    drop(trace);
    direct.kill();
    direct.mount();
    let mut trace = Trace::of(direct.daemon(), direct.env.work().join("trace-2"));
    sync(&at.join("made/fresh"));
    // The rows became durable when the upper was opened.
    let wanted = ["upper/made/fresh", "upper/made>", "upper>"];
    trace.assert_synced("an older file", &wanted);
}

/// The store is on a file system that does not forward `syncfs`: another mount of envfs.
#[test]
fn fsync_of_frozen_files_reaches_a_fuse_store() {
    if !has("strace") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let Some(below) = Direct::empty(env, "") else {
        return;
    };
    let Some(env) = TestEnv::new() else { return };
    let env = env.with_store(&below.at().join("store"));
    let source = env.work().join("source");
    samples::small(&env, &source);
    let prefix = env.work().join("prefix");
    let word = |path: &Path| path.to_str().unwrap().to_owned();
    env.envfs(&["import", &word(&source), "e", "--prefix", &word(&prefix)])
        .ok();
    // A commit that is interrupted during writes leaves an additional frozen layer.
    let envfs = |fault: &str, words: &[&str]| env.envfs_with("ENVFS_FAULT", fault, words);
    let at = PathBuf::from(envfs("commit.written", &["mount", "e"]).ok().line());
    fs::write(at.join("before"), samples::noise(3 << 20, 5)).unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/before"), "before").unwrap();
    let layers = env.home_of("e").join("layers");
    let busy = format!(
        "cd '{}'; n=0; while echo x >late-$n; do n=$((n + 1)); done",
        at.display()
    );
    let mut writer = env.command("/bin/sh");
    let mut writer = writer
        .args(["-c", &busy])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the writer", || at.join("late-1").exists());
    envfs("commit.written", &["commit", "-q", "e"]);
    writer.wait().unwrap();
    env.mount("e");
    let entries = fs::read_dir(&layers).unwrap();
    let number = |entry: fs::DirEntry| entry.file_name().into_string().unwrap().parse().unwrap();
    let mut numbers: Vec<u32> = entries.map(|entry| number(entry.unwrap())).collect();
    numbers.sort_unstable();
    let [old, new] = numbers[..] else {
        panic!("there is no additional layer: {numbers:?}");
    };

    let mut own = Trace::of(env.daemon("e"), env.work().join("trace"));
    let mut other = Trace::of(below.daemon(), env.work().join("trace-below"));
    let mut check = |what: &str, wanted: &[(u32, &str)]| {
        let places = wanted.iter();
        let places = places.map(|(layer, path)| format!("layers/{layer}/{path}"));
        let mut words: Vec<String> = places.collect();
        words.push(String::from("state.db"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let calls = own.assert_synced(what, &words);
        let mut whole = calls.lines().filter(|call| call.contains("syncfs"));
        assert!(
            whole.all(|call| !call.contains("layers")),
            "{what}:\n{calls}"
        );
        other.assert_synced(what, &words);
    };
    fs::write(at.join("fresh"), "new").unwrap();
    sync(&at.join("fresh"));
    check("a new file", &[(new, "upper/fresh"), (new, "upper>")]);
    fs::write(at.join("other"), "new").unwrap();
    sync(&at.join("before"));
    check("a frozen file", &[(old, "upper/before"), (old, "upper>")]);
    fs::write(at.join("third"), "new").unwrap();
    sync(&at.join("dir/before"));
    check(
        "a file of a frozen directory",
        &[(old, "upper/dir/before"), (old, "upper/dir>")],
    );
    fs::write(at.join("dir/before"), "changed").unwrap();
    sync(&at.join("dir/before"));
    check(
        "a changed frozen file",
        &[(new, "upper/dir/before"), (new, "upper/dir>")],
    );
    // A clean unmount makes everything durable.
    fs::write(at.join("last"), "last").unwrap();
    if User::current().is_root() {
        env.envfs(&["unmount", "e"]).ok();
        check("an unmount", &[(new, "upper/last"), (new, "upper>")]);
    } else {
        // A traced process runs fusermount3 without its privileges.
        drop((own, other));
        env.envfs(&["unmount", "e"]).ok();
    }
    env.mount("e");
    env.envfs(&["commit", "-q", "e"]).ok();
    assert_eq!(
        fs::read_to_string(at.join("dir/before")).unwrap(),
        "changed"
    );
    env.verify("e");
    env.envfs(&["unmount", "e"]).ok();
}
