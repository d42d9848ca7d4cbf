//! An environment in a directory of its own, opened and closed at will.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use envfs::commit::{self, CommitOptions, Committed, ImportOptions, Settings, Workspace};
use envfs::environment::{Config, EnvName, Store};
use envfs::progress::Silent;
use envfs::union::{Reconciled, Union};

/// Block size of the images: small, so that files of several blocks are small too.
pub(super) const BLOCK: usize = 4096;

/// An environment, open.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    workspace: Option<Workspace>,
}

fn name() -> EnvName {
    EnvName::new("env").unwrap()
}

pub(super) fn config() -> Config {
    let mut config = Config {
        block_size: Some(BLOCK as u32),
        threads: 2,
        compression: Some("zstd:1".to_owned()),
        ..Config::default()
    };
    (config.cache.data_mib, config.cache.metadata_mib) = (1, 1);
    config
}

fn import_options() -> ImportOptions {
    ImportOptions {
        prefix: PathBuf::from("/nowhere"),
        message: "import".to_owned(),
        settings: Settings::from_config(&config()),
        exclude: Vec::new(),
    }
}

/// Bytes that are neither all alike nor easily compressed.
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

/// The directory that environments are made of.
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
        // Not every file system has them; then the environment has none.
        if let Err(e) = xattr::set(root.join(path), attribute, value.as_bytes()) {
            eprintln!("no extended attributes here: {e}");
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

fn set_mtime(path: &Path) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let time = TimeSpec::new(1_500_000_000 + path.as_os_str().as_bytes().len() as i64, 0);
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).unwrap();
}

/// A store with one environment, made once for all tests of the process.
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
            commit::import(&source, new, &import_options(), &Silent).unwrap();
            dir
        })
        .path()
}

/// Copies a tree; with `hard_links`, files are not copied but linked, so that they keep their numbers.
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

impl Bench {
    /// An environment imported from the directory that [`seed`] makes.
    pub(super) fn imported() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(&template().join("store"), &dir.path().join("store"), false);
        let mut bench = Bench {
            dir,
            workspace: None,
        };
        assert!(bench.open().is_nothing());
        bench
    }

    /// An environment with nothing in it.
    pub(super) fn empty() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let new = Store::new(dir.path().join("store"))
            .create(&name())
            .unwrap();
        commit::create_empty(new, &import_options()).unwrap();
        let mut bench = Bench {
            dir,
            workspace: None,
        };
        assert!(bench.open().is_nothing());
        bench
    }

    pub(super) fn open(&mut self) -> Reconciled {
        let env = Store::new(self.dir.path().join("store"))
            .open(&name())
            .unwrap();
        let (workspace, reconciled) = Workspace::open(env, &config()).unwrap();
        self.workspace = Some(workspace);
        reconciled
    }

    pub(super) fn workspace(&self) -> &Workspace {
        self.workspace.as_ref().unwrap()
    }

    pub(super) fn union(&self) -> &Union {
        self.workspace().union()
    }

    pub(super) fn home(&self) -> PathBuf {
        self.dir.path().join("store/store/env")
    }

    /// Closes and opens again.
    pub(super) fn remount(&mut self) {
        self.workspace().close().unwrap();
        self.workspace = None;
        assert!(self.open().is_nothing());
    }

    /// The process dies.
    pub(super) fn kill(&mut self) {
        self.workspace = None;
    }

    pub(super) fn commit(&self, options: &CommitOptions) -> Option<Committed> {
        commit::commit(self.workspace(), options, &Silent).unwrap()
    }
}
