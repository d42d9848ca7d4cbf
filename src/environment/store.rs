//! The store: the directory of all environments of a user.
//!
//! A home is built under a temporary name, and one rename gives it its final name when it is
//! complete. Another rename takes that name away before the home is removed. So a name in the store
//! is always a complete environment, and remains of a crash are recognized by their names.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs2::FileExt;

use super::config::Config;
use super::error::{Context, EnvironmentError, Result};
use super::layout::{Layout, NEW, REMOVED, StoreLayout};
use super::lock::EnvLock;
use super::name::{EnvName, similar};
use crate::sys::walk::remove_tree;
use crate::sys::{durable, process, regular};

/// The age up to which a home without a lock file is assumed to be under construction.
const LOCK_GRACE: Duration = Duration::from_secs(60);

/// The directory of all environments of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    layout: StoreLayout,
}

/// Remains of a crash in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// The directory.
    pub path: PathBuf,
    /// The name of the environment.
    pub name: String,
    /// True for a home that was never finished, false for one that was not completely removed.
    pub is_unfinished: bool,
}

impl Store {
    /// Returns the store at `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Store {
        Store {
            layout: StoreLayout::new(root),
        }
    }

    /// Returns the store of this user: `$ENVFS_HOME`, else `envfs` below `$XDG_DATA_HOME`, else
    /// `~/.local/share/envfs`.
    pub fn of_user() -> Result<Store> {
        let root = match std::env::var_os("ENVFS_HOME") {
            Some(home) if !home.is_empty() => {
                let home = PathBuf::from(home);
                std::path::absolute(&home).context(&home, "resolve ENVFS_HOME")?
            }
            _ => directories::ProjectDirs::from("", "", "envfs")
                .ok_or(EnvironmentError::NoHome)?
                .data_dir()
                .to_owned(),
        };
        Ok(Store::new(root))
    }

    /// Returns the paths in the store.
    pub fn layout(&self) -> &StoreLayout {
        &self.layout
    }

    /// Reads the configuration.
    pub fn config(&self) -> Result<Config> {
        Config::load(&self.layout.config())
    }

    /// Returns the names of all environments, sorted. The list is empty if there is no store yet.
    pub fn list(&self) -> Result<Vec<EnvName>> {
        let mut names = Vec::new();
        for file_name in self.homes()? {
            // Anything else is garbage or was not created by envfs.
            if let Ok(name) = EnvName::new(&file_name)
                && self.exists(&name)
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Returns whether an environment with the name exists. That includes one that cannot be
    /// opened, so that the caller opens it and reports the error.
    pub fn exists(&self, name: &EnvName) -> bool {
        match self.layout.home(name).state_db().symlink_metadata() {
            Ok(_) => true,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
        }
    }

    /// Returns the environment with the name. The error for an unknown name lists similar names.
    pub fn open(&self, name: &EnvName) -> Result<Environment> {
        if self.exists(name) {
            return Ok(Environment {
                name: name.clone(),
                layout: self.layout.home(name),
                store: self.clone(),
            });
        }
        Err(EnvironmentError::Unknown {
            name: name.to_string(),
            similar: similar(name.as_str(), self.list()?),
        })
    }

    /// Starts a new environment in a directory with a temporary name.
    pub fn create(&self, name: &EnvName) -> Result<NewEnvironment> {
        self.create_directories()?;
        self.refuse_existing(name)?;
        let layout = self.layout.new_home(name, &token()?);
        let create_dir =
            |path: &Path| create_private_dir(path).context(path, "create the environment");
        create_dir(layout.home())?;
        // From here on, dropping `new` removes the directory.
        let mut new = NewEnvironment {
            name: name.clone(),
            layout: Some(layout.clone()),
            store: self.clone(),
            lock: None,
        };
        let lock = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(layout.lock())
            .context(&layout.lock(), "create the lock")?;
        // Shows other processes that the directory is in use. Where locks do not work, its age
        // does.
        if let Err(e) = FileExt::try_lock_exclusive(&lock) {
            tracing::debug!(error = %e, "a new environment cannot be locked");
        }
        new.lock = Some(lock);
        create_dir(&layout.images())?;
        create_dir(&layout.layers())?;
        create_dir(&layout.strays())?;
        Ok(new)
    }

    /// Creates a file without a name in the store. It is gone when it is closed.
    pub fn unnamed_file(&self) -> Result<File> {
        self.create_directories()?;
        let homes = self.layout.homes();
        tempfile::tempfile_in(&homes).context(&homes, "create a temporary file")
    }

    /// Returns remains of crashes: homes that were never finished and homes that were not
    /// completely removed. A home that a running process is building is not included.
    pub fn garbage(&self) -> Result<Vec<Garbage>> {
        let mut garbage = Vec::new();
        for file_name in self.homes()? {
            let path = self.layout.homes().join(&file_name);
            let (rest, is_unfinished) = match file_name.strip_prefix(NEW) {
                Some(rest) => (rest, true),
                None => match file_name.strip_prefix(REMOVED) {
                    Some(rest) => (rest, false),
                    None => continue,
                },
            };
            if is_unfinished && is_in_use(&path) {
                continue;
            }
            let name = rest.rsplit_once('-').map_or(rest, |(name, _)| name);
            garbage.push(Garbage {
                path,
                name: name.to_owned(),
                is_unfinished,
            });
        }
        garbage.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(garbage)
    }

    /// Removes one piece of garbage.
    pub fn remove_garbage(&self, garbage: &Garbage) -> Result<()> {
        remove_tree(&garbage.path).context(&garbage.path, "remove the remains of an environment")
    }

    fn refuse_existing(&self, name: &EnvName) -> Result<()> {
        // Even a home without a database: it may contain files that are still needed.
        if self.layout.home(name).home().symlink_metadata().is_ok() {
            return Err(EnvironmentError::Exists {
                name: name.to_string(),
            });
        }
        Ok(())
    }

    fn create_directories(&self) -> Result<()> {
        let root = self.layout.root();
        for path in [root, &self.layout.homes(), &self.layout.prefixes()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .context(path, "create the store")?;
        }
        Ok(())
    }

    /// Returns the names in the directory of homes that are UTF-8.
    fn homes(&self) -> Result<Vec<String>> {
        let homes = self.layout.homes();
        let entries = match fs::read_dir(&homes) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).context(&homes, "list the store"),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.context(&homes, "list the store")?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }
}

/// An existing environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    name: EnvName,
    layout: Layout,
    store: Store,
}

impl Environment {
    /// Returns the name.
    pub fn name(&self) -> &EnvName {
        &self.name
    }

    /// Returns the paths in its home.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the store that contains it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Renames the environment, under its exclusive lock. The prefix does not change: it is stored
    /// in the database and embedded in the environment's own files.
    pub fn rename(self, name: &EnvName, lock: &EnvLock) -> Result<Environment> {
        self.store.refuse_existing(name)?;
        let layout = self.store.layout.home(name);
        rename_new(self.layout.home(), layout.home(), name)?;
        lock.set_layout(&layout);
        sync_directory(&self.store.layout.homes())?;
        Ok(Environment {
            name: name.clone(),
            layout,
            store: self.store,
        })
    }

    /// Removes the environment and all its files, under its exclusive lock. The first step takes
    /// away its name; files that a crash leaves after that are garbage.
    pub fn remove_files(self, lock: EnvLock) -> Result<()> {
        let removed = self.store.layout.removed_home(&self.name, &token()?);
        fs::rename(self.layout.home(), &removed)
            .context(self.layout.home(), "remove the environment")?;
        lock.set_layout(&Layout::new(&removed));
        sync_directory(&self.store.layout.homes())?;
        drop(lock);
        remove_tree(&removed).context(&removed, "remove the files of the environment")
    }
}

/// An environment under construction. Its files are removed if it is dropped before it is finished.
#[derive(Debug)]
pub struct NewEnvironment {
    name: EnvName,
    /// `None` once it is finished.
    layout: Option<Layout>,
    store: Store,
    lock: Option<File>,
}

impl NewEnvironment {
    /// Returns its final name.
    pub fn name(&self) -> &EnvName {
        &self.name
    }

    /// Returns the paths in its home until it is finished. Open files may stay open across
    /// [`finish`](Self::finish), but their paths change, so the database must be closed before.
    pub fn layout(&self) -> Layout {
        match &self.layout {
            Some(layout) => layout.clone(),
            None => self.store.layout.home(&self.name),
        }
    }

    /// Returns the environment before it has its name, for operations that complete it. Its
    /// database and its view must be closed before [`finish`](Self::finish).
    pub fn unfinished(&self) -> Environment {
        Environment {
            name: self.name.clone(),
            layout: self.layout(),
            store: self.store.clone(),
        }
    }

    /// Gives the environment its final name. The database and the images must be durable by now.
    pub fn finish(mut self) -> Result<Environment> {
        let building = self.layout();
        let layout = self.store.layout.home(&self.name);
        // Only by name: closing a descriptor of the database would drop SQLite's locks on it.
        let database = building.state_db();
        fs::metadata(&database).context(&database, "find the state database")?;
        for directory in [building.images(), building.layers(), building.home().into()] {
            sync_directory(&directory)?;
        }
        self.store.refuse_existing(&self.name)?;
        rename_new(building.home(), layout.home(), &self.name)?;
        self.layout = None;
        sync_directory(&self.store.layout.homes())?;
        Ok(Environment {
            name: self.name.clone(),
            layout,
            store: self.store.clone(),
        })
    }
}

impl Drop for NewEnvironment {
    fn drop(&mut self) {
        if let Some(layout) = &self.layout
            && let Err(e) = remove_tree(layout.home())
        {
            let path = layout.home().display();
            tracing::warn!(%path, error = %e, "cannot remove an unfinished environment");
        }
    }
}

/// Renames a home to a name that must be free.
fn rename_new(from: &Path, to: &Path, name: &EnvName) -> Result<()> {
    // rename(2) only replaces an empty directory, and a home is never empty: of two processes that
    // both found the name free, the second fails here.
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Err(EnvironmentError::Exists {
            name: name.to_string(),
        }),
        other => other.context(to, "rename the environment"),
    }
}

fn is_in_use(home: &Path) -> bool {
    let lock = Layout::new(home).lock();
    let is_young = || {
        let age = fs::metadata(home).and_then(|metadata| metadata.modified());
        // A time in the future counts as now.
        age.is_ok_and(|time| {
            time.elapsed().is_ok_and(|age| age < LOCK_GRACE) || time.elapsed().is_err()
        })
    };
    match regular::open(&lock) {
        Ok(file) => match FileExt::try_lock_shared(&file) {
            Ok(()) => false,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
            // Locks do not work here, and an import may take hours.
            Err(_) => fs::metadata(home)
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|time| {
                    time.elapsed()
                        .is_ok_and(|age| age < Duration::from_secs(86_400))
                }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => is_young(),
        Err(_) => true,
    }
}

/// Returns a short unique suffix for a file name.
fn token() -> Result<String> {
    let uuid = process::new_uuid().context(Path::new("/proc/sys/kernel/random/uuid"), "read")?;
    Ok(uuid.chars().filter(|c| *c != '-').take(12).collect())
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn sync_directory(path: &Path) -> Result<()> {
    durable::sync_dir(path).context(path, "sync the directory")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("home"));
        (dir, store)
    }

    fn name(name: &str) -> EnvName {
        EnvName::new(name).unwrap()
    }

    fn create(store: &Store, as_name: &str) -> Environment {
        let new = store.create(&name(as_name)).unwrap();
        fs::write(new.layout().state_db(), "").unwrap();
        new.finish().unwrap()
    }

    fn exclusive(environment: &Environment) -> EnvLock {
        EnvLock::try_lock(environment.layout(), "test").unwrap()
    }

    #[test]
    fn an_environment_exists_once_it_is_finished() {
        let (_dir, store) = store();
        assert_eq!(store.list().unwrap(), []);
        let new = store.create(&name("a")).unwrap();
        fs::write(new.layout().state_db(), "").unwrap();
        assert_eq!(store.list().unwrap(), []);
        assert_eq!(store.garbage().unwrap(), [], "it is under construction");
        let environment = new.finish().unwrap();
        assert_eq!(store.list().unwrap(), [name("a")]);
        assert_eq!(store.open(&name("a")).unwrap(), environment);
        assert_eq!(store.garbage().unwrap(), []);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(environment.layout().home()), 0o700);
        assert_eq!(mode(store.layout().root()), 0o700);
        drop(exclusive(&environment));
    }

    #[test]
    fn a_home_without_a_database_is_not_an_environment() {
        let (_dir, store) = store();
        let new = store.create(&name("a")).unwrap();
        assert!(matches!(new.finish(), Err(EnvironmentError::Io { .. })));
        assert_eq!(fs::read_dir(store.layout().homes()).unwrap().count(), 0);
        // A directory created by hand is left alone.
        fs::create_dir(store.layout().home(&name("b")).home()).unwrap();
        assert!(matches!(
            store.create(&name("b")),
            Err(EnvironmentError::Exists { .. })
        ));
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn dropping_an_unfinished_environment_removes_it() {
        let (_dir, store) = store();
        let new = store.create(&name("a")).unwrap();
        let home = new.layout().home().to_owned();
        fs::create_dir(home.join("images/locked")).unwrap();
        fs::write(home.join("images/locked/x"), "").unwrap();
        fs::set_permissions(home.join("images/locked"), Permissions::from_mode(0o000)).unwrap();
        drop(new);
        assert!(!home.exists());
    }

    #[test]
    fn a_crash_before_finishing_leaves_garbage_that_can_be_removed() {
        let (_dir, store) = store();
        let mut new = store.create(&name("my-env")).unwrap();
        let home = new.layout().home().to_owned();
        // A killed process leaves the directory, and a lock file that is not locked.
        new.lock = None;
        std::mem::forget(new);
        let garbage = store.garbage().unwrap();
        assert_eq!(garbage.len(), 1);
        assert_eq!(garbage[0].name, "my-env");
        assert!(garbage[0].is_unfinished);
        assert_eq!(garbage[0].path, home);
        create(&store, "my-env");
        store.remove_garbage(&garbage[0]).unwrap();
        store.remove_garbage(&garbage[0]).unwrap();
        assert_eq!(store.garbage().unwrap(), []);
        assert_eq!(store.list().unwrap(), [name("my-env")]);
    }

    #[test]
    fn a_home_without_a_lock_file_is_garbage_only_when_it_is_old() {
        let (_dir, store) = store();
        create(&store, "a");
        let young = store.layout().new_home(&name("b"), "token");
        fs::create_dir(young.home()).unwrap();
        assert_eq!(store.garbage().unwrap(), []);
        let old = std::time::SystemTime::now() - 2 * LOCK_GRACE;
        File::open(young.home()).unwrap().set_modified(old).unwrap();
        assert_eq!(store.garbage().unwrap().len(), 1);
    }

    #[test]
    fn a_name_can_be_taken_only_once() {
        let (_dir, store) = store();
        let (one, two) = (
            store.create(&name("a")).unwrap(),
            store.create(&name("a")).unwrap(),
        );
        fs::write(one.layout().state_db(), "one").unwrap();
        fs::write(two.layout().state_db(), "two").unwrap();
        one.finish().unwrap();
        assert!(matches!(two.finish(), Err(EnvironmentError::Exists { .. })));
        assert!(matches!(
            store.create(&name("a")),
            Err(EnvironmentError::Exists { .. })
        ));
        let there = store.open(&name("a")).unwrap().layout().state_db();
        assert_eq!(fs::read(there).unwrap(), b"one");
        assert_eq!(store.garbage().unwrap(), []);
    }

    #[test]
    fn unknown_names_come_with_a_suggestion() {
        let (_dir, store) = store();
        create(&store, "science");
        let unknown = store.open(&name("sience")).unwrap_err().to_string();
        assert!(unknown.contains("did you mean 'science'?"), "{unknown}");
        let unknown = store.open(&name("web")).unwrap_err().to_string();
        assert!(!unknown.contains("did you mean"), "{unknown}");
    }

    #[test]
    fn a_renamed_environment_stays_locked_and_keeps_its_files() {
        let (_dir, store) = store();
        let a = create(&store, "a");
        create(&store, "b");
        let lock = exclusive(&a);
        let taken = a.clone().rename(&name("b"), &lock).unwrap_err();
        assert!(matches!(taken, EnvironmentError::Exists { .. }));
        let c = a.rename(&name("c"), &lock).unwrap();
        assert_eq!(store.list().unwrap(), [name("b"), name("c")]);
        let refused = EnvLock::try_lock(c.layout(), "test");
        assert!(matches!(
            refused,
            Err(EnvironmentError::Held {
                holder: Some(_),
                ..
            })
        ));
        drop(lock);
        assert_eq!(EnvLock::current_holder(c.layout()), None);
        drop(exclusive(&c));
    }

    #[test]
    fn removing_an_environment_removes_all_its_files() {
        let (_dir, store) = store();
        let a = create(&store, "a");
        let locked = a.layout().upper(1).join("locked/deep");
        fs::create_dir_all(&locked).unwrap();
        fs::write(locked.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/", locked.join("link")).unwrap();
        fs::set_permissions(&locked, Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(locked.parent().unwrap(), Permissions::from_mode(0o500)).unwrap();
        let lock = exclusive(&a);
        a.remove_files(lock).unwrap();
        assert_eq!(store.list().unwrap(), []);
        assert_eq!(fs::read_dir(store.layout().homes()).unwrap().count(), 0);
    }

    #[test]
    fn a_crash_during_removal_leaves_garbage() {
        let (_dir, store) = store();
        let a = create(&store, "a");
        let removed = store.layout().removed_home(&name("a"), "token");
        fs::rename(a.layout().home(), removed).unwrap();
        let garbage = store.garbage().unwrap();
        assert_eq!(
            (garbage[0].name.as_str(), garbage[0].is_unfinished),
            ("a", false)
        );
        store.remove_garbage(&garbage[0]).unwrap();
        assert_eq!(store.garbage().unwrap(), []);
    }
}
