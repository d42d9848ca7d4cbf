//! Failures of commands, and exit statuses.

use std::io;

use crate::commit::CommitError;
use crate::daemon::failure::{Failure, Kind};
use crate::environment::EnvironmentError;
use crate::state::StateError;

/// The exit statuses of envfs.
///
/// `envfs run` exits with the status of the command that it runs; its own failures are 125 to 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// The command succeeded.
    Success = 0,
    /// An operation of the system failed (I/O, permissions), or `verify` or `doctor` found
    /// problems.
    Failure = 1,
    /// The command line or the configuration is invalid, or confirmation is required.
    Usage = 2,
    /// The environment, revision, file or source does not exist.
    NotFound = 3,
    /// The target exists already, or conflicts with something else.
    Conflict = 4,
    /// The environment is in use or locked.
    Busy = 5,
    /// An image or database is damaged, is not an image at all, or has a newer format.
    Damaged = 6,
    /// FUSE cannot be used; `envfs doctor` says why.
    Fuse = 7,
    /// The disk or the quota is full; nothing was changed.
    NoSpace = 8,
    /// The daemon ended or does not respond.
    Daemon = 9,
    /// An internal error of envfs.
    Internal = 70,
    /// `envfs run`: envfs failed before the command was started.
    RunFailed = 125,
    /// `envfs run`: the command was found but could not be executed.
    RunNotExecutable = 126,
    /// `envfs run`: the command was not found.
    RunNotFound = 127,
    /// The user cancelled it; nothing was changed.
    Cancelled = 130,
    /// The reader of the output closed the pipe.
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

/// The failure of a command: a message, the next steps, and the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    /// The kind of failure.
    pub kind: Kind,
    /// The message; empty if everything was printed already.
    pub message: String,
    /// Further lines of the message.
    pub details: Vec<String>,
    /// The next steps for the user.
    pub hints: Vec<String>,
    /// The exit status.
    pub code: ExitCode,
    /// The exit status of a command that was run, which counts instead.
    pub status: Option<u8>,
}

/// The result of a command.
pub(super) type Result<T, E = CommandError> = std::result::Result<T, E>;

impl CommandError {
    /// Creates an error without hints.
    pub fn new(kind: Kind, message: impl Into<String>) -> CommandError {
        Failure::new(kind, message).into()
    }

    /// Creates an error for an invalid command line.
    pub fn usage(message: impl Into<String>) -> CommandError {
        CommandError::new(Kind::Usage, message)
    }

    /// Creates an error that only sets the exit status, because everything was printed already.
    pub fn silent(code: ExitCode) -> CommandError {
        CommandError {
            kind: Kind::System,
            message: String::new(),
            details: Vec::new(),
            hints: Vec::new(),
            code,
            status: None,
        }
    }

    /// Creates an error that only sets the exit status of a command that was run.
    pub fn of_command(status: u8) -> CommandError {
        CommandError {
            status: Some(status),
            ..CommandError::silent(ExitCode::Failure)
        }
    }

    /// Adds a hint about the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hints.push(hint.into());
        self
    }

    /// Creates an error from a system error; `doing` says what failed.
    pub fn io(doing: impl std::fmt::Display, error: &io::Error) -> CommandError {
        Failure::io(doing, error).into()
    }

    /// Like [`CommandError::io`], for a path given by the user: if it does not exist, the kind is
    /// `NotFound`.
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
            status: None,
        }
    }
}

impl From<CommitError> for CommandError {
    fn from(error: CommitError) -> CommandError {
        Failure::from(error).into()
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
