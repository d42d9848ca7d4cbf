//! A test environment in a temporary directory, which a test can open, close and kill.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};

use envfs::commit::{self, CommitOptions, Committed, ImportOptions, Settings, Workspace};
use envfs::environment::{Config, EnvName, Layout, Store};
use envfs::object::{Ino, Kind};
use envfs::progress::{NoProgress, Progress, Report};
use envfs::squashfs::{Image, ReaderOptions};
use envfs::state::{InitEnvironment, Revision, RevisionKind, StateDb};
use envfs::union::{Creator, NewObject, Reconciled, SetIdBits, Union, identify};

/// The block size of the images; small, so that small files have several blocks.
pub(super) const BLOCK: usize = 4096;

/// An open environment.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    workspace: Option<Arc<Workspace>>,
    /// The view of a trial in progress, which stands for that of the environment.
    pub(super) trial: Option<Union>,
}

pub(super) fn name() -> EnvName {
    EnvName::new("env").unwrap()
}

pub(super) fn config() -> Config {
    let mut config = Config {
        block_size: Some(BLOCK as u32),
        threads: 2,
        compression: Some("zstd:1".to_owned()),
        ..Config::default()
    };
    (config.cache.data_mib, config.cache.metadata_mib) = (Some(1), 1);
    config
}

fn import_options() -> ImportOptions {
    ImportOptions {
        first: Vec::new(),
        offset: None,
        relocate: envfs::commit::Relocate::No,
        prefix: PathBuf::from("/nowhere"),
        message: "import".to_owned(),
        settings: Settings::from_config(&config()),
        exclude: Vec::new(),
    }
}

/// Returns incompressible bytes that depend only on the seed.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len);
    for _ in 0..len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push((state >> 24) as u8);
    }
    bytes
}

/// Creates the directory that environments are imported from.
fn seed(root: &Path) {
    let file = |path: &str, content: &[u8], mode: u32| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file("a/one", b"one", 0o644);
    fs::hard_link(root.join("a/one"), root.join("a/two")).unwrap();
    file("b/c/deep", b"deep down", 0o600);
    fs::hard_link(root.join("a/one"), root.join("b/three")).unwrap();
    file("b/c/d/e/deeper", &noise(1, 5000), 0o755);
    file("big", &noise(2, 3 * BLOCK + 1234), 0o644);
    file("b/text", &b"abcdefgh".repeat(1024), 0o4755);
    let mut sparse = vec![0; 9 * BLOCK + 100];
    sparse[2 * BLOCK..2 * BLOCK + 500].copy_from_slice(&noise(3, 500));
    file("sparse", b"", 0o644);
    {
        use std::os::unix::fs::FileExt;
        let out = fs::File::options()
            .write(true)
            .open(root.join("sparse"))
            .unwrap();
        out.write_all_at(&sparse[2 * BLOCK..2 * BLOCK + 500], 2 * BLOCK as u64)
            .unwrap();
        out.set_len(sparse.len() as u64).unwrap();
    }
    fs::create_dir(root.join("empty")).unwrap();
    symlink("a/one", root.join("link")).unwrap();
    for n in 0..7 {
        file(&format!("many/m{n}"), format!("{n}").as_bytes(), 0o644);
    }
    for (path, attribute, value) in [
        ("a/one", "user.colour", "red"),
        ("a", "user.dir", "yes"),
        ("big", "user.x", ""),
    ] {
        // Without support by the file system, the environment has no attributes.
        if let Err(e) = xattr::set(root.join(path), attribute, value.as_bytes()) {
            crate::support::skip_allowed(&format!("extended attributes are not tested: {e}"));
        }
    }
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
        set_mtime(&dir);
    }
}

/// Creates the directory of an image above the one of [`seed`]: it adds, replaces and hides
/// entries.
fn seed_above(root: &Path) {
    let file = |path: &str, content: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    };
    // Two of three names of a lower file remain.
    file("a/one", b"another one");
    file("a/above", &noise(4, 2 * BLOCK + 7));
    fs::hard_link(root.join("a/above"), root.join("beside")).unwrap();
    file("b/c/more", b"more");
    file("b/c/d/e/deepest", b"deepest");
    file("big/in", b"in a directory over a file");
    file("empty", b"a file over a directory");
    file("many/m7", b"7");
    file("many/sub/new", b"new");
    symlink("b/text", root.join("link")).unwrap();
    for gone in ["many/m1", "sparse", "nothing"] {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::sys::stat::mknod(&root.join(gone), nix::sys::stat::SFlag::S_IFCHR, mode, 0).unwrap();
    }
    if let Err(e) = xattr::set(root.join("b/c/d"), "user.overlay.opaque", b"y") {
        crate::support::skip_allowed(&format!("opaque directories are not tested: {e}"));
    }
    for dir in ["a", "b/c", "many", ""] {
        set_mtime(&root.join(dir));
    }
}

fn set_mtime(path: &Path) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let time = TimeSpec::new(1_500_000_000 + path.as_os_str().as_bytes().len() as i64, 0);
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).unwrap();
}

/// Returns a store with one environment, created once for all tests.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<tempfile::TempDir> = OnceLock::new();
    TEMPLATE
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            seed(&source);
            let store = Store::new(dir.path().join("store"));
            let new = store.create(&name()).unwrap();
            commit::import(&source, new, &import_options(), &NoProgress).unwrap();
            dir
        })
        .path()
}

/// Returns a store with one environment of two images, created once for all tests.
fn stacked_template() -> &'static Path {
    static TEMPLATE: OnceLock<tempfile::TempDir> = OnceLock::new();
    TEMPLATE
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let sources = [dir.path().join("above"), dir.path().join("below")];
            sources
                .iter()
                .for_each(|source| fs::create_dir(source).unwrap());
            seed_above(&sources[0]);
            seed(&sources[1]);
            let new = Store::new(dir.path().join("store"))
                .create(&name())
                .unwrap();
            let layout = new.layout();
            let db = StateDb::create(&layout.state_db()).unwrap();
            let settings = Settings::from_config(&config());
            let (mut ids, mut images) = (Vec::new(), Vec::new());
            for source in sources {
                let id = db.reserve_image().unwrap();
                let path = layout.image(&Layout::image_file_name(id));
                commit::pack_directory(&source, settings, &[], &path, &NoProgress).unwrap();
                ids.push(id);
                images.push(Image::open(&path, ReaderOptions::default()).unwrap());
            }
            let maps = identify(&db, &images).unwrap();
            let rows = ids
                .into_iter()
                .zip(&images)
                .zip(maps)
                .map(|((id, image), map)| {
                    commit::describe_image(id, image, map, image.superblock().bytes_used, None)
                });
            db.init_environment(&InitEnvironment {
                uuid: "stacked".to_owned(),
                origin: None,
                prefix: PathBuf::from("/nowhere"),
                images: rows.collect(),
                kind: RevisionKind::Import,
                revision: commit::new_revision("stacked", ""),
            })
            .unwrap();
            db.close().unwrap();
            new.finish().unwrap();
            dir
        })
        .path()
}

/// Copies a tree. With `hard_links`, files are linked instead, so that they keep their inode
/// numbers.
pub(super) fn copy_tree(from: &Path, to: &Path, hard_links: bool) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, from.metadata().unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_tree(&old, &new, hard_links);
        } else if hard_links {
            fs::hard_link(&old, &new).unwrap();
        } else if kind.is_symlink() {
            symlink(fs::read_link(&old).unwrap(), &new).unwrap();
        } else {
            fs::copy(&old, &new).unwrap();
        }
    }
}

/// Runs an action during a commit.
pub(super) struct During<F> {
    action: Mutex<Option<F>>,
    thread: ThreadId,
}

impl<F: FnOnce()> During<F> {
    /// The commit must run in the calling thread.
    pub(super) fn new(action: F) -> During<F> {
        During {
            action: Mutex::new(Some(action)),
            thread: thread::current().id(),
        }
    }

    /// Returns the action if it has not run because there was nothing to commit.
    pub(super) fn pending(self) -> Option<F> {
        self.action.into_inner().unwrap()
    }
}

impl<F: FnOnce() + Send> Progress for During<F> {
    fn report(&self, _report: &Report) {}

    fn is_cancelled(&self) -> bool {
        if thread::current().id() == self.thread {
            let action = self.action.lock().unwrap().take();
            action.into_iter().for_each(|action| action());
        }
        false
    }
}

impl Bench {
    /// Returns an environment imported from the directory of [`seed`].
    pub(super) fn imported() -> Bench {
        Bench::imported_in(&std::env::temp_dir())
    }

    /// Like [`Bench::imported`], in a directory below `above`.
    pub(super) fn imported_in(above: &Path) -> Bench {
        let dir = tempfile::tempdir_in(above).unwrap();
        copy_tree(&template().join("store"), &dir.path().join("store"), false);
        Bench::in_dir(dir)
    }

    /// Returns an environment imported from a directory.
    pub(super) fn imported_from(source: &Path) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let new = Store::new(dir.path().join("store"))
            .create(&name())
            .unwrap();
        commit::import(source, new, &import_options(), &NoProgress).unwrap();
        Bench::in_dir(dir)
    }

    /// Opens the environment in a directory.
    fn in_dir(dir: tempfile::TempDir) -> Bench {
        let mut bench = Bench {
            dir,
            workspace: None,
            trial: None,
        };
        assert!(bench.open().is_empty());
        bench
    }

    /// Returns the current revision.
    pub(super) fn current(&self) -> Revision {
        let current = self.workspace().db().current_revision();
        current.unwrap().unwrap()
    }

    /// Returns the file of the current revision's image.
    pub(super) fn current_image(&self) -> PathBuf {
        let image = self.workspace().db().image(self.current().image);
        self.home()
            .join("images")
            .join(image.unwrap().unwrap().file)
    }

    /// Returns an environment of two stacked images. Like a mount without a store, it cannot be
    /// committed.
    pub(super) fn stacked() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = stacked_template().join("store");
        copy_tree(&store, &dir.path().join("store"), false);
        let mut bench = Bench {
            dir,
            workspace: None,
            trial: None,
        };
        assert!(bench.open().is_empty());
        assert_eq!(bench.union().lower().images().len(), 2);
        bench
    }

    /// Returns an empty environment.
    pub(super) fn empty() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let new = Store::new(dir.path().join("store"))
            .create(&name())
            .unwrap();
        commit::create_empty(new, &import_options()).unwrap();
        Bench::in_dir(dir)
    }

    /// Returns an environment that `make` creates in a store.
    pub(super) fn received(make: impl FnOnce(&Path)) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        make(&dir.path().join("store"));
        Bench::in_dir(dir)
    }

    /// Returns a copy of the environment, which must have no changes.
    pub(super) fn copy(&self) -> Bench {
        let from = self.dir.path().join("store");
        Bench::received(|store| copy_tree(&from, store, false))
    }

    /// Creates a file in the root directory.
    pub(super) fn make_file(&self, name: &[u8], content: &[u8]) {
        let creator = Creator { uid: 1, gid: 1 };
        let new = NewObject::new(Kind::File, 0o644, creator);
        let union = self.union();
        let (ino, _) = union.create(Ino::ROOT, name, &new).unwrap();
        union.nodes().remember(ino, Ino::ROOT);
        union.write_at(ino, 0, content, SetIdBits::Keep).unwrap();
        union.forget(ino, 1);
    }

    /// Returns the environment below `above` that is a copy of this one below `other_above`.
    pub(super) fn copied(&self, other_above: &Path, above: &Path) -> Bench {
        let dir = self.dir.path().strip_prefix(other_above).unwrap();
        let to = tempfile::tempdir_in(above).unwrap();
        fs::rename(above.join(dir).join("store"), to.path().join("store")).unwrap();
        Bench {
            dir: to,
            workspace: None,
            trial: None,
        }
    }

    pub(super) fn open(&mut self) -> Reconciled {
        self.try_open().unwrap()
    }

    /// Closes and reopens the environment with another configuration.
    pub(super) fn close_and_open_with(&mut self, config: &Config) {
        self.close();
        self.open_with(config).unwrap();
    }

    pub(super) fn try_open(&mut self) -> commit::Result<Reconciled> {
        self.open_with(&config())
    }

    fn open_with(&mut self, config: &Config) -> commit::Result<Reconciled> {
        let env = Store::new(self.dir.path().join("store"))
            .open(&name())
            .unwrap();
        let (workspace, reconciled) = Workspace::open(env, config)?;
        self.workspace = Some(Arc::new(workspace));
        Ok(reconciled)
    }

    pub(super) fn workspace(&self) -> &Arc<Workspace> {
        self.workspace.as_ref().unwrap()
    }

    pub(super) fn union(&self) -> &Union {
        match &self.trial {
            Some(trial) => trial,
            None => self.workspace().union(),
        }
    }

    pub(super) fn home(&self) -> PathBuf {
        self.dir.path().join("store/store/env")
    }

    pub(super) fn close(&mut self) {
        self.workspace().close().unwrap();
        self.workspace = None;
    }

    /// Closes and reopens the environment.
    pub(super) fn remount(&mut self) {
        self.close();
        assert!(self.open().is_empty());
    }

    /// Simulates the death of the process.
    pub(super) fn kill(&mut self) {
        self.workspace = None;
    }

    /// Commits and runs an action meanwhile: after the changes were frozen, before the new image is
    /// complete.
    pub(super) fn commit_during(&self, action: impl FnOnce() + Send) -> Committed {
        let during = During::new(action);
        let done = commit::commit(self.workspace(), &CommitOptions::default(), &during);
        assert!(during.pending().is_none(), "the action did not run");
        done.unwrap().unwrap()
    }

    pub(super) fn commit(&self, options: &CommitOptions) -> Option<Committed> {
        commit::commit(self.workspace(), options, &NoProgress).unwrap()
    }
}
