//! `envfs try`

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use serde::Serialize;

use super::diff;
use super::subshell;
use crate::cli::context::{Context, Env, active_name};
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::output::{Answer, changes};
use crate::cli::{packages, place, session, trial};
use crate::commit::{self, TrialDone, TrialOutcome, TrialRequest, TrialStep};
use crate::daemon::failure::Kind;
use crate::daemon::spec::TrialSpec;
use crate::daemon::trial::Tried;
use crate::environment::{EnvLock, Layout};
use crate::packages::{Differences, Owner};
use crate::progress::NoProgress;
use crate::sys::process::{self, ProcessHandle};
use crate::sys::text::quoted;
use crate::sys::{private, signals, walk};
use crate::union::Summary;

/// The most changed files that are listed.
const MOST_LISTED: usize = 50;
/// The time after which the user is told that processes still use the session.
const SLOW_END: Duration = Duration::from_secs(1);
/// The time limit for the lock of a new trial, which `envfs gc` may hold for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Try changes to an environment, then keep or drop them.
///
/// Runs CMD, or $SHELL, in a private session on top of the current state, with its uncommitted
/// changes. Other programs do not see what it changes. At the end shows the changed packages and
/// files, and asks whether to keep them. Kept changes become uncommitted changes of the environment
/// in one step; envfs undo takes them back.
///
/// If the environment was changed in any other way meanwhile, the changes cannot be kept. Then, and
/// if the question is not answered, they go to the trash, and envfs undo --operation ID replaces
/// the state of the environment by that of the try. The trash is emptied by envfs gc.
///
/// Without a terminal, give --keep, --drop or --keep-on-success. The exit status is that of CMD;
/// 125: envfs failed, or the changes could not be kept; 126, 127: CMD cannot be executed, or was
/// not found.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs try -- pip install --upgrade numpy\n  envfs try science                                a shell; decide when leaving it\n  envfs try --keep-on-success science -- make install\n  envfs try --drop --json science -- pip install torch   what would it change?"
)]
pub struct Args {
    /// Keep the changes.
    #[arg(long, conflicts_with_all = ["drop", "keep_on_success"])]
    keep: bool,
    /// Drop the changes.
    #[arg(long, conflicts_with = "keep_on_success")]
    drop: bool,
    /// Keep the changes if the command exits with status 0, else drop them.
    #[arg(long)]
    keep_on_success: bool,
    /// Print the changes and what became of them as JSON, after the output of the command.
    #[arg(long)]
    json: bool,
    /// Environment [default: the active one].
    name: Option<String>,
    /// The command and its arguments [default: $SHELL].
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// How the changes are decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Keep,
    Drop,
    KeepOnSuccess,
    Ask,
}

/// The result as it is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// `kept`, `set-aside` or `dropped`.
    outcome: TrialOutcome,
    /// The operation in the log, unless the changes were dropped.
    operation: Option<i64>,
    /// The exit status of the command.
    exit_status: u8,
    #[serde(flatten)]
    differences: &'a Differences,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let failed = |error: CommandError| error.with_code(ExitCode::RunFailed);
        let status = self.attempt(context).map_err(failed)?;
        match status {
            0 => Ok(()),
            status => Err(CommandError::of_command(status)),
        }
    }

    fn decision(&self) -> Result<Decision> {
        Ok(match (self.keep, self.drop, self.keep_on_success) {
            (true, ..) => Decision::Keep,
            (_, true, _) => Decision::Drop,
            (.., true) => Decision::KeepOnSuccess,
            _ if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() => Decision::Ask,
            _ => {
                let message = "there is no terminal on which to ask what to do with the changes";
                return Err(
                    CommandError::usage(message).hint("give --keep, --drop or --keep-on-success")
                );
            }
        })
    }

    /// Returns the exit status of the command.
    fn attempt(&self, context: &Context) -> Result<u8> {
        let decision = self.decision()?;
        let name = self.name.clone().or_else(active_name).ok_or_else(|| {
            CommandError::usage("no environment given and none is active")
                .hint("give its name (envfs list shows them): envfs try NAME -- CMD")
        })?;
        if place::split_revision(&name).1.is_some() {
            let message = "a try begins with the current state, not with a revision";
            return Err(CommandError::usage(message).hint(format!(
                "for changes that are dropped: envfs run --ephemeral {name} CMD"
            )));
        }
        let env = context.environment(Some(&name))?;
        trial::check_place(&env)?;
        let attempt = Attempt::begin(&env)?;
        let status = attempt.run(context, &self.command)?;
        let trial = attempt.spec()?;
        wait_for_end(context, &trial)?;
        let step = match decision {
            Decision::Drop => TrialStep::Drop,
            _ => TrialStep::Keep,
        };
        let changed = trial.changed().map_err(CommandError::from);
        let tried = changed.map_err(|error| attempt.undecided(step, error))?;
        if tried.was_killed {
            context.output.warn(
                "the daemon of the try was killed; changes that had completed before are there",
            );
        }
        self.decide(context, &attempt, decision, status, &tried)
    }

    fn decide(
        &self,
        context: &Context,
        attempt: &Attempt<'_>,
        decision: Decision,
        status: ExitStatus,
        tried: &Tried,
    ) -> Result<u8> {
        let name = attempt.env.name();
        let code = code_of(status);
        let found = &tried.differences;
        if !self.json {
            show(context, found);
        }
        let is_unchanged = found.changes.is_empty();
        let step = match decision {
            _ if is_unchanged => TrialStep::Drop,
            Decision::Keep => TrialStep::Keep,
            Decision::Drop => TrialStep::Drop,
            Decision::KeepOnSuccess if status.success() => TrialStep::Keep,
            Decision::KeepOnSuccess => TrialStep::Drop,
            Decision::Ask => match context
                .output
                .ask(&format!("Keep these changes of {name}?"))?
            {
                Answer::Yes => TrialStep::Keep,
                Answer::No => TrialStep::Drop,
                Answer::None => TrialStep::SetAside,
            },
        };
        let done = attempt.end(step)?;
        let operation = done.operation.map(|operation| operation.0);
        if self.json {
            context.output.json(&Report {
                outcome: done.outcome,
                operation,
                exit_status: code,
                differences: found,
            })?;
        }
        let number = operation.unwrap_or_default();
        let restore = format!("envfs undo --operation {number} {name}");
        match (done.outcome, step) {
            (TrialOutcome::Kept, _) => context.output.note(format!(
                "{name}: kept (operation {number}); to take it back: envfs undo {name}"
            )),
            (TrialOutcome::SetAside, TrialStep::Keep) => {
                let message = format!("cannot keep the changes: {name} was changed since the try began");
                return Err(CommandError::new(Kind::Conflict, message)
                    .hint(format!(
                        "they are in the trash; to replace the present state by that of the try: {restore}"
                    ))
                    .hint(format!("to drop them: envfs gc {name}")));
            }
            (TrialOutcome::SetAside, _) => context.output.note(format!(
                "{name}: not kept, but in the trash; to keep it: {restore}; to drop it: envfs gc {name}"
            )),
            _ if is_unchanged => context.output.note(format!("{name}: nothing was changed")),
            _ => context.output.note(format!("{name}: dropped")),
        }
        Ok(code)
    }
}

/// A trial in progress, with the lock of its directory.
#[derive(Debug)]
struct Attempt<'a> {
    env: &'a Env,
    token: String,
    place: Layout,
    /// Held until the directory is removed.
    _lock: EnvLock,
}

impl Attempt<'_> {
    fn begin(env: &Env) -> Result<Attempt<'_>> {
        let token = process::new_uuid()
            .map_err(|error| CommandError::io("cannot create an identity", &error))?;
        let place = env.environment.layout().trial(&token);
        let failed = |error| {
            let doing = format!("cannot create {}", place.home().display());
            CommandError::io(doing, &error).hint(format!(
                "changes that are dropped need no writable store: envfs run --ephemeral {} CMD",
                env.name()
            ))
        };
        private::create_dir(place.home()).map_err(failed)?;
        let attempt = Attempt {
            env,
            token,
            _lock: EnvLock::lock(&place, "try", LOCK_TIMEOUT)?,
            place,
        };
        match attempt.step(TrialStep::Begin) {
            Ok(_) => Ok(attempt),
            Err(error) => {
                attempt.remove();
                Err(session::in_use_elsewhere(env, &error).unwrap_or_else(|| {
                    error.hint(format!(
                        "for changes to what is committed, which are dropped: envfs run --ephemeral {} CMD",
                        env.name()
                    ))
                }))
            }
        }
    }

    fn step(&self, step: TrialStep) -> Result<TrialDone> {
        let request = TrialRequest {
            step,
            token: self.token.clone(),
            command: commit::command_line(),
        };
        Ok(self.env.service()?.trial(&request, &NoProgress)?)
    }

    fn spec(&self) -> Result<TrialSpec> {
        Ok(TrialSpec::find(self.env.environment.layout(), &self.token)?)
    }

    /// Runs the command in the session of the trial.
    fn run(&self, context: &Context, command: &[OsString]) -> Result<ExitStatus> {
        let failed = |error: &std::io::Error| CommandError::io("cannot start the command", error);
        signals::survive_with_child().map_err(|error| failed(&error))?;
        let name = self.env.name();
        let words = match command {
            [] => {
                context.output.note(format!(
                    "{name}: what this shell changes is kept or dropped when you leave it"
                ));
                vec![subshell::user_shell()]
            }
            words => words.to_vec(),
        };
        let mut child: Child = Command::new(process::own_program())
            .arg("--home")
            .arg(self.env.store.layout().root())
            .args(["run", "--trial", &self.token, name, "--"])
            .args(words)
            .spawn()
            .map_err(|error| failed(&error))?;
        signals::pass_on_to(Some(child.id()));
        let status = child.wait().map_err(|error| failed(&error));
        signals::pass_on_to(None);
        status
    }

    fn end(&self, step: TrialStep) -> Result<TrialDone> {
        let done = self
            .step(step)
            .map_err(|error| self.undecided(step, error))?;
        self.remove();
        Ok(done)
    }

    /// Sees to it that the next open moves the changes to the trash, unless they were to be
    /// dropped. Returns the error that says so.
    fn undecided(&self, step: TrialStep, error: CommandError) -> CommandError {
        let name = self.env.name();
        let error = session::in_use_elsewhere(self.env, &error).unwrap_or(error);
        if step == TrialStep::Drop {
            return error;
        }
        let layout = self.env.environment.layout();
        match commit::leave_undecided(layout, &self.token, &commit::command_line()) {
            Ok(()) => error.hint(format!(
                "nothing is lost: the next time {name} is mounted, or tried, the changes move to the \
                 trash; envfs log --all {name} shows the operation, and envfs undo --operation ID \
                 {name} restores the state of the try"
            )),
            Err(failed) => error.hint(format!(
                "the changes cannot be set aside either ({failed}): the next command that opens {name} \
                 drops them; their files are in {}",
                quoted(layout.trial(&self.token).home())
            )),
        }
    }

    /// Removes its directory. If that fails, the next open does.
    fn remove(&self) {
        if let Err(error) = walk::remove_tree(self.place.home()) {
            tracing::info!(%error, "cannot remove the directory of a try");
        }
    }
}

/// Waits until no process uses the session of a trial.
fn wait_for_end(context: &Context, trial: &TrialSpec) -> Result<()> {
    if let Some(server) = trial.server().and_then(|pid| ProcessHandle::open(pid).ok())
        && let Err(error) = server.terminate()
    {
        tracing::debug!(%error, "cannot ask the daemon of the try to end");
    }
    let began = Instant::now();
    let mut was_slow = false;
    while !trial.has_ended()? {
        if signals::was_interrupted() {
            let message = "programs still use the try, so its changes cannot be kept";
            return Err(CommandError::new(Kind::Cancelled, message)
                .hint("they are dropped when these programs have ended (envfs ps lists them)"));
        }
        if began.elapsed() > SLOW_END && !std::mem::replace(&mut was_slow, true) {
            context.output.note(
                "waiting for programs that still use the try (envfs ps lists them; Ctrl-C drops the \
                 changes)",
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn code_of(status: ExitStatus) -> u8 {
    let signal = || 128 + status.signal().unwrap_or_default();
    u8::try_from(status.code().unwrap_or_else(signal)).unwrap_or(u8::MAX)
}

/// Shows changed packages, and the files that belong to none.
fn show(context: &Context, found: &Differences) {
    let output = context.output.of_notes();
    let lines = packages::lines(&output, &found.packages, usize::MAX);
    for line in lines
        .into_iter()
        .chain(packages::bytecode(&output, &found.packages))
    {
        context.output.note(line);
    }
    let is_listed =
        |one: &&crate::packages::OwnedChange| one.owner == Owner::Other && !one.change.is_touched();
    let listed: Vec<_> = found.changes.iter().filter(is_listed).collect();
    for one in listed.iter().take(MOST_LISTED) {
        context.output.note(diff::line(&output, &one.change));
    }
    if listed.len() > MOST_LISTED {
        let more = listed.len() - MOST_LISTED;
        context
            .output
            .note(format!("and {more} more changed files"));
    }
    if !found.changes.is_empty() {
        let summary = Summary::of(found.changes.iter().map(|one| &one.change));
        context
            .output
            .note(format!("In all: {}", changes(&summary)));
    }
}
