//! `envfs unmount`

use clap::Args as ClapArgs;

use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::daemon::lifecycle;
use crate::daemon::protocol::Unmounted;
use crate::sys::mount::UnmountMode;

/// Unmount an environment and keep its changes, committed or not.
///
/// Fails while programs use it, and lists them. With --lazy, the environment is detached at once,
/// and its daemon ends when the last program does.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs unmount science\n  envfs unmount --all")]
pub struct Args {
    /// Environment [default: the active one].
    #[arg(conflicts_with = "all")]
    name: Option<String>,
    /// Unmount all environments of the store.
    #[arg(short, long)]
    all: bool,
    /// Detach it even if it is in use.
    #[arg(short, long)]
    lazy: bool,
}

impl Args {
    /// Runs the command.
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
        let mode = match self.lazy {
            true => UnmountMode::Lazy,
            false => UnmountMode::Plain,
        };
        if env.unmount_read_only(mode)? {
            context.output.note(format!("{} is unmounted", env.name()));
            return Ok(());
        }
        let slow = || {
            context
                .output
                .note("waiting for the daemon to finish an earlier operation (usually a commit)");
        };
        match lifecycle::ensure_unmounted(&env.target, &env.runtime, mode, &slow)? {
            None if self.all => {}
            None => context
                .output
                .note(format!("{} is not mounted", env.name())),
            Some(unmounted) => print_result(context, env.name(), &unmounted),
        }
        Ok(())
    }
}

fn print_result(context: &Context, name: &str, unmounted: &Unmounted) {
    let note = |text: String| context.output.note(text);
    if let Some(trouble) = &unmounted.trouble {
        let mut text = format!("{name} is detached, but its daemon still runs: {trouble}");
        for hint in &trouble.hints {
            text.push_str(&format!("\n  {hint}"));
        }
        context.output.warn(text);
    } else if unmounted.holders.is_empty() {
        note(format!("{name} is unmounted"));
    } else {
        note(format!(
            "{name} is detached; its daemon ends when these processes do:"
        ));
    }
    for holder in &unmounted.holders {
        note(format!("  {holder}"));
    }
    if !unmounted.copies.is_empty() {
        note(String::from(
            "copies of the mount in other mount namespaces have ended with it:",
        ));
        for copy in &unmounted.copies {
            note(format!("  {copy}"));
        }
    }
}
