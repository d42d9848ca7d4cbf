//! Options of `envfs commit`: messages, previews and conditions.

use std::fs;

use super::changed;
use crate::support::TestEnv;
use crate::support::samples::noise;

#[test]
fn amend_changes_the_message_and_nothing_else_mounted_and_not_and_for_each_user() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        env.mount("e");
        env.sh(&format!("echo new > '{}/new'", env.prefix("e").display()))
            .ok();
        env.envfs(&["commit", "-q", "-m", "draft", "e"]).ok();
        env.envfs(&["tag", "e", "paper"]).ok();
        env.sh(&format!("echo two > '{}/two'", env.prefix("e").display()))
            .ok();
        let facts = || {
            let mut facts = env.envfs(&["show", "e", "--json"]).ok().json();
            facts.as_object_mut().unwrap().remove("message");
            facts
        };
        let (before, diff) = (facts(), env.envfs(&["diff", "e"]).ok().out);
        let said = env.envfs(&["commit", "--amend", "-m", "first", "e"]).ok();
        assert!(
            said.err
                .contains("changed the message of revision 2 from draft to first"),
            "{said}"
        );
        env.envfs(&["unmount", "e"]).ok();
        let said = env.envfs(&["commit", "--amend", "--json", "-m", "a\nb", "e"]);
        let said = said.ok().json();
        assert_eq!(
            (&said["revision"], &said["from"], &said["message"]),
            (&2.into(), &"first".into(), &"a\nb".into())
        );
        assert_eq!(before, facts(), "all but the message");
        assert_eq!(diff, env.envfs(&["diff", "e"]).ok().out, "uncommitted");
        let shown = env.envfs(&["show", "e", "--json"]).ok().json();
        assert_eq!(shown["message"], "a\nb");
        assert_eq!(shown["tags"][0], "paper");
    }
}

#[test]
fn amend_without_a_message_opens_the_editor() {
    let Some(env) = changed() else { return };
    env.envfs(&["commit", "-q", "-m", "by hand", "e"]).ok();
    let amend = &["commit", "--amend", "e"];
    let with = |editor: &str| env.envfs_with("VISUAL", editor, amend);
    with("sed -i s/hand/foot/").ok();
    let message = || env.envfs(&["show", "e", "--json"]).ok().json()["message"].clone();
    assert_eq!(message(), "by foot");
    with("false").fails(1, &["the editor false failed", "unchanged"]);
    with("truncate -s 0").fails(2, &["the message is empty"]);
    let mut bare = env.envfs_command(amend);
    bare.env_remove("VISUAL").env_remove("EDITOR");
    crate::support::run(bare).fails(2, &["neither VISUAL nor EDITOR is set", "-m"]);
    assert_eq!(message(), "by foot");
}

#[test]
fn a_dry_run_tells_what_a_commit_then_writes_and_changes_nothing() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        // Written elsewhere: a mount of another user is closed to root.
        let (prose, random) = (env.work().join("prose"), env.work().join("random"));
        env.write(&prose, "compress me ".repeat(50_000));
        env.write(&random, noise(300_000, 1));
        env.sh(&format!(
            "cp '{}' '{}' '{prefix}' && mv '{prefix}/lib' '{prefix}/moved'",
            prose.display(),
            random.display(),
            prefix = prefix.display()
        ))
        .ok();
        for is_mounted in [true, false] {
            if !is_mounted {
                env.envfs(&["unmount", "e"]).ok();
            }
            let told = env.envfs(&["commit", "-n", "--json", "e"]).ok().json();
            assert_eq!(told["files"], 2, "a rename has no new content: {told}");
            assert_eq!(told["bytes"], 900_000);
            assert_eq!(told["summary"]["added"]["entries"], 2);
            assert_eq!(told["summary"]["renamed"]["entries"], 1);
            let compressed = told["compressed_bytes"].as_u64().unwrap();
            assert!((300_000..320_000).contains(&compressed), "{told}");
            let text = env.envfs(&["commit", "-n", "e"]).ok().out;
            assert!(text.contains("2 files with new content"), "{text}");
            assert!(text.contains("when compressed (zstd"), "{text}");
            assert_eq!(
                env.envfs(&["log", "e", "--json"])
                    .ok()
                    .json()
                    .as_array()
                    .unwrap()
                    .len(),
                1
            );
        }
        let compressed = env.envfs(&["commit", "-n", "--json", "e"]).ok().json();
        let compressed = compressed["compressed_bytes"].as_u64().unwrap();
        let done = env.envfs(&["commit", "--json", "e"]).ok().json();
        let written = done["image"]["bytes_written"].as_u64().unwrap();
        assert!(
            written >= compressed && written < compressed + 20_000,
            "told {compressed}, written {written}"
        );
        let said = env.envfs(&["commit", "-n", "e"]).ok();
        assert!(said.err.contains("nothing changed"), "{said}");
    }
}

#[test]
fn a_commit_of_too_few_changes_is_left_out_with_status_0() {
    let Some(env) = changed() else { return };
    let count = || env.envfs(&["log", "e", "--json"]).ok().json();
    let count = || count().as_array().unwrap().len();
    for words in [["--if-changed", "5"], ["--if-larger-than", "10K"]] {
        let words = ["commit", words[0], words[1], "e"];
        let said = env.envfs(&words).ok();
        assert!(said.err.contains("e: not committed: "), "{said}");
        assert_eq!(said.out, "");
    }
    let words = &["commit", "--if-changed", "5", "--json", "e"];
    let said = env.envfs(words).ok().json();
    assert_eq!(said["changed"], 4);
    assert_eq!(said["not_committed"], "4 paths changed, fewer than 5");
    assert_eq!(count(), 1);
    // Touching files is no reason for a commit.
    fs::write(env.prefix("e").join("big"), noise(20_000, 3)).unwrap();
    env.envfs(&[
        "commit",
        "--if-changed",
        "5",
        "--if-larger-than",
        "10K",
        "e",
    ])
    .ok();
    assert_eq!(count(), 2);
    env.envfs(&["commit", "--if-larger-than", "1.5M", "e"])
        .fails(2, &["500K, 10M or 2G"]);
}
