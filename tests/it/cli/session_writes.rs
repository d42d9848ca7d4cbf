//! What a read-only session writes, as `strace` sees it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::private::is_possible;
use crate::support::{TestEnv, User, has, run, skip_allowed};

/// The calls that can change a file system.
const CALLS: &str = "trace=open,openat,openat2,creat,mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,\
                     renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,\
                     lchown,fchownat,utime,utimes,utimensat,truncate,ftruncate,fallocate,setxattr,lsetxattr,\
                     fsetxattr,removexattr,lremovexattr,fremovexattr,write,pwrite64,writev,pwritev,\
                     copy_file_range,sendfile";

/// Runs a script under strace. Returns the calls that would change something in the home of the
/// environment or in the store, apart from what is in the mount.
fn writes(env: &TestEnv, script: &str) -> Vec<String> {
    let log = env.work().join("strace");
    let mut command = env.command("strace");
    command.args(["-f", "-y", "-s", "4096", "-e", CALLS, "-o"]);
    command.arg(&log).args(["sh", "-ec", script]);
    run(command).ok();
    let text = fs::read_to_string(&log).unwrap();
    let store = format!("{}/", env.store().display());
    assert!(text.contains(&store), "nothing was traced: {text}");
    text.lines()
        .filter(|line| changes(line, env))
        .map(str::to_owned)
        .collect()
}

/// Returns whether a call changes something below the store.
fn changes(line: &str, env: &TestEnv) -> bool {
    let Some((call, arguments)) = line.split_once('(') else {
        return false;
    };
    let call = call.rsplit(' ').next().unwrap();
    if line.contains("<... ") {
        return false;
    }
    // The file that is written to, and not what is written; the new name, and not where it leads.
    let subject = match call {
        "write" | "pwrite64" | "writev" | "pwritev" => arguments.split('>').next().unwrap(),
        "symlink" | "symlinkat" => arguments.split_once("\", ").map_or("", |(_, rest)| rest),
        _ => arguments,
    };
    let is_open = ["open", "openat", "openat2"].contains(&call);
    let flags = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"];
    if is_open && !flags.iter().any(|flag| line.contains(flag)) {
        return false;
    }
    // As root SQLite gives a journal that it finds to the owner that it has.
    if call == "fchown" && subject.contains("state.db-journal>, 0, 0") {
        return false;
    }
    let prefix = env.prefix("e").display().to_string();
    subject.contains(env.store().to_str().unwrap()) && !subject.contains(&prefix)
}

const PRIVATE: &str = "envfs run --private --read-only e sh -c 'tool; find \"$ENVFS_PREFIX\" | wc -l; \
                       cat \"$ENVFS_PREFIX\"/lib/*.txt; ! touch \"$ENVFS_PREFIX/x\" || exit 9' >&2";

#[test]
fn a_read_only_session_writes_nothing_into_its_store_but_its_note() {
    if !has("strace") {
        return;
    }
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        env.envfs(&["-q", "unmount", "--all"]).ok();
        let mut scripts = Vec::new();
        if is_possible(&env) {
            scripts.push(PRIVATE.to_owned());
        }
        if env.user().is_root() {
            // Under strace, fusermount3 would not be set-user-ID.
            let at = env.work().join("at");
            scripts.push(format!(
                "envfs mount --read-only e '{0}'; cat '{0}'/lib/*.txt; find '{0}'; envfs unmount '{0}'",
                at.display()
            ));
        }
        for script in scripts {
            let notes = format!("{}/sessions", env.home_of("e").display());
            let found = writes(&env, &script);
            let others: Vec<_> = found.iter().filter(|line| !line.contains(&notes)).collect();
            assert!(others.is_empty(), "{script}: {others:#?}");
            // The test would see others.
            assert!(!found.is_empty(), "{script}");
        }
    }
}

#[test]
fn a_session_from_a_store_of_another_user_writes_nothing_there() {
    if !User::current().is_root() {
        return skip_allowed("the store of another user needs root");
    }
    let (Some(owner), Some(reader)) = (TestEnv::new(), TestEnv::as_tester()) else {
        return;
    };
    if !has("strace") || !is_possible(&reader) {
        return;
    }
    owner.import_sample("e");
    // Its owner makes the mount point.
    fs::create_dir_all(owner.prefix("e")).unwrap();
    let home = owner.root().join("home");
    fs::set_permissions(&home, PermissionsExt::from_mode(0o755)).unwrap();
    let script = format!("chmod -R a+rX '{}'", owner.store().display());
    owner.sh(&script).ok();
    let reader = reader.with_store(owner.store());
    assert_eq!(writes(&reader, PRIVATE), Vec::<String>::new());
}
