//! The cost of each kind of change: blocks compressed, carried over and left dead. Counts, not
//! times.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use envfs::squashfs::format::InodeBody;
use envfs::squashfs::reader::{Image, ReaderOptions};
use serde_json::Value;

use crate::support::{TestEnv, has, images, run};

const BLOCK: usize = 4096;
/// Blocks of the large file, the last of them short.
const BLOCKS: u64 = 65;
/// Fragment blocks of the 40 small files of 500 bytes: 8 fit in one.
const FRAGMENTS: u64 = 5;

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns compressible bytes without equal blocks.
fn text(from: usize, len: usize) -> Vec<u8> {
    let lines = (from..).flat_map(|n| format!("line {n} of {}\n", n * 7919 % 10_007).into_bytes());
    lines.take(len).collect()
}

fn large() -> Vec<u8> {
    text(0, 64 * BLOCK + 100)
}

struct Scene {
    env: TestEnv,
    prefix: PathBuf,
    first: PathBuf,
}

impl Scene {
    fn new() -> Option<Scene> {
        let env = TestEnv::new()?;
        let source = env.work().join("source");
        env.write(&source.join("large"), large());
        for i in 0..40 {
            let path = source.join(format!("pkg/sub{}/f{i:02}.py", i % 2));
            env.write(&path, text(1_000_000 + i * 1000, 500));
        }
        // Images store whole seconds: rewriting a file with the same content within the same second
        // would be no change.
        let mut old = Command::new("find");
        old.arg(&source);
        old.args(["-exec", "touch", "-d", "@1000000000", "{}", "+"]);
        run(old).ok();
        let options = ["--block-size", "4096", "--compression", "zstd:1"];
        let args = [&["import", "-q", word(&source), "e"][..], &options].concat();
        env.envfs(&args).ok();
        let prefix = env.mount("e");
        let first = images::current(&env, "e");
        Some(Scene { env, prefix, first })
    }

    /// Makes a change, commits and rolls back. Returns what the commit did.
    #[track_caller]
    fn cost(&self, change: impl Fn(&Path)) -> Cost {
        change(&self.prefix);
        let json = self.env.envfs(&["commit", "--json", "e"]).ok().json();
        let image = images::current(&self.env, "e");
        let new = Image::open(&image, ReaderOptions::default()).unwrap();
        let old = Image::open(&self.first, ReaderOptions::default()).unwrap();
        let cost = Cost {
            fresh: changed_blocks(&old, &new),
            in_place: same_data_area(&old, &new),
            json,
        };
        self.env.verify("e");
        self.env.envfs(&["rollback", "-q", "e", "1"]).ok();
        cost
    }
}

struct Cost {
    json: Value,
    /// Indexes of the blocks of the large file whose stored bytes differ from the old image.
    fresh: Option<Vec<u64>>,
    /// Whether the new image begins with the data area of the old one.
    in_place: bool,
}

impl Cost {
    fn count(&self, name: &str) -> u64 {
        self.json["image"]["data"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {}", self.json))
    }

    /// Asserts the numbers of blocks compressed (or stored) and of data and fragment blocks carried
    /// over, and which blocks of the large file are new.
    #[track_caller]
    fn is(&self, what: &str, packed: u64, data: u64, fragments: u64, fresh: &[u64]) -> &Self {
        let found = (
            self.count("blocks_compressed") + self.count("blocks_stored_raw"),
            self.count("fragments_carried"),
        );
        assert_eq!(found, (packed, fragments), "{what}: {}", self.json);
        assert!(self.in_place, "{what}");
        // When tables are amended, blocks of unvisited files are not counted.
        let amended = self.json["image"]["tables_appended"] != 0;
        let carried = self.count("blocks_carried");
        assert!(
            carried == data || (amended && carried < data),
            "{what}: {}",
            self.json
        );
        assert_eq!(self.fresh.as_deref().unwrap_or_default(), fresh, "{what}");
        self
    }

    #[track_caller]
    fn way(&self, way: &str) -> &Self {
        assert_eq!(self.json["way"], way, "{}", self.json);
        self
    }

    fn dead(&self) -> u64 {
        self.json["dead_bytes"].as_u64().unwrap()
    }
}

fn stored_blocks(image: &Image) -> Option<Vec<Vec<u8>>> {
    let root = image.inode(image.root()).unwrap();
    let entry = image.lookup(&root, b"large").unwrap()?;
    let inode = image.entry_inode(&entry).unwrap();
    assert!(matches!(inode.body, InodeBody::File(_)));
    let layout = image.file_layout(&inode).unwrap();
    let stored = (0..layout.blocks().len() as u64).map(|index| {
        let (at, size) = layout.position(index).unwrap();
        let mut bytes = vec![0; size.stored() as usize];
        image.read_raw(at, &mut bytes).unwrap();
        bytes
    });
    Some(stored.collect())
}

fn changed_blocks(old: &Image, new: &Image) -> Option<Vec<u64>> {
    let (old, new) = (stored_blocks(old).unwrap(), stored_blocks(new)?);
    let differs = |index: &u64| old.get(*index as usize) != new.get(*index as usize);
    Some((0..new.len() as u64).filter(differs).collect())
}

fn same_data_area(old: &Image, new: &Image) -> bool {
    let read = |image: &Image| {
        let area = old.data_area();
        let mut bytes = vec![0; (area.end - area.start) as usize];
        image.read_raw(area.start, &mut bytes).unwrap();
        bytes
    };
    read(old) == read(new)
}

fn stored_bytes(image: &Path) -> u64 {
    let image = Image::open(image, ReaderOptions::default()).unwrap();
    let blocks = stored_blocks(&image).unwrap();
    blocks.iter().map(|block| block.len() as u64).sum()
}

fn open_large(prefix: &Path) -> fs::File {
    let path = prefix.join("large");
    fs::File::options().write(true).open(path).unwrap()
}

#[test]
fn commit_compresses_only_changed_blocks() {
    let Some(scene) = Scene::new() else { return };
    let whole = stored_bytes(&scene.first);

    let nothing = scene.env.envfs(&["commit", "--json", "e"]).ok().json();
    assert!(nothing["revision"].is_null(), "{nothing}");

    let metadata = scene.cost(|prefix| {
        let mode = |bits| fs::Permissions::from_mode(bits);
        fs::set_permissions(prefix.join("large"), mode(0o600)).unwrap();
        fs::rename(prefix.join("pkg/sub0"), prefix.join("moved")).unwrap();
        fs::hard_link(prefix.join("large"), prefix.join("linked")).unwrap();
        fs::rename(prefix.join("pkg/sub1/f01.py"), prefix.join("f01.py")).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        open_large(prefix).set_modified(time).unwrap();
        std::os::unix::fs::symlink("large", prefix.join("symlink")).unwrap();
        fs::create_dir(prefix.join("empty")).unwrap();
        xattr::set(prefix.join("moved"), "user.a", b"b").unwrap();
    });
    metadata
        .is("attributes and names", 0, BLOCKS, FRAGMENTS, &[])
        .way("append");
    assert_eq!(metadata.dead(), 0);
    assert_eq!(metadata.count("fresh_bytes"), 0);

    // The blocks of a file are contiguous, so the unchanged ones are copied verbatim, and the old
    // ones become dead.
    let in_place = scene.cost(|prefix| {
        open_large(prefix)
            .write_all_at(b"#", 7 * BLOCK as u64 + 9)
            .unwrap();
    });
    in_place.is("a byte in place", 1, BLOCKS - 1, FRAGMENTS, &[7]);
    assert_eq!(in_place.dead(), whole);

    let two = scene.cost(|prefix| {
        let file = open_large(prefix);
        file.write_all_at(&[b'#'; 2], 8 * BLOCK as u64 - 1).unwrap();
    });
    two.is("across two blocks", 2, BLOCKS - 2, FRAGMENTS, &[7, 8]);

    let appended = scene.cost(|prefix| {
        open_large(prefix)
            .write_all_at(b"more", large().len() as u64)
            .unwrap();
    });
    appended.is(
        "an append in the last block",
        1,
        BLOCKS - 1,
        FRAGMENTS,
        &[64],
    );

    let appended = scene.cost(|prefix| {
        let at = large().len() as u64;
        open_large(prefix)
            .write_all_at(&text(2_000_000, 2 * BLOCK), at)
            .unwrap();
    });
    appended.is(
        "an append of blocks",
        3,
        BLOCKS - 1,
        FRAGMENTS,
        &[64, 65, 66],
    );

    let cut = scene.cost(|prefix| open_large(prefix).set_len(10 * BLOCK as u64).unwrap());
    cut.is("cut at a block", 0, 10, FRAGMENTS, &[]);

    let hole = scene.cost(|prefix| {
        open_large(prefix)
            .write_all_at(&[0; BLOCK], 3 * BLOCK as u64)
            .unwrap();
    });
    hole.is("a hole", 0, BLOCKS - 1, FRAGMENTS, &[3]);

    let same = scene.cost(|prefix| fs::write(prefix.join("large"), large()).unwrap());
    same.is("equal content", 0, BLOCKS, FRAGMENTS, &[]);
    assert_eq!((same.dead(), same.count("fresh_bytes")), (0, 0));

    let replaced = scene.cost(|prefix| {
        fs::write(prefix.join("new"), large()).unwrap();
        fs::rename(prefix.join("new"), prefix.join("large")).unwrap();
    });
    replaced.is("replaced by equal content", 0, BLOCKS, FRAGMENTS, &[]);

    // A reinstallation: directories are removed and created again.
    let installed = scene.cost(|prefix| {
        let files: Vec<_> = (0..40)
            .map(|i| format!("pkg/sub{}/f{i:02}.py", i % 2))
            .map(|name| (fs::read(prefix.join(&name)).unwrap(), prefix.join(name)))
            .collect();
        fs::remove_dir_all(prefix.join("pkg")).unwrap();
        fs::create_dir_all(prefix.join("pkg/sub0")).unwrap();
        fs::create_dir_all(prefix.join("pkg/sub1")).unwrap();
        files
            .iter()
            .for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    });
    installed.is("reinstalled", 0, BLOCKS, FRAGMENTS, &[]);
    assert_eq!(installed.dead(), 0);

    let small = scene.cost(|prefix| fs::write(prefix.join("pkg/sub0/f00.py"), "new").unwrap());
    small.is("a small file", 1, BLOCKS, FRAGMENTS, &[]);
    assert!(small.dead() > 0 && small.dead() == small.count("dead_in_fragments"));

    let twins = scene.cost(|prefix| {
        for name in ["a", "b", "c"] {
            fs::write(prefix.join(name), text(3_000_000, 3 * BLOCK)).unwrap();
            fs::write(prefix.join(format!("{name}-small")), "equal").unwrap();
        }
    });
    twins.is("equal new files", 3 + 1, BLOCKS, FRAGMENTS, &[]);
    assert_eq!(twins.count("duplicates"), 4);

    let noise = scene.cost(|prefix| {
        let mut bytes = vec![0; 2 * BLOCK];
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"noise").finalize_xof().fill(&mut bytes);
        fs::write(prefix.join("noise"), bytes).unwrap();
    });
    assert_eq!(
        (
            noise.count("blocks_compressed"),
            noise.count("blocks_stored_raw")
        ),
        (0, 2)
    );
}

#[test]
fn commit_compacts_above_the_dead_space_threshold() {
    let Some(scene) = Scene::new() else { return };
    let env = &scene.env;
    let commit = |more: &[&str]| {
        let args = [&["commit", "--json", "e"], more].concat();
        env.envfs(&args).ok().json()
    };
    let data_bytes = || {
        let image = images::current(env, "e");
        let args = ["image", "info", "--json", word(&image)];
        env.envfs(&args).ok().json()["data_bytes"].as_u64().unwrap()
    };
    let before = data_bytes();
    let large = stored_bytes(&scene.first);
    fs::remove_file(scene.prefix.join("large")).unwrap();
    // Every second small file of each directory, so that each fragment block is half dead.
    let (removed_files, kept_files): (Vec<usize>, Vec<usize>) = (0..40).partition(|i| i % 4 < 2);
    let small = |i: usize| scene.prefix.join(format!("pkg/sub{}/f{i:02}.py", i % 2));
    removed_files
        .iter()
        .for_each(|i| fs::remove_file(small(*i)).unwrap());
    let removed = commit(&[]);
    assert_eq!(removed["way"], "append");
    assert_eq!(data_bytes(), before);
    let dead = removed["dead_bytes"].as_u64().unwrap();
    let half = removed["image"]["data"]["dead_in_fragments"]
        .as_u64()
        .unwrap();
    assert_eq!(dead, large + half);
    assert!(
        half.abs_diff((before - large) / 2) <= FRAGMENTS,
        "{removed}"
    );

    // The next commit compacts automatically and repacks the fragments: 20 tails, 8 per block.
    fs::write(scene.prefix.join("new"), "new").unwrap();
    let compacted = commit(&[]);
    assert_eq!(compacted["way"], "compact", "{compacted}");
    assert_eq!(compacted["dead_bytes"], 0, "{compacted}");
    let blocks = &compacted["image"]["data"];
    assert_eq!(blocks["fragments_repacked"], FRAGMENTS, "{compacted}");
    assert_eq!(blocks["blocks_compressed"], 3, "{compacted}");
    assert!(data_bytes() < (before - large) * 7 / 10);
    env.verify("e");
    for i in kept_files {
        assert_eq!(fs::read(small(i)).unwrap(), text(1_000_000 + i * 1000, 500));
    }

    // On request it compacts any amount; further commits append.
    fs::write(scene.prefix.join("new"), "newer").unwrap();
    assert_eq!(commit(&[])["way"], "append");
    let asked = commit(&["--compact"]);
    assert_eq!(asked["way"], "compact");
    fs::write(scene.prefix.join("new"), "newest").unwrap();
    assert_eq!(commit(&[])["way"], "append");
}

#[test]
fn compaction_threshold_is_configurable() {
    let Some(scene) = Scene::new() else { return };
    let env = &scene.env;
    fs::remove_file(scene.prefix.join("pkg/sub0/f00.py")).unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    env.envfs(&["unmount", "-q", "e"]).ok();
    env.write(&env.store().join("config.toml"), "compact_percent = 0\n");
    env.mount("e");
    fs::write(scene.prefix.join("new"), "new").unwrap();
    let commit = env.envfs(&["commit", "--json", "e"]).ok().json();
    assert_eq!(commit["way"], "compact", "{commit}");
    assert_eq!(commit["dead_bytes"], 0, "{commit}");
}

/// `ENVFS_TEST_MIB` sets the size of the file; the default is 32.
#[test]
fn append_to_a_large_file_compresses_only_its_tail() {
    let Some(env) = TestEnv::new() else { return };
    let mib = std::env::var("ENVFS_TEST_MIB").map_or(32, |text| text.parse().unwrap());
    let source = env.work().join("source");
    env.write(&source.join("x"), "");
    let mut bytes = vec![0; 1 << 20];
    let file = fs::File::create(source.join("large")).unwrap();
    for i in 0..mib {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&u64::to_le_bytes(i))
            .finalize_xof()
            .fill(&mut bytes);
        file.write_all_at(&bytes, i << 20).unwrap();
    }
    file.write_all_at(b"tail", mib << 20).unwrap();
    env.envfs(&["import", "-q", word(&source), "e"]).ok();
    let prefix = env.mount("e");
    open_large(&prefix)
        .write_all_at(b"more", (mib << 20) + 4)
        .unwrap();
    let commit = env.envfs(&["commit", "--json", "e"]).ok().json();
    let blocks = &commit["image"]["data"];
    // The tail of 8 bytes does not compress.
    assert_eq!(
        (
            blocks["blocks_compressed"].as_u64(),
            blocks["blocks_stored_raw"].as_u64()
        ),
        (Some(0), Some(1))
    );
    assert_eq!(blocks["blocks_carried"].as_u64(), Some(mib * 8));
    assert_eq!(blocks["fresh_bytes"], 8);
    env.verify("e");
}

#[test]
fn images_that_cannot_be_carried_over_are_rebuilt() {
    if !has("mksquashfs") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    env.write(&source.join("large"), large());
    for (name, codec, options) in [
        (
            "dictionary",
            "xz",
            &["-comp", "xz", "-Xdict-size", "8192"][..],
        ),
        ("lzo", "zstd", &["-comp", "lzo"]),
        ("lzma", "zstd", &["-comp", "lzma"]),
    ] {
        let image = env.work().join(format!("{name}.sqfs"));
        let mut command = env.command("mksquashfs");
        command.args([&source, &image]).args(options);
        command.args(["-quiet", "-no-progress", "-b", "65536"]);
        run(command).ok();
        env.envfs(&["import", "-q", word(&image), name]).ok();
        let prefix = env.mount(name);
        assert_eq!(fs::read(prefix.join("large")).unwrap(), large());
        fs::write(prefix.join("new"), "new").unwrap();
        let commit = env.envfs(&["commit", "--json", name]).ok().json();
        assert_eq!(commit["way"], "rebuild", "{name}: {commit}");
        let now = images::current(&env, name);
        let info = env
            .envfs(&["image", "info", "--json", word(&now)])
            .ok()
            .json();
        assert_eq!(info["compression"], codec, "{info}");
        if name == "dictionary" {
            let why = commit["because"].as_str().unwrap();
            assert!(why.contains("dictionary"), "{why}");
            assert_eq!(info["block_size"], 65_536);
        }
        assert_eq!(fs::read(prefix.join("large")).unwrap(), large());
        env.verify(name);
        // Further commits carry the image over.
        fs::write(prefix.join("new"), "newer").unwrap();
        let commit = env.envfs(&["commit", "--json", name]).ok().json();
        assert_eq!(commit["way"], "append", "{name}: {commit}");
    }
}

#[test]
fn rebuild_is_reproducible_for_any_number_of_threads() {
    let Some(scene) = Scene::new() else { return };
    let env = &scene.env;
    fs::write(scene.prefix.join("new"), text(5, 50_000)).unwrap();
    fs::remove_file(scene.prefix.join("pkg/sub1/f01.py")).unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    env.envfs(&["unmount", "-q", "e"]).ok();
    let mut made = Vec::new();
    for threads in ["1", "2", "5"] {
        let args = ["commit", "-q", "--rebuild", "--threads", threads, "e"];
        env.envfs_with("SOURCE_DATE_EPOCH", "1700000000", &args)
            .ok();
        made.push(fs::read(images::current(env, "e")).unwrap());
    }
    assert!(made[0] == made[1] && made[1] == made[2]);
    let stats = env.envfs(&["commit", "--compact", "--stats", "e"]).ok();
    for line in [
        "way",
        "carried over",
        "blocks compressed",
        "dead",
        "time to sync",
    ] {
        assert!(stats.out.contains(line), "{line}: {stats}");
    }
}
