//! Importing a directory in place: the environment takes its path, and the original is kept until
//! the import is finished or undone.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::tree::{self, Look, digest};
use crate::support::{Disk, TestEnv, has, mounts_below, run, samples, skip, wait_for};

/// A child process that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn backup_of(dir: &Path) -> PathBuf {
    PathBuf::from(format!("{}.envfs-backup", dir.display()))
}

/// A directory with a small tree.
fn sample(env: &TestEnv, name: &str) -> PathBuf {
    let dir = env.work().join(name);
    samples::small(env, &dir);
    env.user().give_tree(&dir);
    dir
}

/// Fails unless a directory is the original, and nothing is left of an import.
#[track_caller]
fn assert_untouched(env: &TestEnv, dir: &Path, inode: u64) {
    assert_eq!(fs::metadata(dir).unwrap().ino(), inode);
    assert!(!backup_of(dir).exists());
    assert_eq!(env.count(&["list"]), 0);
    assert_eq!(mounts_below(env.root()), Vec::<PathBuf>::new());
    let homes = fs::read_dir(env.store().join("store"));
    assert_eq!(homes.map_or(0, Iterator::count), 0);
}

/// Imports a Python environment in place, uses it, undoes and finishes the import.
fn python(make: &str) {
    for env in TestEnv::of_all_users() {
        let dir = env.work().join("proj/.venv");
        env.sh(make).ok();
        let inode = fs::metadata(&dir).unwrap().ino();
        let before = digest(&env, &dir);
        env.envfs(&["import", "--in-place", "proj/.venv"]).ok();
        assert_eq!(digest(&env, &dir), before, "not one byte is another");
        assert_eq!(fs::metadata(backup_of(&dir)).unwrap().ino(), inode);
        let prefix = "import sys; print(sys.prefix)";
        let python = format!("proj/.venv/bin/python -c '{prefix}'");
        assert_eq!(env.sh(&python).ok().line(), word(&dir));
        let script = "proj/.venv/bin/python -m compileall -q proj/.venv/lib && \
                      printf '#!%s/proj/.venv/bin/python\\nprint(\"works\")\\n' \"$PWD\" \
                      >proj/.venv/bin/tool && chmod +x proj/.venv/bin/tool && proj/.venv/bin/tool";
        assert_eq!(env.sh(script).ok().line(), "works");
        let activated =
            env.sh("eval \"$(envfs activate --shell posix proj/.venv)\"; echo $VIRTUAL_ENV");
        assert_eq!(activated.ok().line(), word(&dir));
        let status = env.envfs(&["status", "--json", "proj"]).ok().json();
        assert_eq!(status["backup"]["path"], word(&backup_of(&dir)), "{status}");
        assert_eq!(status["backup"]["exists"], true, "{status}");

        // Back, with what was installed dropped on request only.
        env.envfs(&["import", "--undo", "proj"])
            .fails(4, &["uncommitted changes", "envfs export proj", "--force"]);
        env.envfs(&["import", "--undo", "proj/.venv", "--force"])
            .ok();
        assert_untouched(&env, &dir, inode);
        assert_eq!(digest(&env, &dir), before);
        assert_eq!(env.sh(&python).ok().line(), word(&dir));

        // Again, and for good.
        env.envfs(&["import", "--in-place", "proj/.venv"]).ok();
        env.envfs(&["import", "--finish", "proj"]).ok();
        assert!(!backup_of(&dir).exists());
        env.sh(script).ok();
        env.envfs(&["commit", "proj"]).ok();
        env.envfs(&["rollback", "proj", "1"]).ok();
        assert_eq!(digest(&env, &dir), before);
        env.envfs(&["unmount", "proj"]).ok();
        env.verify("proj");
        env.envfs(&["import", "--undo", "proj"])
            .fails(4, &["no backup"]);
    }
}

#[test]
fn a_venv_is_imported_in_place() {
    if has("python3") {
        python("python3 -m venv proj/.venv");
    }
}

/// Installs a tool from a package index into a directory of this build, once, and returns its
/// `bin`.
fn installed(package: &str) -> Option<PathBuf> {
    if !has("python3") {
        return None;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(package);
    if !dir.join("bin").exists() {
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "install", "-q", "--target"]);
        command.arg(&dir).arg(package);
        let done = run(command);
        if done.code != 0 {
            skip(&format!("{package} cannot be installed: {done}"));
            return None;
        }
    }
    Some(dir)
}

/// Copies a tool to where the user of a test can run it.
fn given(env: &TestEnv, tool: &Path) -> PathBuf {
    let own = env.work().join("tool");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(tool).arg(&own);
    run(copy).ok();
    env.user().give_tree(&own);
    own
}

#[test]
fn environments_of_virtualenv_and_uv_are_imported_in_place() {
    for (package, make) in [
        (
            "virtualenv",
            "PYTHONPATH=tool python3 -m virtualenv -q proj/.venv --no-download",
        ),
        ("uv", "tool/bin/uv venv -q --no-config --offline proj/.venv"),
    ] {
        let Some(tool) = installed(package) else {
            continue;
        };
        for env in TestEnv::of_all_users() {
            given(&env, &tool);
            env.sh(make).ok();
            let dir = env.work().join("proj/.venv");
            let before = digest(&env, &dir);
            env.envfs(&["import", "--in-place", "proj/.venv"]).ok();
            assert_eq!(digest(&env, &dir), before, "{package}");
            let python = "proj/.venv/bin/python -c 'import sys; print(sys.prefix)'";
            assert_eq!(env.sh(python).ok().line(), word(&dir));
            env.envfs(&["import", "--undo", "proj"]).ok();
            assert_eq!(digest(&env, &dir), before, "{package}");
        }
    }
}

#[test]
fn node_modules_are_imported_in_place() {
    if !has("node") || !has("npm") {
        return;
    }
    for env in TestEnv::of_all_users() {
        let app = env.work().join("app");
        env.write(
            &app.join("part/package.json"),
            r#"{"name":"part","version":"1.0.0","main":"x.js"}"#,
        );
        env.write(
            &app.join("part/x.js"),
            "#!/usr/bin/env node\nconsole.log('part')\n",
        );
        env.write(
            &app.join("package.json"),
            r#"{"name":"app","version":"1.0.0","private":true}"#,
        );
        env.user().give_tree(&app);
        let npm = "cd app && npm --offline --no-audit --no-fund --install-links install ./part";
        env.sh(npm).ok();
        let modules = app.join("node_modules");
        let before = digest(&env, &modules);
        env.envfs(&["import", "--in-place", "app/node_modules"])
            .ok();
        assert_eq!(
            env.envfs(&["status", "--json", "app"]).ok().json()["name"],
            "app"
        );
        assert_eq!(digest(&env, &modules), before);
        assert_eq!(
            env.sh("cd app && node -e 'require(\"part\")'").ok().line(),
            "part"
        );
        env.envfs(&["import", "--finish", "app"]).ok();
        // And npm goes on in it.
        let package = r#"{"name":"two","version":"1.0.0","main":"x.js"}"#;
        env.write(&app.join("two/package.json"), package);
        env.write(&app.join("two/x.js"), "console.log('two')\n");
        env.sh(&npm.replace("./part", "./two")).ok();
        let two = env.sh("cd app && node -e 'require(\"two\")'").ok();
        assert_eq!(two.line(), "two");
        env.envfs(&["commit", "app"]).ok();
        env.envfs(&["unmount", "app"]).ok();
    }
}

#[test]
fn a_directory_without_changes_is_put_back() {
    for env in TestEnv::of_all_users() {
        let dir = sample(&env, "tree");
        let (before, inode) = (tree::read(&dir), fs::metadata(&dir).unwrap().ino());
        let done = env
            .envfs(&["import", "--json", "--in-place", word(&dir)])
            .ok();
        assert_eq!(done.json()["backup"], word(&backup_of(&dir)));
        assert_eq!(done.json()["prefix"], word(&dir));
        env.envfs(&["import", "--undo", "tree"]).ok();
        assert_untouched(&env, &dir, inode);
        tree::assert_same(&before, &tree::read(&dir), Look::ALL, "the original");
    }
}

#[test]
fn commits_since_the_import_are_dropped_on_request_only() {
    let Some(env) = TestEnv::new() else { return };
    let dir = sample(&env, "tree");
    env.envfs(&["import", "--in-place", word(&dir)]).ok();
    fs::write(dir.join("new"), "new").unwrap();
    env.envfs(&["commit", "tree"]).ok();
    env.envfs(&["import", "--undo", "tree"])
        .fails(4, &["1 revision after the import"]);
    assert_eq!(
        fs::read_to_string(dir.join("new")).unwrap(),
        "new",
        "it stays mounted"
    );
    // In use, it is not unmounted either.
    let mut sleep = Command::new("sleep");
    sleep.arg("100").current_dir(&dir);
    let running = Running(sleep.spawn().unwrap());
    env.envfs(&["import", "--undo", "tree", "--force"])
        .fails(5, &["sleep"]);
    drop(running);
    assert!(dir.join("new").exists());
    env.envfs(&["import", "--undo", "tree", "--force"]).ok();
    assert!(!dir.join("new").exists());
    assert!(dir.join("lib/a.txt").exists());
}

#[test]
fn removing_the_environment_keeps_the_original_and_says_where() {
    let Some(env) = TestEnv::new() else { return };
    let dir = sample(&env, "tree");
    env.envfs(&["import", "--in-place", word(&dir)]).ok();
    let list = env.envfs(&["list"]).ok();
    assert!(list.out.contains("(original kept)"), "{list}");
    let status = env.envfs(&["status", "tree"]).ok();
    assert!(
        status.out.contains("envfs import --finish tree"),
        "{status}"
    );
    let done = env.envfs(&["remove", "-y", "tree"]).ok();
    let command = format!("mv {} {}", backup_of(&dir).display(), dir.display());
    assert!(done.err.contains(&command), "{done}");
    env.sh(&command).ok();
    assert!(dir.join("lib/a.txt").exists());
}

#[test]
fn a_backup_that_was_changed_is_not_deleted() {
    let Some(env) = TestEnv::new() else { return };
    let dir = sample(&env, "tree");
    env.envfs(&["import", "--in-place", word(&dir)]).ok();
    fs::write(
        backup_of(&dir).join("lib/late"),
        "written by a program that had it open",
    )
    .unwrap();
    env.envfs(&["import", "--finish", "tree"])
        .fails(4, &["was changed", "lib/late", "--force"]);
    assert!(backup_of(&dir).join("lib/late").exists());
    env.envfs(&["import", "--finish", "tree", "--force"]).ok();
    assert!(!backup_of(&dir).exists());
    assert!(dir.join("lib/a.txt").exists());
}

#[test]
fn another_directory_is_never_taken_for_the_backup() {
    let Some(env) = TestEnv::new() else { return };
    let dir = sample(&env, "tree");
    env.envfs(&["import", "--in-place", word(&dir)]).ok();
    let backup = backup_of(&dir);
    fs::rename(&backup, env.work().join("away")).unwrap();
    let list = env.envfs(&["list"]).ok();
    assert!(list.out.contains("(original missing)"), "{list}");
    fs::create_dir(&backup).unwrap();
    fs::write(backup.join("precious"), "mine").unwrap();
    for words in [
        ["import", "--finish", "tree", "--force"],
        ["import", "--undo", "tree", "--force"],
    ] {
        env.envfs(&words).fails(2, &["not there any more"]);
        assert!(backup.join("precious").exists());
    }
    // The environment is as well as before.
    let prefix = env.mount("tree");
    assert!(prefix.join("lib/a.txt").exists());
    // What was written into the unmounted directory is not lost either.
    fs::remove_dir_all(&backup).unwrap();
    fs::rename(env.work().join("away"), &backup).unwrap();
    env.envfs(&["unmount", "tree"]).ok();
    fs::write(dir.join("beneath"), "mine").unwrap();
    env.envfs(&["import", "--undo", "tree"])
        .fails(2, &["not empty"]);
    assert!(dir.join("beneath").exists() && backup.join("lib/a.txt").exists());
    fs::remove_file(dir.join("beneath")).unwrap();
    env.envfs(&["import", "--undo", "tree"]).ok();
    assert!(dir.join("lib/a.txt").exists());
}

#[test]
fn a_directory_is_imported_through_symbolic_links() {
    for env in TestEnv::of_all_users() {
        let real = sample(&env, "real/sci");
        env.user().give(real.parent().unwrap());
        let link = env.work().join("link");
        symlink("real", &link).unwrap();
        let before = digest(&env, &real);
        // Links above it stay in the prefix: files in it may contain that path.
        let done = env
            .envfs(&["import", "--json", "--in-place", "link/sci"])
            .ok();
        assert_eq!(done.json()["prefix"], word(&link.join("sci")));
        for path in [&real, &link.join("sci")] {
            assert_eq!(digest(&env, path), before);
            let status = env.envfs(&["status", "--json", word(path)]).ok().json();
            assert_eq!(status["name"], "sci", "{status}");
            env.envfs(&["import", "--in-place", word(path)])
                .fails(4, &["is the environment sci already"]);
        }
        env.envfs(&["import", "--undo", "sci"]).ok();
        assert_eq!(digest(&env, &real), before);
        // The directory itself is replaced, not a link to it.
        symlink("real/sci", env.work().join("short")).unwrap();
        let done = env
            .envfs(&["import", "--json", "--in-place", "short", "e"])
            .ok();
        let canonical = fs::canonicalize(env.work()).unwrap().join("real/sci");
        assert_eq!(done.json()["prefix"], word(&canonical));
        assert_eq!(digest(&env, &env.work().join("short")), before);
        env.envfs(&["import", "--finish", "short"]).ok();
        assert_eq!(digest(&env, &real), before);
    }
}

#[test]
fn directory_in_use_is_refused_without_lazy() {
    for env in TestEnv::of_all_users() {
        let dir = sample(&env, "tree");
        let inode = fs::metadata(&dir).unwrap().ino();
        let mut command = env.command("/bin/sh");
        // A shell that stands in it, and an open file.
        command
            .args(["-c", "cd tree/lib && exec 5<a.txt && read line"])
            .stdin(Stdio::piped());
        let shell = Running(command.spawn().unwrap());
        let cwd = format!("/proc/{}/cwd", shell.0.id());
        wait_for("a shell in the directory", || {
            fs::read_link(&cwd).is_ok_and(|at| at.ends_with("tree/lib"))
        });
        let import = ["import", "--in-place", word(&dir)];
        env.envfs(&import)
            .fails(5, &["is in use", "working directory", "--lazy"]);
        assert_untouched(&env, &dir, inode);
        env.envfs(&[&import[..], &["--lazy"]].concat()).ok();
        let moved = fs::read_link(&cwd).unwrap();
        assert!(moved.starts_with(backup_of(&dir)), "{moved:?}");
        let finish = ["import", "--finish", "tree"];
        env.envfs(&finish).fails(5, &["is in use", "--lazy"]);
        assert!(backup_of(&dir).exists());
        env.envfs(&[&finish[..], &["--lazy"]].concat()).ok();
        assert!(!backup_of(&dir).exists());
        drop(shell);
        env.envfs(&[
            "run",
            "tree",
            "--",
            "cat",
            &format!("{}/lib/a.txt", dir.display()),
        ])
        .ok();
    }
}

#[test]
fn a_directory_on_another_file_system_than_the_store_is_imported_in_place() {
    let Some(env) = TestEnv::new() else { return };
    let Some(disk) = Disk::new(&env.work(), "mkfs.ext4", &["-q", "-F"], 64) else {
        return;
    };
    let dir = disk.at().join("tree");
    samples::small(&env, &dir);
    let before = tree::read(&dir);
    env.envfs(&["import", "--in-place", word(&dir)]).ok();
    tree::assert_same(&before, &tree::read(&dir), Look::ALL, "the mount");
    env.envfs(&["import", "--undo", "tree"]).ok();
    tree::assert_same(&before, &tree::read(&dir), Look::ALL, "the original");
    // A file system that cannot exchange names.
    env.envfs_with(
        "ENVFS_FAULT",
        "rename.no-exchange",
        &["import", "--in-place", word(&dir)],
    )
    .ok();
    tree::assert_same(&before, &tree::read(&dir), Look::ALL, "the second mount");
    env.envfs(&["import", "--finish", "tree"]).ok();
    tree::assert_same(&before, &tree::read(&dir), Look::ALL, "finished");
    // It is a mount point now, and the disk has one in it.
    env.envfs(&["import", "--in-place", word(disk.at()), "disk"])
        .fails(4, &["contains the prefix of tree"]);
    env.envfs(&["unmount", "tree"]).ok();
}

#[test]
fn mount_points_and_what_contains_them_are_refused() {
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        crate::support::skip_allowed("mounting needs root");
        return;
    }
    let dir = sample(&env, "tree");
    let inode = fs::metadata(&dir).unwrap().ino();
    fs::create_dir(dir.join("mnt")).unwrap();
    let at = dir.join("mnt");
    env.sh(&format!("mount -t tmpfs none '{}'", at.display()))
        .ok();
    fs::write(at.join("file"), "").unwrap();
    env.envfs(&["import", "--in-place", word(&dir)])
        .fails(2, &["another file system is mounted in it"]);
    env.envfs(&["import", "--in-place", word(&at)])
        .fails(2, &["it is a mount point (tmpfs)"]);
    crate::support::unmount(&at).ok();
    assert_untouched(&env, &dir, inode);
}

#[test]
fn immovable_directories_are_refused_with_the_reason() {
    for env in TestEnv::of_all_users() {
        let dir = sample(&env, "a/tree");
        let inode = fs::metadata(&dir).unwrap().ino();
        let import = |words: &[&str]| env.envfs(&[&["import", "--in-place"], words].concat());
        import(&["none"]).fails(3, &["none", "No such file"]);
        import(&["a/tree/lib/a.txt"]).fails(2, &["is not a directory"]);
        import(&["a/tree", "b/c"]).fails(2, &["invalid environment name"]);
        import(&["a/tree", "--prefix", "/x"]).fails(2, &["--prefix"]);
        env.envfs(&["import", "a/tree", "--lazy", "x"])
            .fails(2, &["--lazy requires"]);
        // The way that people try first.
        env.envfs(&["import", "a/tree", "x", "--prefix", "a/tree"])
            .fails(2, &["envfs import --in-place a/tree x"]);
        let file = backup_of(&dir);
        env.write(&file, "mine");
        import(&["a/tree"]).fails(2, &["which exists", "remove or rename that"]);
        fs::remove_file(&file).unwrap();
        if !env.user().is_root() {
            let parent = dir.parent().unwrap();
            fs::set_permissions(parent, fs::Permissions::from_mode(0o555)).unwrap();
            import(&["a/tree"]).fails(2, &["cannot be renamed", "not writable"]);
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
            if nix::unistd::geteuid().is_root() {
                std::os::unix::fs::lchown(&dir, Some(0), None).unwrap();
                import(&["a/tree"]).fails(2, &["belongs to root"]);
                env.user().give(&dir);
            }
        }
        assert_untouched(&env, &dir, inode);
        // The name of another environment, and what is in one.
        import(&["a/tree"]).ok();
        let other = sample(&env, "b/tree");
        env.user().give(other.parent().unwrap());
        import(&["b/tree"]).fails(4, &["'tree' already exists", "--in-place b/tree NAME"]);
        import(&["a/tree/lib"]).fails(4, &["inside the environment tree"]);
        import(&["a"]).fails(4, &["contains the prefix of tree"]);
        import(&["b/tree", "second"]).ok();
        assert_eq!(env.count(&["list"]), 2);
    }
}

#[test]
fn a_directory_that_changes_meanwhile_is_refused() {
    let Some(env) = TestEnv::new() else { return };
    let dir = sample(&env, "tree");
    let inode = fs::metadata(&dir).unwrap().ino();
    // It never has a file open, so it is no process that uses the directory.
    let script = "while :; do touch -h -c tree/lib/c.txt; done";
    let mut command = env.command("/bin/sh");
    command.args(["-c", script]);
    let writer = Running(command.spawn().unwrap());
    let done = env.envfs(&["import", "--in-place", word(&dir)]);
    kill(
        Pid::from_raw(writer.0.id().try_into().unwrap()),
        Signal::SIGSTOP,
    )
    .unwrap();
    done.fails(4, &["changed while it was imported"]);
    drop(writer);
    assert_untouched(&env, &dir, inode);
    env.envfs(&["import", "--in-place", word(&dir)]).ok();
}

#[test]
fn a_failed_mount_puts_the_directory_back() {
    let Some(env) = TestEnv::new() else { return };
    let dir = sample(&env, "tree");
    let inode = fs::metadata(&dir).unwrap().ino();
    env.envfs_with(
        "ENVFS_FAULT",
        "start.fails",
        &["import", "--in-place", word(&dir)],
    )
    .fails(9, &["injected fault", "nothing was changed"]);
    assert_untouched(&env, &dir, inode);
}
