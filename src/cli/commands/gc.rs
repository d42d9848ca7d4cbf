//! `envfs gc`

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::output::{count, size};
use crate::commit::{Collected, GcOptions, Scope};
use crate::daemon::failure::Kind;
use crate::daemon::session;
use crate::environment::{Age, Store};
use crate::object::Timestamp;
use crate::sys::text::quoted;

/// Remove old revisions and data that is no longer needed.
///
/// Keeps the newest revisions, the current one and tagged ones, and those that sessions use, on
/// this host or another. Also removes discarded changes and,
/// if no NAME is given, remains of crashes in the store.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs gc -n                shows what would be removed\n  envfs gc science --keep 3\n  envfs gc --older-than 30\n  envfs gc --keep-for 7d"
)]
pub struct Args {
    /// Environment [default: all].
    name: Option<String>,
    /// Number of revisions to keep [default: gc.keep of the configuration, else 10].
    #[arg(long, value_name = "COUNT")]
    keep: Option<u32>,
    /// Remove only revisions older than this number of days.
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u32>,
    /// Keep also the revisions that were current within this time, as in 7d or 12h [default:
    /// gc.keep_for of the configuration]. Sessions that could not leave a note may use them.
    #[arg(long, value_name = "TIME")]
    keep_for: Option<Age>,
    /// Only show what would be removed.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let keep = match self.keep {
            Some(0) => {
                return Err(CommandError::usage(
                    "invalid --keep 0: must be at least 1, as the current revision is always kept",
                ));
            }
            Some(keep) => keep,
            None => store.config()?.gc.keep,
        };
        let before = self
            .older_than
            .map(|days| Timestamp::now().secs - i64::from(days) * 86_400);
        let keep_for = match self.keep_for {
            Some(age) => Some(age),
            None => store.config()?.gc.keep_for,
        };
        let current_since = keep_for.map(|age| {
            let seconds = i64::try_from(age.duration().as_secs()).unwrap_or(i64::MAX);
            Timestamp::now().secs.saturating_sub(seconds)
        });
        let names = match &self.name {
            Some(name) => vec![context.files_of(Some(name))?.name().clone()],
            None => store.list()?,
        };
        let mut report = serde_json::Map::new();
        let options = GcOptions {
            keep,
            before,
            current_since,
            dry_run: self.dry_run,
            scope: Scope::Everything,
        };
        // First the garbage, whose removal needs no free space.
        let (mut failed, mut has_printed) = match self.name {
            None => self.remove_garbage(context, &store)?,
            Some(_) => (None, true),
        };
        for name in &names {
            let collected = context
                .environment(Some(name.as_str()))
                .and_then(|env| {
                    if !self.dry_run {
                        session::remove_remains(&env.runtime, env.environment.layout());
                    }
                    env.gc(options)
                })
                .map_err(hint_at_space);
            let collected = match collected {
                Ok(collected) => collected,
                // Removed by another command since the store was listed.
                Err(_) if self.name.is_none() && !store.exists(name) => continue,
                // An environment that is in use or damaged must not stop the others.
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        context.output.error(&earlier);
                    }
                    continue;
                }
            };
            if !self.json {
                has_printed |= self.print(context, name.as_str(), &collected);
            }
            let value = serde_json::to_value(&collected)
                .map_err(|error| CommandError::new(Kind::Internal, error.to_string()))?;
            report.insert(name.to_string(), value);
        }
        if self.json {
            context.output.json(&report)?;
        }
        if !self.json && !has_printed && failed.is_none() {
            context.output.note("nothing to remove");
        }
        failed.map_or(Ok(()), Err)
    }

    /// Removes remains of crashes. Reports all failures but the last, which it returns, and whether
    /// there were any remains.
    fn remove_garbage(
        &self,
        context: &Context,
        store: &Store,
    ) -> Result<(Option<CommandError>, bool)> {
        let mut failed: Option<CommandError> = None;
        let mut has_any = false;
        for garbage in backend::garbage(store)? {
            has_any = true;
            if !self.dry_run
                && let Err(error) = store.remove_garbage(&garbage)
            {
                if let Some(earlier) = failed.replace(error.into()) {
                    context.output.error(&earlier);
                }
                continue;
            }
            if !self.json {
                let verb = if self.dry_run {
                    "would remove"
                } else {
                    "removed"
                };
                context
                    .output
                    .note(format!("{verb} {}", quoted(&garbage.path)));
            }
        }
        Ok((failed, has_any))
    }

    /// Returns whether there was something to print.
    fn print(&self, context: &Context, name: &str, collected: &Collected) -> bool {
        for used in &collected.in_use {
            context.output.note(format!(
                "{name}: kept revision {}, which is in use: {}",
                used.revision, used.by
            ));
        }
        let nothing = Collected {
            in_use: collected.in_use.clone(),
            ..Collected::default()
        };
        if *collected == nothing {
            if self.name.is_some() {
                context.output.note(format!("{name}: nothing to remove"));
            }
            return self.name.is_some() || !collected.in_use.is_empty();
        }
        let verb = if self.dry_run {
            "would remove"
        } else {
            "removed"
        };
        context.output.note(format!(
            "{name}: {verb} {}, {} and {}, {}",
            count(collected.revisions.len() as u64, "revision"),
            count(collected.images, "image"),
            count(collected.uppers, "discarded change"),
            size(collected.image_bytes + collected.upper_bytes)
        ));
        if self.dry_run {
            for one in &collected.frees {
                context.output.note(format!(
                    "  revision {}: {} that no other revision has",
                    one.revision,
                    size(one.bytes)
                ));
            }
        }
        true
    }
}

/// Replaces the hints about a full disk: images can be removed only after a write to the database,
/// so `gc` itself needs some free space.
fn hint_at_space(mut error: CommandError) -> CommandError {
    if error.kind == Kind::NoSpace {
        error.hints = vec![String::from(
            "gc itself needs some free space: free 1 MiB of this disk, then run it again",
        )];
    }
    error
}
