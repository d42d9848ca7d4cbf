//! Comparing revisions: `envfs diff REV`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::changed;
use crate::support::{TestEnv, has, run, samples, tree};

/// Creates a mounted environment with three revisions: as imported, with one change of each kind,
/// and with a further file. There is an uncommitted change as well.
pub(super) fn three_revisions() -> Option<TestEnv> {
    let env = changed()?;
    env.envfs(&["commit", "-q", "e", "-m", "second"]).ok();
    fs::write(env.prefix("e").join("third"), "3").unwrap();
    env.envfs(&["commit", "-q", "e", "-m", "third"]).ok();
    env.envfs(&["tag", "e", "before", "1"]).ok();
    fs::write(env.prefix("e").join("open"), "uncommitted").unwrap();
    Some(env)
}

pub(super) const FROM_1_TO_2: &str = "M lib/c.txt\nD lib/link\nR lib/deep -> lib/moved/\nA new\n";

#[test]
fn revisions_are_compared_by_number_tag_range_and_name() {
    let Some(env) = three_revisions() else { return };
    for words in [
        &["e", "1", "2"][..],
        &["e", "@1", "@2"],
        &["e", "before", "2"],
        &["e", "before..2"],
        &["e", "1..2"],
        &["e@1", "2"],
        &["e@before", "e@2"],
        &["e", "1", "2", "lib", "new"],
        &["e", "1", "2", "--", "new", "lib"],
    ] {
        let shown = env.envfs(&[&["diff"], words].concat()).ok();
        assert_eq!(shown.out, FROM_1_TO_2, "{shown}");
    }
    let all = format!("{FROM_1_TO_2}A third\n");
    for words in [&["e", "1", "3"][..], &["e", "1.."], &["e", "before.."]] {
        let shown = env.envfs(&[&["diff"], words].concat()).ok();
        assert_eq!(shown.out, all, "{shown}");
    }
    let back = env.envfs(&["diff", "e", "2..1"]).ok();
    let expected = "M lib/c.txt\nR lib/moved -> lib/deep/\nA lib/link\nD new\n";
    assert_eq!(back.out, expected, "{back}");
}

#[test]
fn one_revision_is_compared_with_the_current_state() {
    let Some(env) = three_revisions() else { return };
    let shown = env.envfs(&["diff", "e", "2"]).ok();
    assert_eq!(shown.out, "A open\nA third\n", "{shown}");
    let shown = env.envfs(&["diff", "e@2", "open"]).ok();
    assert_eq!(shown.out, "A open\n", "{shown}");
    env.envfs(&["unmount", "e"]).ok();
    let shown = env.envfs(&["diff", "e", "2"]).ok();
    assert_eq!(shown.out, "A open\nA third\n", "{shown}");
    let shown = env.envfs(&["diff", "e"]).ok();
    assert_eq!(shown.out, "A open\n", "{shown}");
}

#[test]
fn forms_of_the_difference_of_revisions() {
    let Some(env) = three_revisions() else { return };
    let names = env.envfs(&["diff", "e", "1", "2", "--name-only"]).ok();
    assert_eq!(names.out, "lib/c.txt\nlib/link\nlib/moved\nnew\n");
    let names = env
        .envfs(&["diff", "e", "1", "2", "--name-only", "-z"])
        .ok();
    assert_eq!(names.out, "lib/c.txt\0lib/link\0lib/moved\0new\0");
    let exact = env.envfs(&["diff", "e", "1", "2", "-z"]).ok();
    assert_eq!(
        exact.out,
        "M\0lib/c.txt\0D\0lib/link\0R\0lib/deep\0lib/moved\0A\0new\0"
    );
    let stat = env.envfs(&["diff", "e", "1", "2", "--stat"]).ok();
    assert_eq!(stat.out.lines().count(), 4, "{stat}");
    assert!(stat.out.starts_with("added           1  5 B\n"), "{stat}");
    let json = env.envfs(&["diff", "e", "1", "2", "--json"]).ok().json();
    assert_eq!(json["changes"][3]["path"], "new");
    assert_eq!(json["changes"][2]["from"], "lib/deep");
    let json = env.envfs(&["diff", "e", "1", "2", "--stat", "--json"]);
    assert_eq!(json.ok().json()["renamed"]["entries"], 1);

    let content = env.envfs(&["diff", "e", "1", "2", "-c"]).ok();
    assert!(content.out.contains("+delta\n"), "{content}");
    assert!(content.out.contains("+12345\n"), "{content}");
    let back = env.envfs(&["diff", "e", "2", "1", "-c", "lib/c.txt"]).ok();
    assert!(back.out.contains("-delta\n"), "{back}");
    let since = env.envfs(&["diff", "e", "2", "-c"]).ok();
    assert!(since.out.contains("+uncommitted\n"), "{since}");
    assert!(!since.out.contains("delta"), "{since}");
}

#[test]
fn words_that_are_neither_revision_nor_path_are_errors() {
    let Some(env) = three_revisions() else { return };
    env.envfs(&["diff", "e", "9"]).fails(3, &["no revision 9"]);
    env.envfs(&["diff", "e", "1..9"])
        .fails(3, &["no revision 9"]);
    env.envfs(&["diff", "e", "@nosuch"])
        .fails(3, &["no revision nosuch"]);
    env.envfs(&["diff", "e@nosuch"])
        .fails(3, &["no revision nosuch"]);
    fs::write(env.prefix("e").join("2"), "").unwrap();
    env.envfs(&["diff", "e", "2"])
        .fails(2, &["2 is a revision and a file of e", "@2", "./2"]);
    let by_revision = env.envfs(&["diff", "e", "@2"]).ok();
    assert_eq!(by_revision.out, "A 2\nA open\nA third\n");
    for words in [&["./2"][..], &["--", "2"]] {
        let by_path = env.envfs(&[&["diff", "e"], words].concat()).ok();
        assert_eq!(by_path.out, "A 2\n", "{by_path}");
    }
    env.import_sample("f");
    let between = env.envfs(&["diff", "--name-only", "e@1", "f@1"]).ok();
    assert_eq!(between.out, "", "both were imported from the same sample");
}

#[test]
fn difference_of_revisions_is_that_of_their_trees() {
    let Some(env) = TestEnv::new() else { return };
    if !has("unsquashfs") {
        return;
    }
    let source = env.work().join("source");
    samples::rich(&env, &source);
    env.envfs(&["import", "-q", source.to_str().unwrap(), "e"])
        .ok();
    let prefix = env.mount("e");
    let script = "rm many/file-00*; echo more >> many/file-150; chmod 600 many/file-151
        setfattr -n user.new -v x many/file-152; ln many/file-153 many/linked
        rm -r lib/deep; mkdir lib/deep; echo y > lib/deep/x; ln -sfn other lib/link
        cp -p many/file-160 copy; mv copy many/file-160; mkfifo odd/second; touch -d @99 lib/c.txt";
    env.sh(&format!("cd '{}'; {script}", prefix.display())).ok();
    env.envfs(&["commit", "-q", "e"]).ok();
    let read = |revision: &str| {
        let image = env.work().join(format!("{revision}.sqfs"));
        let image = image.to_str().unwrap();
        env.envfs(&["export", "-q", "e", image, "--rev", revision])
            .ok();
        let dir = env.work().join(format!("tree-{revision}"));
        let mut command = env.command("unsquashfs");
        command.args(["-q", "-no-progress", "-d", dir.to_str().unwrap(), image]);
        run(command).ok();
        tree::read(&dir)
    };
    let (old, new) = (read("1"), read("2"));
    let mut expected = BTreeSet::new();
    for path in old.keys().chain(new.keys()) {
        let of = |tree: &tree::Tree| {
            let mut entry = tree.get(path).cloned()?;
            // Times of directories are no change, and neither is another name of the same file.
            if entry.mode & 0o170_000 == 0o040_000 {
                entry.mtime = 0;
            }
            (entry.nlink, entry.same_as) = (0, PathBuf::new());
            Some(entry)
        };
        if of(&old) != of(&new) {
            expected.insert(path.clone());
        }
    }
    assert!(expected.len() > 15, "{expected:?}");
    let shown = env.envfs(&["diff", "e", "1", "2", "--times", "--name-only", "-z"]);
    let shown = shown.ok().out;
    let found: BTreeSet<PathBuf> = shown.split_terminator('\0').map(PathBuf::from).collect();
    assert_eq!(found, expected);
}
