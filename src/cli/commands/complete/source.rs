//! What a completion takes from the store, from environments and from their images.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cli::backend;
use crate::cli::context::{Context, active_name};
use crate::daemon::protocol::Selection;
use crate::squashfs::format::InodeKind;
use crate::squashfs::{Image, ReaderOptions};

/// What can be completed besides the command line itself. On failure there are no completions.
pub(super) trait Source {
    /// The names of environments.
    fn names(&self) -> Vec<String>;
    /// The numbers of an environment's revisions, newest first.
    fn revisions(&self, name: Option<&str>) -> Vec<String>;
    /// An environment's tags.
    fn tags(&self, name: Option<&str>) -> Vec<String>;
    /// The paths of an environment that have changes.
    fn changed(&self, name: Option<&str>) -> Vec<String>;
    /// The ids of an environment's operations, newest first.
    fn operations(&self, name: Option<&str>) -> Vec<String>;
    /// The names in a directory of an environment or of a revision (`NAME@REV`); those of
    /// directories end with a slash.
    fn entries(&self, name: Option<&str>, dir: &str) -> Vec<String>;
    /// The programs that `envfs run` finds in an environment or a revision.
    fn programs(&self, name: &str) -> Vec<String>;
    /// The active environment.
    fn active(&self) -> Option<String>;
}

/// The store of a context.
pub(super) struct Store<'a> {
    pub(super) context: &'a Context,
}

impl Source for Store<'_> {
    fn names(&self) -> Vec<String> {
        let names = self.context.store().and_then(|store| Ok(store.list()?));
        names
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn revisions(&self, name: Option<&str>) -> Vec<String> {
        let history = self
            .context
            .environment(name)
            .and_then(|env| backend::history(&env.environment));
        let (revisions, _) = history.unwrap_or_default();
        let numbers = revisions.iter().rev();
        numbers.map(|revision| revision.id.0.to_string()).collect()
    }

    fn tags(&self, name: Option<&str>) -> Vec<String> {
        let tags = self
            .context
            .environment(name)
            .and_then(|env| backend::tags(&env.environment));
        tags.unwrap_or_default()
            .into_iter()
            .map(|tag| tag.name)
            .collect()
    }

    fn changed(&self, name: Option<&str>) -> Vec<String> {
        let Ok(env) = self.context.environment(name) else {
            return Vec::new();
        };
        let changes = env
            .service()
            .and_then(|service| Ok(service.changes(&Selection::default())?));
        // Commands take paths relative to a working directory in the environment.
        let inside = std::env::current_dir().ok().and_then(|dir| {
            let inside = dir.strip_prefix(&env.target.prefix).ok()?;
            Some(inside.to_path_buf())
        });
        changes
            .unwrap_or_default()
            .iter()
            .filter_map(|change| {
                let path = Path::new(OsStr::from_bytes(&change.path));
                let path = match &inside {
                    Some(inside) => path.strip_prefix(inside).ok()?,
                    None => path,
                };
                path.to_str().map(str::to_owned)
            })
            .filter(|path| !path.is_empty())
            .collect()
    }

    fn operations(&self, name: Option<&str>) -> Vec<String> {
        let found = self
            .context
            .environment(name)
            .and_then(|env| backend::operations(&env.environment));
        let (operations, _) = found.unwrap_or_default();
        let ids = operations.iter().rev();
        ids.map(|operation| operation.id.0.to_string()).collect()
    }

    fn entries(&self, name: Option<&str>, dir: &str) -> Vec<String> {
        let Ok((env, revision)) = self.context.committed(name) else {
            return Vec::new();
        };
        let mut found = BTreeSet::new();
        if let Ok(file) = backend::image_file(&env.environment, revision) {
            found.extend(entries_in_image(&file, dir, Wanted::All).unwrap_or_default());
        }
        let is_below = !Path::new(dir)
            .components()
            .any(|part| part.as_os_str() == "..");
        if revision.is_none() && is_below && !Path::new(dir).is_absolute() {
            // Also what is not committed, if it is mounted.
            found.extend(names_of(&env.target.prefix.join(dir)));
        }
        found.into_iter().collect()
    }

    fn programs(&self, name: &str) -> Vec<String> {
        let Ok((env, revision)) = self.context.committed(Some(name)) else {
            return Vec::new();
        };
        let dirs = ["bin", "node_modules/.bin"];
        let mut found = BTreeSet::new();
        if revision.is_none() {
            for dir in dirs {
                found.extend(executables(&env.target.prefix.join(dir)));
            }
        }
        // It is not mounted for a completion.
        if found.is_empty()
            && let Ok(file) = backend::image_file(&env.environment, revision)
        {
            for dir in dirs {
                let names = entries_in_image(&file, dir, Wanted::Programs);
                found.extend(names.unwrap_or_default());
            }
        }
        found.into_iter().collect()
    }

    fn active(&self) -> Option<String> {
        active_name()
    }
}

fn executables(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            // Of a symbolic link, its target counts.
            std::fs::metadata(entry.path())
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Returns the names in a directory; those of directories end with a slash.
fn names_of(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        Some(if is_dir { name + "/" } else { name })
    });
    named.collect()
}

/// Which names of a directory in an image are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Programs,
}

fn entries_in_image(file: &PathBuf, dir: &str, wanted: Wanted) -> Option<Vec<String>> {
    let image = Image::open(file, ReaderOptions::default()).ok()?;
    let mut at = image.inode(image.root()).ok()?;
    for part in dir.split('/').filter(|part| !part.is_empty()) {
        let entry = image.lookup(&at, part.as_bytes()).ok()??;
        at = image.entry_inode(&entry).ok()?;
    }
    let names = image.read_dir(&at).ok()?;
    let named = names.iter().filter_map(|(name, entry)| {
        let name = String::from_utf8(name.to_vec()).ok()?;
        let is_dir = entry.kind == InodeKind::Directory;
        match wanted {
            Wanted::All if is_dir => Some(name + "/"),
            Wanted::All => Some(name),
            // Permissions of symbolic links are 0777.
            Wanted::Programs => {
                let inode = image.entry_inode(&entry).ok()?;
                (!is_dir && inode.mode & 0o111 != 0).then_some(name)
            }
        }
    });
    Some(named.collect())
}
