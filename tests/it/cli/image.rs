//! `envfs image`, on any SquashFS file.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::errors::word;
use super::quoting::{EVIL, assert_escaped, evil};
use crate::support::{TestEnv, has, images, run, samples, tree};

/// Returns the paths that `image ls -R` prints.
pub(super) fn paths(env: &TestEnv, image: &Path) -> BTreeSet<String> {
    let said = env.envfs(&["image", "ls", "-R", word(image)]).ok();
    // Mode, owner, group and size take 31 columns.
    let path = |line: &str| line[31..].split(" -> ").next().unwrap().to_owned();
    said.out.lines().map(path).collect()
}

#[test]
fn info_ls_cat_and_verify_work_on_any_image() {
    if !has("mksquashfs") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::small(&env, &source);
    let wanted: BTreeSet<String> = tree::read(&source)
        .keys()
        .map(|path| word(path).to_owned())
        .filter(|path| !path.is_empty())
        .collect();
    for codec in ["gzip", "xz", "lz4", "zstd", "lzo", "lzma"] {
        let image = env.work().join(codec);
        let mut command = env.command("mksquashfs");
        command
            .args([&source, &image])
            .args(["-comp", codec, "-noI", "-b", "65536"]);
        command.args(["-quiet", "-no-progress"]);
        run(command).ok();
        let info = env
            .envfs(&["image", "info", "--json", word(&image)])
            .ok()
            .json();
        assert_eq!(info["compression"], codec);
        assert_eq!(info["block_size"], 65_536);
        assert_eq!(info["uncompressed"][0], "inodes", "{info}");
        assert_eq!(info["file_bytes"], fs::metadata(&image).unwrap().len());
        let shown = env.envfs(&["image", "info", word(&image)]).ok();
        assert!(shown.out.contains(codec), "{shown}");
        assert_eq!(paths(&env, &image), wanted, "{codec}");
        let cat = env.envfs(&["image", "cat", word(&image), "lib/a.txt"]).ok();
        assert_eq!(
            cat.out.as_bytes(),
            fs::read(source.join("lib/a.txt")).unwrap()
        );
        let verified = env
            .envfs(&["image", "verify", "--json", word(&image)])
            .ok()
            .json();
        assert_eq!(verified["inodes"], info["inodes"], "{verified}");
        assert_eq!(verified["unreached"], 0);
        // More than the padding is cut off.
        let mut bytes = fs::read(&image).unwrap();
        bytes.truncate(bytes.len() / 2);
        let cut = env.work().join("cut");
        fs::write(&cut, bytes).unwrap();
        for action in ["info", "ls", "verify"] {
            env.envfs(&["image", action, word(&cut)]).fails(6, &["cut"]);
        }
    }
    env.envfs(&["image", "info", "none"]).fails(3, &["none"]);
}

#[test]
fn directory_is_packed_into_an_image() {
    for env in TestEnv::of_all_users() {
        let source = env.work().join("source");
        samples::rich(&env, &source);
        let image = env.work().join("packed.sqfs");
        let pack = |more: &[&str]| {
            let words = [&["image", "pack", word(&source), word(&image)], more].concat();
            env.envfs(&words)
        };
        let said = pack(&["--json", "--compression", "lz4", "--block-size", "65536"])
            .ok()
            .json();
        let expected = tree::read(&source);
        assert_eq!(said["entries"], expected.len());
        assert_eq!(said["image_bytes"], fs::metadata(&image).unwrap().len());
        let info = env.envfs(&["image", "info", "--json", word(&image)]).ok();
        assert_eq!(info.json()["compression"], "lz4");
        assert_eq!(info.json()["block_size"], 65_536);
        images::assert_read_by_others(&env, &image, &expected);
        let first = fs::read(&image).unwrap();

        pack(&[]).fails(4, &["exists", "--force"]);
        assert_eq!(fs::read(&image).unwrap(), first, "the file was changed");
        pack(&["--force", "--exclude", "*"]).ok();
        assert_eq!(paths(&env, &image), BTreeSet::new());
        let inside = source.join("inside.sqfs");
        let words = ["image", "pack", word(&source), word(&inside)];
        env.envfs(&words).fails(2, &["inside it"]);
        assert_eq!(tree::read(&source).len(), expected.len(), "a file was left");
    }
}

#[test]
fn image_listings_escape_control_characters() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    env.write(&source.join("plain"), "x");
    fs::create_dir(evil(&source)).unwrap();
    fs::write(evil(&evil(&source)), "content\x1b").unwrap();
    symlink(OsStr::from_bytes(EVIL), source.join("link")).unwrap();
    env.user().give_tree(&source);
    env.envfs(&["image", "pack", "source", "image"]).ok();
    let done = env.envfs(&["image", "ls", "-R", "image"]).ok();
    assert_escaped(&done, &done.out);
    assert!(done.out.contains("link -> \"a\\033"), "{done}");
    assert_eq!(done.out.lines().count(), 4, "{done}");
    let output = env
        .envfs_command(&["image", "ls", "-Rz", "image"])
        .output()
        .unwrap();
    let names: Vec<&[u8]> = output.stdout.split(|&byte| byte == 0).collect();
    let deep = [EVIL, b"/", EVIL].concat();
    for name in [b"plain".as_slice(), EVIL, &deep] {
        assert!(names.contains(&name), "{names:?}");
    }
    let mut command = env.envfs_command(&["image", "cat", "image"]);
    command.arg(evil(Path::new(OsStr::from_bytes(EVIL))));
    assert_eq!(command.output().unwrap().stdout, b"content\x1b");
    for action in ["ls", "cat"] {
        let mut command = env.envfs_command(&["image", action, "image"]);
        command.arg(evil(Path::new("none")));
        let done = run(command);
        assert_escaped(&done, &done.err);
    }
}

/// Packs a small tree.
fn packed() -> Option<(TestEnv, PathBuf)> {
    let env = TestEnv::new()?;
    samples::small(&env, &env.work().join("source"));
    let image = env.work().join("image.sqfs");
    env.envfs(&["image", "pack", "-q", "source", word(&image)])
        .ok();
    Some((env, image))
}

#[test]
fn ls_lists_one_directory_or_names_a_file() {
    let Some((env, image)) = packed() else { return };
    let ls = |more: &[&str]| env.envfs(&[&["image", "ls", word(&image)], more].concat());
    let names = |listing: String| -> Vec<String> {
        let lines = listing.lines();
        lines.map(|line| line[31..].to_owned()).collect()
    };
    assert_eq!(names(ls(&[]).ok().out), ["bin", "lib"]);
    assert_eq!(names(ls(&["/lib/deep"]).ok().out), ["er", "x"]);
    assert_eq!(
        names(ls(&["lib/deep", "-R"]).ok().out),
        ["er", "x", "er/file"]
    );
    assert_eq!(ls(&["lib/deep", "-z"]).ok().out, "er\0x\0");
    assert_eq!(ls(&["lib/a.txt"]).ok().out, "lib/a.txt\n");
    assert_eq!(ls(&["lib/a.txt", "-z"]).ok().out, "lib/a.txt\0");
    for missing in ["none", "lib/a.txt/x", "lib/none/x", ".."] {
        ls(&[missing]).fails(3, &["does not contain", missing]);
    }
}

#[test]
fn cat_writes_regular_files_only() {
    let Some((env, image)) = packed() else { return };
    let cat = |path: &str| {
        let mut command = env.envfs_command(&["image", "cat", word(&image), path]);
        command.output().unwrap()
    };
    // Two blocks that are not text.
    assert_eq!(cat("lib/deep/er/file").stdout, samples::noise(200_000, 7));
    for (path, code, said) in [
        ("lib", 2, "not a regular file"),
        ("lib/link", 2, "not a regular file"),
        ("none", 3, "does not contain none"),
    ] {
        let done = env.envfs(&["image", "cat", word(&image), path]);
        assert_eq!(done.clone().fails(code, &[said]).out, "", "{done}");
    }
}

#[test]
fn an_image_is_found_only_at_its_offset() {
    let Some((env, image)) = packed() else { return };
    let inner = fs::read(&image).unwrap();
    let file = env.work().join("inside");
    env.write(&file, [vec![0; 4096], inner].concat());
    let at = |offset: &str| env.envfs(&["image", "info", "--offset", offset, word(&file)]);
    let info = at("4096").ok();
    assert!(info.out.starts_with("offset       4096\n"), "{info}");
    at("8").fails(6, &["not a SquashFS image"]);
    at("99999999").fails(6, &["shorter than a superblock"]);
    at("x").fails(2, &["--offset"]);
    env.envfs(&["image", "verify", "--offset", "4096", word(&file)])
        .ok();
}

#[test]
fn damaged_content_fails_the_verification() {
    let Some(env) = TestEnv::new() else { return };
    env.write(&env.work().join("source/text"), "a line\n".repeat(50_000));
    // Compressed blocks of gzip have checksums.
    env.envfs(&[
        "image",
        "pack",
        "-q",
        "--compression",
        "gzip",
        "source",
        "i",
    ])
    .ok();
    let verify = || env.envfs(&["image", "verify", "i"]);
    assert!(verify().ok().err.starts_with("i: verified "));
    let file = env.work().join("i");
    let mut bytes = fs::read(&file).unwrap();
    // The first data block begins after the superblock and the options of the compressor.
    bytes[200] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(verify().fails(6, &["i: "]).out, "");
    // The tables are intact.
    env.envfs(&["image", "ls", "-R", "i"]).ok();
}

#[test]
fn a_refused_pack_leaves_no_file_and_no_store() {
    let Some(env) = TestEnv::new() else { return };
    samples::small(&env, &env.work().join("source"));
    for (words, code, said) in [
        (&["source", "i", "--block-size", "3"][..], 2, "power of two"),
        (&["source", "i", "--compression", "best"], 2, "zstd"),
        (&["source", "i", "--compression", "zstd:99"], 2, "1-22"),
        (&["source", "i", "--threads", "0"], 2, "--threads"),
        (&["source"], 2, "FILE"),
        (&["none", "i"], 3, "none"),
        (&["/dev/null", "i"], 2, "/dev/null is not a directory"),
        (&["source", "none/i"], 3, "none/i"),
    ] {
        env.envfs(&[&["image", "pack"], words].concat())
            .fails(code, &[said]);
    }
    env.envfs(&["image"]).fails(2, &["Usage: envfs image"]);
    let left = env.sh("ls").ok().out;
    assert_eq!(left, "source\n");
    assert!(!env.store().exists(), "a store was created");
}

#[test]
fn what_cannot_be_an_image_is_refused_at_once() {
    let Some(env) = TestEnv::new() else { return };
    let fifo = env.work().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let at = env.work().join("at");
    fs::create_dir(&at).unwrap();
    let (fifo, at) = (fifo.to_str().unwrap(), at.to_str().unwrap());
    let other = "it is neither a file nor a block device";
    for (words, reason) in [
        (&["image", "info", fifo][..], other),
        (&["image", "verify", "/dev/zero"], other),
        (&["mount", "--image", fifo, "-o", "ro", at], other),
        (&["image", "ls", "/"], "it is a directory"),
    ] {
        env.envfs(words).fails(6, &[reason]);
    }
}
