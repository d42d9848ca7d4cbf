//! `envfs list` and other commands over all environments: they report damaged ones and process the
//! others.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::TestEnv;

#[test]
fn damaged_environments_do_not_stop_commands_over_all() {
    for env in TestEnv::of_all_users() {
        let damaged = ["b-closed", "b-dir", "b-gone", "b-link", "b-newer", "b-text"];
        for name in ["a", "z"].iter().chain(&damaged) {
            env.envfs(&["create", name]).ok();
        }
        let db = |name: &str| env.home_of(name).join("state.db");
        fs::remove_file(db("b-dir")).unwrap();
        fs::create_dir(db("b-dir")).unwrap();
        fs::remove_file(db("b-link")).unwrap();
        symlink("/nowhere", db("b-link")).unwrap();
        fs::write(db("b-text"), "no database").unwrap();
        let newer = rusqlite::Connection::open(db("b-newer")).unwrap();
        newer.pragma_update(None, "user_version", 999).unwrap();
        drop(newer);
        fs::remove_dir_all(env.home_of("b-gone").join("layers")).unwrap();
        fs::set_permissions(env.home_of("b-closed"), PermissionsExt::from_mode(0o0)).unwrap();
        // Entries that are no environments.
        let homes = env.store().join("store");
        fs::write(homes.join("file"), "").unwrap();
        fs::create_dir(homes.join(OsStr::from_bytes(b"\xff\n"))).unwrap();

        for name in ["a", "z"] {
            env.mount(name);
        }
        let list = env.envfs(&["list", "--json"]).ok().json();
        let shown = env.envfs(&["list"]).ok();
        let rows = list.as_array().unwrap();
        let names: Vec<&str> = rows
            .iter()
            .map(|row| row["name"].as_str().unwrap())
            .collect();
        assert_eq!(names.len(), damaged.len() + 2, "{list}");
        assert_eq!(shown.out.lines().count(), names.len() + 1, "{shown}");
        for row in rows {
            let name = row["name"].as_str().unwrap();
            // Root may look into a closed directory.
            let is_damaged = damaged.contains(&name)
                && name != "b-gone"
                && !(name == "b-closed" && env.user().is_root());
            assert_eq!(row["state"] == "damaged", is_damaged, "{row}");
            assert_eq!(row["problem"].is_string(), is_damaged, "{row}");
            assert_eq!(
                row["state"] == "mounted",
                ["a", "z"].contains(&name),
                "{row}"
            );
        }
        let words = env
            .envfs(&["__complete", "2", "--", "envfs", "status"])
            .ok();
        assert!(
            words.out.starts_with("a\n") && words.out.ends_with("z\n"),
            "{words}"
        );
        env.envfs(&["create", "new"]).ok();
        let doctor = env.envfs(&["doctor", "--json"]).json();
        assert!(doctor.as_array().unwrap().len() > 8, "{doctor}");

        let reports_damage = |words: &[&str]| {
            let done = env.envfs(words);
            assert_ne!(done.code, 0, "{done}");
            for name in ["b-dir", "b-link", "b-newer", "b-text"] {
                assert!(done.err.contains(name), "{name}: {done}");
            }
            done
        };
        reports_damage(&["gc"]);
        let done = reports_damage(&["unmount", "--all"]);
        assert!(done.err.contains("a is unmounted"), "{done}");
        assert!(done.err.contains("z is unmounted"), "{done}");
        assert!(crate::support::mounts_below(env.root()).is_empty());
        fs::set_permissions(env.home_of("b-closed"), PermissionsExt::from_mode(0o700)).unwrap();
    }
}
