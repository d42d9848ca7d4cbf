//! Files of a store that are missing or of the wrong type: they are named, and the rest keeps
//! working.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use crate::support::TestEnv;

/// What replaces a file.
const REPLACEMENTS: &[&str] = &["nothing", "a directory", "a link", "a FIFO"];

fn replace(path: &Path, by: &str) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
    match by {
        "nothing" => {}
        "a directory" => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("inside"), "x").unwrap();
        }
        "a link" => symlink("/etc/passwd", path).unwrap(),
        "a FIFO" => nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
        other => panic!("{other}"),
    }
}

/// The upper directory of the writable layer.
fn upper(env: &TestEnv, name: &str) -> PathBuf {
    let layers = env.home_of(name).join("layers");
    let names = fs::read_dir(&layers)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let numbers = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
    layers
        .join(numbers.max().unwrap().to_string())
        .join("upper")
}

#[test]
fn content_missing_after_a_clean_unmount_is_reported() {
    let Some(env) = TestEnv::new() else { return };
    for (number, odd) in REPLACEMENTS.iter().enumerate() {
        let name = format!("e{number}");
        let name = name.as_str();
        env.import_sample(name);
        let prefix = env.mount(name);
        let kept = |file: &str| fs::write(prefix.join(file), "changed").unwrap();
        ["new", "kept"].iter().for_each(|file| kept(file));
        env.envfs(&["unmount", name]).ok();
        replace(&upper(&env, name).join("new"), odd);
        for _ in 0..2 {
            let told = env.envfs(&["verify", name]).fails(1, &[]);
            assert!(told.out.contains("new: its content is missing"), "{told}");
            assert!(!told.out.contains("kept"), "{told}");
        }
        let told = env.envfs(&["status", name]).ok();
        assert!(told.err.contains("lost their content: 1"), "{odd}: {told}");
        let told = env.envfs(&["diff", name]).ok();
        assert!(
            told.out.contains("kept") && !told.out.contains("new"),
            "{odd}: {told}"
        );
        env.mount(name);
        fs::write(prefix.join("new"), "again").unwrap();
        env.envfs(&["commit", name]).ok();
        assert_eq!(fs::read(prefix.join("new")).unwrap(), b"again");
        env.envfs(&["unmount", name]).ok();
        env.verify(name);
    }
}

#[test]
fn content_missing_while_mounted_fails_the_next_command() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let gone = |odd: &str| {
        env.mount("e");
        for file in ["new", "kept"] {
            fs::write(prefix.join(file), odd).unwrap();
        }
        // A new daemon has no open descriptors of the files.
        env.envfs(&["unmount", "e"]).ok();
        env.mount("e");
        replace(&upper(&env, "e").join("new"), odd);
    };
    for odd in REPLACEMENTS {
        gone(odd);
        let told = env.envfs(&["status", "e"]).fails(6, &["new", "try again"]);
        assert!(!told.err.contains("kept"), "{told}");
        env.envfs(&["status", "e"]).ok();
        assert!(!prefix.join("new").exists());
        assert_eq!(fs::read_to_string(prefix.join("kept")).unwrap(), *odd);
        gone(odd);
        env.envfs(&["discard", "-y", "e"]).ok();
        assert!(!prefix.join("kept").exists());
    }
    for odd in REPLACEMENTS {
        gone(odd);
        env.envfs(&["commit", "e"]).fails(6, &["new", "try again"]);
        env.envfs(&["commit", "e"]).ok();
        assert_eq!(fs::read_to_string(prefix.join("kept")).unwrap(), *odd);
        fs::remove_file(prefix.join("kept")).unwrap();
        env.envfs(&["commit", "e"]).ok();
        env.envfs(&["gc", "--keep", "1", "e"]).ok();
    }
    env.envfs(&["unmount", "e"]).ok();
    env.verify("e");
}

#[test]
fn verify_reports_and_repairs_files_of_the_wrong_type() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let home = env.home_of("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("kept"), "x").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    let files = [
        "state.db-journal",
        "state.db-redo",
        "lock",
        "lock.holder",
        "daemon.log",
        "profile",
        "strays",
    ];
    for file in files {
        for odd in REPLACEMENTS.iter().skip(1) {
            if (file, *odd) == ("strays", "a directory") {
                continue;
            }
            replace(&home.join(file), odd);
            let told = env.envfs(&["verify", "e"]).fails(1, &[]);
            assert!(told.out.contains(file), "{file}, {odd}: {told}");
            env.envfs(&["verify", "--repair", "-y", "e"]).ok();
            env.envfs(&["status", "e"]).ok();
            assert_eq!(env.mount("e"), prefix);
            assert_eq!(
                fs::read(prefix.join("kept")).unwrap(),
                b"x",
                "{file}, {odd}"
            );
            env.envfs(&["unmount", "e"]).ok();
        }
    }
    // The upper directory: its loss is accepted only with --repair.
    let layer = upper(&env, "e").parent().unwrap().to_path_buf();
    for (place, odd) in [
        ("work", "a FIFO"),
        ("upper", "nothing"),
        ("upper", "a link"),
    ] {
        env.mount("e");
        fs::write(prefix.join("kept"), "x").unwrap();
        env.envfs(&["unmount", "e"]).ok();
        replace(&layer.join(place), odd);
        env.envfs(&["verify", "e"]).fails(1, &[]);
        if place == "upper" {
            env.envfs(&["status", "e"]).fails(6, &["upper", "--repair"]);
            let kept = env.envfs(&["verify", "--repair", "-y", "e"]).ok();
            assert!(kept.err.contains("kept"), "{kept}");
        } else {
            env.envfs(&["verify", "--repair", "-y", "e"]).ok();
        }
        env.envfs(&["status", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn clean_unmount_leaves_a_self_contained_database() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let home = env.home_of("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "x").unwrap();
    env.envfs(&["commit", "e"]).ok();
    fs::write(prefix.join("newer"), "x").unwrap();
    env.envfs(&["unmount", "e"]).ok();
    for look in ["status", "list", "log", "diff"] {
        let words: &[&str] = if look == "list" {
            &["list"]
        } else {
            &[look, "e"]
        };
        env.envfs(words).ok();
        for suffix in ["-wal", "-shm", "-redo"] {
            let beside = home.join(format!("state.db{suffix}"));
            assert!(!beside.exists(), "{} after {look}", beside.display());
        }
    }
    // The database file is complete without the files beside it.
    let alone = env.work().join("alone.db");
    fs::copy(home.join("state.db"), &alone).unwrap();
    fs::remove_file(home.join("state.db-journal")).unwrap();
    fs::remove_file(home.join("state.db")).unwrap();
    fs::copy(&alone, home.join("state.db")).unwrap();
    assert_eq!(env.count(&["log", "e"]), 2);
    env.mount("e");
    assert_eq!(fs::read(prefix.join("newer")).unwrap(), b"x");
}

#[test]
fn files_newer_than_the_database_are_reported() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let home = env.home_of("e");
    let older = env.work().join("older.db");
    fs::copy(home.join("state.db"), &older).unwrap();
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "x").unwrap();
    env.envfs(&["commit", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    fs::copy(&older, home.join("state.db")).unwrap();
    let told = env.envfs(&["list"]).ok();
    assert!(told.out.contains("newer than the state database"), "{told}");
    for command in ["status", "mount"] {
        let told = env.envfs(&[command, "e"]).ok();
        assert!(
            told.err.contains("newer than the state database"),
            "{command}: {told}"
        );
    }
    let told = env.envfs(&["verify", "e"]).fails(1, &[]);
    assert!(told.out.contains("newer than the state database"), "{told}");
}
