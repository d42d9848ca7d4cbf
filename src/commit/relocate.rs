//! Moves an environment to another prefix: one commit that rewrites the files which contain the old
//! one.
//!
//! The changes are made in the writable layer, after a note in the database that they belong to a
//! relocation ([`StateDb::begin_relocation`]). The transaction that publishes the commit also
//! changes the prefix and removes the note. If the relocation fails or the process dies, the
//! changes are dropped: there were no others.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::{CommitError, Context, Result};
use super::workspace::{Workspace, command_line, new_revision};
use super::{CommitOptions, Committed, commit_at};
use crate::environment::{ForgetUse, NewEnvironment};
use crate::fault;
use crate::object::{Attr, Ino, Kind, Timestamp};
use crate::progress::{Progress, Report};
use crate::relocate::{
    self, Action, Counts, Edit, Entry, Impossible, Node, Plan, Scope, Tree, apply,
};
use crate::state::NewRevision;
use crate::sys::text::quoted;
use crate::union::{Creator, DiscardMode, NewObject, SetAttr, SetIdBits, SetTime, Union};

/// What to do with files that cannot be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Fail because of them.
    No,
    /// Leave them as they are.
    Yes,
}

/// What a new environment does with the prefix that its files contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relocate {
    /// Leaves all files as they are.
    No,
    /// Replaces it, if a known tool has made the environment.
    Yes {
        /// Earlier paths of the environment that the caller knows.
        old: Vec<PathBuf>,
        /// Files that cannot be rewritten.
        force: Force,
    },
}

/// How an environment is moved.
#[derive(Debug, Clone)]
pub struct Relocation {
    /// The new prefix, which was checked.
    pub prefix: PathBuf,
    /// Files that cannot be rewritten.
    pub force: Force,
    /// Message of the revision, and the command for the history.
    pub commit: CommitOptions,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Relocated {
    /// The prefixes that were replaced.
    pub from: Vec<Vec<u8>>,
    /// Counts of changed files.
    pub counts: Counts,
    /// Files that still contain an old prefix, because the new one does not fit.
    pub impossible: Vec<Impossible>,
    /// Files in unknown formats that still contain an old prefix.
    pub left: Vec<Vec<u8>>,
    /// The new revision; `None` if no file contained a prefix.
    pub committed: Option<Committed>,
}

/// Searches an environment for its prefix. Changes nothing.
pub fn plan_relocation(
    workspace: &Workspace,
    request: &relocate::Request,
    progress: &dyn Progress,
) -> Result<Plan> {
    let tree = UnionTree(workspace.union());
    Ok(relocate::plan(&tree, request, progress)?)
}

/// Returns the merged view of an environment as a tree that can be searched.
pub fn searched(workspace: &Workspace) -> impl Tree + '_ {
    UnionTree(workspace.union())
}

/// Rewrites the files of a plan, and commits them together with the new prefix. The environment is
/// not mounted and has no uncommitted changes. If this fails, nothing was changed.
pub fn relocate(
    workspace: &Workspace,
    plan: &Plan,
    how: &Relocation,
    progress: &dyn Progress,
) -> Result<Relocated> {
    let (union, db) = (workspace.union(), workspace.db());
    if !plan.impossible.is_empty() && how.force == Force::No {
        return Err(CommitError::CannotRelocate(plan.impossible.clone()));
    }
    if union.has_changes()? {
        return Err(CommitError::Uncommitted);
    }
    // Its files may contain the old prefix.
    if super::is_tried(workspace.env().layout()) {
        return Err(CommitError::Tried);
    }
    let committed = match plan.edits.is_empty() {
        true => {
            db.set_prefix(&how.prefix, &note_of(how))?;
            None
        }
        false => {
            // Rows of a discarded change would otherwise be part of the commit.
            db.begin_relocation()?;
            let done = edit_and_commit(workspace, plan, how, progress);
            if done.is_err()
                && let Err(e) = revert(workspace)
            {
                tracing::warn!("the next open reverts the relocation: {e}");
            }
            done?
        }
    };
    Ok(Relocated {
        from: plan.prefixes.clone(),
        counts: plan.counts(),
        impossible: plan.impossible.clone(),
        left: plan.left.clone(),
        committed,
    })
}

/// Moves an environment that is not finished to `prefix`, as a second revision. `then` receives it
/// open after that. Returns `None` if no file contains another prefix; then `then` is not called.
pub(super) fn relocate_unfinished<T>(
    new: &NewEnvironment,
    prefix: &Path,
    old: &[PathBuf],
    force: Force,
    progress: &dyn Progress,
    then: impl FnOnce(&Workspace) -> Result<T>,
) -> Result<Option<(Relocated, T)>> {
    let environment = new.unfinished();
    let mut config = environment.store().config()?;
    // The commit must not remove revisions that came with the environment.
    config.history.forget = ForgetUse::Never;
    let (workspace, _) = Workspace::open(environment, &config)?;
    let request = relocate::Request {
        old: old.to_vec(),
        new: prefix.to_owned(),
        scope: Scope::Recognised,
    };
    let plan = plan_relocation(&workspace, &request, progress)?;
    if plan.edits.is_empty() && plan.impossible.is_empty() {
        workspace.close()?;
        return Ok(None);
    }
    let from = plan.prefixes.first();
    let from = from.map(|path| quoted(OsStr::from_bytes(path)));
    let how = Relocation {
        prefix: prefix.to_owned(),
        force,
        commit: CommitOptions {
            message: format!(
                "relocate from {} to {}",
                from.unwrap_or_else(|| "placeholders".to_owned()),
                quoted(prefix)
            ),
            command: command_line(),
            ..CommitOptions::default()
        },
    };
    let done = relocate(&workspace, &plan, &how, progress)?;
    let result = then(&workspace)?;
    workspace.close()?;
    Ok(Some((done, result)))
}

fn edit_and_commit(
    workspace: &Workspace,
    plan: &Plan,
    how: &Relocation,
    progress: &dyn Progress,
) -> Result<Option<Committed>> {
    let union = workspace.union();
    fault::point("relocate.begun");
    let mut report = Report {
        phase: "rewriting".to_owned(),
        files_done: 0,
        files_total: plan.edits.len() as u64,
        bytes_done: 0,
        bytes_total: 0,
    };
    // Removing and replacing names changes the times of directories.
    let mut dirs: BTreeMap<Ino, Timestamp> = BTreeMap::new();
    for edit in &plan.edits {
        if progress.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        progress.report(&report);
        let found = Found::at(union, &edit.node)?;
        if !matches!(edit.action, Action::Rewrite { .. }) {
            dirs.entry(found.dir)
                .or_insert(union.attr(found.dir)?.mtime);
        }
        // Changes of a file of an image need a directory that it is in.
        union.nodes().remember(found.ino, found.dir);
        let changed = change(union, edit, &found);
        drop(union.forget(found.ino, 1));
        changed?;
        report.files_done += 1;
    }
    for (dir, mtime) in dirs {
        set_mtime(union, dir, mtime)?;
    }
    fault::point("relocate.edited");
    let committed = commit_at(workspace, &how.commit, Some(&how.prefix), progress)?;
    if committed.is_none() {
        workspace.db().set_prefix(&how.prefix, &note_of(how))?;
    }
    Ok(committed)
}

fn note_of(how: &Relocation) -> NewRevision {
    new_revision(&how.commit.message, &how.commit.command)
}

/// Drops the changes of a relocation that failed.
fn revert(workspace: &Workspace) -> Result<()> {
    let (union, db) = (workspace.union(), workspace.db());
    // The transaction may have been committed even if it returned an error.
    if !db.is_relocating()? {
        return Ok(());
    }
    let committed = union.lower().committed();
    union.discard_uppers(committed, DiscardMode::Always, |fresh| {
        Ok(db.revert_relocation(fresh)?)
    })?;
    super::retired::sweep_retired(db, workspace.env().layout())?;
    Ok(())
}

/// An object, and a name of it.
struct Found<'a> {
    dir: Ino,
    name: &'a [u8],
    ino: Ino,
    attr: Attr,
}

impl<'a> Found<'a> {
    fn at(union: &Union, node: &'a Node) -> Result<Found<'a>> {
        let gone = || CommitError::Check("a file of the environment disappeared".to_owned());
        let mut dir = Ino::ROOT;
        let mut names = node.path.split(|&byte| byte == b'/').peekable();
        while let Some(name) = names.next() {
            let (ino, attr) = union.lookup(dir, name)?.ok_or_else(gone)?;
            if names.peek().is_none() {
                return Ok(Found {
                    dir,
                    name,
                    ino,
                    attr,
                });
            }
            dir = ino;
        }
        Err(gone())
    }
}

fn change(union: &Union, edit: &Edit, found: &Found<'_>) -> Result<()> {
    let attr = &found.attr;
    match &edit.action {
        Action::Remove => union.unlink(found.dir, found.name)?,
        Action::Retarget(target) => {
            union.unlink(found.dir, found.name)?;
            let new = NewObject {
                target: Some(target),
                ..NewObject::new(
                    Kind::Symlink,
                    attr.mode,
                    Creator {
                        uid: attr.uid,
                        gid: attr.gid,
                    },
                )
            };
            let (ino, _) = union.create(found.dir, found.name, &new)?;
            set_mtime(union, ino, attr.mtime)?;
        }
        Action::Rewrite { splices, .. } => {
            let tree = UnionTree(union);
            let old = tree.read(
                &edit.node,
                0,
                usize::try_from(attr.size).unwrap_or(usize::MAX),
            );
            let old = old.context("read", Path::new("a file of the environment"))?;
            let new = apply(&old, splices);
            let is_in_place = splices.iter().all(|splice| splice.len == splice.with.len());
            if is_in_place {
                for splice in splices {
                    write(union, found.ino, splice.at as u64, &splice.with)?;
                }
            } else {
                let from = splices.first().map_or(0, |splice| splice.at);
                let tail = new.get(from..).unwrap_or_default();
                write(union, found.ino, from as u64, tail)?;
                let size = SetAttr {
                    size: Some(new.len() as u64),
                    ..SetAttr::default()
                };
                union.set_attr(found.ino, &size)?;
            }
            set_mtime(union, found.ino, attr.mtime)?;
        }
    }
    Ok(())
}

fn set_mtime(union: &Union, ino: Ino, mtime: Timestamp) -> Result<()> {
    let set = SetAttr {
        mtime: Some(SetTime::To(mtime)),
        ..SetAttr::default()
    };
    union.set_attr(ino, &set)?;
    Ok(())
}

fn write(union: &Union, ino: Ino, offset: u64, data: &[u8]) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        let written = union.write_at(ino, offset + done as u64, rest, SetIdBits::Keep)?;
        if written == 0 {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(CommitError::Union(full.into()));
        }
        done += written;
    }
    Ok(())
}

/// The merged view of an environment that is not mounted.
struct UnionTree<'a>(&'a Union);

/// The number of entries that are listed at once.
const LISTED: usize = 4096;
/// The number of bytes that are read at once.
const READ: usize = 1 << 20;

impl Tree for UnionTree<'_> {
    fn list(&self, dir: &Node) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut position = 0;
        loop {
            let items = self
                .0
                .read_dir(Ino(dir.id), position, LISTED)
                .map_err(to_io)?;
            let is_end = items.len() < LISTED;
            for item in items {
                position = item.next;
                if matches!(&item.name[..], b"." | b"..") {
                    continue;
                }
                let size = match item.kind {
                    Kind::File => self.0.attr(item.ino).map_err(to_io)?.size,
                    _ => 0,
                };
                entries.push(Entry {
                    name: item.name.into_vec(),
                    id: item.ino.0,
                    kind: item.kind,
                    size,
                });
            }
            if is_end {
                entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                return Ok(entries);
            }
        }
    }

    fn read(&self, file: &Node, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        while data.len() < len {
            let want = READ.min(len - data.len());
            let read = self
                .0
                .read_at(Ino(file.id), offset + data.len() as u64, want);
            let piece = read.map_err(to_io)?;
            let piece: &[u8] = (*piece).as_ref();
            data.extend_from_slice(piece);
            if piece.len() < want {
                break;
            }
        }
        Ok(data)
    }

    fn read_link(&self, link: &Node) -> io::Result<Vec<u8>> {
        Ok(self.0.read_link(Ino(link.id)).map_err(to_io)?.into_vec())
    }
}

fn to_io(error: crate::union::Error) -> io::Error {
    match error {
        crate::union::Error::Posix(errno) => errno.into(),
        crate::union::Error::Upper(error) => error,
        other => io::Error::other(other),
    }
}
