//! `envfs import` of directories, images and archives; `envfs create`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::image::paths;
use crate::support::tree::{self, Look};
use crate::support::{TestEnv, find, has, images, run, samples, skip};

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn imported_directory_reads_identically_in_the_mount_and_other_tools() {
    for env in TestEnv::of_all_users() {
        let source = env.work().join("source");
        samples::rich(&env, &source);
        let before = tree::read(&source);
        let facts = env.envfs(&["import", "--json", word(&source), "e"]).ok();
        assert_eq!(facts.json()["files"], before.len(), "{facts}");
        tree::assert_same(&before, &tree::read(&source), Look::ALL, "the source");
        let prefix = env.mount("e");
        tree::assert_same(&before, &seen(&env, &prefix), Look::ALL, "the mount");
        env.verify("e");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
        images::assert_read_by_others(&env, &images::current(&env, "e"), &before);
    }
}

/// Reads a mount; root can read only its own.
#[track_caller]
fn seen(env: &TestEnv, prefix: &Path) -> tree::Tree {
    if env.user().is_current() {
        return tree::read(prefix);
    }
    // A user's mount is closed to root, so the user copies the tree.
    let copy = env.work().join("copy");
    if copy.exists() {
        fs::remove_dir_all(&copy).unwrap();
    }
    let script = format!("cp -a '{}' '{}'", prefix.display(), copy.display());
    env.sh(&script).ok();
    tree::read(&copy)
}

#[test]
fn import_and_commit_support_every_codec() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::small(&env, &source);
    let before = tree::read(&source);
    for (index, codec) in ["zstd:1", "xz", "gzip", "lz4", "none"]
        .into_iter()
        .enumerate()
    {
        let name = format!("e{index}");
        let args = ["import", "-q", word(&source), &name, "--compression", codec];
        env.envfs(&[&args[..], &["--block-size", "16384"]].concat())
            .ok();
        let prefix = env.mount(&name);
        tree::assert_same(&before, &tree::read(&prefix), Look::ALL, codec);
        fs::write(prefix.join("lib/a.txt"), "changed").unwrap();
        env.envfs(&["commit", "-q", &name]).ok();
        let changed = tree::read(&prefix);
        env.envfs(&["unmount", "-q", &name]).ok();
        if has("unsquashfs") {
            let to = env.work().join(&name);
            let mut command = env.command("unsquashfs");
            command.args(["-quiet", "-no-progress", "-d", word(&to)]);
            command.arg(images::current(&env, &name));
            run(command).ok();
            tree::assert_same(&changed, &tree::read(&to), tree::of_unsquashfs(), codec);
        }
    }
    for wrong in ["zstd:99", "lzo", "best", ""] {
        let args = ["import", word(&source), "w", "--compression", wrong];
        env.envfs(&args).fails(2, &[]);
    }
    let args = ["import", word(&source), "w", "--block-size", "5000"];
    env.envfs(&args).fails(2, &["power of two"]);
}

#[test]
fn mksquashfs_images_of_every_codec_are_imported() {
    if !has("mksquashfs") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::rich(&env, &source);
    let before = tree::read(&source);
    for codec in ["gzip", "xz", "lz4", "zstd", "lzo", "lzma"] {
        let image = env.work().join(format!("{codec}.sqfs"));
        let mut command = env.command("mksquashfs");
        command.args([&source, &image]).args(["-comp", codec]);
        command.args(["-quiet", "-no-progress", "-b", "65536"]);
        run(command).ok();
        let digest = fs::read(&image).unwrap();
        env.envfs(&["import", word(&image), codec]).ok();
        let prefix = env.mount(codec);
        tree::assert_same(&before, &tree::read(&prefix), Look::ALL, codec);
        fs::write(prefix.join("new"), "new").unwrap();
        fs::remove_dir_all(prefix.join("many")).unwrap();
        env.envfs(&["commit", "-q", codec]).ok();
        env.verify(codec);
        let after = tree::read(&prefix);
        env.envfs(&["unmount", "-q", codec]).ok();
        let to = env.work().join("out");
        let mut command = env.command("unsquashfs");
        command.args(["-quiet", "-no-progress", "-d", word(&to)]);
        command.arg(images::current(&env, codec));
        run(command).ok();
        tree::assert_same(&after, &tree::read(&to), tree::of_unsquashfs(), codec);
        fs::remove_dir_all(&to).unwrap();
        assert_eq!(fs::read(&image).unwrap(), digest, "the source was changed");
    }
}

#[test]
fn archive_keeps_links_and_long_names() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::rich(&env, &source);
    let long = source.join("d".repeat(120)).join("e".repeat(120));
    env.write(&long.join("f".repeat(200)), "deep");
    let before = tree::read(&source);
    let cases = [
        ("gnu", "tar", "--format=gnu", ""),
        ("pax", "tar", "--format=pax", ""),
        ("gz", "tar.gz", "--format=gnu", "gzip"),
        ("zst", "tar.zst", "--format=pax", "zstd"),
        ("xz", "tar.xz", "--format=gnu", "xz"),
    ];
    for (name, end, format, filter) in cases {
        if !filter.is_empty() && find(filter).is_none() {
            skip(&format!("no {filter}"));
            continue;
        }
        let archive = env.work().join(format!("{name}.{end}"));
        let mut command = env.command("tar");
        command
            .args([format, "-caf"])
            .arg(&archive)
            .arg("-C")
            .arg(&source);
        if name == "gz" {
            command.arg("--sparse");
        }
        run({
            command.arg(".");
            command
        })
        .ok();
        env.envfs(&["import", "-q", word(&archive), name]).ok();
        let prefix = env.mount(name);
        let look = Look {
            xattrs: false,
            ..Look::ALL
        };
        tree::assert_same(&before, &tree::read(&prefix), look, name);
        env.verify(name);
    }
}

#[test]
fn last_of_duplicate_archive_entries_wins() {
    let Some(env) = TestEnv::new() else { return };
    env.write(&env.work().join("t/file"), "old");
    env.write(&env.work().join("t/other"), "other");
    env.sh("tar -cf twice.tar t; echo new >t/file; tar -rf twice.tar t/file")
        .ok();
    let archive = env.work().join("twice.tar");
    env.envfs(&["import", "-q", word(&archive), "e"]).ok();
    let prefix = env.mount("e");
    assert_eq!(fs::read(prefix.join("t/file")).unwrap(), b"new\n");
    assert_eq!(fs::read(prefix.join("t/other")).unwrap(), b"other");
    env.verify("e");
}

#[test]
fn hard_link_in_an_archive_keeps_its_target_of_that_moment() {
    let Some(env) = TestEnv::new() else { return };
    // In order: a, b (a link to a), c (a link to b), a second a, a second b, d (a link to that b),
    // and e twice, each with links that are replaced.
    env.sh(
        "mkdir t; echo first >t/a; ln t/a t/b; ln t/b t/c; echo e1 >t/e; ln t/e t/f
         tar -cf links.tar t/a t/b t/c t/e t/f
         rm t/a; echo second >t/a; tar -rf links.tar t/a
         rm t/b t/f; echo third >t/b; ln t/b t/d; echo f2 >t/f; tar -rf links.tar t/b t/d t/f
         rm t/e; echo e2 >t/e; tar -rf links.tar t/e
         mkdir x; tar -xf links.tar -C x",
    )
    .ok();
    let archive = env.work().join("links.tar");
    env.envfs(&["import", "-q", word(&archive), "e"]).ok();
    let prefix = env.mount("e");
    for (name, content) in [
        ("a", "second\n"),
        ("b", "third\n"),
        ("c", "first\n"),
        ("d", "third\n"),
        ("e", "e2\n"),
        ("f", "f2\n"),
    ] {
        let read = |root: &Path| fs::read_to_string(root.join("t").join(name)).unwrap();
        assert_eq!(read(&env.work().join("x")), content, "tar itself, {name}");
        assert_eq!(read(&prefix), content, "{name}");
    }
    let number = |name: &str| fs::metadata(prefix.join("t").join(name)).unwrap().ino();
    assert_eq!(number("b"), number("d"));
    assert_ne!(number("a"), number("c"));
    env.verify("e");
}

#[test]
fn archive_without_directory_entries_is_imported() {
    let Some(env) = TestEnv::new() else { return };
    env.write(&env.work().join("a/b/c"), "c");
    env.sh("tar -cf files.tar a/b/c").ok();
    let archive = env.work().join("files.tar");
    env.envfs(&["import", "-q", word(&archive), "e"]).ok();
    assert_eq!(fs::read(env.mount("e").join("a/b/c")).unwrap(), b"c");
}

#[test]
fn archive_with_a_path_that_leads_out_is_refused() {
    let Some(env) = TestEnv::new() else { return };
    env.write(&env.work().join("a/b/c"), "c");
    env.sh("tar -Pcf up.tar --transform 's,^a,../../a,' a/b/c")
        .ok();
    let archive = env.work().join("up.tar");
    env.envfs(&["import", "-q", word(&archive), "up"])
        .fails(6, &["../../a/b/c"]);
    assert!(!env.home_of("up").exists());
    assert!(!env.prefix("up").join("../../a").exists());
}

#[test]
fn empty_environment_can_be_filled_and_rolled_back() {
    for env in TestEnv::of_all_users() {
        env.envfs(&["create", "e"]).ok();
        let prefix = env.mount("e");
        env.sh(&format!(
            "test -z \"$(ls -A '{0}')\"; mkdir '{0}/bin'; echo hi >'{0}/bin/x'",
            prefix.display()
        ))
        .ok();
        env.envfs(&["commit", "e", "-m", "first"]).ok();
        env.envfs(&["unmount", "e"]).ok();
        let prefix = env.mount("e");
        let read = env.sh(&format!("cat '{}/bin/x'", prefix.display())).ok();
        assert_eq!(read.out, "hi\n");
        env.envfs(&["rollback", "-y", "e"]).ok();
        env.sh(&format!("test -z \"$(ls -A '{}')\"", prefix.display()))
            .ok();
        env.verify("e");
    }
}

#[test]
fn create_runs_the_installer_at_the_final_path() {
    let Some(env) = TestEnv::new() else { return };
    let script =
        "mkdir \"$1/bin\" && echo \"#!$1/bin/python\" >\"$1/bin/pip\" && test \"$2\" = 'a b'";
    env.envfs(&[
        "create", "e", "--", "sh", "-ec", script, "sh", "{prefix}", "a b",
    ])
    .ok();
    let prefix = env.mount("e");
    let text = fs::read_to_string(prefix.join("bin/pip")).unwrap();
    assert_eq!(text, format!("#!{}/bin/python\n", prefix.display()));
    assert_eq!(env.envfs(&["diff", "e"]).ok().out, "");
    assert_eq!(env.count(&["log", "e"]), 1);

    let before = env.store_listing();
    let args = [
        "create",
        "bad",
        "--",
        "sh",
        "-c",
        "echo x >{prefix}/x; exit 3",
    ];
    let failed = env.envfs(&args);
    assert_ne!(failed.code, 0, "{failed}");
    assert!(failed.err.contains("exit status 3"), "{failed}");
    assert_eq!(
        env.store_listing(),
        before,
        "after an installer that failed"
    );
    assert!(!env.prefix("bad").join("x").exists());
    env.envfs(&["create", "bad", "--", "no-such-program"])
        .fails(3, &["no-such-program"]);
    assert_eq!(env.store_listing(), before, "after a missing installer");
}

#[test]
fn committed_tree_reads_identically_in_other_tools() {
    for env in TestEnv::of_all_users() {
        let source = env.work().join("source");
        samples::rich(&env, &source);
        env.envfs(&["import", "-q", word(&source), "e"]).ok();
        let prefix = env.mount("e");
        let at = prefix.display();
        env.sh(&format!(
            "cd '{at}'
             mkdir -p new/sub; echo new >new/sub/file; ln new/sub/file new/hard; ln -s sub new/link
             echo appended >>lib/a.txt; ln lib/c.txt lib/c2.txt; mv lib/deep lib/moved
             rm -r many; mkdir many; echo one >many/file-001
             chmod 2750 new; touch -d '2001-02-03 04:05:06' bin/tool new/sub
             mkfifo new/fifo; rm odd/fifo; dd if=/dev/urandom of=odd/two-blocks bs=1000 seek=50 count=1 conv=notrunc status=none
             truncate -s 70000 odd/and-a-tail; mv lib/c.txt lib/moved/; cp odd/sparse new/copy"
        ))
        .ok();
        if env.user().is_current() {
            xattr::set(prefix.join("new/hard"), "user.x", b"y").unwrap();
            xattr::remove(prefix.join("odd/empty"), "user.short").unwrap();
        }
        let merged = seen(&env, &prefix);
        env.envfs(&["commit", "-m", "changes", "e"]).ok();
        tree::assert_same(&merged, &seen(&env, &prefix), Look::ALL, "after the commit");
        assert_eq!(env.envfs(&["diff", "e"]).ok().out, "");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
        let prefix = env.mount("e");
        tree::assert_same(&merged, &seen(&env, &prefix), Look::ALL, "after a remount");
        images::assert_read_by_others(&env, &images::current(&env, "e"), &merged);
    }
}

#[test]
fn import_excludes_patterns() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    for path in [
        "lib/a.py",
        "lib/__pycache__/a.pyc",
        "lib/b.pyc",
        "pkgs/cache/x",
        "pkgs/y",
        "other/pkgs/cache/z",
        "share/deep/er/x.h",
        "share/x.h",
    ] {
        env.write(&source.join(path), path);
    }
    let patterns = [
        "--exclude",
        "__pycache__",
        "--exclude",
        "*.pyc",
        "--exclude",
        "pkgs/cache",
    ];
    let more = [
        "--exclude",
        "share/**/*.h",
        "--threads",
        "1",
        "--compress-level",
        "0",
    ];
    let wanted = [
        "lib",
        "lib/a.py",
        "other",
        "other/pkgs",
        "other/pkgs/cache",
        "other/pkgs/cache/z",
    ];
    let wanted =
        wanted
            .into_iter()
            .chain(["pkgs", "pkgs/y", "share", "share/deep", "share/deep/er"]);
    let wanted: BTreeSet<String> = wanted.map(str::to_owned).collect();
    let tar = env.work().join("source.tar");
    let mut command = env.command("tar");
    command
        .arg("-C")
        .arg(&source)
        .args(["-cf", word(&tar), "."]);
    run(command).ok();
    for (name, from) in [("directory", &source), ("archive", &tar)] {
        let args = [&["import", "-q", word(from), name][..], &patterns, &more].concat();
        env.envfs(&args).ok();
        let image = images::current(&env, name);
        assert_eq!(paths(&env, &image), wanted, "{name}");
        let info = env
            .envfs(&["image", "info", "--json", word(&image)])
            .ok()
            .json();
        let stored = info["uncompressed"].as_array().unwrap().len();
        assert_eq!(stored, 5, "level 0 stores: {info}");
    }
    let image = images::current(&env, "directory");
    let args = ["import", word(&image), "image", "--exclude", "x"];
    env.envfs(&args).fails(2, &["--exclude"]);
    let args = ["import", word(&source), "w", "--compress-level", "10"];
    env.envfs(&args).fails(2, &["10"]);
}

#[test]
fn import_is_reproducible() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::rich(&env, &source);
    let mut made = Vec::new();
    for (name, threads) in [("a", "1"), ("b", "3")] {
        let args = ["import", "-q", "--threads", threads, word(&source), name];
        env.envfs_with("SOURCE_DATE_EPOCH", "1700000000", &args)
            .ok();
        made.push(fs::read(images::current(&env, name)).unwrap());
    }
    assert!(made[0] == made[1]);
    let info = env.envfs(&["image", "info", "--json", word(&images::current(&env, "a"))]);
    assert_eq!(info.ok().json()["created"], 1_700_000_000);
}
