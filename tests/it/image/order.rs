//! The order of data: files that were read first come first in a rebuilt, compacted or imported
//! image.

use std::fs;
use std::path::{Path, PathBuf};

use envfs::squashfs::format::InodeBody;
use envfs::squashfs::reader::{Image, ReaderOptions};

use crate::support::samples::noise;
use crate::support::tree::{digest, read};
use crate::support::{TestEnv, images};

/// The files that programs read, in this order. The last has two names.
const USED: [&str; 5] = [
    "lib/large-7",
    "lib/small-33",
    "lib/small-02",
    "lib/large-3",
    "z/last",
];

/// Creates a tree with large files and with small ones, which share blocks.
fn source(env: &TestEnv) -> PathBuf {
    let source = env.work().join("source");
    for index in 0..10 {
        let path = source.join(format!("lib/large-{index}"));
        env.write(&path, noise(300_000, 100 + index));
    }
    for index in 0..40 {
        let path = source.join(format!("lib/small-{index:02}"));
        env.write(&path, noise(9_000, 1000 + index));
    }
    env.write(&source.join("z/last"), noise(20_000, 5));
    fs::hard_link(source.join("z/last"), source.join("a-name-of-last")).unwrap();
    env.user().give(&source.join("a-name-of-last"));
    source
}

/// Imports the tree.
fn imported(env: &TestEnv) -> PathBuf {
    let source = source(env);
    let word = source.to_str().unwrap();
    env.envfs(&["import", "-q", word, "e"]).ok();
    source
}

/// Mounts, reads the files, and unmounts.
fn use_files(env: &TestEnv, name: &str) {
    let prefix = env.mount(name);
    for path in USED {
        env.sh(&format!("cat '{}/{path}' >/dev/null", prefix.display()))
            .ok();
    }
    env.envfs(&["unmount", "-q", name]).ok();
}

/// Where the data of a file begins: the position of its block, and the offset there.
type Place = (u64, u32);

/// Returns the files of an image in the order of their data, with one name each.
fn places(image: &Path) -> Vec<(Place, String)> {
    let image = Image::open(image, ReaderOptions::default()).unwrap();
    let mut found = Vec::new();
    let mut pending = vec![(String::new(), image.inode(image.root()).unwrap())];
    while let Some((dir, inode)) = pending.pop() {
        for (name, entry) in image.read_dir(&inode).unwrap().iter() {
            let path = format!("{dir}{}", String::from_utf8_lossy(name));
            let inode = image.entry_inode(&entry).unwrap();
            match &inode.body {
                InodeBody::Directory(_) => pending.push((format!("{path}/"), inode)),
                InodeBody::File(_) => {
                    let layout = image.file_layout(&inode).unwrap();
                    let place = match layout.fragment().filter(|_| layout.blocks().is_empty()) {
                        Some(tail) => (image.fragment(tail.index).unwrap().start, tail.offset),
                        None => (layout.start(), 0),
                    };
                    found.push((place, path));
                }
                _ => {}
            }
        }
    }
    found.sort();
    // Of two names at one place, keep the last.
    found.reverse();
    found.dedup_by_key(|(place, _)| *place);
    found.reverse();
    found
}

/// Asserts that the data of the used files comes before that of all others: in the order of use
/// among those with blocks of their own, and among those that share blocks.
#[track_caller]
fn assert_used_first(image: &Path) {
    let found = places(image);
    let order: Vec<&str> = found.iter().map(|(_, path)| path.as_str()).collect();
    let (first, rest) = order.split_at(USED.len());
    let only = |paths: &[&str], kind: &str| -> Vec<String> {
        let these = paths
            .iter()
            .filter(|path| path.contains("large") == (kind == "large"));
        these.map(|path| (*path).to_owned()).collect()
    };
    for kind in ["large", "small"] {
        assert_eq!(only(first, kind), only(&USED, kind), "{order:?}");
    }
    assert!(rest.len() >= 30, "{order:?}");
    let block = |at: usize| found[at].0.0;
    assert_ne!(
        block(USED.len() - 1),
        block(USED.len()),
        "they share a block with others"
    );
}

/// Asserts that an environment and its image have the content of a tree.
#[track_caller]
fn assert_has(env: &TestEnv, name: &str, source: &Path) {
    let prefix = env.mount(name);
    assert_eq!(digest(env, source), digest(env, &prefix));
    env.envfs(&["unmount", "-q", name]).ok();
    env.verify(name);
    let expected = &read(source);
    fs::remove_dir_all(env.root().join("others")).ok();
    images::assert_read_by_others(env, &images::current(env, name), expected);
}

#[test]
fn a_rebuilt_image_begins_with_the_files_that_were_read_first() {
    for env in TestEnv::of_all_users() {
        let source = imported(&env);
        env.envfs(&["commit", "-q", "--rebuild", "e"]).ok();
        let by_path = places(&images::current(&env, "e"));
        assert!(by_path[0].1.ends_with("large-0"), "{by_path:?}");
        use_files(&env, "e");
        let listed = env.envfs(&["stats", "--profile", "e"]).ok().out;
        let mut used = USED.to_vec();
        used[4] = "a-name-of-last";
        assert_eq!(listed.lines().collect::<Vec<_>>(), used);
        env.envfs(&["commit", "-q", "--rebuild", "e"]).ok();
        assert_used_first(&images::current(&env, "e"));
        assert_has(&env, "e", &source);
    }
}

#[test]
fn a_compacted_image_begins_with_the_files_that_were_read_first() {
    let Some(env) = TestEnv::new() else { return };
    let source = imported(&env);
    use_files(&env, "e");
    let prefix = env.mount("e");
    // Read in this session: the profile is saved before the commit.
    fs::read(prefix.join("lib/large-7")).unwrap();
    for index in 10..18 {
        fs::remove_file(prefix.join(format!("lib/small-{index}"))).unwrap();
        fs::remove_file(source.join(format!("lib/small-{index}"))).unwrap();
    }
    // A used file whose content is new, and one that was removed.
    for root in [&prefix, &source] {
        fs::write(root.join("lib/small-33"), noise(9_000, 77)).unwrap();
    }
    let done = env.envfs(&["commit", "--compact", "--json", "e"]).ok();
    let done = done.json();
    assert_eq!(done["way"], "compact");
    assert!(
        done["image"]["data"]["blocks_carried"].as_u64() > Some(20),
        "{done}"
    );
    env.envfs(&["unmount", "-q", "e"]).ok();
    assert_used_first(&images::current(&env, "e"));
    let of = |root: &Path, file: &str| fs::metadata(root.join(file)).unwrap().modified().unwrap();
    let prefix = env.mount("e");
    for file in ["lib", "lib/small-33"] {
        let time = of(&prefix, file);
        fs::File::open(source.join(file))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    env.envfs(&["unmount", "-q", "e"]).ok();
    assert_has(&env, "e", &source);
}

#[test]
fn a_new_image_depends_on_the_profile_and_not_on_threads() {
    let Some(env) = TestEnv::new() else { return };
    imported(&env);
    let image = |arguments: &[&str]| {
        let words = [&["commit", "-q", "e"], arguments].concat();
        env.envfs_with("SOURCE_DATE_EPOCH", "1000000000", &words)
            .ok();
        blake3::hash(&fs::read(images::current(&env, "e")).unwrap())
    };
    let plain = image(&["--rebuild"]);
    use_files(&env, "e");
    let profile = env.home_of("e").join("profile");
    let saved = fs::read(&profile).unwrap();
    let ordered = image(&["--rebuild", "--threads", "1"]);
    assert_ne!(ordered, plain);
    assert_eq!(image(&["--rebuild", "--threads", "7"]), ordered);
    assert_eq!(image(&["--rebuild", "--no-profile"]), plain);
    let compacted = image(&["--compact", "--threads", "1"]);
    assert_ne!(compacted, plain);
    assert_eq!(image(&["--rebuild", "--no-profile"]), plain);
    assert_eq!(image(&["--compact", "--threads", "7"]), compacted);
    // A profile that is damaged, missing or switched off changes nothing.
    for damaged in [&saved[..saved.len() / 2], b"", &[0xff; 900]] {
        fs::write(&profile, damaged).unwrap();
        assert_eq!(image(&["--rebuild"]), plain);
    }
    fs::remove_file(&profile).unwrap();
    assert_eq!(image(&["--rebuild"]), plain);
    fs::write(&profile, &saved).unwrap();
    assert_eq!(image(&["--rebuild"]), ordered);
    fs::write(env.store().join("config.toml"), "profile = \"off\"\n").unwrap();
    assert_eq!(image(&["--rebuild"]), plain);
}

#[test]
fn an_import_is_ordered_by_the_profile_of_another_environment_or_a_file() {
    for env in TestEnv::of_all_users() {
        let source = imported(&env);
        let word = source.to_str().unwrap();
        env.envfs(&["import", word, "n", "--profile", "e"])
            .fails(3, &["e has no profile"]);
        use_files(&env, "e");
        env.envfs(&["import", "-q", word, "n", "--profile", "e"])
            .ok();
        assert_used_first(&images::current(&env, "n"));
        assert_has(&env, "n", &source);
        // A list of paths; those that do not exist, lead outside or are no files count nothing.
        let list = env.work().join("list");
        let lines = format!(
            "nowhere\n./{}\n../list\nlib\n\n{}\n/etc/passwd\nlib/../z/last\n",
            USED[0],
            USED[1..].join("\n")
        );
        env.write(&list, lines);
        let list = list.to_str().unwrap();
        env.envfs(&["import", "-q", word, "f", "--profile", list])
            .ok();
        assert_used_first(&images::current(&env, "f"));
        assert_has(&env, "f", &source);
        let same = |name| {
            fs::read(images::current(&env, name))
                .unwrap()
                .split_off(4096)
        };
        assert!(same("n") == same("f"), "the images differ");
        let image = images::current(&env, "n");
        let image = image.to_str().unwrap();
        env.envfs(&["import", image, "i", "--profile", list])
            .fails(2, &["not a directory", "--rebuild"]);
        env.envfs(&["import", word, "g", "--profile", "none-such"])
            .fails(3, &["none-such", "one path a line"]);
    }
}
