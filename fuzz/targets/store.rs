//! The index of a file of a store, then its content. Opening the environment must fail cleanly or
//! yield a usable environment, and must not touch anything outside of its directory.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Mutex,
};

use envfs::{
    commit::{self, CommitOptions, ImportOptions, Settings, Workspace},
    environment::{Config, EnvLock, EnvName, Layout, Store},
    object::{Ino, Kind},
    progress::NoProgress,
    state::{LockState, StateDb},
    union::{Creator, NewObject, RenameMode, SetIdBits, Union, XattrMode},
};

/// Files in the directory of an environment that are read when it is opened.
pub const FILES: &[&str] = &[
    "state.db",
    "state.db-journal",
    "state.db-redo",
    "lock.holder",
    "lock.lease",
    "id",
];

/// The content of files outside of the store, which must not be read.
const SECRET: &[u8] = b"outside of the store";

/// An environment with changes, and files around it that do not belong to it.
pub struct Scene {
    dir: tempfile::TempDir,
}

fn name() -> EnvName {
    EnvName::new("env").unwrap()
}

fn config() -> Config {
    let mut config = Config {
        block_size: Some(4096),
        threads: 1,
        ..Config::default()
    };
    (config.cache.data_mib, config.cache.metadata_mib) = (Some(1), 1);
    config
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else if entry.file_type().unwrap().is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), &to).unwrap();
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// Returns the paths and contents of everything but the environment.
fn around(root: &Path, home: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path == home || path.ends_with("sound") {
                continue;
            }
            if path.is_dir() {
                pending.push(path.clone());
                all.push((path, Vec::new()));
            } else {
                let content = fs::read(&path).unwrap();
                all.push((path, content));
            }
        }
    }
    all.sort();
    all
}

impl Scene {
    /// Creates one with an image, a commit, changes of every kind, and records in the redo log.
    pub fn new() -> Scene {
        // In memory if possible: nothing here needs to be durable.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("lib/deep")).unwrap();
        fs::write(source.join("lib/deep/file"), [7; 9000]).unwrap();
        fs::write(source.join("lib/other"), "other").unwrap();
        fs::write(source.join("top"), "top").unwrap();
        let scene = Scene { dir };
        for secret in scene.secrets() {
            fs::create_dir_all(secret.parent().unwrap()).unwrap();
            fs::write(secret, SECRET).unwrap();
        }
        let store = scene.store();
        let options = ImportOptions {
            first: Vec::new(),
            offset: None,
            relocate: envfs::commit::Relocate::No,
            prefix: PathBuf::from("/nowhere"),
            message: "import".to_owned(),
            settings: Settings::from_config(&config()),
            exclude: Vec::new(),
        };
        let new = store.create(&name()).unwrap();
        commit::import(&source, new, &options, &NoProgress).unwrap();
        let open = || Workspace::open(store.open(&name()).unwrap(), &config()).unwrap();
        let (workspace, _) = open();
        use_view(workspace.union());
        commit::commit(&workspace, &CommitOptions::default(), &NoProgress).unwrap();
        let (workspace, _) = open();
        use_view(workspace.union());
        change(workspace.union());
        let current = workspace.db().current_revision().unwrap().unwrap();
        workspace.db().set_tag("name", current.id).unwrap();
        workspace.close().unwrap();
        drop(workspace);
        let (workspace, _) = open();
        use_view(workspace.union());
        // Not closed, so the redo log has records.
        copy(&scene.home(), &scene.dir.path().join("sound"));
        drop(workspace);
        scene
    }

    /// Returns files that a name with `..` could reach, and one that an absolute path could.
    pub fn secrets(&self) -> Vec<PathBuf> {
        let root = self.dir.path();
        let places = [
            "secret",
            "outer/secret",
            "outer/place/secret",
            "outer/place/store/secret",
        ];
        places.map(|place| root.join(place)).to_vec()
    }

    fn store(&self) -> Store {
        Store::new(self.dir.path().join("outer/place"))
    }

    /// The directory of the environment.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("outer/place/store/env")
    }

    /// Returns the content of a file of the undamaged store, or nothing if there is no such file.
    pub fn sound(&self, file: &str) -> Vec<u8> {
        fs::read(self.dir.path().join("sound").join(file)).unwrap_or_default()
    }

    /// Restores the environment, applies `change` and opens it.
    pub fn with(&self, change: impl FnOnce(&Path)) {
        self.with_if(|home| {
            change(home);
            true
        });
    }

    /// Like [`Scene::with`], but opens the environment only if `change` returns true.
    pub fn with_if(&self, change: impl FnOnce(&Path) -> bool) {
        let home = self.home();
        fs::remove_dir_all(&home).unwrap();
        copy(&self.dir.path().join("sound"), &home);
        if !change(&home) {
            return;
        }
        let before = around(self.dir.path(), &home);
        self.open();
        let after = around(self.dir.path(), &home);
        assert!(before == after, "something outside of the home has changed");
    }

    /// Opens the environment in every way, and runs all operations that it permits.
    fn open(&self) {
        let layout = Layout::new(self.home());
        drop(EnvLock::current_holder(&layout));
        for lock in [LockState::Free, LockState::Held] {
            let Ok(db) = StateDb::open_read_only(&layout.state_db(), lock) else {
                continue;
            };
            drop((
                db.prefix(),
                db.uuid(),
                db.images(),
                db.revisions(),
                db.tags(),
            ));
            drop(commit::verify(&db, &layout, NonZeroUsize::MIN, &NoProgress));
        }
        let lock = EnvLock::try_lock(&layout, "test");
        for _ in 0..2 {
            let Ok(env) = self.store().open(&name()) else {
                return;
            };
            let Ok((workspace, _)) = Workspace::open(env, &config()) else {
                return;
            };
            drop(workspace.union().changes());
            drop(workspace.union().verify_upper());
            use_view(workspace.union());
            let options = CommitOptions::default();
            drop(commit::commit(&workspace, &options, &NoProgress));
            use_view(workspace.union());
            drop(commit::discard(&workspace, &[], ""));
            drop(workspace.close());
        }
        drop(lock);
    }
}

impl Default for Scene {
    fn default() -> Scene {
        Scene::new()
    }
}

/// Reads everything and changes something of each kind. Operations may fail.
fn use_view(union: &Union) {
    let mut pending = vec![Ino::ROOT];
    let mut budget = 300;
    let creator = Creator { uid: 1, gid: 1 };
    while let Some(dir) = pending.pop() {
        let Ok(listed) = union.read_dir(dir, 0, 100) else {
            continue;
        };
        for entry in listed {
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
                Kind::File => {
                    if let Ok(bytes) = union.read_at(ino, 0, 10_000) {
                        assert!(!(*bytes).as_ref().starts_with(SECRET), "read from outside");
                    }
                    drop(union.write_at(ino, 5, b"changed", SetIdBits::Keep));
                    drop(union.rename(dir, &entry.name, Ino::ROOT, b"moved", RenameMode::Replace));
                }
                _ => {}
            }
        }
        let new = NewObject::new(Kind::File, 0o644, creator);
        drop(union.create(dir, b"new", &new));
        drop(union.unlink(dir, b"other"));
    }
    drop(union.sync_all());
}

/// Makes changes that need rows of every table.
fn change(union: &Union) {
    let find = |dir, name: &[u8]| union.lookup(dir, name).unwrap().unwrap().0;
    let creator = Creator { uid: 1, gid: 1 };
    let make = |name: &[u8], kind, target| {
        let new = NewObject {
            target,
            ..NewObject::new(kind, 0o644, creator)
        };
        let (ino, _) = union.create(Ino::ROOT, name, &new).unwrap();
        union.nodes().remember(ino, Ino::ROOT);
        ino
    };
    let file = make(b"linked", Kind::File, None);
    union.link(file, Ino::ROOT, b"link").unwrap();
    union
        .set_xattr(file, b"user.x", b"value", XattrMode::Either)
        .unwrap();
    make(b"symlink", Kind::Symlink, Some(b"target".as_slice()));
    let lib = find(Ino::ROOT, b"lib");
    union.nodes().remember(lib, Ino::ROOT);
    union
        .rename(
            Ino::ROOT,
            b"lib",
            Ino::ROOT,
            b"renamed",
            RenameMode::Replace,
        )
        .unwrap();
    let below = union.read_dir(Ino::ROOT, 0, 100).unwrap();
    assert!(below.len() > 5);
}

/// Runs the target.
pub fn run(data: &[u8]) {
    static SCENE: Mutex<Option<Scene>> = Mutex::new(None);
    let Some((&which, content)) = data.split_first() else {
        return;
    };
    let mut scene = SCENE.lock().unwrap_or_else(|e| e.into_inner());
    let scene = scene.get_or_insert_with(Scene::new);
    let file = FILES[usize::from(which) % FILES.len()];
    scene.with(|home| fs::write(home.join(file), content).unwrap());
}
