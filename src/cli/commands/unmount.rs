//! `envfs unmount`

use clap::Args as ClapArgs;

use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::daemon::lifecycle;

/// Unmount an environment. Changes stay, committed or not.
///
/// Refuses while programs use it, and says which. With --lazy it is detached at once, and its
/// daemon ends when the last of them does.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs unmount science\n  envfs unmount --all")]
pub struct Args {
    /// Environment [default: the active one].
    #[arg(conflicts_with = "all")]
    name: Option<String>,
    /// Unmount all environments of the store.
    #[arg(short, long)]
    all: bool,
    /// Detach it also while it is used.
    #[arg(short, long)]
    lazy: bool,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        if !self.all {
            return self.one(context, &context.environment(self.name.as_deref())?);
        }
        let store = context.store()?;
        let mut failed: Option<CommandError> = None;
        for name in store.list()? {
            let done = context
                .environment(Some(name.as_str()))
                .and_then(|env| self.one(context, &env));
            if let Err(error) = done
                && let Some(earlier) = failed.replace(error)
            {
                context.output.error(&earlier);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn one(&self, context: &Context, env: &Env) -> Result<()> {
        let slow = || {
            context.output.aside(
                "waiting until the daemon has done what it was asked before (a commit, as a rule)",
            );
        };
        match lifecycle::ensure_unmounted(&env.target, &env.runtime, self.lazy, &slow)? {
            None if self.all => {}
            None => context
                .output
                .note(format!("{} is not mounted", env.name())),
            Some(unmounted) if unmounted.holders.is_empty() => {
                context.output.note(format!("{} is unmounted", env.name()));
            }
            Some(unmounted) => {
                context.output.note(format!(
                    "{} is detached; its daemon ends when these do:",
                    env.name()
                ));
                for holder in &unmounted.holders {
                    context.output.note(format!("  {holder}"));
                }
            }
        }
        Ok(())
    }
}
