//! `envfs gc`

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::output::{count, size};
use crate::commit::{Collected, GcOptions};
use crate::daemon::failure::Kind;
use crate::environment::Store;
use crate::object::Timestamp;
use crate::sys::text::quoted;

/// Forget old revisions and remove images that nothing needs any more.
///
/// The newest revisions stay, and the current one, and tagged ones. Also removes what crashes
/// have left in the store. Without a NAME all environments are looked at.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs gc -n                what would go?\n  envfs gc science --keep 3\n  envfs gc --older-than 30"
)]
pub struct Args {
    /// Environment [default: all].
    name: Option<String>,
    /// How many revisions stay [default: as configured, else 10].
    #[arg(long, value_name = "COUNT")]
    keep: Option<u32>,
    /// Forget only revisions older than so many days.
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u32>,
    /// Only say what would go.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let keep = match self.keep {
            Some(0) => return Err(CommandError::usage("at least one revision stays: --keep 1")),
            Some(keep) => keep,
            None => store.config()?.gc.keep,
        };
        let before = self
            .older_than
            .map(|days| Timestamp::now().secs - i64::from(days) * 86_400);
        let names = match &self.name {
            Some(name) => vec![crate::environment::EnvName::new(name)?],
            None => store.list()?,
        };
        let mut report = serde_json::Map::new();
        let options = GcOptions {
            keep,
            before,
            dry_run: self.dry_run,
        };
        // First what needs no room to be removed.
        let mut failed = match self.name {
            None => self.remove_garbage(context, &store)?,
            Some(_) => None,
        };
        for name in &names {
            let collected = context
                .environment(Some(name.as_str()))
                .and_then(|env| env.gc(options))
                .map_err(room_elsewhere);
            let collected = match collected {
                Ok(collected) => collected,
                // Removed by somebody since the store was listed.
                Err(_) if self.name.is_none() && !store.exists(name) => continue,
                // One that is in use or damaged does not keep the others from being collected.
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        context.output.error(&earlier);
                    }
                    continue;
                }
            };
            if !self.json {
                self.tell(context, name.as_str(), &collected);
            }
            let value = serde_json::to_value(&collected)
                .map_err(|error| CommandError::new(Kind::Internal, error.to_string()))?;
            report.insert(name.to_string(), value);
        }
        if self.json {
            context.output.json(&report)?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Removes what it can, reports what it cannot, and returns the last failure.
    fn remove_garbage(&self, context: &Context, store: &Store) -> Result<Option<CommandError>> {
        let mut failed: Option<CommandError> = None;
        for garbage in backend::garbage(store)? {
            if !self.dry_run
                && let Err(error) = store.remove_garbage(&garbage)
            {
                if let Some(earlier) = failed.replace(error.into()) {
                    context.output.error(&earlier);
                }
                continue;
            }
            if !self.json {
                let would = if self.dry_run {
                    "would remove"
                } else {
                    "removed"
                };
                context
                    .output
                    .note(format!("{would} {}", quoted(&garbage.path)));
            }
        }
        Ok(failed)
    }

    fn tell(&self, context: &Context, name: &str, collected: &Collected) {
        if *collected == Collected::default() {
            if self.name.is_some() {
                context.output.note(format!("{name}: nothing to remove"));
            }
            return;
        }
        let would = if self.dry_run {
            "would forget"
        } else {
            "forgot"
        };
        context.output.note(format!(
            "{name}: {would} {}, {} and {}, {}",
            count(collected.revisions.len() as u64, "revision"),
            count(collected.images, "image"),
            count(collected.uppers, "discarded change"),
            size(collected.image_bytes + collected.upper_bytes)
        ));
    }
}

/// The database has to be written to before images can go, so on a disk that is wholly full `gc`
/// is no way to make room.
fn room_elsewhere(mut error: CommandError) -> CommandError {
    if error.kind == Kind::NoSpace {
        error.hints = vec![String::from(
            "gc needs a little room itself: free 1 MiB of this disk outside of envfs, then try again",
        )];
    }
    error
}
