//! Failures of commands, as the user and the shell see them.

use std::io;

use crate::daemon::failure::{Failure, Kind};
use crate::environment::EnvironmentError;
use crate::state::StateError;

/// The exit statuses of envfs.
///
/// `envfs run` ends with the status of the command it runs; its own failures are 125 to 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// All went well.
    Success = 0,
    /// The system refused something: input and output, permissions. Also: `verify` and `doctor`
    /// found something.
    Failure = 1,
    /// The command line or the configuration is wrong, or an answer was needed.
    Usage = 2,
    /// No such environment, revision, file or source.
    NotFound = 3,
    /// It exists already, or something stands in the way.
    Conflict = 4,
    /// It is in use or locked.
    Busy = 5,
    /// An image or database is damaged, no image at all, or newer than this program.
    Damaged = 6,
    /// FUSE cannot be used here; `envfs doctor` says why.
    Fuse = 7,
    /// No space or quota left; nothing was changed.
    NoSpace = 8,
    /// The daemon ended or does not answer.
    Daemon = 9,
    /// An internal error of envfs.
    Internal = 70,
    /// `envfs run`: envfs failed before the command was started.
    RunFailed = 125,
    /// `envfs run`: the command was found but could not be executed.
    RunNotExecutable = 126,
    /// `envfs run`: there is no such command.
    RunNotFound = 127,
    /// The user cancelled it; nothing was changed.
    Cancelled = 130,
    /// The reader of the output went away.
    BrokenPipe = 141,
}

impl From<Kind> for ExitCode {
    fn from(kind: Kind) -> ExitCode {
        match kind {
            Kind::System => ExitCode::Failure,
            Kind::Usage => ExitCode::Usage,
            Kind::NotFound => ExitCode::NotFound,
            Kind::Conflict => ExitCode::Conflict,
            Kind::Busy => ExitCode::Busy,
            Kind::Damaged => ExitCode::Damaged,
            Kind::Fuse => ExitCode::Fuse,
            Kind::NoSpace => ExitCode::NoSpace,
            Kind::Daemon => ExitCode::Daemon,
            Kind::Cancelled => ExitCode::Cancelled,
            Kind::Internal => ExitCode::Internal,
        }
    }
}

/// Why a command failed, what to do next, and the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    /// The kind of failure.
    pub kind: Kind,
    /// What failed; empty where there is nothing to say.
    pub message: String,
    /// Lines that belong to the message.
    pub details: Vec<String>,
    /// What to type or do next.
    pub hints: Vec<String>,
    /// The exit status.
    pub code: ExitCode,
}

/// What a command returns.
pub type Result<T, E = CommandError> = std::result::Result<T, E>;

impl CommandError {
    /// Makes an error without hints.
    pub fn new(kind: Kind, message: impl Into<String>) -> CommandError {
        Failure::new(kind, message).into()
    }

    /// Makes an error for a wrong command line.
    pub fn usage(message: impl Into<String>) -> CommandError {
        CommandError::new(Kind::Usage, message)
    }

    /// Makes an error that only sets the exit status: everything is printed already.
    pub fn silent(code: ExitCode) -> CommandError {
        CommandError {
            kind: Kind::System,
            message: String::new(),
            details: Vec::new(),
            hints: Vec::new(),
            code,
        }
    }

    /// Adds a hint: what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hints.push(hint.into());
        self
    }

    /// Makes an error from a system error; `doing` says what failed.
    pub fn io(doing: impl std::fmt::Display, error: &io::Error) -> CommandError {
        Failure::io(doing, error).into()
    }

    /// Like [`CommandError::io`], for a path that the user gave: if it does not exist, the kind is `NotFound`.
    pub fn of_named(doing: impl std::fmt::Display, error: &io::Error) -> CommandError {
        Failure::of_named(doing, error).into()
    }

    /// Sets the exit status.
    #[must_use]
    pub fn with_code(mut self, code: ExitCode) -> CommandError {
        self.code = code;
        self
    }
}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> CommandError {
        CommandError {
            kind: failure.kind,
            message: failure.message,
            details: failure.details,
            hints: failure.hints,
            code: failure.kind.into(),
        }
    }
}

impl From<EnvironmentError> for CommandError {
    fn from(error: EnvironmentError) -> CommandError {
        Failure::from(error).into()
    }
}

impl From<StateError> for CommandError {
    fn from(error: StateError) -> CommandError {
        Failure::from(error).into()
    }
}
