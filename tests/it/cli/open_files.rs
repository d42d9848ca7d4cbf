//! Files and directories that programs hold open during a discard or rollback.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::support::TestEnv;

fn mounted() -> Option<(TestEnv, PathBuf)> {
    let env = TestEnv::new()?;
    let source = env.work().join("source");
    env.write(&source.join("file"), "charlie");
    env.write(&source.join("dir/deep/x"), "x");
    env.envfs(&["import", "-q", source.to_str().unwrap(), "e"])
        .ok();
    let prefix = env.mount("e");
    Some((env, prefix))
}

/// A process whose working directory is in the mount.
struct Sleeper(Child);

impl Sleeper {
    fn new(env: &TestEnv, dir: &Path) -> Sleeper {
        let mut command = env.command("sleep");
        command.arg("600").current_dir(dir).stdout(Stdio::null());
        Sleeper(command.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn discard_restores_a_changed_file_removed_while_open() {
    for words in [&["discard", "-y", "e"][..], &["discard", "-y", "e", "file"]] {
        let Some((env, prefix)) = mounted() else {
            return;
        };
        let path = prefix.join("file");
        assert_eq!(fs::read(&path).unwrap(), b"charlie");
        let held = fs::File::options().read(true).write(true).open(&path);
        let held = held.unwrap();
        held.write_all_at(b"CHARLIE", 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"CHARLIE");
        fs::remove_file(&path).unwrap();
        env.envfs(words).ok();
        assert_eq!(fs::read(&path).unwrap(), b"charlie", "{words:?}");
        drop(held);
        assert_eq!(fs::read(&path).unwrap(), b"charlie", "{words:?}");
    }
}

#[test]
fn discard_and_rollback_revive_a_removed_working_directory() {
    for words in [
        &["discard", "-y", "e"][..],
        &["discard", "-y", "e", "dir"],
        &["rollback", "-y", "e", "1"],
    ] {
        let Some((env, prefix)) = mounted() else {
            return;
        };
        let dir = prefix.join("dir/deep");
        let sleeper = Sleeper::new(&env, &dir);
        fs::remove_dir_all(prefix.join("dir")).unwrap();
        env.envfs(words).ok();
        assert_eq!(fs::read(dir.join("x")).unwrap(), b"x", "{words:?}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{words:?}");
        fs::write(dir.join("new"), "new").unwrap();
        drop(sleeper);
        assert_eq!(fs::read(dir.join("new")).unwrap(), b"new", "{words:?}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "{words:?}");
    }
}

#[test]
fn appends_continue_at_the_restored_end_of_file() {
    for words in [
        &["discard", "-y", "e"][..],
        &["discard", "-y", "e", "file"],
        &["rollback", "-y", "e", "1"],
    ] {
        let Some((env, prefix)) = mounted() else {
            return;
        };
        let path = prefix.join("file");
        // From a file longer, and from one shorter than the restored one.
        for (change, size) in [("longer and longer", 17), ("", 0)] {
            let mut log = fs::File::options().append(true).open(&path).unwrap();
            fs::write(&path, change).unwrap();
            assert_eq!(log.metadata().unwrap().len(), size);
            env.envfs(words).ok();
            log.write_all(b" more").unwrap();
            log.write_all(b" and more").unwrap();
            assert_eq!(
                String::from_utf8(fs::read(&path).unwrap()).unwrap(),
                "charlie more and more",
                "{words:?} {change}"
            );
            log.write_all(b".").unwrap();
            assert_eq!(log.metadata().unwrap().len(), 22, "{words:?} {change}");
            drop(log);
            env.envfs(words).ok();
        }
    }
}
