//! `envfs du`: sums that agree with the image and with other programs, packages, and the map.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::support::samples::{noise, rich};
use crate::support::{TestEnv, find, has, images, run, run_for, skip_allowed};

fn du(env: &TestEnv, words: &[&str]) -> Value {
    env.envfs(&[&["du", "--json"], words].concat()).ok().json()
}

fn sum(list: &Value, key: &str) -> u64 {
    let entries = list.as_array().unwrap().iter();
    entries.map(|one| one[key].as_u64().unwrap()).sum()
}

/// Checks that the parts of the image add up to its file, and those of the tree to the whole.
#[track_caller]
fn assert_complete(env: &TestEnv, name: &str) -> Value {
    let found = du(env, &[name]);
    let image = &found["image"];
    let parts = [
        "content",
        "unused",
        "inodes",
        "directories",
        "tables",
        "header",
        "padding",
    ];
    let all: u64 = parts.iter().map(|part| image[part].as_u64().unwrap()).sum();
    let file = fs::metadata(images::current(env, name)).unwrap().len();
    assert_eq!(all, file, "{image}");
    assert_eq!(image["bytes"], file, "{image}");
    let total = &found["total"];
    assert_eq!(total["image_bytes"], image["content"], "{found}");
    for key in ["files", "bytes", "image_bytes", "uncommitted_bytes"] {
        let by_package = sum(&found["packages"], key) + found["unpackaged"][key].as_u64().unwrap();
        assert_eq!(total[key], by_package, "{key}: {found}");
    }
    assert_eq!(found["directories"][0]["path"], "", "{found}");
    found
}

/// Returns the bytes of content of a tree, each file counted once.
fn content(root: &Path) -> u64 {
    let mut seen = HashSet::new();
    let files = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_type().is_file());
    let metas = files.map(|entry| entry.metadata().unwrap());
    let once = metas.filter(|meta| seen.insert((meta.dev(), meta.ino())));
    once.map(|meta| meta.len()).sum()
}

#[test]
fn the_parts_add_up_to_the_image_for_every_codec_and_after_commits() {
    for codec in ["zstd:3", "gzip", "xz", "lz4", "none"] {
        let Some(env) = TestEnv::new() else { return };
        let source = env.work().join("source");
        rich(&env, &source);
        // The same data twice, and tails that are equal.
        let twice = noise(500_000, 9);
        env.write(&source.join("one/data"), &twice);
        env.write(&source.join("two/data"), &twice);
        env.write(&source.join("two/tail"), "content 7\n");
        let options = ["import", "-q", "source", "e", "--compression", codec];
        env.envfs(&options).ok();
        let found = assert_complete(&env, "e");
        assert_eq!(found["total"]["bytes"], content(&source), "{codec}");
        let of = |path: &str| {
            let all = found["directories"].as_array().unwrap();
            let one = all.iter().find(|one| one["path"] == path);
            one.unwrap()["image_bytes"].as_u64().unwrap()
        };
        // Shared data belongs to the first path.
        assert!(of("one") >= 500_000, "{codec}: {found}");
        assert!(of("two") < 1000, "{codec}: {found}");

        // Replaced data is unused until the image is compacted.
        let prefix = env.mount("e");
        env.write(&prefix.join("one/data"), "small now");
        env.write(&prefix.join("two/data"), noise(300_000, 10));
        fs::remove_file(prefix.join("many/file-001")).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
        let found = assert_complete(&env, "e");
        assert_eq!(found["total"]["bytes"], content(&prefix), "{codec}");
        let unused = found["image"]["unused"].as_u64().unwrap();
        assert!(unused >= 500_000, "{codec}: {found}");
        let shown = env.envfs(&["du", "e"]).ok();
        assert!(shown.out.contains("--compact drops it"), "{shown}");
        env.write(&prefix.join("more"), "x");
        env.envfs(&["commit", "-q", "--compact", "e"]).ok();
        let found = assert_complete(&env, "e");
        let left = found["image"]["unused"].as_u64().unwrap();
        assert!(left < 100_000, "{codec}: {found}");
        // The history did not change.
        assert!(sum(&du(&env, &["e@1"])["directories"], "files") > 300);
    }
}

#[test]
fn sizes_are_those_that_unsquashfs_lists() {
    if !has("unsquashfs") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    for index in 0..200u64 {
        let path = format!("d{}/e{}/f{index}", index % 3, index % 7);
        let length = (index * index * 37) as usize;
        env.write(&source.join(path), noise(length, index));
    }
    env.envfs(&["import", "-q", "source", "e"]).ok();
    let found = assert_complete(&env, "e");
    let mut command = env.command("unsquashfs");
    command.arg("-lls").arg(images::current(&env, "e"));
    let listed = run(command).ok();
    let mut by_dir = std::collections::BTreeMap::<String, u64>::new();
    for line in listed.out.lines().filter(|line| line.starts_with('-')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let path = words
            .last()
            .unwrap()
            .strip_prefix("squashfs-root/")
            .unwrap();
        let bytes: u64 = words[2].parse().unwrap();
        for (at, _) in path.match_indices('/') {
            *by_dir.entry(path[..at].to_owned()).or_default() += bytes;
        }
    }
    assert_eq!(by_dir.len(), 3 + 21);
    for (path, bytes) in by_dir {
        let all = found["directories"].as_array().unwrap();
        let one = all.iter().find(|one| one["path"] == path.as_str());
        assert_eq!(one.unwrap()["bytes"], bytes, "{path}");
    }
}

#[test]
fn changes_are_counted_apart_mounted_or_not() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let change = "mkdir new && head -c 700000 /dev/urandom >new/big && echo changed >lib/c.txt \
                      && rm bin/tool && sync -f .";
        env.sh(&format!("cd '{}' && {change}", prefix.display()))
            .ok();
        let check = || {
            let found = assert_complete(&env, "e");
            let disk = env.envfs(&["status", "--json", "e"]).ok().json();
            assert_eq!(found["total"]["uncommitted_bytes"], disk["upper_bytes"]);
            assert_eq!(found["uncommitted_files"], disk["upper_files"]);
            let new = du(&env, &["e", "new"]);
            assert!(new["total"]["uncommitted_bytes"].as_u64() >= Some(700_000));
            assert_eq!(new["total"]["image_bytes"], 0, "{new}");
            assert_eq!(new["directories"][0]["path"], "new", "{new}");
            let old = du(&env, &["e", "1"]);
            assert_eq!(old["total"]["uncommitted_bytes"], 0, "{old}");
            let shown = env.envfs(&["du", "e"]).ok();
            assert!(shown.out.contains("CHANGES"), "{shown}");
            assert!(shown.out.contains("uncommitted: "), "{shown}");
            assert!(!shown.out.contains(['█', '\x1b']), "{shown}");
            // An absolute path in the environment, and one file.
            let file = du(&env, &["e", &prefix.join("lib/c.txt").to_string_lossy()]);
            assert_eq!(file["uncommitted_files"], 1, "{file}");
        };
        check();
        env.envfs(&["unmount", "e"]).ok();
        check();
        env.envfs(&["commit", "-q", "e"]).ok();
        let found = assert_complete(&env, "e");
        assert_eq!(found["total"]["uncommitted_bytes"], 0, "{found}");
        let shown = env.envfs(&["du", "e", "new"]).ok();
        assert!(!shown.out.contains("CHANGES"), "{shown}");
    }
}

/// Writes a Python package with its records.
fn package(env: &TestEnv, root: &Path, name: &str, version: &str, bytes: usize) {
    let site = root.join("lib/python3.12/site-packages");
    let info = format!("{name}-{version}.dist-info");
    let headers = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
    env.write(&site.join(&info).join("METADATA"), headers);
    let record =
        format!("{name}/core.py,,\n../../../bin/{name},,\n{info}/METADATA,,\n{info}/RECORD,,\n");
    env.write(&site.join(&info).join("RECORD"), record);
    env.write(&site.join(name).join("core.py"), noise(bytes, bytes as u64));
    env.write(
        &site.join(name).join("__pycache__/core.cpython-312.pyc"),
        noise(1000, 2),
    );
    env.write(&root.join("bin").join(name), "#!/bin/sh\n");
}

#[test]
fn space_belongs_to_packages_also_if_they_are_not_committed() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    package(&env, &source, "alpha", "1.0", 400_000);
    package(&env, &source, "beta", "2.0", 100_000);
    let node = source.join("lib/node_modules");
    for dir in ["left", "right/node_modules/left"] {
        let json = r#"{"name": "left", "version": "3.1.0"}"#;
        env.write(&node.join(dir).join("package.json"), json);
    }
    env.write(
        &node.join("right/package.json"),
        r#"{"name": "right", "version": "1.0.0"}"#,
    );
    let conda = r#"{"files": ["share/gamma"], "name": "gamma"}"#;
    env.write(&source.join("conda-meta/gamma-0.5-h1_0.json"), conda);
    env.write(&source.join("share/gamma"), noise(50_000, 4));
    env.write(&source.join("share/mine"), noise(20_000, 5));
    env.envfs(&["import", "-q", "source", "e"]).ok();
    let found = assert_complete(&env, "e");
    let all = found["packages"].as_array().unwrap();
    let names: Vec<String> = all
        .iter()
        .map(|one| {
            format!(
                "{} {}",
                one["name"].as_str().unwrap(),
                one["version"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        names[..3],
        ["alpha 1.0", "beta 2.0", "gamma 0.5"],
        "{found}"
    );
    // Two packages of one name at two places.
    assert_eq!(names.iter().filter(|name| *name == "left 3.1.0").count(), 2);
    assert_eq!(all.len(), 6, "{found}");
    assert_eq!(all[0]["files"], 5, "{found}");
    assert_eq!(found["unpackaged"]["bytes"], 20_000, "{found}");
    let shown = env.envfs(&["du", "e"]).ok();
    assert!(shown.out.contains("  6 packages\n"), "{shown}");
    let chain = shown
        .out
        .lines()
        .any(|line| line.ends_with("  python3.12/site-packages/"));
    assert!(chain, "{shown}");

    let prefix = env.mount("e");
    package(&env, &prefix, "delta", "9", 300_000);
    fs::remove_dir_all(prefix.join("lib/python3.12/site-packages/alpha-1.0.dist-info")).unwrap();
    package(&env, &prefix, "alpha", "1.1", 500_000);
    env.envfs(&["unmount", "e"]).ok();
    let found = assert_complete(&env, "e");
    let of = |name: &str| {
        let all = found["packages"].as_array().unwrap();
        let mut found = all.iter().filter(|one| one["name"] == name);
        let one = found.next().unwrap().clone();
        assert!(found.next().is_none(), "{name}");
        one
    };
    assert!(of("delta")["uncommitted_bytes"].as_u64() >= Some(300_000));
    assert_eq!(of("delta")["image_bytes"], 0);
    // The old version is in the image, the new one is not.
    assert!(of("alpha")["uncommitted_bytes"].as_u64() >= Some(500_000));
    assert!(of("alpha")["image_bytes"].as_u64() >= Some(300_000));
    assert_eq!(of("beta")["uncommitted_bytes"], 0);
    let below = du(&env, &["e", "lib/python3.12/site-packages/beta"]);
    assert_eq!(below["packages"].as_array().unwrap().len(), 1, "{below}");
}

#[test]
fn wrong_words_are_refused_and_limits_are_kept() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.envfs(&["du", "e", "lib/nowhere"])
        .fails(3, &["lib/nowhere"]);
    env.envfs(&["du", "e", "lib", "bin"])
        .fails(2, &["one path"]);
    env.envfs(&["du", "e@7"]).fails(3, &["7"]);
    env.envfs(&["du", "nothere"]).fails(3, &["nothere"]);
    env.envfs(&["du", "e", "--json", "--packages"])
        .fails(2, &["--json"]);
    let note = env.envfs(&["du", "e", "--packages"]).ok();
    assert!(note.err.contains("no packages"), "{note}");
    let names = |words: &[&str]| {
        let shown = env.envfs(&[&["du", "e"], words].concat()).ok();
        let lines = shown
            .out
            .lines()
            .skip_while(|line| !line.ends_with("directories"));
        let names = lines.skip(1).take_while(|line| !line.is_empty());
        let last = |line: &str| line.rsplit("  ").next().unwrap_or_default().to_owned();
        names.map(last).collect::<Vec<_>>()
    };
    assert_eq!(names(&["-d1", "-n0"]), ["lib/", "bin/"]);
    let deep = names(&["-n0", "-d5"]);
    for name in ["deep/", "er/", "a.txt", "link"] {
        assert!(deep.iter().any(|one| one == name), "{deep:?}");
    }
    assert_eq!(names(&["-n0", "-d5", "lib/deep"]), ["er/", "file", "x"]);
    let few = names(&["-d1"]);
    assert_eq!(few, ["lib/", "… 1 more (-n 0 lists all)"]);
    if has("script") {
        let mut command = env.command("script");
        let line = format!("'{}' du e", env.program().display());
        command.args(["-qec", &line, "/dev/null"]);
        let shown = run(command).ok();
        assert!(shown.out.contains('█'), "{shown}");
    }
}

/// Names that do harm in a page that takes them for markup or script.
const HOSTILE: [&[u8]; 7] = [
    b"<\\script><script>document.title='owned'<\\script>",
    b"<!--<script>",
    b"\"'`${document.title='owned'}",
    b"<img src=x onerror=document.title='owned'>",
    b"line\nbreak\x1b[31m\x07",
    b"not \xff utf-8",
    b"@DATA@ @NONCE@ &lt;",
];

#[test]
fn the_map_is_one_file_that_shows_hostile_names_as_text() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    for (index, name) in HOSTILE.iter().enumerate() {
        let dir = source.join(OsStr::from_bytes(name));
        env.write(
            &dir.join(OsStr::from_bytes(name)),
            noise(90_000, index as u64),
        );
    }
    // A name cannot contain a slash, but a package can.
    let site = source.join("lib/python3.12/site-packages/x-1.dist-info");
    let name = "</script><script>document.title='owned'</script>";
    env.write(
        &site.join("METADATA"),
        format!("Name: {name}\nVersion: {name}\n"),
    );
    env.write(
        &site.join("RECORD"),
        "x-1.dist-info/METADATA,,\nx-1.dist-info/RECORD,,\n",
    );
    env.envfs(&["import", "-q", "source", "e"]).ok();
    let prefix = env.mount("e");
    env.write(&prefix.join("fresh"), noise(80_000, 50));
    env.envfs(&["du", "e", "--html", "map.html"]).ok();
    env.envfs(&["du", "e", "--html", "map.html"])
        .fails(4, &["map.html", "--force"]);
    env.envfs(&["du", "e", "--html", "map.html", "--force"])
        .ok();
    let page = fs::read_to_string(env.work().join("map.html")).unwrap();
    assert_eq!(env.envfs(&["du", "e", "--html", "-"]).ok().out, page);
    // Two elements of script begin and end, and nothing is loaded.
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script").count(), 2);
    for request in [
        "http:", "https:", "src=", "href=", "url(", "@import", "fetch(",
    ] {
        let own = page.split(r#"id="data">"#).next().unwrap();
        assert!(!own.contains(request), "{request}");
    }
    assert!(!page.contains("<img"));
    assert!(!page.contains('\x1b') && !page.contains('\x07'));
    assert!(page.contains("default-src 'none'"));

    let Some(chromium) = find("chromium") else {
        skip_allowed("no chromium");
        return;
    };
    for (view, expected) in [
        (
            "",
            &[
                "not \\377 utf-8\"/",
                "line\\nbreak\\033[31m\\a",
                "fresh",
                "not committed",
            ][..],
        ),
        (
            "#p-1",
            &[
                "&lt;/script&gt;&lt;script&gt;document.title='owned'&lt;/script&gt;",
                "outside packages",
            ],
        ),
        ("#d1", &["aria-current=\"page\""]),
        ("#p77", &["fresh"]),
    ] {
        let mut command = env.command(&chromium);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
            .arg(format!(
                "--user-data-dir={}",
                env.work().join("browser").display()
            ))
            .arg(format!(
                "file://{}{view}",
                env.work().join("map.html").display()
            ));
        let done = run_for(command, 120).ok();
        assert!(
            done.out.contains("<title>e – envfs du</title>"),
            "{view}: {}",
            done.err
        );
        let (before, after) = done.out.split_once(r#"id="data">"#).unwrap();
        let drawn = [before, after.split_once("</script>").unwrap().1].concat();
        for text in expected {
            assert!(drawn.contains(text), "{view}: {text}");
        }
        assert!(drawn.contains("class=\"tile"), "{view}");
        assert!(!drawn.contains("<img"), "{view}");
    }
}
