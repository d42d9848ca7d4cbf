//! `envfs export --history`, and the import of its archives.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::tree;
use crate::support::{Disk, TestEnv, has, samples, wait_for};

/// Writes a file in a mount, as its user.
fn put(env: &TestEnv, path: &Path, content: impl AsRef<[u8]>) {
    let part = env.work().join("part");
    env.write(&part, content);
    let script = format!("cp '{}' '{}'", part.display(), path.display());
    env.sh(&script).ok();
}

/// Makes an environment `e` with a branched history, of which revision 2 was removed. Returns the
/// trees of the revisions that are left, and the archive.
fn with_history(env: &TestEnv) -> (Vec<(i64, String)>, PathBuf) {
    env.import_sample("e");
    let prefix = env.mount("e");
    let run = |script: &str| {
        env.sh(&format!("cd '{}' && {script}", prefix.display()))
            .ok()
    };
    put(env, &prefix.join("big"), samples::noise(3 << 20, 1));
    env.envfs(&["commit", "-q", "e", "-m", "two"]).ok();
    run("echo three >lib/c.txt");
    env.envfs(&["commit", "-q", "e", "-m", "three\nlines"]).ok();
    run("mkdir new");
    put(env, &prefix.join("new/file"), samples::noise(300_000, 4));
    env.envfs(&["commit", "-q", "e"]).ok();
    // A branch: 4 is no ancestor of 5.
    env.envfs(&["undo", "e"]).ok();
    env.envfs(&["discard", "-y", "-q", "e"]).ok();
    run("echo 5 >five");
    env.envfs(&["commit", "-q", "e"]).ok();
    env.envfs(&["rollback", "-y", "-q", "e", "3"]).ok();
    run("rm lib/c.txt && ln big link");
    env.envfs(&["commit", "-q", "e"]).ok();
    for (tag, revision) in [
        ("first", "1"),
        ("a", "3"),
        ("b", "4"),
        ("c", "5"),
        ("d", "6"),
    ] {
        env.envfs(&["tag", "-q", "e", tag, revision]).ok();
    }
    env.envfs(&["gc", "-q", "--keep", "1", "e"]).ok();
    env.envfs(&["unmount", "e"]).ok();
    let archive = env.work().join("e.history");
    let word = archive.to_str().unwrap().to_owned();
    env.envfs(&["export", "e", "--history", &word]).ok();
    (trees(env, "e", &[1, 3, 4, 5, 6, 7]), archive)
}

/// Returns what is in revisions.
fn trees(env: &TestEnv, name: &str, numbers: &[i64]) -> Vec<(i64, String)> {
    let at = env.work().join("revision");
    let read = |number: &i64| {
        let word = format!("{name}@{number}");
        env.sh(&format!("mkdir -p '{}'", at.display())).ok();
        env.envfs(&["mount", "-q", &word, at.to_str().unwrap()])
            .ok();
        let found = tree::digest(env, &at);
        env.envfs(&["unmount", "-q", &word]).ok();
        wait_for("the end of the session", || env.daemons().is_empty());
        (*number, found)
    };
    numbers.iter().map(read).collect()
}

/// Returns the history of an environment, without the names of image files.
fn log(env: &TestEnv, name: &str) -> Vec<Value> {
    let mut log = env.envfs(&["log", "--json", name]).ok().json();
    for entry in log.as_array_mut().unwrap() {
        let entry = entry.as_object_mut().unwrap();
        entry.remove("image");
        entry.remove("frees_bytes");
    }
    log.as_array().unwrap().clone()
}

fn origin(env: &TestEnv, name: &str) -> Value {
    env.envfs(&["show", "--json", name]).ok().json()["origin"].clone()
}

/// Returns the bytes of the image of a revision.
fn image(env: &TestEnv, name: &str, revision: i64) -> Vec<u8> {
    let file = env.work().join("image");
    let rev = revision.to_string();
    env.envfs(&["export", "-qf", name, file.to_str().unwrap(), "--rev", &rev])
        .ok();
    fs::read(file).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_revision_of_a_history_survives_export_and_import() {
    for env in TestEnv::of_all_users() {
        let (trees_before, archive) = with_history(&env);
        let before = log(&env, "e");
        assert_eq!(before.len(), 6);
        // The same history has the same bytes.
        let again = env.work().join("again");
        env.envfs(&["export", "--history", "e", text(&again)]).ok();
        assert!(fs::read(&again).unwrap() == fs::read(&archive).unwrap());
        env.envfs(&["export", "--history", "e", text(&again)])
            .fails(4, &["already exists"]);
        // The 3 MiB of the second revision are in all later ones, and in the archive once.
        let size = fs::metadata(&archive).unwrap().len();
        assert!((3 << 20..4 << 20).contains(&size), "{size}");

        let done = env.envfs(&["import", "--json", text(&archive), "f"]).ok();
        let done = done.json();
        assert_eq!(done["revisions"], json!([1, 3, 4, 5, 6, 7]), "{done}");
        assert_eq!(done["current"], 7);
        assert_eq!(log(&env, "f"), before);
        assert_eq!(origin(&env, "f"), origin(&env, "e"));
        env.verify("f");
        for (number, _) in &trees_before {
            assert!(
                image(&env, "e", *number) == image(&env, "f", *number),
                "{number}"
            );
        }
        let numbers: Vec<i64> = trees_before.iter().map(|(number, _)| *number).collect();
        assert_eq!(trees(&env, "f", &numbers), trees_before);
        // Objects keep their identities: what changed is found as before.
        for pair in [["1", "7"], ["4", "5"], ["3", "7"]] {
            let diff = |name| env.envfs(&["diff", "--json", name, pair[0], pair[1]]).ok();
            assert_eq!(diff("e").json(), diff("f").json(), "{pair:?}");
            let [old, new] = [format!("e@{}", pair[0]), format!("f@{}", pair[1])];
            let between = env.envfs(&["diff", "--json", &old, &new]).ok();
            assert_eq!(between.json(), diff("e").json(), "{pair:?}");
        }
        // It goes on from there.
        let prefix = env.mount("f");
        put(&env, &prefix.join("lib/further"), "x");
        env.envfs(&["commit", "-q", "f"]).ok();
        assert_eq!(log(&env, "f")[0]["revision"], 8);
        env.envfs(&["rollback", "-y", "f", "b"]).ok();
        assert_eq!(tree::digest(&env, &prefix), trees_before[2].1);
        env.envfs(&["unmount", "f"]).ok();
        env.verify("f");
        // Without a name, the archive's is used.
        env.envfs(&["remove", "-y", "e"]).ok();
        env.envfs(&["import", text(&archive)]).ok();
        assert_eq!(log(&env, "e"), before);
        let leftovers = fs::read_dir(env.store().join("store")).unwrap().count();
        assert_eq!(leftovers, 2);
    }
}

#[test]
fn a_revision_is_exported_with_its_ancestors_and_other_programs_can_rebuild_it() {
    let Some(env) = TestEnv::new() else { return };
    let (trees_before, _) = with_history(&env);
    let archive = env.work().join("five.history");
    env.envfs(&["export", "--history", "e@c", text(&archive)])
        .ok();
    env.envfs(&["export", "--history", "e@c", "x", "--rev", "3"])
        .fails(2, &["twice"]);
    env.envfs(&["export", "--history", "e@2", "x"])
        .fails(3, &["no revision 2"]);
    env.envfs(&["import", text(&archive), "f"]).ok();
    let revisions = log(&env, "f");
    let numbers = revisions
        .iter()
        .map(|one| one["revision"].as_i64().unwrap());
    assert_eq!(numbers.collect::<Vec<_>>(), [5, 3, 1]);
    assert_eq!(revisions[0]["current"], true);
    let tags = env.envfs(&["tag", "--json", "f"]).ok().json();
    let tag = |tag: &str, revision: i64| json!({ "tag": tag, "revision": revision });
    assert_eq!(tags, json!([tag("a", 3), tag("c", 5), tag("first", 1)]));
    assert_eq!(tree::digest(&env, &env.mount("f")), trees_before[3].1);

    if !has("tar") || !has("sha256sum") || !has("python3") {
        return;
    }
    let script = format!(
        "mkdir open && cd open && tar -xf '{}' && \
         sha256sum --quiet -c envfs-history.sha256 && cd blobs/sha256 && \
         for blob in *; do echo \"$blob  $blob\"; done | sha256sum --quiet -c - && cd ../.. && \
         python3 -c 'import json; m = json.load(open(\"envfs-history.json\")); \
         r = [r for r in m[\"revisions\"] if r[\"revision\"] == 5][0]; \
         print(*m[\"images\"][r[\"image\"]][\"blobs\"], sep=\"\\n\")' | \
         (cd blobs/sha256 && xargs cat) >rebuilt",
        archive.display()
    );
    env.sh(&format!("cd '{}' && {script}", env.work().display()))
        .ok();
    let rebuilt = fs::read(env.work().join("open/rebuilt")).unwrap();
    assert!(rebuilt == image(&env, "e", 5));
}

#[test]
fn new_revisions_are_added_to_an_environment_of_the_same_origin() {
    for env in TestEnv::of_all_users() {
        let (_, archive) = with_history(&env);
        env.envfs(&["import", "-q", text(&archive), "f"]).ok();
        let done = env.envfs(&["import", text(&archive), "f"]).ok();
        assert!(done.err.contains("already has all revisions"), "{done}");
        // The other one goes on.
        let prefix = env.mount("e");
        put(&env, &prefix.join("lib/a.txt"), "eight");
        env.envfs(&["commit", "-q", "e", "-m", "eight"]).ok();
        env.envfs(&["rollback", "-y", "-q", "e", "first"]).ok();
        put(&env, &prefix.join("ten"), samples::noise(200_000, 10));
        env.envfs(&["commit", "-q", "e", "-m", "ten"]).ok();
        env.envfs(&["tag", "-q", "e", "last"]).ok();
        env.envfs(&["tag", "-q", "e", "a", "8"]).ok();
        put(&env, &prefix.join("uncommitted"), "");
        let newer = env.work().join("newer");
        let done = env.envfs(&["export", "--history", "e", text(&newer)]).ok();
        assert!(
            done.err
                .contains("uncommitted changes of e are not included"),
            "{done}"
        );
        env.sh(&format!("rm '{}/uncommitted'", prefix.display()))
            .ok();

        let own = env.mount("f");
        let before = tree::digest(&env, &own);
        env.envfs(&["import", text(&newer), "f"])
            .fails(5, &["f is mounted"]);
        put(&env, &own.join("mine"), "");
        env.envfs(&["unmount", "f"]).ok();
        env.envfs(&["import", text(&newer), "f"])
            .fails(4, &["f has uncommitted changes", "envfs commit f"]);
        env.envfs(&["discard", "-y", "f"]).ok();
        env.envfs(&["import", text(&newer), "f", "--prefix", "/x"])
            .fails(2, &["its prefix does not change"]);
        let done = env.envfs(&["import", "--json", text(&newer), "f"]).ok();
        assert_eq!(done.json()["revisions"], json!([8, 9, 10]), "{done}");
        assert_eq!(done.json()["other_tags"], json!(["a"]), "{done}");
        let (mut theirs, mut ours) = (log(&env, "e"), log(&env, "f"));
        for entry in theirs.iter_mut().chain(&mut ours) {
            entry.as_object_mut().unwrap().remove("tags");
        }
        assert_eq!(ours, theirs);
        env.verify("f");
        let own = env.mount("f");
        assert_eq!(tree::digest(&env, &own), tree::digest(&env, &prefix));
        for number in [8, 9, 10] {
            assert!(
                image(&env, "e", number) == image(&env, "f", number),
                "{number}"
            );
        }
        // It is an operation like others.
        env.envfs(&["undo", "f"]).ok();
        assert_eq!(tree::digest(&env, &own), before);
        env.envfs(&["undo", "f"]).ok();
        // An older archive adds nothing.
        env.envfs(&["unmount", "f"]).ok();
        let done = env.envfs(&["import", text(&archive), "f"]).ok();
        assert!(done.err.contains("already has all revisions"), "{done}");
        env.verify("f");

        // Both have an eleventh revision of their own.
        for (name, at) in [("e", &prefix), ("f", &own)] {
            env.mount(name);
            put(&env, &at.join("own"), name);
            env.envfs(&["commit", "-q", name]).ok();
            env.envfs(&["unmount", name]).ok();
        }
        env.envfs(&["export", "-f", "--history", "e", text(&newer)])
            .ok();
        let words = ["differ from revision 11 on", "envfs diff f@11 f-2@11"];
        env.envfs(&["import", text(&newer), "f"]).fails(4, &words);
        // New objects of both have the same identities, and are told apart.
        let differ = |old, new| env.envfs(&["diff", "--name-only", old, new]).ok().out;
        assert_eq!(differ("e@11", "f@11"), "own\n");
        let lines = env.envfs(&["diff", "-c", "e@11", "f@11", "own"]).ok();
        assert!(
            lines.out.contains("-e") && lines.out.contains("+f"),
            "{lines}"
        );
        env.import_sample("other");
        assert_eq!(differ("e@1", "other@1"), "");
        env.envfs(&["import", text(&newer), "other"])
            .fails(4, &["has another history"]);
        env.verify("f");
    }
}

#[test]
fn a_clone_has_the_origin_but_another_history() {
    let Some(env) = TestEnv::new() else { return };
    let (_, archive) = with_history(&env);
    env.envfs(&["clone", "-q", "e", "c"]).ok();
    assert_eq!(origin(&env, "c"), origin(&env, "e"));
    env.envfs(&["import", text(&archive), "c"])
        .fails(4, &["differ from revision 1 on"]);
}

#[test]
fn an_imported_history_is_relocated_in_one_more_revision() {
    if !has("python3") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    env.envfs(&["create", "v", "--", "python3", "-m", "venv", "{prefix}"])
        .ok();
    let archive = env.work().join("v.history");
    env.envfs(&["export", "v", "--history", text(&archive)])
        .ok();
    let done = env.envfs(&["import", "--json", text(&archive), "w"]).ok();
    let done = done.json();
    assert_eq!(done["revisions"], json!([1]), "{done}");
    assert_eq!(done["current"], 2, "{done}");
    assert_eq!(
        done["relocated"]["from"][0],
        text(&env.prefix("v")),
        "{done}"
    );
    let pip = env.mount("w").join("bin/pip");
    let version = env.sh(&format!("'{}' --version", pip.display())).ok();
    assert!(version.out.contains(text(&env.prefix("w"))), "{version}");
    env.envfs(&["import", "-q", "--no-relocate", text(&archive), "x"])
        .ok();
    assert_eq!(env.count(&["log", "x"]), 1);
    env.envfs(&["import", "--compression", "xz", text(&archive), "y"])
        .fails(2, &["--compression has no effect"]);
}

/// Returns an archive with another manifest, whose header is right.
fn with_manifest(archive: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let size = std::str::from_utf8(&archive[124..135]).unwrap();
    let size = usize::from_str_radix(size, 8).unwrap();
    let mut manifest: Value = serde_json::from_slice(&archive[512..512 + size]).unwrap();
    change(&mut manifest);
    let text = serde_json::to_vec(&manifest).unwrap();
    let mut header = archive[..512].to_vec();
    header[124..135].copy_from_slice(format!("{:011o}", text.len()).as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let checksum = {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(&text);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}  envfs-history.json\n")
    };
    let mut out = [header, text].concat();
    out.resize(out.len().next_multiple_of(512), 0);
    let rest = &archive[512 + size.next_multiple_of(512)..];
    out.extend(&rest[..512]);
    out.extend(checksum.as_bytes());
    out.extend(&rest[512 + checksum.len()..]);
    out
}

#[test]
fn archives_that_were_changed_are_refused_and_leave_nothing() {
    let Some(env) = TestEnv::new() else { return };
    let (_, archive) = with_history(&env);
    let good = fs::read(&archive).unwrap();
    env.envfs(&["remove", "-y", "e"]).ok();
    let file = env.work().join("bad.history");
    let refused = |bytes: &[u8], word: &str| {
        fs::write(&file, bytes).unwrap();
        let done = env.envfs(&["import", text(&file), "e"]);
        assert!(matches!(done.code, 2 | 6), "{word}: {done}");
        assert!(done.err.contains(word), "{word}: {done}");
        let left = fs::read_dir(env.store().join("store")).unwrap().count();
        assert_eq!(left, 0, "{word}");
    };
    let edited = |change: &dyn Fn(&mut Value)| with_manifest(&good, change);
    // The same archive in other words is accepted.
    fs::write(&file, edited(&|_| {})).unwrap();
    env.envfs(&["import", "-q", text(&file), "e"]).ok();
    env.envfs(&["remove", "-y", "e"]).ok();

    for cut in [600, 4096, good.len() / 2, good.len() - 1024, good.len() - 1] {
        refused(&good[..cut], "truncated");
    }
    refused(&[&good[..], &[0; 512]].concat(), "truncated, or changed");
    refused(&[&good[..], &good[..]].concat(), "truncated, or changed");
    // A flipped bit: in the content of a blob, and in a header.
    let middle = good.len() / 2;
    let flip = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    refused(&flip(middle), "differs from its digest");
    let manifest_end = 512
        + good[512..]
            .windows(3)
            .position(|text| text == b"\n}\n")
            .unwrap()
        + 3;
    let checksum = manifest_end.next_multiple_of(512);
    refused(&flip(checksum + 3), "the header of envfs-history.sha256");
    refused(&flip(checksum + 515), "differs from its checksum");
    // A letter of a message.
    let letter = good.windows(5).position(|text| text == b"three").unwrap();
    refused(&flip(letter), "differs from its checksum");
    let first = checksum + 1024;
    for at in [first, first + 124, first + 156] {
        refused(&flip(at), "the header of blobs/sha256/");
    }
    let mut escaping = good.clone();
    escaping[first..first + 12].copy_from_slice(b"../../../etc");
    refused(&escaping, "the header of blobs/sha256/");

    let set = |pointer: &'static str, value: Value| {
        move |manifest: &mut Value| *manifest.pointer_mut(pointer).unwrap() = value.clone()
    };
    let huge = json!(u64::MAX);
    for (pointer, value, word) in [
        ("/version", json!(2), "newer than this envfs"),
        ("/format", json!("other"), "another format"),
        ("/origin", json!("../x"), "origin"),
        ("/prefix", json!("relative"), "prefix"),
        ("/name", json!("../x"), "name"),
        ("/current", json!(99), "no current revision"),
        ("/revisions/1/revision", json!(1), "number 1"),
        ("/revisions/1/parent", json!(7), "parent"),
        ("/revisions/1/parent", json!(3), "parent"),
        ("/revisions/5/revision", json!(i64::MAX), "number"),
        ("/revisions/0/revision", json!(-1), "number"),
        ("/revisions/0/time", json!(i64::MAX), "time"),
        ("/revisions/0/image", json!(77), "image"),
        ("/revisions/0/kind", json!("magic"), "invalid"),
        ("/tags/a", json!(2), "tag"),
        ("/images/0/size", huge.clone(), "size"),
        ("/images/0/digest", json!("00"), "differs from its digest"),
        ("/images/1/ids", json!("00"), "map"),
        ("/images/1/blobs/1", json!("00"), "not listed"),
        ("/images/0/dead_bytes", huge.clone(), "numbers"),
        ("/images/0/compression", json!("magic"), "compression"),
        (
            "/images/0/link_counts",
            json!([[1_u64 << 40, 1]]),
            "link counts",
        ),
        ("/blobs/0/size", huge, "size"),
        ("/blobs/0/size", json!(0), "no content"),
        (
            "/blobs/0/sha256",
            json!("../../../../etc/passwd"),
            "SHA-256",
        ),
    ] {
        refused(&edited(&set(pointer, value)), word);
    }
    // Lists that do not fit each other.
    let push = |list: &'static str, from: &'static str| {
        move |manifest: &mut Value| {
            let more = manifest.pointer(from).unwrap().clone();
            let list = manifest.pointer_mut(list).unwrap();
            list.as_array_mut().unwrap().push(more);
        }
    };
    refused(&edited(&push("/blobs", "/blobs/0")), "listed twice");
    refused(
        &edited(&push("/images", "/images/0")),
        "belongs to no revision",
    );
    refused(
        &edited(&push("/images/0/blobs", "/images/0/blobs/0")),
        "occurs twice",
    );
    refused(&edited(&push("/revisions", "/revisions/0")), "number 1");
    refused(
        &edited(&|manifest| manifest["more"] = json!(1)),
        "unknown field",
    );
    let swapped = edited(&|manifest| {
        let blobs = manifest.pointer_mut("/images/0/blobs").unwrap();
        blobs.as_array_mut().unwrap().swap(0, 1);
    });
    refused(&swapped, "differs from its digest");
}

#[test]
fn export_leaves_nothing_on_a_full_disk_and_reports_damage() {
    let Some(env) = TestEnv::new() else { return };
    let (_, _) = with_history(&env);
    if let Some(disk) = Disk::new(&env.work(), "mkfs.ext4", &["-q", "-F"], 4) {
        let to = disk.at().join("e.history");
        env.envfs(&["export", "--history", "e", text(&to)])
            .fails(8, &["No space left"]);
        let left: Vec<_> = fs::read_dir(disk.at()).unwrap().flatten().collect();
        let names = left.iter().map(|entry| entry.file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["lost+found"]);
    }
    // A flipped bit in what only one image has.
    let image = crate::support::images::current(&env, "e");
    let mut bytes = fs::read(&image).unwrap();
    let at = bytes.len() - 5000;
    bytes[at] ^= 1;
    fs::remove_file(&image).unwrap();
    env.write(&image, &bytes);
    let to = env.work().join("damaged.history");
    env.envfs(&["export", "--history", "e", text(&to)])
        .fails(6, &["differ from their digest"]);
    assert!(!to.exists());
}
