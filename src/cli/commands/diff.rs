//! `envfs diff`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Args as ClapArgs;
use similar::TextDiff;

use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::Result;
use crate::cli::output::Tone;
use crate::object::Kind;
use crate::sys::text::quoted;
use crate::union::{Change, ChangeKind};

/// The size above which files are not compared line by line.
const MAX_TEXT: u64 = 4 << 20;

/// Show what changed since the current revision.
///
/// Prints one line per path: A added, M modified, D removed, R renamed. Paths are compared, so
/// replacing a file by an equal one is not a change. With --times, also lists files of which only
/// the modification time changed, as t. With --content, also shows the changed lines of text files.
/// Paths can be absolute or relative to the prefix. Unusual names are quoted as in git.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs diff\n  envfs diff science lib/python3.12/site-packages\n  envfs diff --content etc"
)]
pub struct Args {
    /// Environment [default: the active one], and paths in it.
    #[arg(value_name = "[NAME] [PATH]")]
    words: Vec<OsString>,
    /// Show the changed lines of text files.
    #[arg(short, long, conflicts_with = "json")]
    content: bool,
    /// Print letters and paths exactly, each terminated by NUL, with both paths of a rename.
    #[arg(short = 'z', long, conflicts_with_all = ["content", "json"])]
    null: bool,
    /// Also list files of which only the modification time changed.
    #[arg(long, conflicts_with = "json")]
    times: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, selection) = context.environment_and_paths(&self.words)?;
        if self.content {
            // The current content is read through the mount.
            env.ensure_mounted()?;
        }
        let changes = env.service()?.changes(&selection)?;
        if self.json {
            return context.output.json(&changes);
        }
        let is_listed = |change: &&Change| self.times || !change.is_touched();
        let listed: Vec<&Change> = changes.iter().filter(is_listed).collect();
        if self.null {
            return listed.iter().try_for_each(|change| {
                let letter = change.what.letter().to_string();
                let paths = from(change).into_iter().chain([change.path.as_slice()]);
                context.output.fields([letter.as_bytes()])?;
                context.output.fields(paths)
            });
        }
        for change in &listed {
            show(context, change)?;
            if self.content && change.kind == Kind::File {
                compare(context, &env, change)?;
            }
        }
        match changes.len() - listed.len() {
            0 => {}
            1 => context
                .output
                .note("1 file differs in its modification time only (--times lists it)"),
            count => context.output.note(format!(
                "{count} files differ in their modification times only (--times lists them)"
            )),
        }
        Ok(())
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

fn show(context: &Context, change: &Change) -> Result<()> {
    let letter = change.what.letter().to_string();
    let letter = context.output.tone(&letter, tone(change));
    let from = from(change).map_or_else(String::new, |from| {
        format!("{} -> ", quoted(OsStr::from_bytes(from)))
    });
    let mut path = change.path.clone();
    if change.kind == Kind::Directory {
        path.push(b'/');
    }
    let path = quoted(OsStr::from_bytes(&path));
    context.output.line(format!("{letter} {from}{path}"))
}

fn compare(context: &Context, env: &Env, change: &Change) -> Result<()> {
    if change.size > MAX_TEXT {
        return context.output.line("  (too large to compare)");
    }
    let old = match &change.committed {
        Some(path) => {
            backend::committed_content(&env.environment, Path::new(OsStr::from_bytes(path)))?
        }
        None => None,
    };
    let old = old.unwrap_or_default();
    let old_path = change.committed.as_ref().unwrap_or(&change.path);
    let path = OsStr::from_bytes(&change.path);
    let new = match change.what {
        ChangeKind::Removed => Vec::new(),
        // A file that was removed in the meantime counts as removed.
        _ => std::fs::read(env.target.prefix.join(path)).unwrap_or_default(),
    };
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
