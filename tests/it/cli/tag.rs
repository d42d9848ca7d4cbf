//! `envfs tag`.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::TestEnv;

#[test]
fn tags_name_revisions_and_protect_them_from_gc() {
    for is_mounted in [true, false] {
        let Some(env) = TestEnv::new() else { return };
        env.import_sample("e");
        for number in 2..=4 {
            fs::write(env.mount("e").join("file"), number.to_string()).unwrap();
            env.envfs(&["commit", "e"]).ok();
        }
        if !is_mounted {
            env.envfs(&["unmount", "e"]).ok();
        }
        env.envfs(&["tag", "e", "good", "--rev", "2"]).ok();
        env.envfs(&["tag", "e", "last"]).ok();
        env.envfs(&["tag", "e", "12"]).fails(2, &["digits"]);
        env.envfs(&["tag", "e", "x", "--rev", "9"])
            .fails(3, &["no revision 9"]);
        env.envfs(&["tag", "e", "-d", "nosuch"])
            .fails(3, &["nosuch"]);
        let tags = env.envfs(&["tag", "e", "--json"]).ok().json();
        assert_eq!(tags[0]["tag"], "good");
        assert_eq!(
            (&tags[0]["revision"], &tags[1]["revision"]),
            (&2.into(), &4.into())
        );
        assert!(env.envfs(&["log", "e"]).ok().out.contains("[good]"));
        env.envfs(&["gc", "e", "--keep", "1"]).ok();
        let log = env.envfs(&["log", "--json", "e"]).ok().json();
        let left: Vec<_> = log
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["revision"].clone())
            .collect();
        assert_eq!(left, [4, 2], "{log}");
        env.envfs(&["export", "e", "--rev", "good", "good.sqfs"])
            .ok();
        env.envfs(&["rollback", "e", "nosuch"])
            .fails(3, &["nosuch", "envfs log e"]);
        env.envfs_with("ENVFS_ENV", "e", &["rollback", "good"]).ok();
        assert_eq!(
            fs::read_to_string(env.mount("e").join("file")).unwrap(),
            "2"
        );
        env.envfs(&["tag", "e", "good"]).ok();
        env.envfs(&["tag", "e", "-d", "last"]).ok();
        let tags = env
            .envfs_with("ENVFS_ENV", "e", &["tag", "--json"])
            .ok()
            .json();
        assert_eq!(tags.as_array().unwrap().len(), 1, "{tags}");
        assert_eq!(
            tags[0]["revision"], 5,
            "the tag was not moved to the current revision"
        );
    }
}
