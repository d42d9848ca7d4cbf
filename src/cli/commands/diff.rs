//! `envfs diff`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args as ClapArgs;
use similar::TextDiff;

use crate::cli::context::{Context, Env};
use crate::cli::error::Result;
use crate::cli::output::{self, Output, Tone};
use crate::cli::revisions::OfTwo;
use crate::cli::{backend, packages, revisions};
use crate::commit::OpenRevision;
use crate::daemon::protocol::{Selection, Since};
use crate::object::Kind;
use crate::packages::{Differences, Owner};
use crate::sys::text::quoted;
use crate::union::{Change, ChangeKind, Summary};

/// The size above which files are not compared line by line.
const MAX_TEXT: u64 = 4 << 20;

/// Show what changed since a revision, or between two.
///
/// Without REV, shows the uncommitted changes. With one REV, shows what changed since that
/// revision, including uncommitted changes. With two, or A..B, shows what changed from the first to
/// the second. A revision is a number, a tag, @3 or @tag. Write `--` before paths that look like
/// one.
///
/// With NAME@REV and OTHER@REV, compares revisions of two environments.
///
/// Prints one line per package that was installed, removed, upgraded or edited by hand, then one
/// per path that belongs to none of them: A added, M modified, D removed, R renamed. Bytecode of
/// Python is only counted. With --files or paths, lists all files and no packages; with --packages,
/// only packages.
///
/// Paths are compared, so replacing a file by an equal one is not a change. With --times, also
/// lists files of which only the modification time changed, as t. With --content, also shows the
/// changed lines of text files. Paths can be absolute or relative to the prefix. Unusual names are
/// quoted as in git.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs diff\n  envfs diff science lib/python3.12/site-packages\n  envfs diff --files science\n  envfs diff --content etc\n  envfs diff 3                       since revision 3\n  envfs diff science 3 5 lib         from revision 3 to 5, below lib\n  envfs diff --stat before-upgrade..\n  envfs diff science@3 -- 5          the path 5 since revision 3\n  envfs diff science@3 copy@5        revisions of two environments"
)]
pub struct Args {
    /// Environment [default: the active one], revisions, and paths in it.
    #[arg(value_name = "[NAME] [REV] [REV] [PATH]")]
    words: Vec<OsString>,
    /// Paths.
    #[arg(last = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// List all changed files instead of packages.
    #[arg(long, conflicts_with = "json")]
    files: bool,
    /// List only packages.
    #[arg(long, conflicts_with_all = ["files", "content", "stat", "name_only", "null", "times", "json"])]
    packages: bool,
    /// List all changed files, and show the changed lines of text files.
    #[arg(short, long, conflicts_with = "json")]
    content: bool,
    /// Show only numbers and sizes: added, modified, removed, renamed.
    #[arg(long, conflicts_with = "content")]
    stat: bool,
    /// Print only the current paths.
    #[arg(long, conflicts_with_all = ["content", "stat", "json"])]
    name_only: bool,
    /// Print letters and paths exactly, each terminated by NUL, with both paths of a rename.
    #[arg(short = 'z', long, conflicts_with_all = ["content", "stat", "json"])]
    null: bool,
    /// List all changed files, also those of which only the modification time
    /// changed.
    #[arg(long, conflicts_with_all = ["json", "stat"])]
    times: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is compared: revisions, or the current state where there is none.
#[derive(Debug, Clone, Copy)]
struct Sides {
    /// Without one, the current revision.
    old: Option<i64>,
    /// Without one, the current state with uncommitted changes.
    new: Option<i64>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        if let Some(two) = revisions::of_two(context, &self.words)? {
            return self.between(context, two);
        }
        let (env, found) = revisions::parse(context, &self.words, 2)?;
        let selection = env.select(&[found.paths, &self.paths[..]].concat())?;
        let sides = match found.numbers.as_slice() {
            [old, new, ..] => Sides {
                old: Some(*old),
                new: Some(*new),
            },
            rest => Sides {
                old: rest.first().copied(),
                new: None,
            },
        };
        if self.content && sides.new.is_none() {
            // The current content is read through the mount.
            env.ensure_mounted()?;
        }
        let found = sides.differences(&env, &selection)?;
        self.show(context, Contents::of(&env, sides), &selection, &found)
    }

    /// Compares revisions of two environments.
    fn between(&self, context: &Context, two: OfTwo<'_>) -> Result<()> {
        let ((env, from), (other, to)) = (two.old, two.new);
        let selection = env.select(&[two.paths, &self.paths[..]].concat())?;
        let old = backend::open_revision(&env.environment, Some(from))?;
        let new = backend::open_revision(&other.environment, Some(to))?;
        let found = backend::differences_between(&old, &new, &selection)?;
        let sides = Sides {
            old: Some(from),
            new: Some(to),
        };
        let contents = Contents {
            old: Some(old),
            new: Some(new),
            ..Contents::of(&env, sides)
        };
        self.show(context, contents, &selection, &found)
    }

    fn show(
        &self,
        context: &Context,
        contents: Contents<'_>,
        selection: &Selection,
        found: &Differences,
    ) -> Result<()> {
        let is_by_file = self.files
            || self.content
            || self.stat
            || self.name_only
            || self.null
            || self.times
            || !selection.paths.is_empty() && !self.packages;
        if self.json && !self.stat {
            return context.output.json(found);
        }
        if !is_by_file {
            let listed = match self.packages {
                true => Listed::Packages,
                false => Listed::PackagesAndOthers,
            };
            return show_packages(context, found, listed);
        }
        let changes: Vec<&Change> = found.changes.iter().map(|one| &one.change).collect();
        self.print(context, contents, &changes)
    }

    fn print(
        &self,
        context: &Context,
        mut contents: Contents<'_>,
        changes: &[&Change],
    ) -> Result<()> {
        let out = &context.output;
        if self.stat {
            let summary = Summary::of(changes.iter().copied());
            return match self.json {
                true => out.json(&summary),
                false => output::summary(&summary)
                    .iter()
                    .try_for_each(|row| out.line(row.colored(out))),
            };
        }
        let is_listed = |change: &&Change| self.times || !change.is_touched();
        let listed: Vec<&Change> = changes.iter().copied().filter(is_listed).collect();
        if self.null {
            return listed.iter().try_for_each(|change| {
                if self.name_only {
                    return out.fields([&change.path]);
                }
                let letter = change.what.letter().to_string();
                let paths = from(change).into_iter().chain([change.path.as_slice()]);
                out.fields([letter.as_bytes()])?;
                out.fields(paths)
            });
        }
        for change in &listed {
            if self.name_only {
                out.line(quoted(OsStr::from_bytes(&change.path)))?;
                continue;
            }
            show(context, change)?;
            if self.content && change.kind == Kind::File {
                compare(context, &mut contents, change)?;
            }
        }
        note_touched(context, changes.len() - listed.len());
        Ok(())
    }
}

impl Sides {
    fn differences(self, env: &Env, selection: &Selection) -> Result<Differences> {
        Ok(match (self.old, self.new) {
            (None, _) => env.service()?.differences(selection)?,
            (Some(revision), None) => env.service()?.differences_since(&Since {
                command: String::new(),
                revision,
                selection: selection.clone(),
            })?,
            (Some(old), Some(new)) => {
                backend::differences(&env.environment, old, Some(new), selection)?
            }
        })
    }
}

/// Reads the content of both sides.
struct Contents<'a> {
    env: &'a Env,
    sides: Sides,
    old: Option<OpenRevision>,
    new: Option<OpenRevision>,
}

impl Contents<'_> {
    fn of(env: &Env, sides: Sides) -> Contents<'_> {
        Contents {
            env,
            sides,
            old: None,
            new: None,
        }
    }

    /// Returns the content before a change; nothing if there was no file.
    fn before(&mut self, change: &Change) -> Result<Vec<u8>> {
        let Some(path) = &change.committed else {
            return Ok(Vec::new());
        };
        if self.old.is_none() {
            self.old = Some(backend::open_revision(
                &self.env.environment,
                self.sides.old,
            )?);
        }
        content_in(self.old.as_ref(), path)
    }

    /// Returns the content after a change; nothing if there is no file.
    fn after(&mut self, change: &Change) -> Result<Vec<u8>> {
        if change.what == ChangeKind::Removed {
            return Ok(Vec::new());
        }
        if self.sides.new.is_none() {
            let path = self.env.target.prefix.join(OsStr::from_bytes(&change.path));
            // A file that was removed in the meantime counts as removed.
            return Ok(std::fs::read(path).unwrap_or_default());
        }
        if self.new.is_none() {
            self.new = Some(backend::open_revision(
                &self.env.environment,
                self.sides.new,
            )?);
        }
        content_in(self.new.as_ref(), &change.path)
    }
}

/// Returns the content of a file in a revision. Of anything else, and of what is too large, none.
fn content_in(revision: Option<&OpenRevision>, path: &[u8]) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let Some(revision) = revision else {
        return Ok(content);
    };
    let found = revision.find(path)?;
    if let Some((ino, attr)) = found
        && attr.kind == Kind::File
        && attr.size <= MAX_TEXT
    {
        revision.read(ino, |part| -> Result<()> {
            content.extend_from_slice(part);
            Ok(())
        })?;
    }
    Ok(content)
}

/// What is shown of changes by package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    Packages,
    /// Also the files that belong to none.
    PackagesAndOthers,
}

/// Shows packages.
fn show_packages(context: &Context, found: &Differences, listed: Listed) -> Result<()> {
    let output = &context.output;
    let packages = &found.packages;
    let lines = packages::lines(output, packages, usize::MAX);
    let lines = lines
        .into_iter()
        .chain(packages::bytecode(output, packages));
    lines.into_iter().try_for_each(|line| output.line(line))?;
    if listed == Listed::Packages {
        return Ok(());
    }
    let (mut touched, mut folded) = (0, 0);
    for one in &found.changes {
        match one.owner {
            _ if one.change.is_touched() => touched += 1,
            Owner::Other => show(context, &one.change)?,
            _ => folded += 1,
        }
    }
    match folded {
        0 => {}
        1 => output.note("1 changed file is counted above (--files lists it)"),
        count => output.note(format!(
            "{count} changed files are counted above (--files lists them)"
        )),
    }
    note_touched(context, touched);
    Ok(())
}

fn note_touched(context: &Context, files: usize) {
    match files {
        0 => {}
        1 => context
            .output
            .note("1 file differs in its modification time only (--times lists it)"),
        count => context.output.note(format!(
            "{count} files differ in their modification times only (--times lists them)"
        )),
    }
}

fn tone(change: &Change) -> Tone {
    match change.what {
        _ if change.is_touched() => Tone::Dim,
        ChangeKind::Added => Tone::Good,
        ChangeKind::Modified { .. } | ChangeKind::Renamed { .. } => Tone::Notice,
        ChangeKind::Removed => Tone::Bad,
    }
}

/// Returns the path that a change was renamed from.
fn from(change: &Change) -> Option<&[u8]> {
    match &change.what {
        ChangeKind::Renamed { from } => Some(from),
        _ => None,
    }
}

/// Prints a change as a line.
pub(super) fn show(context: &Context, change: &Change) -> Result<()> {
    context.output.line(line(&context.output, change))
}

/// Returns the line for a change.
pub(super) fn line(output: &Output, change: &Change) -> String {
    let letter = change.what.letter().to_string();
    let letter = output.tone(&letter, tone(change));
    let from = from(change).map_or_else(String::new, |from| {
        format!("{} -> ", quoted(OsStr::from_bytes(from)))
    });
    let mut path = change.path.clone();
    if change.kind == Kind::Directory {
        path.push(b'/');
    }
    let path = quoted(OsStr::from_bytes(&path));
    format!("{letter} {from}{path}")
}

fn compare(context: &Context, contents: &mut Contents<'_>, change: &Change) -> Result<()> {
    if change.size > MAX_TEXT {
        return context.output.line("  (too large to compare)");
    }
    let (old, new) = (contents.before(change)?, contents.after(change)?);
    let old_path = change.committed.as_ref().unwrap_or(&change.path);
    let path = OsStr::from_bytes(&change.path);
    if old == new {
        return Ok(());
    }
    if old.contains(&0) || new.contains(&0) {
        return context.output.line("  (binary)");
    }
    let (old, new) = (String::from_utf8_lossy(&old), String::from_utf8_lossy(&new));
    let diff = TextDiff::from_lines(old.as_ref(), new.as_ref());
    let text = diff
        .unified_diff()
        .context_radius(3)
        .header(&quoted(OsStr::from_bytes(old_path)), &quoted(path))
        .to_string();
    for line in text.strip_suffix('\n').unwrap_or(&text).split('\n') {
        let shown = match line.as_bytes().first() {
            Some(b'+') => context.output.tone(line, Tone::Good),
            Some(b'-') => context.output.tone(line, Tone::Bad),
            Some(b'@') => context.output.tone(line, Tone::Dim),
            _ => line.to_owned(),
        };
        context.output.content(&shown)?;
    }
    Ok(())
}
