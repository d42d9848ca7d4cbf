//! Stores from an untrusted source: rows, files and notes that envfs never writes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::{Run, TestEnv, has, mounts_below};

const SECRET: &str = "nothing in a store leads here\n";

/// A store with one environment that has an image and changes: a new file, a new directory and a
/// moved directory.
struct Original {
    env: TestEnv,
    secret: PathBuf,
    copies: std::cell::Cell<u32>,
}

impl Original {
    fn new() -> Option<Original> {
        let env = TestEnv::new()?;
        env.import_sample("e");
        let prefix = env.mount("e");
        fs::write(prefix.join("new"), "new\n").unwrap();
        fs::create_dir_all(prefix.join("made/inner")).unwrap();
        fs::write(prefix.join("made/inner/file"), "inner\n").unwrap();
        fs::rename(prefix.join("lib/deep"), prefix.join("made/deep")).unwrap();
        env.envfs(&["unmount", "e"]).ok();
        let secret = env.work().join("secret");
        fs::write(&secret, SECRET).unwrap();
        Some(Original {
            env,
            secret,
            copies: 0.into(),
        })
    }

    /// Returns a copy of the store to be damaged.
    fn copy(&self) -> PathBuf {
        self.copies.set(self.copies.get() + 1);
        let to = self.env.work().join(format!("copy-{}", self.copies.get()));
        let from = self.env.store().display().to_string();
        self.env
            .sh(&format!("cp -a '{from}' '{}'", to.display()))
            .ok();
        to
    }

    fn envfs(&self, store: &Path, words: &[&str]) -> Run {
        let store = ["--home", store.to_str().unwrap()];
        self.env.envfs(&[&store, words].concat())
    }

    /// Runs every command: each must end without a panic and leave the file outside unchanged and
    /// uncopied. Returns the result of `verify`.
    #[track_caller]
    fn check(&self, store: &Path, what: &str) -> Run {
        let out = self.env.work().join("out.sqfs");
        for words in [
            &["verify", "e"][..],
            &["status", "e"],
            &["diff", "e"],
            &["log", "e"],
            &["list"],
            &["export", "-f", "e", out.to_str().unwrap()],
            &["commit", "-m", "x", "e"],
            &["mount", "e"],
            &["unmount", "e"],
            &["discard", "-y", "e"],
            &["gc", "--keep", "1", "e"],
        ] {
            let done = self.envfs(store, words);
            assert!(
                done.code != 70 && !done.err.contains("panicked"),
                "{what}: {done}"
            );
            assert_eq!(
                fs::read_to_string(&self.secret).unwrap(),
                SECRET,
                "{what}: {done}"
            );
            if out.exists() {
                let copied = fs::read(&out).unwrap();
                assert_ne!(copied, SECRET.as_bytes(), "{what}: {done}");
                fs::remove_file(&out).unwrap();
            }
        }
        assert!(mounts_below(self.env.root()).is_empty(), "{what}");
        self.envfs(store, &["verify", "e"])
    }
}

#[test]
fn rows_are_validated_when_read() {
    if !has("sqlite3") {
        return;
    }
    let Some(original) = Original::new() else {
        return;
    };
    let secret = original.secret.display().to_string();
    let up = format!("{}{}", "../".repeat(30), secret.trim_start_matches('/'));
    let new = "WHERE place_name = CAST('new' AS BLOB)";
    let named =
        |name: &str| format!("(SELECT ino FROM dentry WHERE name = CAST('{name}' AS BLOB))");
    let (made, inner, deep) = (
        named("made"),
        named("inner"),
        "(SELECT ino FROM inode WHERE place_name = CAST('deep' AS BLOB))",
    );
    let cases: Vec<(String, &str)> = vec![
        // Names.
        (format!("UPDATE inode SET place_name = CAST('{up}' AS BLOB) {new}"), "is a path"),
        (format!("UPDATE inode SET place_name = CAST('{secret}' AS BLOB) {new}"), "is a path"),
        (format!("UPDATE inode SET place_name = CAST('..' AS BLOB) {new}"), "no name of an entry"),
        (format!("UPDATE inode SET place_name = x'' {new}"), "is empty"),
        (format!("UPDATE inode SET place_name = x'610062' {new}"), "NUL"),
        (format!("UPDATE inode SET place_name = zeroblob(5000) {new}"), "NUL"),
        ("UPDATE dentry SET name = CAST('../x' AS BLOB) WHERE name = CAST('new' AS BLOB)".into(), "is a path"),
        ("UPDATE dentry SET name = CAST('.' AS BLOB) WHERE name = CAST('new' AS BLOB)".into(), "no name of an entry"),
        // Files of images.
        (format!("UPDATE image SET file = '{secret}'"), "it can only be 1.sqfs"),
        (format!("UPDATE image SET file = '{up}'"), "it can only be 1.sqfs"),
        ("UPDATE image SET file = '../state.db'".into(), "it can only be 1.sqfs"),
        ("UPDATE image SET file = '.1.sqfs.part'".into(), "it can only be 1.sqfs"),
        // Numbers.
        (format!("UPDATE inode SET kind = 9 {new}"), "kind"),
        (format!("UPDATE inode SET kind = 1 {new}"), "data"),
        (format!("UPDATE inode SET mode = -1 {new}"), "mode"),
        (format!("UPDATE inode SET nlink = -1 {new}"), "range"),
        (format!("UPDATE inode SET uid = 99999999999 {new}"), "range"),
        (format!("UPDATE inode SET mtime_ns = 4000000000 {new}"), "time"),
        (format!("UPDATE inode SET ino = -5 {new}"), "object id"),
        (format!("UPDATE inode SET ino = 9223372036854775807 {new}"), "object id"),
        (format!("UPDATE inode SET place_dir = 0 {new}"), "object id"),
        ("UPDATE image SET size = -1".into(), "range"),
        ("UPDATE image SET id_map = x'ff'".into(), "id_map"),
        ("UPDATE layer SET id = -1 WHERE role = 'writable'".into(), "layer"),
        // Id and prefix of the environment.
        (format!("UPDATE environment SET uuid = '{up}'"), "uuid"),
        ("UPDATE environment SET prefix = CAST('relative' AS BLOB)".into(), "prefix"),
        ("UPDATE environment SET prefix = CAST('/' AS BLOB)".into(), "prefix"),
        ("UPDATE environment SET prefix = CAST('/a/../../etc' AS BLOB)".into(), "prefix"),
        ("UPDATE environment SET redo = -1".into(), "redo"),
        ("UPDATE environment SET serial = 9223372036854775807".into(), "serial"),
        ("UPDATE environment SET image_uid = -1, image_gid = 0".into(), "range"),
        ("DELETE FROM environment".into(), "environment"),
        ("INSERT INTO link_count VALUES (1, -1, 2)".into(), "object id"),
        ("INSERT INTO link_count VALUES (1, 2, -1)".into(), "range"),
        // Directories that do not form a tree.
        (format!("INSERT INTO dentry SELECT layer, {inner}, CAST('loop' AS BLOB), {made} FROM dentry LIMIT 1"), "second name"),
        (format!("INSERT INTO dentry SELECT layer, {inner}, CAST('up' AS BLOB), 1 FROM dentry LIMIT 1"), "root"),
        (format!("UPDATE inode SET place_dir = {inner}, place_name = CAST('loop' AS BLOB) WHERE ino = {made}"), "second name"),
        (format!("UPDATE inode SET place_dir = {inner}, place_name = CAST('loop' AS BLOB) WHERE ino = {made};
            INSERT INTO dentry SELECT layer, {inner}, CAST('loop' AS BLOB), {made} FROM dentry LIMIT 1;
            UPDATE dentry SET ino = NULL WHERE name = CAST('made' AS BLOB)"), "own ancestor"),
        (format!("DELETE FROM dentry WHERE ino IS NULL AND name = CAST('deep' AS BLOB) AND {deep} > 0"), "second name"),
        // An unexpected schema.
        ("CREATE TRIGGER t AFTER INSERT ON dentry BEGIN DELETE FROM inode; END".into(), "trigger t"),
    ];
    for (sql, words) in cases {
        let store = original.copy();
        let db = store.join("store/e/state.db");
        original
            .env
            .sh(&format!("sqlite3 '{}' \"{sql}\"", db.display()))
            .ok();
        let verified = original.envfs(&store, &["verify", "e"]);
        let said = format!("{}{}", verified.out, verified.err);
        assert_ne!(verified.code, 0, "{sql}: {verified}");
        assert!(said.contains(words), "{sql}: no {words:?}: {verified}");
        original.check(&store, &sql);
        fs::remove_dir_all(store).unwrap();
    }
}

#[test]
fn store_files_must_be_regular() {
    let Some(original) = Original::new() else {
        return;
    };
    let names = [
        "state.db",
        "state.db-redo",
        "state.db-wal",
        "images/1.sqfs",
        "lock",
        "lock.holder",
        "lock.lease",
        "profile",
        "profile.new",
        "id",
    ];
    for name in names {
        for odd in ["link", "fifo", "directory"] {
            let store = original.copy();
            let path = store.join("store/e").join(name);
            if path.exists() {
                fs::remove_file(&path).unwrap();
            }
            match odd {
                "link" => symlink(&original.secret, &path).unwrap(),
                "fifo" => mkfifo(&path, Mode::S_IRWXU).unwrap(),
                _ => fs::create_dir(&path).unwrap(),
            }
            original.check(&store, &format!("{name} is a {odd}"));
            fs::remove_dir_all(store).unwrap();
        }
    }
}

#[test]
fn store_directories_must_not_be_symlinks() {
    let Some(original) = Original::new() else {
        return;
    };
    let layers = fs::read_dir(original.env.home_of("e").join("layers")).unwrap();
    let layer = layers.flatten().next().unwrap().file_name();
    let layer = format!("layers/{}", layer.to_str().unwrap());
    let inside = [
        "images".to_owned(),
        "layers".to_owned(),
        "strays".to_owned(),
        layer.clone(),
        format!("{layer}/upper"),
        format!("{layer}/work"),
    ];
    for name in inside {
        let store = original.copy();
        let path = store.join("store/e").join(&name);
        let outside = original.env.work().join("outside");
        if path.exists() {
            fs::rename(&path, &outside).unwrap();
        } else {
            fs::create_dir(&outside).unwrap();
        }
        fs::write(outside.join("precious"), "precious").unwrap();
        symlink(&outside, &path).unwrap();
        let names = || -> Vec<PathBuf> {
            let entries = walkdir::WalkDir::new(&outside).sort_by_file_name();
            entries
                .into_iter()
                .map(|entry| entry.unwrap().into_path())
                .collect()
        };
        let before = names();
        let verified = original.check(&store, &format!("{name} is a link"));
        let said = format!("{}{}", verified.out, verified.err);
        if name.ends_with("/work") {
            // No row refers to it, so the first open moves the link to `strays/`.
            assert!(verified.code == 0 && !path.is_symlink(), "{verified}");
        } else {
            assert!(
                verified.code != 0 && said.contains("is a symbolic link, not a directory"),
                "{name}: {verified}"
            );
        }
        assert_eq!(before, names(), "{name}");
        fs::remove_dir_all(&outside).unwrap();
        fs::remove_dir_all(store).unwrap();
    }
}

/// The notes of sessions, in a directory to which all users may write.
#[test]
fn foreign_notes_of_sessions_do_no_harm() {
    let Some(original) = Original::new() else {
        return;
    };
    let env = &original.env;
    let prefix = env.mount("e");
    fs::write(prefix.join("two"), "two\n").unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    env.envfs(&[
        "mount",
        "--read-only",
        "e@1",
        env.work().join("at").to_str().unwrap(),
    ])
    .ok();
    let dir = env.home_of("e").join("sessions");
    let notes = fs::read_dir(&dir).unwrap().flatten();
    let valid = notes
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some());
    let valid = fs::read_to_string(valid.unwrap()).unwrap();
    env.envfs(&["unmount", "--all"]).ok();
    let live: serde_json::Value = serde_json::from_str(&valid).unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut note = live.clone();
        note[key] = value;
        note.to_string()
    };
    let own = i64::from(std::process::id());
    let odd = [
        // Not JSON, or not a note.
        "{".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        "\u{0}".repeat(100),
        "[".repeat(60_000),
        // Numbers and paths that envfs never writes.
        with("pid", 0.into()),
        with("pid", (-1).into()),
        with("pid", u64::MAX.into()),
        with("pid", own.into()),
        with("revision", i64::MIN.into()),
        with("revision", 99.into()),
        with("image", "../../../../etc/passwd".into()),
        with("image", "".into()),
        with("host", "\u{1b}[2J\n".repeat(1000).into()),
        with("name", "\u{1b}]0;x\u{7}".into()),
        with("mount_point", "relative".into()),
        with("mount_point", "/\u{1b}[31m".into()),
        with("kind", "writable".into()),
        with("upper", original.secret.to_str().unwrap().into()),
        with("upper", env.work().to_str().unwrap().into()),
        with("since", i64::MIN.into()),
    ];
    for (number, text) in odd.iter().enumerate() {
        let store = original.copy();
        let notes = store.join("store/e/sessions");
        fs::write(notes.join(format!("x-{number}.json")), text).unwrap();
        check_with_sessions(&original, &store, &format!("note {number}: {text:.60}"));
        fs::remove_dir_all(store).unwrap();
    }
    for name in ["x.json", "removing", ".x.json.draft"] {
        for odd in ["link", "fifo", "directory", "large"] {
            let store = original.copy();
            let path = store.join("store/e/sessions").join(name);
            match odd {
                "link" => symlink(&original.secret, &path).unwrap(),
                "fifo" => mkfifo(&path, Mode::S_IRWXU).unwrap(),
                "large" => fs::File::create(&path).unwrap().set_len(1 << 40).unwrap(),
                _ => fs::create_dir(&path).unwrap(),
            }
            let what = format!("{name} is a {odd}");
            check_with_sessions(&original, &store, &what);
            original.check(&store, &what);
            fs::remove_dir_all(store).unwrap();
        }
    }
}

/// Runs what reads the notes.
fn check_with_sessions(original: &Original, store: &Path, what: &str) {
    let at = original.env.work().join("session");
    let word = at.to_str().unwrap();
    for words in [
        &["ps", "e"][..],
        &["ps", "--json"],
        &["doctor"],
        &["mount", "--read-only", "e@1", word],
        &["unmount", word],
        &["gc", "-q", "e"],
        &["verify", "e"],
    ] {
        let done = original.envfs(store, words);
        assert!(
            done.code != 70 && !done.err.contains("panicked"),
            "{what}: {done}"
        );
        // No control characters reach the terminal.
        let said = format!("{}{}", done.out, done.err);
        assert!(
            !said.contains(['\u{1b}', '\u{7}', '\u{0}']),
            "{what}: {done}"
        );
        if !words.contains(&"doctor") {
            assert_eq!(done.code, 0, "{what}: {done}");
        }
    }
    assert_eq!(fs::read_to_string(&original.secret).unwrap(), SECRET);
}

#[test]
fn other_users_may_leave_notes_but_not_stop_sessions() {
    let Some(original) = Original::new() else {
        return;
    };
    let Some(other) = TestEnv::as_tester() else {
        return;
    };
    let env = &original.env;
    let dir = env.home_of("e").join("sessions");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o1777)).unwrap();
    // What gc would write, of a process that runs.
    let process = serde_json::json!({
        "images": ["1.sqfs"],
        "host": "here",
        "pid": 1,
        "pid_start": 0,
        "boot_id": "another",
        "pid_namespace": null,
    });
    let removing = dir.join("removing");
    fs::write(&removing, process.to_string()).unwrap();
    let began = std::time::Instant::now();
    other.user().give(&removing);
    let at = env.work().join("at");
    let word = at.to_str().unwrap();
    env.envfs(&["mount", "--read-only", "e", word]).ok();
    env.envfs(&["unmount", word]).ok();
    assert!(began.elapsed().as_secs() < 30, "it is not believed");
    env.envfs(&["gc", "e"]).ok();
    env.verify("e");
}
