//! `envfs rename`

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::launchers;
use crate::commit;
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle::State;
use crate::daemon::service::LOCK_TIMEOUT;
use crate::environment::{EnvLock, EnvName};
use crate::sys::text::quoted;

/// Rename an environment.
///
/// The prefix does not change, because files in the environment contain it. Unmount the environment
/// first.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Environment.
    old: String,
    /// Its new name.
    new: String,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(Some(&self.old))?;
        let new = EnvName::new(&self.new)?;
        if !matches!(
            env.state()?,
            State::Unmounted | State::Dead(_) | State::Copy(_)
        ) {
            return Err(
                CommandError::new(Kind::Busy, format!("{} is mounted", env.name()))
                    .hint(format!("envfs unmount {}", env.name())),
            );
        }
        let lock = EnvLock::lock(env.environment.layout(), "rename", LOCK_TIMEOUT)?;
        if commit::is_tried(env.environment.layout()) {
            return Err(commit::CommitError::Tried.into());
        }
        let old = env.name().to_owned();
        env.environment.rename(&new, &lock)?;
        drop(lock);
        launchers::renew_all(&context.environment(Some(new.as_str()))?, &context.output);
        context.output.note(format!(
            "{old} is now {new}; its prefix is still {}",
            quoted(&env.target.prefix)
        ));
        Ok(())
    }
}
