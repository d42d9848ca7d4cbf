//! Launchers: small scripts in a directory of the user that run programs of an environment.
//!
//! A launcher executes `envfs run` with the path of the program, so the program sees itself at the
//! prefix, and finds other programs there first in `PATH`. Its second line names the environment:
//! only files with that line are ever replaced or removed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::backend;
use super::context::Env;
use super::error::{CommandError, Result};
use super::follow::{Followed, follow};
use super::output::{Output, count};
use crate::commit::OpenRevision;
use crate::daemon::failure::Kind;
use crate::environment::{Exposure, LauncherRecord, Layout};
use crate::fault;
use crate::object;
use crate::shell::render::{quote, word};
use crate::sys::durable::{sync_dir, sync_file_system};
use crate::sys::text::quoted;
use crate::sys::{process, regular};

/// The directories of programs below a prefix, in the order of `PATH`.
const PROGRAM_DIRS: [&str; 2] = ["bin", "node_modules/.bin"];
/// The beginning of the second line of each launcher, before the id of its environment.
const MARK: &[u8] = b"# envfs launcher ";
const SHEBANG: &[u8] = b"#!/bin/sh\n";
/// The bytes of a file that are read to recognize a launcher.
const HEAD: u64 = 256;
/// The number of files that a message names.
const NAMED: usize = 10;

/// The programs of a revision by name, with their paths in the mount.
type Programs = BTreeMap<OsString, PathBuf>;

/// What changed in a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Renewed {
    /// Launchers that there are now.
    pub(super) launchers: u64,
    /// New ones.
    pub(super) added: u64,
    /// Those whose text changed.
    pub(super) changed: u64,
    /// Those of programs that are gone.
    pub(super) removed: u64,
}

impl Renewed {
    fn is_nothing(self) -> bool {
        self.added + self.changed + self.removed == 0
    }
}

/// What to do about files in the directory that have the name of a launcher and are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreign {
    /// Fail before anything is written.
    Refuse,
    /// Leave them, warn, and write the other launchers.
    Leave,
}

/// Makes the launchers in a directory those of an exposure.
pub(super) fn renew(env: &Env, exposure: &Exposure, foreign: Foreign) -> Result<Renewed> {
    let dir = exposure.dir.as_path();
    let wanted = wanted(env, exposure)?;
    let found = existing(dir, &env.target.id)?;
    let strangers: Vec<&OsStr> = wanted
        .keys()
        .filter(|name| !found.contains_key(*name) && dir.join(name).symlink_metadata().is_ok())
        .map(OsString::as_os_str)
        .collect();
    if !strangers.is_empty() {
        let error = strange(dir, &strangers);
        match foreign {
            Foreign::Refuse => return Err(error),
            Foreign::Leave => backend::warn(error.message),
        }
    }
    let mut renewed = Renewed::default();
    let mut drafts = Vec::new();
    for (name, text) in &wanted {
        if strangers.contains(&name.as_os_str()) {
            continue;
        }
        renewed.launchers += 1;
        match found.get(name) {
            Some(old) if old == text => continue,
            Some(_) => renewed.changed += 1,
            None => renewed.added += 1,
        }
        drafts.push((name, draft(dir, text)?));
    }
    if let Some((_, first)) = drafts.first() {
        // Otherwise a launcher could be empty after a power failure, and would no longer be known.
        sync_file_system(first.as_file()).map_err(|error| cannot_write(dir, &error))?;
    }
    for (name, draft) in drafts {
        let path = dir.join(name);
        // A file that someone else has made since is not replaced.
        let placed = match found.contains_key(name) {
            true => draft.persist(&path),
            false => draft.persist_noclobber(&path),
        };
        placed.map_err(|error| cannot_write(&path, &error.error))?;
        fault::point("expose.renamed");
    }
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        remove_file(&dir.join(name))?;
        renewed.removed += 1;
    }
    sync_dir(dir).map_err(|error| cannot_write(dir, &error))?;
    Ok(renewed)
}

/// Removes all launchers of an environment from a directory. Returns their number.
pub(super) fn remove(dir: &Path, id: &str) -> Result<u64> {
    let found = match existing(dir, id) {
        Err(error) if error.kind == Kind::NotFound => return Ok(0),
        found => found?,
    };
    for name in found.keys() {
        remove_file(&dir.join(name))?;
        fault::point("expose.removed");
    }
    Ok(found.len() as u64)
}

/// Renews all launchers of an environment after its current revision, its name or its prefix has
/// changed. The change is done, so failures are warnings.
pub(super) fn renew_all(env: &Env, output: &Output) {
    let layout = env.environment.layout();
    if !layout.launchers().exists() {
        return;
    }
    let record = match LauncherRecord::open(layout) {
        Ok(record) => record,
        Err(error) => return backend::warn(format!("the launchers were not renewed: {error}")),
    };
    for exposure in &record.exposures {
        let at = quoted(exposure.dir.as_path());
        match renew(env, exposure, Foreign::Leave) {
            Ok(renewed) if renewed.is_nothing() => {}
            Ok(renewed) => output.note(format!("launchers in {at}: {}", describe(renewed))),
            Err(error) => {
                let Env { target, .. } = env;
                backend::warn(format!(
                    "the launchers in {at} were not renewed: {}; to try again: envfs expose --refresh {1} \
                     {0}, to forget them: envfs expose --remove {1} {0}",
                    error.message, target.name
                ));
            }
        }
    }
}

/// Removes the launchers of an environment that was removed.
pub(super) fn remove_all(exposures: &[Exposure], id: &str) {
    for exposure in exposures {
        let dir = exposure.dir.as_path();
        if let Err(error) = remove(dir, id) {
            let message = error.message;
            backend::warn(format!("launchers are left in {}: {message}", quoted(dir)));
        }
    }
}

/// Returns the directories with launchers of an environment. An unreadable record counts as empty.
pub(super) fn recorded(layout: &Layout) -> Vec<Exposure> {
    LauncherRecord::read(layout).unwrap_or_else(|error| {
        backend::warn(error.to_string());
        Vec::new()
    })
}

/// Describes what changed.
pub(super) fn describe(renewed: Renewed) -> String {
    let Renewed {
        launchers,
        added,
        changed,
        removed,
    } = renewed;
    let mut text = count(launchers, "launcher");
    for (number, what) in [(added, "new"), (changed, "changed"), (removed, "removed")] {
        if number > 0 {
            text.push_str(&format!(", {number} {what}"));
        }
    }
    text
}

/// Returns the names and the texts of the launchers of an exposure.
fn wanted(env: &Env, exposure: &Exposure) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let number = exposure
        .revision
        .as_deref()
        .map(|revision| backend::revision(&env.environment, revision))
        .transpose()?;
    let revision = backend::open_revision(&env.environment, number)?;
    let mut programs = programs(env, &revision)?;
    if let Some(names) = &exposure.programs {
        programs.retain(|name, _| names.iter().any(|wanted| wanted.0 == *name));
    }
    let place = match &exposure.revision {
        Some(revision) => format!("{}@{revision}", env.name()),
        None => env.name().to_owned(),
    };
    let text = |path: &Path| {
        let mut words: Vec<&OsStr> = vec![OsStr::new("--home")];
        words.push(env.store.layout().root().as_os_str());
        words.push(OsStr::new("run"));
        words.extend(exposure.options.iter().map(|option| option.0.as_os_str()));
        words.extend([OsStr::new(&place), path.as_os_str()]);
        launcher(&env.target.id, &process::own_program(), &words)
    };
    Ok(programs
        .into_iter()
        .map(|(name, path)| (name, text(&path)))
        .collect())
}

/// Fails if the revision of an exposure lacks a program that was asked for.
pub(super) fn check_programs(env: &Env, exposure: &Exposure) -> Result<()> {
    let found = wanted(env, exposure)?;
    let mut names = exposure.programs.iter().flatten();
    let Some(missing) = names.find(|name| !found.contains_key(&name.0)) else {
        return Ok(());
    };
    let message = format!(
        "{} has no program {} (in {})",
        match &exposure.revision {
            Some(revision) => format!("revision {revision} of {}", env.name()),
            None => format!("the current revision of {}", env.name()),
        },
        quoted(&missing.0),
        PROGRAM_DIRS.join(", ")
    );
    Err(CommandError::new(Kind::NotFound, message).hint(format!(
        "if it was installed since: envfs commit {}",
        env.name()
    )))
}

/// Returns the programs of a revision. Hidden files, as conda's scripts of packages, are none.
fn programs(env: &Env, revision: &OpenRevision) -> Result<Programs> {
    let prefix = &env.target.prefix;
    let mut found = Programs::new();
    for dir in PROGRAM_DIRS {
        let Followed::Inside(ino, attr) = follow(prefix, revision, dir.as_bytes())? else {
            continue;
        };
        if attr.kind != object::Kind::Directory {
            continue;
        }
        for name in revision.names(ino)? {
            let path = [dir.as_bytes(), b"/", &name].concat();
            if !name.starts_with(b".") && is_program(prefix, revision, &path)? {
                let path = prefix.join(OsStr::from_bytes(&path));
                found
                    .entry(OsString::from_vec(name.into_vec()))
                    .or_insert(path);
            }
        }
    }
    Ok(found)
}

fn is_program(prefix: &Path, revision: &OpenRevision, path: &[u8]) -> Result<bool> {
    Ok(match follow(prefix, revision, path)? {
        Followed::Inside(_, attr) => attr.kind == object::Kind::File && attr.mode & 0o111 != 0,
        // As the python of a virtual environment.
        Followed::Outside(target) => {
            let target = Path::new(OsStr::from_bytes(&target));
            target.is_file() && process::is_executable(target)
        }
        Followed::Missing => false,
    })
}

/// Returns the text of a launcher that executes envfs with these words and its own arguments.
fn launcher(id: &str, program: &Path, words: &[&OsStr]) -> Vec<u8> {
    let mut text = [SHEBANG, MARK, id.as_bytes()].concat();
    text.extend_from_slice(b": written, renewed and removed by envfs expose\nset --");
    for word in words {
        text.push(b' ');
        text.extend(quote(word));
    }
    text.extend_from_slice(b" \"$@\"\n");
    // It may have been moved since.
    if program.is_absolute() && !program.starts_with("/proc") {
        let program = quote(program.as_os_str());
        text.extend(
            [
                &b"test -x "[..],
                &program,
                b" && exec ",
                &program,
                b" \"$@\"\n",
            ]
            .concat(),
        );
    }
    text.extend_from_slice(b"exec envfs \"$@\"\n");
    text
}

/// Returns the launchers of an environment in a directory, with their texts.
fn existing(dir: &Path, id: &str) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let failed =
        |error: &io::Error| CommandError::of_named(format!("cannot read {}", quoted(dir)), error);
    let mark = [SHEBANG, MARK, id.as_bytes(), b":"].concat();
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        // Also those of a command that was killed before it named them.
        if is_file && head(&entry.path()).is_some_and(|head| head.starts_with(&mark)) {
            let text = fs::read(entry.path()).map_err(|error| failed(&error))?;
            found.insert(entry.file_name(), text);
        }
    }
    Ok(found)
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let file: File = regular::open(path).ok()?;
    file.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Returns the error for files that have the names of launchers and are none of this environment.
fn strange(dir: &Path, names: &[&OsStr]) -> CommandError {
    let is_launcher = |name: &&OsStr| {
        let head = head(&dir.join(name)).unwrap_or_default();
        let rest = head.strip_prefix(SHEBANG);
        rest.is_some_and(|rest| rest.starts_with(MARK))
    };
    let whose = match names.iter().all(is_launcher) {
        true => "launchers of another environment",
        false => "files that envfs did not write",
    };
    let mut shown: Vec<String> = names.iter().take(NAMED).map(quoted).collect();
    if names.len() > NAMED {
        shown.push(format!("and {} more", names.len() - NAMED));
    }
    let message = format!("{} has {whose}: {}", quoted(dir), shown.join(", "));
    CommandError::new(Kind::Conflict, message)
        .hint("choose another directory, name the programs that you need, or move the files away")
}

/// Writes the text of a launcher into a file that has no name of a program yet.
fn draft(dir: &Path, text: &[u8]) -> Result<NamedTempFile> {
    let make = || {
        let mut file = tempfile::Builder::new()
            .prefix(".envfs-new-")
            // The umask applies.
            .permissions(Permissions::from_mode(0o777))
            .tempfile_in(dir)?;
        io::Write::write_all(&mut file, text)?;
        Ok(file)
    };
    make().map_err(|error: io::Error| cannot_write(dir, &error))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let doing = format!("cannot remove {}", quoted(path));
            Err(CommandError::io(doing, &error))
        }
        _ => Ok(()),
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> CommandError {
    CommandError::io(format!("cannot write {}", quoted(path)), error)
}

/// Returns how to put a directory first in `PATH`.
pub(super) fn path_hint(dir: &Path) -> String {
    format!("export PATH={}:\"$PATH\"", word(dir))
}
