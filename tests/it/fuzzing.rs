//! Runs every fuzz target briefly over mutated seeds, and replaces every value of a store's
//! database by hostile ones. `ENVFS_FUZZ_ROUNDS` makes it longer; `fuzz/README.md` explains fuzzing
//! for hours.

#[allow(unreachable_pub, reason = "a separate crate for the fuzzer")]
#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::types::Value;

use crate::support::{has, run, samples};
use targets::store::{FILES, Scene};

/// An input that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn rounds(usual: u64) -> u64 {
    std::env::var("ENVFS_FUZZ_ROUNDS").map_or(usual, |text| text.parse().unwrap())
}

/// Aborts the process and names the input if one takes too long.
struct Watchdog {
    beat: Arc<AtomicU64>,
    what: Arc<Mutex<String>>,
}

impl Watchdog {
    fn start() -> Watchdog {
        let watch = Watchdog {
            beat: Arc::default(),
            what: Arc::default(),
        };
        let (beat, what) = (Arc::downgrade(&watch.beat), watch.what.clone());
        std::thread::spawn(move || {
            let mut last = 0;
            loop {
                std::thread::sleep(PATIENCE);
                let Some(beat) = beat.upgrade() else { return };
                let now = beat.load(Ordering::SeqCst);
                if now == last {
                    let what = what.lock().unwrap();
                    eprintln!("hangs: {what}");
                    std::process::abort();
                }
                last = now;
            }
        });
        watch
    }

    fn begin(&self, what: String) {
        *self.what.lock().unwrap() = what;
        self.beat.fetch_add(1, Ordering::SeqCst);
    }
}

/// Mutates bytes at random, reproducibly for a seed.
struct Mutator(u64);

impl Mutator {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 8) % limit.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(4) {
            if bytes.is_empty() {
                bytes.push(self.below(256) as u8);
            }
            let at = self.below(bytes.len());
            match self.below(9) {
                0 => bytes[at] = self.below(256) as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes[at] = [0, 0xff, 0x7f, 0x80][self.below(4)],
                3 | 4 => {
                    // A number in either byte order.
                    let number = [0, 1, u64::MAX, 1 << 31, 1 << 63, 0xffff][self.below(6)];
                    let number = if self.below(2) == 0 {
                        number.to_le_bytes()
                    } else {
                        number.to_be_bytes()
                    };
                    let len = (1 << self.below(4)).min(bytes.len() - at);
                    bytes[at..at + len].copy_from_slice(&number[..len]);
                }
                5 | 6 => {
                    // A copy of another field.
                    let from = self.below(bytes.len());
                    let len = (1 + self.below(16)).min(bytes.len() - at.max(from));
                    bytes.copy_within(from..from + len, at);
                }
                7 => bytes.truncate(at),
                _ => {
                    let more = samples::noise(self.below(40), self.0);
                    bytes.splice(at..at, more);
                }
            }
        }
    }
}

/// Images made by mksquashfs, some with uncompressed tables, so that a changed byte is a changed
/// field.
fn images(dir: &Path) -> Vec<Vec<u8>> {
    let source = dir.join("source");
    fs::create_dir_all(source.join("dir/deep")).unwrap();
    fs::write(source.join("dir/file"), samples::noise(9000, 1)).unwrap();
    fs::write(source.join("dir/deep/text"), "text ".repeat(500)).unwrap();
    std::os::unix::fs::symlink("dir/file", source.join("link")).unwrap();
    xattr::set(source.join("dir/file"), "user.colour", b"red").ok();
    let mut images = Vec::new();
    for (name, options) in [
        ("stored", &["-noI", "-noId", "-noX", "-noD", "-noF"][..]),
        ("zstd", &["-comp", "zstd"][..]),
        ("xz", &["-comp", "xz"][..]),
        ("gzip", &["-comp", "gzip", "-noI"][..]),
    ] {
        let image = dir.join(name);
        let mut make = Command::new("mksquashfs");
        make.arg(&source).arg(&image).args(options);
        make.args(["-b", "4K", "-nopad", "-quiet", "-no-progress"]);
        run(make).ok();
        images.push(fs::read(image).unwrap());
    }
    images
}

/// Reads the start of a table from the superblock.
fn table(image: &[u8], at: usize) -> usize {
    u64::from_le_bytes(image[at..at + 8].try_into().unwrap()) as usize
}

/// Returns the seeds of a target.
fn seeds(target: &str, images: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let stored = &images[0];
    let (inodes, listings, end) = (table(stored, 64), table(stored, 72), table(stored, 80));
    // Each table is one block here, after two bytes with its length.
    let (inodes, listings) = (&stored[inodes + 2..listings], &stored[listings + 2..end]);
    match target {
        "open_walk_read" => images.to_vec(),
        "superblock_tables" => images
            .iter()
            .map(|image| [&image[..96], &image[image.len() - 40..]].concat())
            .collect(),
        "inode" => (0..inodes.len())
            .step_by(4)
            .map(|at| inodes[at..].to_vec())
            .collect(),
        "directory" => vec![listings.to_vec()],
        "history_archive" => {
            let archive = targets::history_archive::seed();
            let seeds = [0, 1].map(|kind| [&[kind], &archive[..]].concat());
            if let Some(dir) = std::env::var_os("ENVFS_FUZZ_SEEDS") {
                for (kind, seed) in seeds.iter().enumerate() {
                    fs::write(Path::new(&dir).join(format!("seed{kind}")), seed).unwrap();
                }
            }
            seeds.to_vec()
        }
        "metadata" => {
            let split = (inodes.len() as u16).to_le_bytes();
            vec![[&split, inodes, listings].concat()]
        }
        "codecs" => {
            let data = |image: &[u8]| image[96..image.len().min(4000)].to_vec();
            let all = images
                .iter()
                .flat_map(|image| (0..6).map(|codec| [vec![codec], data(image)].concat()));
            all.collect()
        }
        other => panic!("no seeds for {other}"),
    }
}

fn regressions(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/regressions")
        .join(target);
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Runs a target. If it fails, saves the input and prints its path.
fn attempt(target: &str, run: fn(&[u8]), input: &[u8], what: &str) {
    let done = std::panic::catch_unwind(|| run(input));
    if let Err(panic) = done {
        let kept = std::env::temp_dir().join(format!("envfs-fuzz-{target}-{}", std::process::id()));
        fs::write(&kept, input).unwrap();
        eprintln!("{target} fails with {what}, saved as {}", kept.display());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn fuzz_targets_accept_regressions_and_mutated_seeds() {
    if !has("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let images = images(dir.path());
    let watch = Watchdog::start();
    for (target, run) in targets::ALL {
        for path in regressions(target) {
            watch.begin(path.display().to_string());
            attempt(
                target,
                *run,
                &fs::read(&path).unwrap(),
                &path.display().to_string(),
            );
        }
        if *target == "store" {
            continue;
        }
        let seeds = seeds(target, &images);
        let mut mutator = Mutator(0x9e37_79b9_7f4a_7c15);
        let count = rounds(match *target {
            "open_walk_read" => 500,
            "history_archive" => 300,
            _ => 3000,
        });
        for round in 0..count {
            let mut input = seeds[mutator.below(seeds.len())].clone();
            if round as usize >= seeds.len() {
                mutator.mutate(&mut input);
            }
            let what = format!("{target}, round {round}");
            watch.begin(what.clone());
            attempt(target, *run, &input, &what);
        }
    }
}

#[test]
fn store_with_corrupted_files_opens_or_fails_cleanly() {
    let scene = Scene::new();
    let watch = Watchdog::start();
    let mut mutator = Mutator(0x5851_f42d_4c95_7f2d);
    // The undamaged store opens.
    scene.with(|_| ());
    for (index, file) in FILES.iter().enumerate() {
        let sound = match scene.sound(file) {
            // Exists only on network file systems, with this content.
            nothing if nothing.is_empty() && file.starts_with("lock") => {
                br#"{"host":"h","boot":"b","pid":1,"start":1,"purpose":"p","since":1,"token":"t"}"#
                    .to_vec()
            }
            bytes => bytes,
        };
        let replacements: [Vec<u8>; 4] =
            [Vec::new(), vec![0; 4096], vec![0xff; 100], b"{}".to_vec()];
        let count = rounds(if file.starts_with("state") { 120 } else { 30 });
        for round in 0..count {
            let input = match replacements.get(round as usize) {
                Some(bytes) => bytes.clone(),
                None => {
                    let mut bytes = sound.clone();
                    mutator.mutate(&mut bytes);
                    bytes
                }
            };
            let what = format!("{file}, round {round}");
            watch.begin(what.clone());
            let input = [&[index as u8], &input[..]].concat();
            attempt("store", targets::store::run, &input, &what);
        }
    }
}

/// Values that are invalid for most columns, or paths that lead out of the store.
fn hostile(scene: &Scene) -> Vec<Value> {
    let secret = scene.secrets()[1].to_str().unwrap().to_owned();
    vec![
        Value::Null,
        Value::Integer(-1),
        Value::Integer(0),
        Value::Integer(1),
        Value::Integer(i64::MAX),
        Value::Real(1e300),
        Value::Text("../../../secret".to_owned()),
        Value::Blob(b"../../../secret".to_vec()),
        Value::Text(secret),
        Value::Blob(b"a/b".to_vec()),
        Value::Blob(b"..".to_vec()),
        Value::Blob(b"nul\0nul".to_vec()),
        Value::Blob(Vec::new()),
        Value::Blob(vec![0xff; 300]),
    ]
}

/// Returns every column of every table.
fn columns(scene: &Scene) -> Vec<(String, String)> {
    let mut columns = Vec::new();
    scene.with(|home| {
        let db = rusqlite::Connection::open(home.join("state.db")).unwrap();
        let sql = "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c \
                   WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'";
        let mut query = db.prepare(sql).unwrap();
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        columns = rows.unwrap().map(Result::unwrap).collect();
    });
    assert!(columns.len() > 50, "{columns:?}");
    columns
}

#[test]
fn store_with_corrupted_rows_opens_or_fails_cleanly() {
    let scene = Scene::new();
    let watch = Watchdog::start();
    let mut done = 0;
    for (table, column) in columns(&scene) {
        for (index, value) in hostile(&scene).into_iter().enumerate() {
            let what = format!("{table}.{column} = {value:?}");
            watch.begin(what.clone());
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                scene.with_if(|home| {
                    // The schema of a hostile database enforces nothing.
                    let path = home.join("state.db");
                    let db = rusqlite::Connection::open(&path).unwrap();
                    let lax = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = \
                               replace(replace(sql, 'STRICT, ', ''), 'STRICT', '')";
                    db.execute_batch(lax).unwrap();
                    drop(db);
                    let db = rusqlite::Connection::open(&path).unwrap();
                    let free = "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON";
                    db.execute_batch(free).unwrap();
                    // In one row or, if that fails, in all of them; unique columns then keep one
                    // row.
                    let some = format!(
                        "UPDATE {table} SET {column} = ?1 WHERE rowid = (SELECT rowid FROM {table} \
                         LIMIT 1 OFFSET (SELECT {index} % max(1, count(*)) FROM {table}))"
                    );
                    let all = format!("UPDATE OR REPLACE {table} SET {column} = ?1");
                    let changed = db.execute(&some, [&value]);
                    let changed = changed.or_else(|_| db.execute(&all, [&value]));
                    drop(db);
                    let is_placed = changed.is_ok_and(|rows| rows > 0);
                    done += u32::from(is_placed);
                    is_placed
                });
            }));
            if let Err(panic) = outcome {
                eprintln!("fails with {what}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{done} values were placed");
    assert!(done > 400, "{done} values were placed");
}
