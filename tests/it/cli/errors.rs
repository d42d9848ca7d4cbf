//! Invalid input and failures: a clear message, the documented exit status, and an unchanged store.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use envfs::environment::{EnvLock, EnvName, Store};

use crate::support::tree::{self, Look};
use crate::support::{Run, TestEnv, User, find, has, run, samples, skip_allowed, wait_for};

pub(super) fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn invalid_names_are_refused_first() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::small(&env, &source);
    let long = "x".repeat(65);
    for name in [
        "", ".", "..", ".hidden", "a/b", "/", "a b", "ä", "all", "NONE", "current", &long,
    ] {
        env.envfs(&["import", word(&source), name])
            .fails(2, &["1 to 64"]);
        env.envfs(&["create", name]).fails(2, &["1 to 64"]);
        // Where an environment is named, it is a path in no environment.
        match [".", "..", "a/b", "/"].contains(&name) {
            true => env.envfs(&["mount", name]).fails(3, &["environment"]),
            false => env.envfs(&["mount", name]).fails(2, &["1 to 64"]),
        };
    }
    env.envfs(&["mount", "--", "-x"]).fails(2, &["1 to 64"]);
    assert_eq!(
        env.store_listing(),
        Vec::<String>::new(),
        "a store was created"
    );
}

#[test]
fn existing_and_unknown_names_are_reported() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("science");
    let before = env.store_listing();
    env.envfs(&["import", word(&source), "science"])
        .fails(4, &["already", "envfs remove science"]);
    env.envfs(&["create", "science"]).fails(4, &["already"]);
    env.envfs(&["create", "silence"]).ok();
    env.envfs(&["rename", "silence", "science"])
        .fails(4, &["already"]);
    env.envfs(&["remove", "-y", "silence"]).ok();
    assert_eq!(env.store_listing(), before);
    for words in [
        &["mount", "scince"][..],
        &["status", "scince"],
        &["commit", "scince"],
        &["discard", "-y", "scince"],
        &["rollback", "-y", "scince"],
        &["log", "scince"],
        &["verify", "scince"],
        &["unmount", "scince"],
        &["remove", "-y", "scince"],
        &["gc", "scince"],
        &["paths", "scince"],
        &["diff", "scince"],
        &["export", "scince", "f"],
        &["rename", "scince", "x"],
        &["activate", "--shell", "bash", "scince"],
    ] {
        env.envfs(words).fails(3, &["scince", "science"]);
    }
}

#[test]
fn failed_imports_leave_nothing_behind() {
    let Some(env) = TestEnv::new() else { return };
    env.envfs(&["create", "first"]).ok();
    let before = env.store_listing();
    let import = |path: &Path| {
        let done = env.envfs(&["import", word(path), "e"]);
        assert_eq!(env.store_listing(), before, "{done}");
        done
    };
    import(&env.work().join("missing")).fails(3, &["missing"]);
    let text = env.work().join("text");
    env.write(&text, "text");
    import(&text).fails(6, &["SquashFS", "tar"]);
    env.write(&text, "");
    import(&text).fails(6, &["empty file"]);
    import(Path::new("/dev/null")).fails(6, &["/dev/null: empty"]);
    let gzip = env.work().join("text.gz");
    env.sh("echo text | gzip >text.gz").ok();
    import(&gzip).fails(6, &["archive"]);
}

/// Returns a source of an ordinary user, and a file in it that this user cannot read.
fn unreadable_source() -> Option<(TestEnv, PathBuf, PathBuf)> {
    let env = TestEnv::ordinary()?;
    let source = env.work().join("source");
    samples::small(&env, &source);
    let secret = source.join("lib/deep/x");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o0)).unwrap();
    Some((env, source, secret))
}

#[test]
fn unreadable_file_stops_the_import() {
    let Some((env, source, secret)) = unreadable_source() else {
        return;
    };
    env.envfs(&["import", word(&source), "e"])
        .fails(1, &["lib/deep/x", "ermission denied"]);
    assert!(!env.home_of("e").exists());
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
    let dir = source.join("lib/deep/er");
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o0)).unwrap();
    env.envfs(&["import", word(&source), "e"])
        .fails(1, &["lib/deep/er", "ermission denied"]);
    assert_eq!(fs::read_dir(env.store().join("store")).unwrap().count(), 0);
}

#[test]
fn source_that_changes_during_import_is_refused() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    for number in 0..40 {
        env.write(
            &source.join(format!("file{number}")),
            samples::noise(500_000, number),
        );
    }
    let mut command = env.command("/bin/sh");
    command.args(["-c", "while :; do echo more >>source/file20; done"]);
    let mut writer = command.spawn().unwrap();
    wait_for("the writer", || {
        fs::metadata(source.join("file20")).unwrap().len() > 500_000
    });
    let done = env.envfs(&["import", word(&source), "e"]);
    writer.kill().unwrap();
    writer.wait().unwrap();
    done.fails(4, &["file20", "changed", "again"]);
    assert_eq!(fs::read_dir(env.store().join("store")).unwrap().count(), 0);
    env.envfs(&["import", word(&source), "e"]).ok();
}

#[test]
fn damaged_image_is_refused() {
    if !has("mksquashfs") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::small(&env, &source);
    let good = env.work().join("good.sqfs");
    let mut command = env.command("mksquashfs");
    command
        .args([&source, &good])
        .args(["-quiet", "-no-progress"]);
    run(command).ok();
    let bytes = fs::read(&good).unwrap();
    env.envfs(&["create", "first"]).ok();
    let before = env.store_listing();
    let bad = env.work().join("bad.sqfs");
    let import = |bytes: &[u8], what: &str| {
        fs::write(&bad, bytes).unwrap();
        let done = env.envfs(&["import", word(&bad), "e"]);
        assert_eq!(done.code, 6, "{what}: {done}");
        assert!(!done.err.contains("panicked"), "{done}");
        assert_eq!(env.store_listing(), before, "{what}");
    };
    for length in [4, 50, 96, 97, 1000, bytes.len() / 2, bytes.len() - 4096] {
        import(&bytes[..length], &format!("cut to {length}"));
    }
    let inodes = u64::from_le_bytes(bytes[64..72].try_into().unwrap()) as usize;
    for place in [0, 20, 28, 40, 72, inodes + 3] {
        let mut copy = bytes.clone();
        for byte in &mut copy[place..place + 4] {
            *byte ^= 0xa5;
        }
        import(&copy, &format!("changed at {place}"));
    }
}

#[test]
fn verify_finds_a_damaged_image_in_the_store() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let image = crate::support::images::current(&env, "e");
    let good = fs::read(&image).unwrap();
    let set = |bytes: &[u8]| {
        fs::set_permissions(&image, PermissionsExt::from_mode(0o644)).unwrap();
        fs::write(&image, bytes).unwrap();
    };
    let mut bad = good.clone();
    // In the tables: uncompressed blocks have no checksum.
    let tables = u64::from_le_bytes(bad[64..72].try_into().unwrap()) as usize;
    bad[tables + 10] ^= 0x10;
    bad[tables + 11] ^= 0x10;
    set(&bad);
    env.envfs(&["verify", "e"]).fails(1, &[]);
    set(&good[..good.len() / 2]);
    env.envfs(&["mount", "e"]).fails(6, &["truncated"]);
    let found = env.envfs(&["verify", "e"]);
    assert!(found.code == 1 && (found.out + &found.err).contains("1.sqfs"));
    env.envfs(&["list"]).ok();
    fs::remove_file(&image).unwrap();
    env.envfs(&["mount", "e"]).fails(6, &["No such file"]);
    fs::write(&image, &good).unwrap();
    env.mount("e");
    env.verify("e");
}

#[test]
fn occupied_prefix_is_refused() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::small(&env, &source);
    let occupied = env.work().join("occupied");
    env.write(&occupied.join("file"), "mine");
    let args = ["import", word(&source), "e", "--prefix", word(&occupied)];
    env.envfs(&args).fails(2, &["not empty", "--prefix"]);
    env.envfs(&["create", "e", "--prefix", "/"])
        .fails(2, &["root of the file system"]);
    env.envfs(&["create", "e", "--prefix", word(&env.store().join("store"))])
        .fails(2, &[]);
    let here = env.work().join("here");
    let args = ["import", "-q", word(&source), "e", "--prefix", word(&here)];
    env.envfs(&args).ok();
    env.envfs(&["create", "f", "--prefix", word(&env.work().join("here"))])
        .fails(4, &["the prefix of e"]);
    env.write(&env.work().join("here/file"), "mine");
    env.envfs(&["mount", "e"]).fails(4, &["not empty"]);
    env.envfs(&["run", "e", "true"]).fails(125, &["not empty"]);
    assert_eq!(fs::read(env.work().join("here/file")).unwrap(), b"mine");
    fs::remove_file(env.work().join("here/file")).unwrap();
    assert_eq!(env.mount("e"), env.work().join("here"));
    env.envfs(&[
        "create",
        "g",
        "--prefix",
        word(&env.work().join("here/lib/g")),
    ])
    .fails(2, &["another environment"]);
    env.envfs(&["unmount", "e"]).ok();
    let inside = env.work().join("here/lib/g");
    env.envfs(&["create", "g", "--prefix", word(&inside)])
        .fails(4, &["inside the prefix of e"]);
    fs::remove_dir(env.work().join("here")).unwrap();
    env.envfs(&["create", "g", "--prefix", word(&env.work())])
        .fails(2, &["not empty"]);
}

#[test]
fn unusable_prefix_is_refused_before_reading_the_source() {
    // Reading the source would fail with another error.
    let Some((env, source, _)) = unreadable_source() else {
        return;
    };
    if !User::current().is_root() {
        return skip_allowed("a directory of another user needs root");
    }
    env.envfs(&["create", "first"]).ok();
    let before = env.store_listing();
    let closed = env.root().join("of-root");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o755)).unwrap();
    let file = env.work().join("file");
    env.write(&file, "mine");
    for (prefix, code, words) in [
        (closed.join("x/y"), 1, &["ermission denied", "--prefix"][..]),
        // Only fusermount3 knows that it does not mount here.
        (closed.clone(), 7, &["fusermount3 refused", "--prefix"]),
        (PathBuf::from("/proc/self/fdinfo"), 2, &["not empty"]),
        (PathBuf::from("/proc/x"), 3, &["cannot create", "--prefix"]),
        (file.join("x"), 1, &["ot a directory"]),
        (file.clone(), 2, &["not a directory"]),
    ] {
        for words_before in [&["import", word(&source), "e"][..], &["create", "e"]] {
            let mut args = words_before.to_vec();
            args.extend(["--prefix", word(&prefix)]);
            env.envfs(&args).fails(code, words);
            assert_eq!(env.store_listing(), before, "{}", prefix.display());
        }
    }
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
    // A relative prefix is resolved in the working directory, and the check leaves nothing behind.
    env.envfs(&["create", "e", "--prefix", "some/where"]).ok();
    assert!(!env.work().join("some").exists());
    assert_eq!(env.mount("e"), env.work().join("some/where"));
}

/// Runs envfs as the user of `env`, in a mount namespace where root has run `before`. Skips the
/// test and returns None if that is impossible.
fn in_changed_system(env: &TestEnv, before: &str, words: &str) -> Option<Run> {
    let user = (env.user().uid(), env.user().gid());
    let mut command = env.command("unshare");
    let script = format!(
        "{before}; exec setpriv --reuid {} --regid {} --clear-groups envfs {words}",
        user.0, user.1
    );
    command.uid(0).gid(0).args(["-m", "sh", "-ec", &script]);
    let done = run(command);
    if done.err.contains("unshare: ") || done.err.contains("mount:") {
        skip_allowed(&format!("no mount namespace: {}", done.err));
        return None;
    }
    Some(done)
}

fn closed_file(env: &TestEnv, mode: u32) -> PathBuf {
    let closed = env.root().join("closed");
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, PermissionsExt::from_mode(mode)).unwrap();
    closed
}

#[test]
fn missing_fusermount3_is_reported() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    env.import_sample("e");
    let (Some(helper), true) = (find("fusermount3"), has("setpriv") && has("unshare")) else {
        return;
    };
    let helper = fs::canonicalize(helper).unwrap();
    let copy = env.root().join("fusermount3");
    fs::copy(&helper, &copy).unwrap();
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    let before = format!("mount --bind '{}' '{}'", copy.display(), helper.display());
    for words in ["mount e", "activate --shell bash e"] {
        let Some(done) = in_changed_system(&env, &before, words) else {
            return;
        };
        done.fails(7, &["fusermount3", "setuid"]);
    }
    // With user namespaces, the message names a command that works without fusermount3.
    let namespace = "unshare --user --map-current-user --keep-caps --mount";
    if env.sh(&format!("{namespace} true || true")).err.is_empty() {
        let Some(done) = in_changed_system(&env, &before, "mount e") else {
            return;
        };
        done.fails(7, &["envfs run --private"]);
        let inside = "sh -ec 'cat \"$(envfs mount e)/lib/c.txt\"; envfs -q unmount e'";
        let script = env.sh(&format!("ENVFS_FUSERMOUNT=/nowhere {namespace} {inside}"));
        assert_eq!(script.ok().out, "gamma\n");
        let Some(done) = in_changed_system(&env, &before, "run e tool") else {
            return;
        };
        let done = done.ok();
        assert!(done.err.contains("only this command sees e"), "{done}");
    } else {
        skip_allowed("no user namespaces for ordinary users");
    }
    let Some(done) = in_changed_system(&env, &before, "doctor") else {
        return;
    };
    assert_eq!(done.code, 1, "{done}");
    assert!(done.out.contains("fusermount3"), "{done}");
    env.mount("e");
}

#[test]
fn inaccessible_fuse_device_is_reported() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    env.import_sample("e");
    if !has("setpriv") || !has("unshare") {
        return;
    }
    let before = format!(
        "mount --bind '{}' /dev/fuse",
        closed_file(&env, 0).display()
    );
    let Some(done) = in_changed_system(&env, &before, "mount e") else {
        return;
    };
    done.fails(7, &["/dev/fuse"]);
    let Some(done) = in_changed_system(&env, &before, "doctor") else {
        return;
    };
    done.fails(1, &[]);
    env.mount("e");
}

#[test]
fn newer_database_is_refused_and_left_unchanged() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let file = env.home_of("e").join("state.db");
    let set = |version: i64| {
        let db = rusqlite::Connection::open(&file).unwrap();
        let old: i64 = db
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        db.pragma_update(None, "user_version", version).unwrap();
        old
    };
    let version = set(999);
    for words in [
        &["mount", "e"][..],
        &["status", "e"],
        &["commit", "e"],
        &["discard", "-y", "e"],
        &["verify", "e"],
    ] {
        env.envfs(words).fails(6, &["newer", "999"]);
    }
    env.envfs(&["list"]).ok();
    env.envfs(&["run", "e", "true"]).fails(125, &["newer"]);
    assert_eq!(set(version), 999, "the version was changed");
    env.mount("e");
    fs::write(env.home_of("e").join("garbage"), "x").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    let good = fs::read(&file).unwrap();
    fs::write(&file, "no database at all").unwrap();
    env.envfs(&["mount", "e"]).fails(6, &["state.db"]);
    fs::write(&file, good).unwrap();
    env.mount("e");
}

#[test]
fn second_writer_is_refused_and_the_holder_named() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("e");
    let environment = Store::new(env.store().to_owned())
        .open(&EnvName::new("e").unwrap())
        .unwrap();
    let lock = EnvLock::try_lock(environment.layout(), "testing").unwrap();
    let me = std::process::id().to_string();
    for words in [
        &["mount", "e"][..],
        &["commit", "e"],
        &["discard", "-y", "e"],
        &["rollback", "-y", "e"],
        &["remove", "-y", "e"],
        &["rename", "e", "f"],
        &["gc", "e"],
        &["gc"],
    ] {
        env.envfs(words).fails(5, &[&me, "testing"]);
    }
    env.envfs(&["gc", "-n", "e"]).ok();
    env.envfs(&["run", "e", "true"]).fails(125, &[&me]);
    env.envfs(&["list"]).ok();
    env.envfs(&["log", "e"]).ok();
    drop(lock);
    let prefix = env.mount("e");
    tree::assert_same_at(&source, &prefix, Look::ALL, "after the refusals");
}

#[test]
fn not_found_status_is_for_arguments_only() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let missing = env.work().join("missing");
    let below = missing.join("file");
    env.envfs(&["export", "e", word(&below)])
        .fails(3, &["missing"]);
    env.envfs(&["image", "info", word(&missing)])
        .fails(3, &["missing"]);
    env.envfs(&["image", "pack", word(&missing), "image"])
        .fails(3, &["missing"]);
    env.envfs(&["mount", "--image", word(&missing), "-o", "ro", "."])
        .fails(3, &["missing"]);
    // A missing file of the store is another failure.
    let layers = env.home_of("e").join("layers");
    fs::remove_dir_all(&layers).unwrap();
    env.envfs(&["commit", "e"]).fails(1, &["layers"]);
}

#[test]
fn closed_output_pipe_is_no_error() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    for number in 0..2000 {
        fs::write(prefix.join(format!("file-with-a-long-name-{number}")), "").unwrap();
    }
    for words in [
        "list",
        "diff e",
        "diff --json e",
        "--help",
        "log e",
        "status e",
        "hook bash",
        "completions bash",
    ] {
        for reader in ["head -c 0", "head -n 1 >/dev/null"] {
            let done = env.sh(&format!("envfs {words} | {reader}")).ok();
            assert_eq!(done.err, "", "{done}");
        }
    }
}

#[test]
fn invalid_usage_and_configuration_are_explained() {
    let Some(env) = TestEnv::new() else { return };
    env.envfs(&["no-such-command"])
        .fails(2, &["no-such-command"]);
    env.envfs(&["import"]).fails(2, &["SOURCE"]);
    env.envfs::<&str>(&[]).fails(2, &["Usage"]);
    let done = env.envfs(&["activate", "x"]);
    assert_ne!(done.code, 0, "{done}");
    fs::create_dir_all(env.store()).unwrap();
    fs::write(env.store().join("config.toml"), "compresion = \"xz\"\n").unwrap();
    env.envfs(&["create", "e"])
        .fails(2, &["config.toml", "compresion"]);
    fs::write(env.store().join("config.toml"), "compression = \"best\"\n").unwrap();
    env.envfs(&["create", "e"])
        .fails(2, &["config.toml", "best"]);
    let mut command = env.envfs_command(&["list"]);
    command
        .env_remove("ENVFS_HOME")
        .env_remove("HOME")
        .stdin(Stdio::null());
    // The home directory is then taken from the user database.
    run(command).ok();
}
