//! The archive of a history. The first byte tells whether the rest is taken as it is, or is sealed:
//! then headers, digests and sizes are made to fit, so that changed images and maps are reached.
//!
//! An import must fail cleanly and leave nothing, or yield a usable environment.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use envfs::{
    commit::{
        self, CommitOptions, HistoryArchive, HistoryExport, ImportHistoryOptions, ImportOptions,
        Incoming, Relocate, Settings, Workspace,
    },
    environment::{Config, EnvName, Store},
    object::{Ino, Kind},
    progress::NoProgress,
    union::{Creator, DiscardMode, NewObject, SetIdBits, Union},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

const MANIFEST: &str = "envfs-history.json";
/// The largest archive that is sealed, in bytes.
const MAX: usize = 1 << 20;

fn name() -> EnvName {
    EnvName::new("env").unwrap()
}

fn config() -> Config {
    let mut config = Config {
        block_size: Some(4096),
        threads: 1,
        compression: Some("none".to_owned()),
        ..Config::default()
    };
    (config.cache.data_mib, config.cache.metadata_mib) = (Some(1), 1);
    config
}

/// Returns a directory in memory if possible: nothing here needs to be durable.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Returns the archive of a history with a branch, a rollback, a tag, and hard links.
pub fn seed() -> Vec<u8> {
    let dir = directory();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("lib/deep")).unwrap();
    fs::write(source.join("lib/deep/file"), [7; 5000]).unwrap();
    fs::write(source.join("top"), "top").unwrap();
    fs::hard_link(source.join("top"), source.join("link")).unwrap();
    std::os::unix::fs::symlink("top", source.join("symlink")).unwrap();
    let store = Store::new(dir.path().join("store"));
    let options = ImportOptions {
        first: Vec::new(),
        offset: None,
        relocate: Relocate::No,
        prefix: PathBuf::from("/nowhere"),
        message: "import".to_owned(),
        settings: Settings::from_config(&config()),
        exclude: Vec::new(),
    };
    let new = store.create(&name()).unwrap();
    commit::import(&source, new, &options, &NoProgress).unwrap();
    let (workspace, _) = Workspace::open(store.open(&name()).unwrap(), &config()).unwrap();
    let db = workspace.db();
    let first = db.current_revision().unwrap().unwrap().id;
    db.set_tag("first", first).unwrap();
    for file in ["one", "two", "three"] {
        let new = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
        let union = workspace.union();
        let (ino, _) = union.create(Ino::ROOT, file.as_bytes(), &new).unwrap();
        union.nodes().remember(ino, Ino::ROOT);
        union.write_at(ino, 0, &[9; 900], SetIdBits::Keep).unwrap();
        commit::commit(&workspace, &CommitOptions::default(), &NoProgress).unwrap();
        if file == "two" {
            commit::rollback(&workspace, Some(first), DiscardMode::Always, "").unwrap();
        }
    }
    let layout = workspace.env().layout();
    let history = HistoryExport::of(db, layout, &name(), None, &NoProgress).unwrap();
    let mut archive = Vec::new();
    history
        .write(&mut archive, Path::new("archive"), &NoProgress)
        .unwrap();
    archive
}

/// Appends a member of a tar archive.
fn put(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut block = [0; 512];
    let mut field = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    field(0, name.as_bytes());
    field(100, b"0000644\0");
    field(108, b"0000000\0");
    field(116, b"0000000\0");
    field(124, format!("{:011o}\0", content.len()).as_bytes());
    field(136, b"00000000000\0");
    field(148, b"        0");
    field(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend(block);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes headers, digests and sizes of a changed archive fit. `None` if its manifest has not the
/// form of one.
fn seal(changed: &[u8]) -> Option<Vec<u8>> {
    let text = changed.get(512..)?;
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    let mut manifest = values.next()?.ok()?;
    let mut at = 512 + (values.byte_offset() + 1).next_multiple_of(512) + 1024;
    let mut blobs = Vec::new();
    let mut names: Vec<(String, String)> = Vec::new();
    for blob in manifest.get_mut("blobs")?.as_array_mut()? {
        let size = usize::try_from(blob.get("size")?.as_u64()?).ok()?;
        if size > MAX || blobs.len() > 100 {
            return None;
        }
        let start = (at + 512).min(changed.len());
        let mut content = changed[start..(start + size).min(changed.len())].to_vec();
        content.resize(size, 0);
        at = start + size.next_multiple_of(512);
        let old = blob.get("sha256")?.as_str()?.to_owned();
        let new = sha256(&content);
        *blob.get_mut("sha256")? = Value::from(new.clone());
        names.push((old, new.clone()));
        blobs.push((new, content));
    }
    let renamed = |old: &Value| {
        let found = names.iter().find(|name| Some(&*name.0) == old.as_str());
        found.map_or(old.clone(), |name| Value::from(name.1.clone()))
    };
    for image in manifest.get_mut("images")?.as_array_mut()? {
        let ids = renamed(image.get("ids")?);
        *image.get_mut("ids")? = ids;
        let mut bytes = Vec::new();
        for blob in image.get_mut("blobs")?.as_array_mut()? {
            *blob = renamed(blob);
            let found = blobs.iter().find(|one| Some(&*one.0) == blob.as_str());
            bytes.extend(found.map(|one| &*one.1).unwrap_or_default());
        }
        let digests = bytes.chunks(1 << 20).map(blake3::hash);
        let digests: Vec<u8> = digests.flat_map(|digest| *digest.as_bytes()).collect();
        *image.get_mut("size")? = Value::from(bytes.len());
        *image.get_mut("digest")? = Value::from(blake3::hash(&digests).to_hex().to_string());
    }
    let text = serde_json::to_vec(&manifest).ok()?;
    let mut archive = Vec::new();
    put(&mut archive, MANIFEST, &text);
    let checksum = format!("{}  {MANIFEST}\n", sha256(&text));
    put(&mut archive, "envfs-history.sha256", checksum.as_bytes());
    for (name, content) in &blobs {
        put(&mut archive, &format!("blobs/sha256/{name}"), content);
    }
    archive.resize(archive.len() + 1024, 0);
    Some(archive)
}

/// Reads everything. Operations may fail.
fn read_all(union: &Union) {
    let mut pending = vec![Ino::ROOT];
    let mut budget = 300;
    while let Some(dir) = pending.pop() {
        for entry in union.read_dir(dir, 0, 100).into_iter().flatten() {
            budget -= 1;
            if budget == 0 {
                return;
            }
            let Ok(Some((ino, attr))) = union.lookup(dir, &entry.name) else {
                continue;
            };
            union.nodes().remember(ino, dir);
            match attr.kind {
                Kind::Directory if !matches!(&*entry.name, b"." | b"..") => pending.push(ino),
                Kind::File => drop(union.read_at(ino, 0, 10_000)),
                _ => {}
            }
        }
    }
}

/// Uses an imported environment.
fn use_environment(store: &Store) {
    let env = store.open(&name()).unwrap();
    let (workspace, _) = Workspace::open(env, &config()).unwrap();
    let revisions = workspace.db().revisions().unwrap();
    assert!(workspace.db().current_revision().unwrap().is_some());
    read_all(workspace.union());
    let new = NewObject::new(Kind::File, 0o644, Creator { uid: 1, gid: 1 });
    drop(workspace.union().create(Ino::ROOT, b"new", &new));
    drop(commit::commit(
        &workspace,
        &CommitOptions::default(),
        &NoProgress,
    ));
    for revision in revisions.iter().take(4) {
        let id = Some(revision.id);
        if commit::rollback(&workspace, id, DiscardMode::Always, "").is_ok() {
            read_all(workspace.union());
        }
    }
    drop(workspace.close());
}

fn import(archive: &[u8]) {
    let dir = directory();
    let file = dir.path().join("archive");
    fs::write(&file, archive).unwrap();
    // As a stream it is the same, or refused.
    let stream = dir.path().join("stream");
    let copy = fs::File::create(&stream).unwrap();
    let received = Incoming::begin(archive, &stream, None)
        .and_then(|incoming| incoming.save(&copy, &stream, &NoProgress));
    let is_received = received.is_ok();
    if is_received {
        assert!(fs::read(&stream).unwrap() == archive);
    }
    let Ok(archive) = HistoryArchive::open(&file) else {
        return;
    };
    assert!(is_received, "refused as a stream only");
    let store = Store::new(dir.path().join("store"));
    let options = ImportHistoryOptions {
        prefix: PathBuf::from("/nowhere"),
        relocate: Relocate::No,
        threads: NonZeroUsize::MIN,
    };
    let new = store.create(&name()).unwrap();
    match commit::import_history(&archive, new, &options, &NoProgress) {
        Ok(_) => use_environment(&store),
        Err(_) => {
            let mut left = fs::read_dir(dir.path().join("store/store")).unwrap();
            assert!(left.next().is_none(), "a failed import left something");
        }
    }
}

/// Runs the target.
pub fn run(data: &[u8]) {
    let Some((&which, archive)) = data.split_first() else {
        return;
    };
    match which % 4 {
        0 => import(archive),
        _ => {
            if let Some(archive) = seal(archive) {
                import(&archive);
            }
        }
    }
}
