//! `envfs unmount`

use std::path::Path;

use clap::Args as ClapArgs;

use crate::cli::access::Access;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::place;
use crate::daemon::lifecycle;
use crate::daemon::protocol::Unmounted;
use crate::daemon::runtime::RuntimeDir;
use crate::daemon::session::{self, SessionMount, SessionSource};
use crate::environment::Layout;
use crate::sys::mount::UnmountMode;
use crate::sys::text::quoted;

/// Unmount an environment and keep its changes, or end a session.
///
/// PATH ends the read-only or ephemeral session that is mounted there, NAME@REV all sessions of
/// that revision on this host. An ephemeral session drops its changes. NAME unmounts what is
/// mounted at the environment's prefix.
///
/// Fails while programs use it, and lists them. With --lazy, the environment is detached at once,
/// and its daemon ends when the last program does.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs unmount science\n  envfs unmount science@3\n  envfs unmount /tmp/science-3\n  envfs unmount --all"
)]
pub struct Args {
    /// Environment, a revision as NAME@REV, or the path of a session [default: the active
    /// environment].
    #[arg(conflicts_with = "all")]
    name: Option<String>,
    /// Unmount all environments of the store, and end all their sessions.
    #[arg(short, long)]
    all: bool,
    /// Detach it even if it is in use.
    #[arg(short, long)]
    lazy: bool,
}

impl Args {
    /// Returns how the command accesses the store: a session has nothing to do with its owner.
    pub(in crate::cli) fn access(&self) -> Access {
        let word = self.name.as_deref().unwrap_or_default();
        let is_session = || {
            place::is_path(Path::new(word))
                && place::resolve(Path::new(word))
                    .is_ok_and(|path| session::at(&path).is_ok_and(|found| found.is_some()))
        };
        match place::split_revision(word).1.is_some() {
            true => Access::Session,
            false if is_session() => Access::None,
            false => Access::Release,
        }
    }

    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        if !self.all {
            return self.named(context);
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

    /// Unmounts what the word names: a session at a path, the sessions of a revision, or an
    /// environment.
    fn named(&self, context: &Context) -> Result<()> {
        let word = self.name.as_deref();
        if let Some(path) = word.map(Path::new).filter(|path| place::is_path(path))
            && let Some(found) = session::at(&place::resolve(path)?)?
        {
            return self.end(context, &found, home_of(context, &found).as_ref());
        }
        if word.is_some_and(|word| place::split_revision(word).1.is_some()) {
            let (env, revision) = context.committed(word)?;
            let sessions = sessions_of(&env)?.into_iter();
            let mut found = sessions
                .filter(|found| Some(found.source.revision) == revision)
                .peekable();
            if found.peek().is_none() {
                let shown = word.unwrap_or_default();
                context
                    .output
                    .note(format!("{} is not mounted", quoted(shown)));
            }
            let home = env.environment.layout();
            return found.try_for_each(|found| self.end(context, &found, Some(home)));
        }
        self.one(context, &context.environment(word)?)
    }

    /// Ends a session.
    fn end(&self, context: &Context, found: &SessionMount, home: Option<&Layout>) -> Result<()> {
        let at = quoted(&found.entry.mount_point);
        let done = session::end(found, &RuntimeDir::open(), home, self.mode())?;
        let SessionSource { name, revision, .. } = &found.source;
        print_result(context, &format!("{name}@{revision} at {at}"), &done);
        Ok(())
    }

    fn mode(&self) -> UnmountMode {
        match self.lazy {
            true => UnmountMode::Lazy,
            false => UnmountMode::Plain,
        }
    }

    /// Unmounts an environment: its writable mount, or a session at its prefix; with --all, all its
    /// sessions.
    fn one(&self, context: &Context, env: &Env) -> Result<()> {
        let mode = self.mode();
        let prefix = place::resolve(&env.target.prefix)?;
        let mut ended = false;
        for found in sessions_of(env)? {
            if self.all || found.entry.mount_point == prefix {
                self.end(context, &found, Some(env.environment.layout()))?;
                ended = true;
            }
        }
        if ended && !self.all {
            return Ok(());
        }
        let slow = || {
            context
                .output
                .note("waiting for the daemon to finish an earlier operation (usually a commit)");
        };
        match lifecycle::ensure_unmounted(&env.target, &env.runtime, mode, &slow)? {
            None if self.all || ended => {}
            None => context
                .output
                .note(format!("{} is not mounted", env.name())),
            Some(unmounted) => print_result(context, env.name(), &unmounted),
        }
        Ok(())
    }
}

/// Returns the sessions of an environment in the mount table.
fn sessions_of(env: &Env) -> Result<Vec<SessionMount>> {
    let mut found = session::mounts()?;
    found.retain(|found| found.source.environment == env.target.id);
    Ok(found)
}

/// Returns the home of the environment of a session, if it is in the store of this command.
fn home_of(context: &Context, found: &SessionMount) -> Option<Layout> {
    let name = found.source.name.parse().ok()?;
    let environment = context.store().ok()?.open(&name).ok()?;
    Some(environment.layout().clone())
}

/// How many processes with a copy of a mount are listed.
const SHOWN_COPIES: usize = 10;

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
        for copy in unmounted.copies.iter().take(SHOWN_COPIES) {
            note(format!("  {copy}"));
        }
        if let Some(more @ 1..) = unmounted.copies.len().checked_sub(SHOWN_COPIES) {
            note(format!("  and {more} more"));
        }
    }
}
