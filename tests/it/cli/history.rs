//! Comparing revisions: `envfs diff REV`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::changed;
use crate::support::{TestEnv, has, run, samples, tree};

/// Creates a mounted environment with three revisions: as imported, with one change of each kind,
/// and with a further file. There is an uncommitted change as well.
fn three_revisions() -> Option<TestEnv> {
    let env = changed()?;
    env.envfs(&["commit", "-q", "e", "-m", "second"]).ok();
    fs::write(env.prefix("e").join("third"), "3").unwrap();
    env.envfs(&["commit", "-q", "e", "-m", "third"]).ok();
    env.envfs(&["tag", "e", "before", "1"]).ok();
    fs::write(env.prefix("e").join("open"), "uncommitted").unwrap();
    Some(env)
}

const FROM_1_TO_2: &str = "M lib/c.txt\nD lib/link\nR lib/deep -> lib/moved/\nA new\n";

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
    env.envfs(&["diff", "e@1", "f@1"])
        .fails(2, &["e@1 and f@1", "different environments"]);
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

#[test]
fn show_describes_a_revision_and_what_it_changed() {
    let Some(env) = three_revisions() else { return };
    let shown = env.envfs(&["show", "e", "2"]).ok();
    for part in [
        "revision 2\n    second\n",
        "  kind      commit\n",
        "  command   ",
        "commit -q e -m second\n",
        "  parent    1\n",
        "  image     ",
        "    renamed         1",
    ] {
        assert!(shown.out.contains(part), "no {part:?}: {shown}");
    }
    assert!(shown.out.ends_with(FROM_1_TO_2), "{shown}");
    let current = env.envfs(&["show", "e"]).ok();
    assert!(
        current.out.starts_with("revision 3  (current)"),
        "{current}"
    );
    let first = env.envfs(&["show", "e@before", "--json"]).ok().json();
    assert_eq!(first["tags"][0], "before");
    assert_eq!(first["changes"], serde_json::Value::Null);
    let third = env.envfs(&["show", "e", "3", "--json"]).ok().json();
    assert_eq!(third["summary"]["added"]["entries"], 1);
    assert_eq!(third["changes"][0]["path"], "third");
    assert!(
        third["image"]["disk_bytes"].as_u64().unwrap() > 0,
        "{third}"
    );
    env.envfs(&["show", "e", "nosuch"])
        .fails(3, &["no revision nosuch"]);
    // A removed parent leaves the rest.
    env.envfs(&["tag", "e", "-d", "before"]).ok();
    env.envfs(&["gc", "e", "--keep", "2"]).ok();
    let shown = env.envfs(&["show", "e", "2"]).ok();
    let end = shown.out.lines().last().unwrap();
    assert!(end.starts_with("  on disk"), "{shown}");
    assert!(
        shown.out.contains("parent    1, which gc removed"),
        "{shown}"
    );
}

#[test]
fn cat_prints_committed_content_exactly() {
    let Some(env) = three_revisions() else { return };
    let cat = |word: &str| env.envfs(&["cat", word]);
    assert_eq!(cat("e@1:lib/c.txt").ok().out, "gamma\n");
    assert_eq!(cat("e@before:lib/c.txt").ok().out, "gamma\n");
    assert_eq!(cat("e:lib/c.txt").ok().out, "gamma\ndelta\n");
    assert_eq!(cat("e@1:lib/link").ok().out, "alpha\nbeta\n");
    let absolute = format!("e@1:{}/lib/c.txt", env.prefix("e").display());
    assert_eq!(cat(&absolute).ok().out, "gamma\n");
    let active = env.envfs_with("ENVFS_ENV", "e", &["cat", "@1:lib/c.txt", ":new"]);
    assert_eq!(active.ok().out, "gamma\n12345");
    // 200,000 bytes that are not text, in two blocks.
    let binary = env.work().join("binary");
    env.sh(&format!(
        "envfs cat e@1:lib/deep/er/file > '{}'",
        binary.display()
    ))
    .ok();
    assert_eq!(fs::read(binary).unwrap(), samples::noise(200_000, 7));
    cat("e@2:lib/link").fails(3, &["revision 2 of e has no lib/link"]);
    cat("e:open").fails(3, &["has no open"]);
    cat("e:lib").fails(2, &["lib is a directory"]);
    cat("e@1").fails(2, &["no path", "NAME@REV:PATH"]);
    fs::write(env.prefix("e").join("lib/out"), "").unwrap();
    env.sh(&format!(
        "ln -s /etc/passwd '{0}/away'; ln -s round '{0}/round'",
        env.prefix("e").display()
    ))
    .ok();
    env.envfs(&["commit", "-q", "e"]).ok();
    cat("e:away").fails(3, &["away leads out of the environment, to /etc/passwd"]);
    cat("e:round").fails(3, &["leads out"]);
}

#[test]
fn verify_reads_one_image_or_all_environments() {
    let Some(env) = three_revisions() else { return };
    env.import_sample("f");
    let one = env.envfs(&["verify", "e@1"]).ok();
    assert!(one.err.contains("e@1: 1 image, "), "{one}");
    let all = env.envfs(&["verify", "--all"]).ok();
    assert!(all.err.contains("e: 3 images, "), "{all}");
    assert!(all.err.contains("f: 1 image, "), "{all}");
    // A flipped byte in the image of revision 2.
    let shown = env.envfs(&["show", "e", "2", "--json"]).ok().json();
    let file = shown["image"]["file"].as_str().unwrap().to_owned();
    let image = env.home_of("e").join("images").join(file);
    let mut bytes = fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&image).unwrap();
    fs::write(&image, bytes).unwrap();
    env.envfs(&["verify", "e@1"]).ok();
    assert_eq!(env.envfs(&["verify", "e@2"]).code, 1);
    let all = env.envfs(&["verify", "--all", "--json"]);
    assert_eq!(all.code, 1, "{all}");
    assert_eq!(all.json()["f"]["images"], 1);
    assert_eq!(all.json()["e"]["images"], 2);
}

#[test]
fn restore_brings_paths_back_as_uncommitted_changes() {
    for env in TestEnv::of_all_users() {
        let source = env.import_sample("e");
        let prefix = env.mount("e");
        let sh = |script: &str| env.sh(&format!("cd '{}'; {script}", prefix.display())).ok();
        sh(
            "echo x > lib/c.txt; rm lib/link lib/b.txt; cp -a lib/deep moved; rm -r lib/deep
            echo n > lib/new; echo t > bin/tool",
        );
        env.envfs(&["commit", "-q", "e"]).ok();
        sh("echo y > lib/c.txt; echo kept > bin/other");
        let others = tree::digest(&env, &prefix.join("bin"));
        // A program that has the replaced file open still reads it.
        let done = sh("exec 3< lib/c.txt; envfs restore e lib --from 1; cat <&3");
        assert!(done.err.contains("restored: "), "{done}");
        assert_eq!(done.out, "y\n");
        assert_eq!(
            tree::digest(&env, &prefix.join("lib")),
            tree::digest(&env, &source.join("lib"))
        );
        assert_eq!(tree::digest(&env, &prefix.join("bin")), others);
        sh("test -e moved/x; test lib/a.txt -ef lib/b.txt");
        env.envfs(&["restore", "e", "lib", "--from", "1"]).ok();
        let lib = || env.envfs(&["diff", "e", "1", "--times", "lib"]).ok().out;
        assert_eq!(lib(), "");

        // Without a mount, and one file of a removed directory.
        sh("rm -r lib/deep");
        env.envfs(&["unmount", "e"]).ok();
        env.envfs(&["restore", "e", "lib/deep/er/file", "--from", "@1"])
            .ok();
        env.mount("e");
        let file = source.join("lib/deep/er/file");
        sh(&format!("cmp lib/deep/er/file '{}'", file.display()));
        sh("! test -e lib/deep/x || exit 1");
        env.envfs(&["commit", "-q", "e"]).ok();
        env.verify("e");
        assert_eq!(lib(), "D lib/deep/x\n");
    }
}

#[test]
fn restore_from_the_current_revision_discards() {
    let Some(env) = three_revisions() else { return };
    fs::write(env.prefix("e").join("lib/c.txt"), "changed").unwrap();
    env.envfs(&["restore", "e", "lib", "open", "--from", "3"])
        .ok();
    assert_eq!(env.envfs(&["diff", "e"]).ok().out, "");
    env.envfs(&["undo", "e"]).ok();
    let content = |name: &str| fs::read_to_string(env.prefix("e").join(name)).unwrap();
    assert_eq!(content("lib/c.txt"), "changed");
    assert_eq!(content("open"), "uncommitted");
}

#[test]
fn restore_refuses_what_it_cannot_restore() {
    let Some(env) = three_revisions() else { return };
    let restore = |words: &[&str]| env.envfs(&[&["restore", "e"], words].concat());
    restore(&["nosuch", "--from", "1"]).fails(3, &["no such path", "revision 1"]);
    restore(&["lib", "--from", "9"]).fails(3, &["no revision 9"]);
    restore(&["--from", "1"]).fails(2, &["no path", "envfs rollback e 1"]);
    restore(&[".", "--from", "1"]).fails(2, &["rollback"]);
    restore(&["/etc/passwd", "--from", "1"]).fails(2, &["outside"]);
    let prefix = env.prefix("e");
    fs::write(prefix.join("lib/deep"), "a file").unwrap();
    restore(&["lib/deep/x", "--from", "1"]).fails(4, &["lib/deep"]);
    assert_eq!(fs::read(prefix.join("lib/deep")).unwrap(), b"a file");
    env.envfs(&["diff", "e"]).ok();
}
