//! `envfs image` on any SquashFS file, exclusion of files, and reproducible images.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::tree;
use crate::support::{TestEnv, has, images, run, samples};

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns the paths that `image ls -R` prints.
fn paths(env: &TestEnv, image: &Path) -> BTreeSet<String> {
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
fn export_excludes_patterns() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    samples::rich(&env, &source);
    env.envfs(&["import", "-q", word(&source), "e"]).ok();
    let whole = env.work().join("whole.sqfs");
    env.envfs(&["export", "-q", "e", word(&whole)]).ok();
    assert!(fs::read(&whole).unwrap() == fs::read(images::current(&env, "e")).unwrap());
    let less = env.work().join("less.sqfs");
    let patterns = ["--exclude", "file-1*", "--exclude", "lib/deep/x"];
    env.envfs(&[&["export", "-q", "e", word(&less)][..], &patterns].concat())
        .ok();
    let mut expected = tree::read(&source);
    expected.retain(|path, _| {
        let path = path.to_string_lossy();
        !path.starts_with("many/file-1") && path != "lib/deep/x"
    });
    images::assert_read_by_others(&env, &less, &expected);
    env.envfs(&["image", "verify", word(&less)]).ok();
    assert!(fs::metadata(&less).unwrap().len() <= fs::metadata(&whole).unwrap().len());
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

/// Decoders do not notice a flipped bit in an uncompressed block.
#[test]
fn verify_detects_any_flipped_bit() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    let mut bytes = vec![0; 5 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    env.write(&source.join("noise"), &bytes);
    env.write(&source.join("small"), "small");
    env.envfs(&["import", "-q", word(&source), "e"]).ok();
    let prefix = env.mount("e");
    // The second image inherits most of its digests from the first.
    fs::write(prefix.join("small"), "changed").unwrap();
    let commit = env.envfs(&["commit", "--json", "e"]).ok().json();
    assert_eq!(commit["way"], "append");
    env.envfs(&["unmount", "-q", "e"]).ok();
    env.verify("e");
    let image = images::current(&env, "e");
    let sound = fs::read(&image).unwrap();
    fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    for at in [100, 3 << 20, sound.len() - 1] {
        let mut bad = sound.clone();
        bad[at] ^= 4;
        fs::write(&image, bad).unwrap();
        let said = env.envfs(&["verify", "--json", "e"]);
        assert_eq!(said.code, 1, "{at}: {said}");
        let problems = said.json()["problems"].as_array().unwrap().clone();
        assert_eq!(problems.len(), 1, "{said}");
        let first = format!("bytes {} to", at >> 20 << 20);
        let problem = problems[0].as_str().unwrap();
        assert!(problem.contains(&first) || at < 200, "{at}: {problem}");
    }
    fs::write(&image, sound).unwrap();
    env.verify("e");
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
