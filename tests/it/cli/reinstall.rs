//! Files and directories that are removed and created again are compared with the committed path.

#![allow(clippy::unwrap_used)]

use std::fs;

use serde_json::Value;

use crate::support::TestEnv;

fn counts(env: &TestEnv) -> [u64; 5] {
    let status: Value = env.envfs(&["status", "--json", "e"]).ok().json();
    ["added", "modified", "touched", "removed", "renamed"]
        .map(|what| status["changes"][what]["entries"].as_u64().unwrap())
}

#[test]
fn replacing_a_directory_by_an_equal_copy_is_no_change() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let shell = |script: &str| {
            let script = format!("cd '{}' && {script}", prefix.display());
            env.sh(&script).ok();
        };
        let diff = |words: &[&str]| env.envfs(&[&["diff", "e"], words].concat()).ok().out;
        let aside = env.work().join("aside");
        let aside = aside.display();
        let copy = format!("cp -rp lib {aside}; rm -r lib; cp -rp {aside} lib; rm -r {aside}");
        shell(&copy);
        assert_eq!(counts(&env), [0; 5], "{}", diff(&["--times"]));
        assert_eq!(diff(&["--times"]), "");
        let status = env.envfs(&["status", "e"]).ok();
        assert!(
            status.out.contains("equal the committed content"),
            "{status}"
        );
        let committed = env.envfs(&["commit", "e"]).ok();
        assert!(committed.err.contains("nothing changed"), "{committed}");
        // Equal content is no uncommitted change, so rollback does not need -y.
        env.envfs(&["rollback", "e", "1"]).ok();

        // Discard frees the space of the copies.
        shell(&copy);
        env.envfs(&["discard", "-y", "e"]).ok();
        let status = env.envfs(&["status", "--json", "e"]).ok().json();
        assert_eq!(status["upper_files"], 0, "{status}");

        // Changed times alone count as "touched".
        shell(&copy.replace("; cp -rp", "; cp -r"));
        shell("touch -d @1000000000 lib/*.txt");
        let [added, modified, touched, removed, renamed] = counts(&env);
        assert_eq!((added, modified, removed, renamed), (0, 0, 0, 0));
        assert!(touched >= 3, "{}", diff(&["--times"]));
        assert_eq!(diff(&[]), "");
        assert!(diff(&["--times"]).contains("t lib/c.txt\n"));
        let status = env.envfs(&["status", "e"]).ok();
        assert!(status.out.contains("touched"), "{status}");

        // Only entries that differ are listed.
        shell("echo more >>lib/c.txt; rm lib/link; echo new >lib/new; chmod 700 lib/deep");
        assert_eq!(
            diff(&[]),
            "M lib/c.txt\nM lib/deep/\nD lib/link\nA lib/new\n"
        );
        let shown = diff(&["--content", "lib/c.txt"]);
        assert!(
            shown.contains("\n+more\n") && shown.contains("\n gamma\n"),
            "{shown}"
        );
        // Single paths can be discarded in the directory that was created again.
        env.envfs(&["discard", "-y", "e", "lib/c.txt", "lib/link"])
            .ok();
        shell("test \"$(cat lib/c.txt)\" = gamma && test \"$(readlink lib/link)\" = a.txt");
        assert_eq!(diff(&[]), "M lib/deep/\nA lib/new\n");
        env.envfs(&["unmount", "e"]).ok();
        env.mount("e");
        assert_eq!(diff(&[]), "M lib/deep/\nA lib/new\n");
        env.verify("e");

        // The commit reports the difference and carries over equal content.
        let committed = env.envfs(&["commit", "--json", "e"]).ok().json();
        assert_eq!(committed["changes"]["added"]["entries"], 1, "{committed}");
        assert_eq!(
            committed["changes"]["modified"]["entries"], 1,
            "{committed}"
        );
        assert_eq!(committed["changes"]["removed"]["entries"], 0, "{committed}");
        assert!(
            committed["blocks"]["fresh_bytes"].as_u64() < Some(100),
            "{committed}"
        );
        assert_eq!(counts(&env), [0; 5]);
        env.verify("e");
    }
}

#[test]
fn diff_below_a_renamed_directory_uses_the_committed_path() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::rename(prefix.join("lib"), prefix.join("moved")).unwrap();
    fs::write(prefix.join("moved/c.txt"), "gamma\nmore\n").unwrap();
    let shown = env.envfs(&["diff", "--content", "e"]).ok();
    assert!(shown.out.contains("R lib -> moved/\n"), "{shown}");
    assert!(shown.out.contains("M moved/c.txt\n"), "{shown}");
    assert!(shown.out.contains("\n gamma\n+more\n"), "{shown}");
}
