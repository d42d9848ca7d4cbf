//! `envfs gc` on one host, while a session begins on another.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::other_hosts::{elsewhere, end_elsewhere};
use crate::support::{Gate, TestEnv, finish, is_alive, run, wait_for};

/// Returns a store with three revisions, of which `gc --keep 1` would remove two.
fn store() -> Option<TestEnv> {
    let env = TestEnv::new()?;
    env.import_sample("e");
    let prefix = env.mount("e");
    for number in 2..=3 {
        fs::write(prefix.join("number"), number.to_string()).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
    }
    env.envfs(&["unmount", "e"]).ok();
    Some(env)
}

const GC: [&str; 4] = ["gc", "--keep", "1", "e"];

/// A script that mounts revision 1 and reads it.
const MOUNT: &str = "envfs mount e@1 \"$PWD/there\" && cat \"$PWD/there/lib/a.txt\"";

fn images(env: &TestEnv) -> usize {
    fs::read_dir(env.home_of("e").join("images"))
        .unwrap()
        .count()
}

fn at(env: &TestEnv) -> PathBuf {
    env.work().join("there")
}

#[test]
fn a_session_that_begins_while_gc_looks_keeps_its_image() {
    let Some(env) = store() else { return };
    let Some(session) = elsewhere(&env, MOUNT) else {
        return;
    };
    let gate = Gate::new(&env);
    // It has read the notes, and found revision 1 unused.
    let gc = gate.start(env.envfs_command(&GC), "pause.gc.read");
    let begun = run(session).ok();
    assert!(begun.out.ends_with("alpha\nbeta\n"), "{begun}");
    gate.open("pause.gc.read");
    let done = finish(gc, "gc".to_owned()).ok();
    assert!(done.err.contains("kept revision 1"), "{done}");
    assert!(done.err.contains("removed 1 revision, 1 image"), "{done}");
    assert_eq!(images(&env), 2);
    end_elsewhere(&env);
    env.verify("e");
}

#[test]
fn a_session_that_has_left_its_note_but_not_opened_its_image_keeps_it() {
    let Some(env) = store() else { return };
    let Some(session) = elsewhere(&env, MOUNT) else {
        return;
    };
    let gate = Gate::new(&env);
    let gc = gate.start(env.envfs_command(&GC), "pause.gc.read");
    let session = gate.start(session, "pause.session.noted");
    gate.open("pause.gc.read");
    let done = finish(gc, "gc".to_owned()).ok();
    assert!(done.err.contains("kept revision 1"), "{done}");
    gate.open("pause.session.noted");
    let begun = finish(session, "mount".to_owned()).ok();
    assert!(begun.out.ends_with("alpha\nbeta\n"), "{begun}");
    end_elsewhere(&env);
}

/// Starts a session while `gc` has announced what it removes and has not removed it. Returns the
/// gate, gc, and the session, which waits.
fn session_behind_gc(env: &TestEnv) -> Option<(Gate, Child, Child)> {
    let mut session = elsewhere(env, MOUNT)?;
    let gate = Gate::new(env);
    let gc = gate.start(env.envfs_command(&GC), "pause.gc.removing");
    let session = session
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let noted = || {
        let entries = fs::read_dir(env.home_of("e").join("sessions")).unwrap();
        let mut names = entries.flatten().map(|entry| entry.path());
        names.any(|path| path.extension().is_some_and(|end| end == "json"))
    };
    wait_for("the note of the session", noted);
    Some((gate, gc, session))
}

#[test]
fn a_session_that_begins_while_gc_removes_its_image_is_refused() {
    let Some(env) = store() else { return };
    let Some((gate, gc, session)) = session_behind_gc(&env) else {
        return;
    };
    gate.open("pause.gc.removing");
    let done = finish(gc, "gc".to_owned()).ok();
    assert!(done.err.contains("removed 2 revisions, 2 images"), "{done}");
    finish(session, "mount".to_owned()).fails(3, &["gc has just removed revision 1 of e"]);
    end_elsewhere(&env);
    assert!(!is_mounted(&at(&env)));
    env.verify("e");
}

#[test]
fn a_session_outlasts_a_gc_that_was_killed_before_it_removed_anything() {
    let Some(env) = store() else { return };
    let Some((gate, mut gc, session)) = session_behind_gc(&env) else {
        return;
    };
    let pid = Pid::from_raw(gc.id().try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    gc.wait().unwrap();
    wait_for("the end of gc", || !is_alive(pid));
    // On another boot it is not known to have ended, so age it as the other host sees it.
    let file = env.home_of("e").join("sessions/removing");
    let file = fs::File::options().write(true).open(file).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    file.set_modified(old).unwrap();
    let begun = finish(session, "mount".to_owned()).ok();
    assert!(begun.out.ends_with("alpha\nbeta\n"), "{begun}");
    gate.open("pause.gc.removing");
    let done = env.envfs(&GC).ok();
    assert!(done.err.contains("kept revision 1"), "{done}");
    end_elsewhere(&env);
    env.verify("e");
}

fn is_mounted(path: &Path) -> bool {
    !crate::support::mounts_below(path).is_empty()
}
