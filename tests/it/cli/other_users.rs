//! Other users: stores of other users, paths they could replace, and their mounts and sockets.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use crate::support::{Run, TestEnv, User, has, mounts_below, run, skip_allowed};

/// Returns the owner and change time of everything below a directory.
fn state_of(dir: &Path) -> BTreeMap<PathBuf, (u32, i64, i64)> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            // Root cannot look into a mount of the user.
            let meta = entry.path().symlink_metadata().ok()?;
            let state = (meta.uid(), meta.ctime(), meta.ctime_nsec());
            Some((entry.into_path(), state))
        })
        .collect()
}

#[track_caller]
fn assert_all_owned_by(dir: &Path, owner: u32) {
    for (path, (uid, ..)) in state_of(dir) {
        assert_eq!(uid, owner, "{}", path.display());
    }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

const READING: [&str; 8] = [
    "list",
    "status e",
    "diff e",
    "log e",
    "paths e",
    "verify e",
    "export -f e out.sqfs",
    "doctor",
];
const CHANGING: [&str; 14] = [
    "commit e",
    "discard -y e",
    "rollback -y e",
    "mount e",
    "activate --shell bash e",
    "tag e name",
    "gc e",
    "rename e f",
    "remove -y e",
    "unmount e",
    "create f",
    "import . f",
    "run e true",
    "unmount --all",
];

#[test]
fn root_reads_a_users_store_as_that_user_and_changes_nothing() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    let owner = env.user().uid();
    env.import_sample("e");
    let prefix = env.mount("e");
    env.sh(&format!("echo new >'{}/new'", prefix.display()))
        .ok();
    let as_root = |line: &str| run(env.envfs_of_runner(&words(line)));
    let home = env.home_of("e");
    // Mounted, after a kill, which leaves recovery to the next open, and unmounted.
    for state in ["mounted", "killed", "unmounted"] {
        match state {
            "killed" => env.kill_daemon("e"),
            "unmounted" => drop(env.envfs(&["unmount", "e"]).ok()),
            _ => {}
        }
        for line in READING {
            let done = as_root(line);
            assert!(done.code <= 1, "{state}: {done}");
            assert_all_owned_by(env.root().join("home").as_path(), owner);
            assert_all_owned_by(env.root().join("run").as_path(), owner);
        }
        let before = (state_of(&home), state_of(&env.work()));
        for line in CHANGING {
            let code = if line.starts_with("run") { 125 } else { 4 };
            let owner = ["belongs to tester", &format!("sudo -u tester envfs {line}")];
            as_root(line).fails(code, &owner);
        }
        assert_eq!(before, (state_of(&home), state_of(&env.work())), "{state}");
    }
    env.mount("e");
    env.verify("e");
}

#[test]
fn root_creates_no_store_in_a_users_home_and_follows_no_links() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    let home = env.root().join("home");
    let as_root = |line: &str| {
        let mut command = env.envfs_of_runner(&words(line));
        command.env_remove("ENVFS_HOME");
        run(command)
    };
    for line in ["create f", "import . f"] {
        as_root(line).fails(4, &["belongs to tester", "sudo -u tester", "sudo -H"]);
    }
    as_root("list").ok();
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0);

    env.import_sample("e");
    let precious = env.root().join("precious");
    fs::write(&precious, "of root").unwrap();
    for name in [
        "daemon.log",
        "lock",
        "lock.holder",
        "profile.new",
        "profile",
    ] {
        let link = env.home_of("e").join(name);
        fs::remove_file(&link).ok();
        symlink(&precious, &link).unwrap();
        lchown(&link, Some(env.user().uid()), Some(env.user().gid())).unwrap();
        for line in ["status e", "verify e", "commit e", "mount e", "run e true"] {
            run(env.envfs_of_runner(&words(line)));
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "of root", "{name}");
        assert_eq!(precious.metadata().unwrap().uid(), 0);
        // A file that is replaced as a whole has replaced the link.
        fs::remove_file(&link).ok();
    }
}

#[test]
fn paths_that_other_users_can_replace_are_refused() {
    let Some(env) = TestEnv::new() else { return };
    let open = env.work().join("open");
    let store = open.join("store");
    fs::create_dir(&open).unwrap();
    let in_store = |line: &str| {
        let home = ["--home", store.to_str().unwrap()];
        env.envfs(&[&home[..], &words(line)].concat())
    };
    in_store("create e").ok();
    in_store("unmount e").ok();
    chmod(&open, 0o777);
    let refused = |done: Run, code: i32| {
        done.fails(code, &["any user can replace", "chmod go-w", "ENVFS_TRUST"]);
    };
    for line in ["mount e", "commit e", "create f", "activate --shell bash e"] {
        refused(in_store(line), 4);
    }
    refused(in_store("run e true"), 125);
    in_store("list").ok();
    in_store("status e").ok();
    // The sticky bit keeps others from renaming the store.
    chmod(&open, 0o1777);
    in_store("mount e").ok();
    // Unmounting works whatever has become of the directory.
    chmod(&open, 0o777);
    in_store("unmount e").ok();
    let mut trusting = env.envfs_command(&["--home", store.to_str().unwrap(), "mount", "e"]);
    trusting.env("ENVFS_TRUST", format!("/nowhere:{}", open.display()));
    run(trusting).ok();
    in_store("unmount e").ok();

    // A prefix is checked when it is chosen and when it is used.
    chmod(&open, 0o755);
    let prefix = open.join("prefix");
    let create = ["create", "g", "--prefix", prefix.to_str().unwrap()];
    env.envfs(&create).ok();
    env.envfs(&["unmount", "g"]).ok();
    chmod(&open, 0o777);
    refused(env.envfs(&["mount", "g"]), 4);
    refused(env.envfs(&["run", "g", "true"]), 125);
    env.envfs(&["remove", "-y", "g"]).ok();
    refused(env.envfs(&create), 4);
    assert!(mounts_below(env.root()).is_empty());
    if !User::current().is_root() {
        return skip_allowed("changing owners and groups needs root");
    }
    // A group with other members, and a foreign owner.
    lchown(&open, None, Some(100)).unwrap();
    chmod(&open, 0o775);
    env.envfs(&create)
        .fails(4, &["any user in the group users can replace"]);
    lchown(&open, Some(0), Some(0)).unwrap();
    env.envfs(&create).ok();
    env.envfs(&["unmount", "g"]).ok();
    lchown(&open, Some(65_534), Some(0)).unwrap();
    chmod(&open, 0o755);
    env.envfs(&["mount", "g"])
        .fails(4, &["its owner, nobody, can replace"]);
    lchown(&open, Some(0), Some(0)).unwrap();
}

#[test]
fn mount_of_another_user_with_the_same_source_is_ignored() {
    let (Some(env), Some(other)) = (TestEnv::new(), TestEnv::as_tester()) else {
        return;
    };
    env.import_sample("e");
    let paths = env.envfs(&["paths", "--json", "e"]).ok().json();
    let socket = Path::new(paths["socket"].as_str().unwrap());
    let id = socket.file_stem().unwrap().to_str().unwrap();
    let image = other.work().join("image.sqfs");
    env.envfs(&["export", "e", image.to_str().unwrap()]).ok();
    chmod(&image, 0o644);
    let at = other.work().join("at");
    other.sh(&format!("mkdir '{}'", at.display())).ok();
    other
        .envfs(&[
            "mount",
            "--image",
            image.to_str().unwrap(),
            "-o",
            &format!("ro,fsname=envfs:{id}"),
            at.to_str().unwrap(),
        ])
        .ok();
    assert_eq!(mounts_below(other.root()).len(), 1);
    assert_eq!(
        env.envfs(&["status", "--json", "e"]).ok().json()["state"],
        "unmounted"
    );
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "new").unwrap();
    env.envfs(&["commit", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    assert_eq!(mounts_below(other.root()).len(), 1);
    other.unmount(&at).ok();
}

#[test]
fn socket_directory_of_another_user_is_avoided() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    if !has("setpriv") || !has("unshare") {
        return;
    }
    env.import_sample("e");
    let (uid, gid) = (env.user().uid(), env.user().gid());
    let root = env.root().display();
    // A private /tmp that contains the directory of this test at the same path.
    let script = format!(
        "mount --bind '{root}' /mnt
         mount -t tmpfs -o mode=1777 tmpfs /tmp
         mkdir -m 755 '{root}'
         mount --bind /mnt '{root}'
         mkdir /tmp/envfs-{uid}
         cd '{root}/work'
         exec setpriv --reuid {uid} --regid {gid} --clear-groups env -u XDG_RUNTIME_DIR sh -ec '
             prefix=$(envfs mount e)
             test \"$(stat -c %a /tmp/envfs-{uid}-*)\" = 700
             envfs mount e >mounted-twice
             test \"$(grep -c \" $prefix \" /proc/self/mountinfo)\" = 1
             echo new >$prefix/new
             envfs status e
             envfs commit e
             envfs unmount e
             ls -A /tmp /tmp/envfs-{uid}
         '"
    );
    let mut command = env.command("unshare");
    command
        .uid(0)
        .gid(0)
        .args(["-m", "--propagation", "private", "sh", "-ec", &script]);
    let done = run(command);
    if done.err.contains("unshare: ") || done.err.contains("mount: ") {
        return skip_allowed(&format!("no mount namespace: {}", done.err));
    }
    let done = done.ok();
    assert!(!done.out.contains(&format!("envfs-{uid}-")), "{done}");
    assert_eq!(env.count(&["log", "e"]), 2);
}

#[test]
fn exports_respect_umask_and_store_files_are_private() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("e");
    for (umask, expected) in [
        ("022", 0o644),
        ("027", 0o640),
        ("077", 0o600),
        ("000", 0o666),
    ] {
        env.sh(&format!(
            "umask {umask}; envfs -q export -f e {umask}.sqfs; envfs -q image pack -f '{}' {umask}-pack.sqfs",
            source.display()
        ))
        .ok();
        for name in [format!("{umask}.sqfs"), format!("{umask}-pack.sqfs")] {
            assert_eq!(mode(&env.work().join(&name)), expected, "{name}");
        }
    }
    env.sh("umask 0; envfs mount e; cat \"$(envfs paths e | sed -n 's/^prefix *//p')/lib/a.txt\"")
        .ok();
    let sockets = walkdir::WalkDir::new(env.root().join("run/envfs")).min_depth(1);
    let modes: Vec<u32> = sockets
        .into_iter()
        .map(|entry| mode(entry.unwrap().path()))
        .collect();
    // The socket and its lock.
    assert_eq!(modes, [0o600; 2]);
    env.sh("umask 0; envfs unmount e").ok();
    for entry in fs::read_dir(env.home_of("e")).unwrap().flatten() {
        assert_eq!(mode(&entry.path()) & 0o077, 0, "{}", entry.path().display());
    }
}
