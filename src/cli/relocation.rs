//! Relocation, as `relocate`, `import` and `clone` use it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::context::Env;
use super::error::Result;
use super::output::{Output, count};
use super::place;
use crate::commit::{self, CommitError, CommitOptions, Force, Relocated, Relocation, Workspace};
use crate::daemon::failure::Failure;
use crate::daemon::lifecycle::State;
use crate::daemon::service::{LOCK_TIMEOUT, Local};
use crate::environment::real_path;
use crate::progress::Progress;
use crate::relocate::{self, Counts, DirTree, Foreign, Impossible, Plan, Request, Scope, Tree};
use crate::sys::text::{Text, quoted};

/// What was moved, or would be.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Moved {
    /// The prefixes that were replaced.
    from: Vec<Text>,
    /// The new prefix.
    to: Text,
    /// Files that were changed.
    rewritten: Counts,
    /// Files that contain an old prefix still, because they have no space for the new one.
    impossible: Vec<Impossible>,
    /// Binary files in unknown formats that contain an old prefix still.
    unknown: Vec<Text>,
    /// The new revision.
    pub(super) revision: Option<i64>,
}

impl Moved {
    /// Describes a relocation that was done.
    pub(super) fn of(done: &Relocated, to: &Path) -> Moved {
        let revision = done.committed.as_ref();
        Moved {
            from: texts(&done.from),
            to: to.into(),
            rewritten: done.counts,
            impossible: done.impossible.clone(),
            unknown: texts(&done.left),
            revision: revision.map(|committed| committed.revision.0),
        }
    }

    /// Describes a relocation that was only planned.
    pub(super) fn planned(plan: &Plan, to: &Path) -> Moved {
        Moved {
            from: texts(&plan.prefixes),
            to: to.into(),
            rewritten: plan.counts(),
            impossible: plan.impossible.clone(),
            unknown: texts(&plan.left),
            revision: None,
        }
    }

    /// Returns the old prefixes in words.
    pub(super) fn sources(&self) -> String {
        let paths: Vec<String> = self.from.iter().map(|path| quoted(&path.0)).collect();
        match paths.is_empty() {
            true => "placeholders".to_owned(),
            false => paths.join(" and "),
        }
    }

    /// Returns the counts in words.
    pub(super) fn describe(&self) -> String {
        let counts = &self.rewritten;
        let parts = [
            (counts.scripts, "script"),
            (counts.texts, "text file"),
            (counts.binaries, "binary file"),
            (counts.links, "symbolic link"),
            (counts.digests, "list of digests"),
        ];
        let mut words: Vec<String> = parts
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| match (number, what) {
                (number, "list of digests") if number > 1 => format!("{number} lists of digests"),
                (number, what) => count(number, what),
            })
            .collect();
        if counts.bytecode > 0 {
            words.push(format!(
                "removed {} of them",
                count(counts.bytecode, "compiled module")
            ));
        }
        match words.is_empty() {
            true => "nothing".to_owned(),
            false => words.join(", "),
        }
    }

    /// Warns of files that contain an old prefix still.
    pub(super) fn warn(&self, output: &Output) {
        let named = |paths: Vec<String>| {
            const SHOWN: usize = 5;
            let more = paths.len().saturating_sub(SHOWN);
            let mut shown = paths.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
            if more > 0 {
                shown.push_str(&format!(" and {more} more"));
            }
            shown
        };
        if !self.impossible.is_empty() {
            let paths = self
                .impossible
                .iter()
                .map(|file| quoted(path_of(&file.path)));
            output.warn(format!(
                "files without space for the new prefix still contain the old one: {}",
                named(paths.collect())
            ));
        }
        if !self.unknown.is_empty() {
            let paths = self.unknown.iter().map(|path| quoted(&path.0));
            output.warn(format!(
                "binary files that are not programs still contain the old prefix: {}",
                named(paths.collect())
            ));
        }
    }
}

fn texts(paths: &[Vec<u8>]) -> Vec<Text> {
    paths.iter().map(|path| Text::from(path_of(path))).collect()
}

/// Returns bytes as a path.
pub(super) fn path_of(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Returns a prefix as it is stored, and without symbolic links in it.
pub(super) fn spellings(prefix: &Path) -> Vec<PathBuf> {
    let mut all = vec![prefix.to_owned()];
    all.extend(real_path(prefix).ok().filter(|real| real != prefix));
    all
}

/// Returns what the options of a new environment say about files that cannot be rewritten.
pub(super) fn force(no_relocate: bool, force: bool) -> Option<Force> {
    match (no_relocate, force) {
        (true, _) => None,
        (false, true) => Some(Force::Yes),
        (false, false) => Some(Force::No),
    }
}

/// Opens an environment that is not mounted.
pub(super) fn open(env: &Env) -> Result<Local> {
    let config = env.store.config()?;
    let environment = env.environment.clone();
    Ok(Local::open(environment, &config, "relocate", LOCK_TIMEOUT)?)
}

/// Returns whether an open environment has uncommitted changes.
pub(super) fn has_changes(workspace: &Workspace) -> Result<bool> {
    let changed = workspace.union().has_changes();
    Ok(changed.map_err(|error| Failure::from(CommitError::from(error)))?)
}

/// Searches an open environment for its prefixes.
pub(super) fn plan(
    workspace: &Workspace,
    old: &[PathBuf],
    new: &Path,
    progress: &dyn Progress,
) -> Result<Plan> {
    let request = Request {
        old: old.to_vec(),
        new: new.to_owned(),
        scope: Scope::All,
    };
    Ok(commit::plan_relocation(workspace, &request, progress).map_err(Failure::from)?)
}

/// Returns the options of a relocation.
pub(super) fn how(prefix: &Path, force: Force, message: &str, command: &str) -> Relocation {
    Relocation {
        prefix: prefix.to_owned(),
        force,
        commit: CommitOptions {
            message: message.to_owned(),
            command: command.to_owned(),
            ..CommitOptions::default()
        },
    }
}

/// Rewrites the files of a plan, as a commit.
pub(super) fn relocate(
    workspace: &Workspace,
    plan: &Plan,
    how: &Relocation,
    progress: &dyn Progress,
) -> Result<Relocated> {
    Ok(commit::relocate(workspace, plan, how, progress).map_err(Failure::from)?)
}

/// Calls `read` with the tree of an environment, mounted or not.
pub(super) fn in_tree<T>(env: &Env, read: impl FnOnce(&dyn Tree) -> Result<T>) -> Result<T> {
    match env.state()? {
        State::Unmounted | State::Dead(_) | State::Copy(_) => {
            read(&commit::searched(open(env)?.workspace()))
        }
        _ => read(&DirTree::new(&env.target.prefix)),
    }
}

/// Lists references to other prefixes in the files of an environment.
pub(super) fn foreign(
    env: &Env,
    tree: &dyn Tree,
    more: &[PathBuf],
    progress: &dyn Progress,
) -> Result<Vec<Foreign>> {
    let more: Vec<&Path> = more.iter().map(PathBuf::as_path).collect();
    let found = relocate::foreign(tree, &env.target.prefix, &more, progress);
    let mut found = found.map_err(|error| Failure::from(CommitError::from(error)))?;
    // Tools resolve symbolic links, so the prefix may have been written without those on its path.
    if let Ok(own) = place::resolve(&env.target.prefix) {
        found.retain(|one| path_of(&one.prefix) != own.as_os_str());
    }
    Ok(found)
}
