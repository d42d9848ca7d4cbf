//! `envfs diff`

use std::ffi::OsString;

use clap::Args as ClapArgs;
use similar::TextDiff;

use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::Result;
use crate::cli::output::Tone;
use crate::daemon::protocol::{Change, ChangeKind};
use crate::sys::text::quoted;

/// Files larger than this are not compared line by line.
const MAX_TEXT: u64 = 4 << 20;

/// Show what changed since the current revision.
///
/// Prints one line per path: A added, M modified, D removed, R renamed. Paths are compared, so a file
/// that was replaced by an equal one is no change. Files of which only the modification time changed
/// are listed with --times, as t. With --content, also shows the changed lines of text files. Paths can
/// be absolute or relative to the prefix. Unusual names are quoted as git quotes them.
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
    /// Print letters and paths exactly, each ended by NUL, and both paths of a rename.
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
            // What the files hold now is read through the mount.
            env.ensure_mounted()?;
        }
        let changes = env.service()?.changes(&selection)?;
        if self.json {
            return context.output.json(&changes);
        }
        let is_listed = |change: &&Change| self.times || change.change != ChangeKind::Touched;
        let listed: Vec<&Change> = changes.iter().filter(is_listed).collect();
        if self.null {
            return listed.iter().try_for_each(|change| {
                let letter = change.change.letter().to_string();
                let paths = change.from.iter().chain([&change.path]);
                context.output.fields([letter.as_bytes()])?;
                context.output.fields(paths.map(|path| path.as_bytes()))
            });
        }
        for change in &listed {
            show(context, change)?;
            if self.content && change.object == "file" {
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

fn tone(kind: ChangeKind) -> Tone {
    match kind {
        ChangeKind::Added => Tone::Good,
        ChangeKind::Modified | ChangeKind::Renamed => Tone::Notice,
        ChangeKind::Touched => Tone::Dim,
        ChangeKind::Removed => Tone::Bad,
    }
}

fn show(context: &Context, change: &Change) -> Result<()> {
    let letter = context
        .output
        .tone(&change.change.letter().to_string(), tone(change.change));
    let from = match &change.from {
        Some(from) => format!("{} -> ", quoted(&from.0)),
        None => String::new(),
    };
    let mut path = change.path.0.clone();
    if change.object == "directory" {
        path.push("/");
    }
    context
        .output
        .line(format!("{letter} {from}{}", quoted(path)))
}

fn compare(context: &Context, env: &Env, change: &Change) -> Result<()> {
    if change.size > MAX_TEXT {
        return context.output.line("  (too large to compare)");
    }
    let old = match &change.committed {
        Some(path) => backend::committed_content(&env.environment, path.as_path())?,
        None => None,
    };
    let old = old.unwrap_or_default();
    let old_path = change.committed.as_ref().unwrap_or(&change.path);
    let new = match change.change {
        ChangeKind::Removed => Vec::new(),
        // A file that goes away meanwhile is a removed file.
        _ => std::fs::read(env.target.prefix.join(change.path.as_path())).unwrap_or_default(),
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
        .header(&quoted(&old_path.0), &quoted(&change.path.0))
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
