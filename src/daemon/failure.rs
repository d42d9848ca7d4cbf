//! Errors as they are shown to the user and sent between processes.

use std::io;

use serde::{Deserialize, Serialize};

use crate::commit::CommitError;
use crate::environment::{EnvironmentError, TRUST};
use crate::fuse::session::SessionError;
use crate::relocate;
use crate::squashfs;
use crate::state::StateError;
use crate::sys::mount::MountError;
use crate::sys::process::error_text;
use crate::sys::regular;
use crate::union;

/// The kind of a failure. Determines the exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An operation of the system failed: I/O, permissions.
    System,
    /// The command line or the configuration is invalid.
    Usage,
    /// The environment, revision, file or source does not exist.
    NotFound,
    /// The target exists already, or conflicts with something else.
    Conflict,
    /// The environment is in use or locked.
    Busy,
    /// An image or database is damaged, is not an image at all, or has a newer format.
    Damaged,
    /// FUSE cannot be used.
    Fuse,
    /// The disk or the quota is full.
    NoSpace,
    /// The daemon ended or does not respond.
    Daemon,
    /// The user cancelled the operation; nothing was changed.
    Cancelled,
    /// An internal error of envfs.
    Internal,
}

/// A failure: a message and the next steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of the failure.
    pub kind: Kind,
    /// The message with its causes, usually one line.
    pub message: String,
    /// Further lines of the message, such as the processes that use a mount. Newlines inside the
    /// message and inside these lines are escaped when they are printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// The next steps, one per line.
    #[serde(default)]
    pub hints: Vec<String>,
}

impl Failure {
    /// Creates a failure without hints.
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: message.into(),
            details: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Adds a line to the message.
    #[must_use]
    pub fn detail(mut self, line: impl Into<String>) -> Failure {
        self.details.push(line.into());
        self
    }

    /// Adds a hint about the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }

    /// Creates a failure from a system error; `doing` says what failed, as in "cannot read /x".
    pub fn io(doing: impl std::fmt::Display, error: &io::Error) -> Failure {
        let failure = Failure::new(kind_of_io(error), format!("{doing}: {}", error_text(error)));
        match failure.kind {
            Kind::NoSpace => failure.hint(MAKE_ROOM),
            _ => failure,
        }
    }

    /// Like [`Failure::io`], for a path given by the user: if it does not exist, the kind is
    /// `NotFound`.
    pub fn of_named(doing: impl std::fmt::Display, error: &io::Error) -> Failure {
        let mut failure = Failure::io(doing, error);
        if error.kind() == io::ErrorKind::NotFound {
            failure.kind = Kind::NotFound;
        }
        failure
    }

    /// Creates a failure from an error, whose text includes its causes.
    pub fn of(kind: Kind, error: &dyn std::error::Error) -> Failure {
        Failure::new(kind, error.to_string())
    }
}

/// The hint for a full disk.
pub(crate) const MAKE_ROOM: &str = "free some space (envfs gc removes old images), then try again";

/// The hint for a damaged store.
const REPAIR: &str =
    "envfs verify lists the problems, and envfs verify --repair repairs what it can";

/// Returns the kind of a system error. A missing file is `System`, not `NotFound`, because the user
/// did not name it.
pub(crate) fn kind_of_io(error: &io::Error) -> Kind {
    if regular::as_not_regular(error).is_some() {
        return Kind::Damaged;
    }
    match error.raw_os_error() {
        Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => Kind::NoSpace,
        Some(nix::libc::EBUSY | nix::libc::ETXTBSY) => Kind::Busy,
        Some(nix::libc::EEXIST | nix::libc::ENOTEMPTY) => Kind::Conflict,
        _ => Kind::System,
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Failure {
        let kind = match &error {
            MountError::Busy { .. } => Kind::Busy,
            MountError::System { error: cause, .. } => kind_of_io(cause),
            MountError::Refused { .. } => Kind::Fuse,
            _ => Kind::Fuse,
        };
        Failure {
            hints: error.hints(),
            ..Failure::of(kind, &error)
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Failure {
        match error {
            SessionError::Mount(error) => error.into(),
            error => Failure::of(Kind::Fuse, &error),
        }
    }
}

/// Adds to a failure that the store is not writable.
fn read_only(failure: Failure) -> Failure {
    Failure {
        message: format!("{}: the store is read-only for you", failure.message),
        ..failure
    }
    .hint("copy it to a writable file system (cp -a)")
    .hint("or mount one of its images: envfs mount --image FILE -o ro DIR")
}

impl From<EnvironmentError> for Failure {
    fn from(error: EnvironmentError) -> Failure {
        let failure = |kind| Failure::of(kind, &error);
        match &error {
            EnvironmentError::BadName { .. } | EnvironmentError::BadPrefix { .. } => {
                failure(Kind::Usage)
            }
            EnvironmentError::Unknown { .. } => {
                failure(Kind::NotFound).hint("envfs list shows all environments")
            }
            EnvironmentError::Exists { name } => failure(Kind::Conflict).hint(format!(
                "choose another name, or remove it: envfs remove {name}"
            )),
            EnvironmentError::Held { holder: None, .. } => failure(Kind::Busy).hint(
                "wait until it has finished; on a shared file system, a lock of an unknown process is \
                 free 5 minutes after it was last renewed",
            ),
            EnvironmentError::Held { .. } => {
                failure(Kind::Busy).hint("wait until it has finished, or end it")
            }
            EnvironmentError::Replaceable { path, dir, .. } => failure(Kind::Conflict)
                .hint(format!(
                    "remove the permission: chmod go-w {}",
                    dir.display()
                ))
                .hint("or choose another directory")
                .hint(format!(
                    "or, if you trust all users who can change it: export {TRUST}={}",
                    path.display()
                )),
            EnvironmentError::Config { .. } => failure(Kind::Usage),
            EnvironmentError::NoHome => failure(Kind::Usage),
            EnvironmentError::Io { error: cause, .. }
                if cause.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                read_only(failure(Kind::System))
            }
            EnvironmentError::Io { error: cause, .. } if regular::as_not_regular(cause).is_some() => {
                failure(Kind::Damaged).hint(REPAIR)
            }
            EnvironmentError::Io { error: cause, .. } => failure(kind_of_io(cause)),
        }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Failure {
        let kind = match &error {
            _ if error.is_no_space() => Kind::NoSpace,
            StateError::NotADatabase { .. }
            | StateError::TooNew { .. }
            | StateError::Corrupt { .. }
            | StateError::BadRow { .. } => Kind::Damaged,
            StateError::Missing { .. } => Kind::NotFound,
            StateError::Exists { .. } | StateError::Conflict { .. } => Kind::Conflict,
            StateError::Busy { .. } => Kind::Busy,
            StateError::Io { error: cause, .. } if regular::as_not_regular(cause).is_some() => {
                Kind::Damaged
            }
            StateError::Io { error: cause, .. } => kind_of_io(cause),
            _ => Kind::System,
        };
        let failure = Failure::of(kind, &error);
        match kind {
            _ if error.is_read_only() => read_only(failure),
            Kind::NoSpace => failure.hint(MAKE_ROOM),
            Kind::Damaged => failure.hint(REPAIR),
            _ => failure,
        }
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Failure {
        if error.is_no_space() {
            return Failure::new(Kind::NoSpace, format!("{error}; nothing was changed"))
                .hint(MAKE_ROOM);
        }
        match error {
            CommitError::State(error) | CommitError::Union(union::Error::State(error)) => {
                error.into()
            }
            CommitError::Environment(error) => error.into(),
            CommitError::Cancelled => Failure::of(Kind::Cancelled, &error),
            CommitError::Uncommitted => Failure::of(Kind::Conflict, &error)
                .hint("commit them first (envfs commit), or drop them with -y"),
            CommitError::NothingToUndo | CommitError::NoOperation(_) => {
                Failure::of(Kind::NotFound, &error).hint("envfs log --all shows all operations")
            }
            CommitError::NotUndoable { ref hint, .. } => {
                Failure::of(Kind::Conflict, &error).hint(hint.clone())
            }
            CommitError::NoTrial => Failure::of(Kind::NotFound, &error),
            CommitError::Tried => {
                Failure::of(Kind::Busy, &error).hint("wait until it has ended (envfs ps lists it)")
            }
            CommitError::NoRevision(_) | CommitError::NoEarlier => {
                Failure::of(Kind::NotFound, &error).hint("envfs log shows all revisions")
            }
            CommitError::SourceChanged(_) => Failure::of(Kind::Conflict, &error),
            CommitError::CannotRelocate(_) => Failure::of(Kind::Conflict, &error)
                .hint("choose a shorter --prefix, or leave these files as they are with --force"),
            CommitError::Relocate(relocate::Error::Prefix { .. }) => {
                Failure::of(Kind::Usage, &error).hint("choose another path")
            }
            CommitError::Relocate(relocate::Error::Read {
                error: ref cause, ..
            }) => Failure::of(kind_of_io(cause), &error),
            CommitError::Source { .. } => Failure::of(Kind::Damaged, &error),
            CommitError::Unsuitable { .. } | CommitError::InvalidPattern { .. } => {
                Failure::of(Kind::Usage, &error)
            }
            CommitError::Union(union::Error::Replaced(_)) => Failure::of(Kind::Conflict, &error),
            CommitError::Union(union::Error::NotSeparable { .. }) => {
                Failure::of(Kind::Conflict, &error).hint("or commit everything, without paths")
            }
            CommitError::Io {
                error: ref cause, ..
            } => Failure::of(kind_of_io(cause), &error),
            CommitError::Image(ref image) | CommitError::Union(union::Error::Image(ref image)) => {
                let kind = match image {
                    // A missing image counts as damaged.
                    squashfs::Error::Io { error: cause, .. }
                        if cause.kind() != io::ErrorKind::NotFound =>
                    {
                        Kind::System
                    }
                    _ => Kind::Damaged,
                };
                Failure::of(kind, &error)
            }
            CommitError::Union(union::Error::Inconsistent(_)) => Failure::of(Kind::Damaged, &error),
            CommitError::Check(_) | CommitError::Changed(_) | CommitError::ImageLost(_) => {
                Failure::of(Kind::Damaged, &error)
            }
            other => Failure::of(Kind::System, &other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::path::PathBuf;

    use super::*;
    use crate::squashfs::writer::WriteError;
    use crate::sys::walk::WalkError;

    const CAUSE: &str = "the cause";

    fn io_error() -> io::Error {
        io::Error::other(CAUSE)
    }

    fn image_error() -> squashfs::Error {
        squashfs::Error::io("reading a block")(io_error())
    }

    fn state_error() -> StateError {
        StateError::Io {
            path: PathBuf::new(),
            doing: "open the state database",
            error: io_error(),
        }
    }

    /// One error of each kind that has a cause, and some that wrap another error.
    fn errors_with_a_cause() -> Vec<Box<dyn Error>> {
        let path = PathBuf::new;
        vec![
            Box::new(image_error()),
            Box::new(WriteError::Image(image_error())),
            Box::new(WriteError::Source {
                label: String::new(),
                error: io_error(),
            }),
            Box::new(state_error()),
            Box::new(WalkError {
                path: path(),
                error: io_error(),
            }),
            Box::new(EnvironmentError::Io {
                path: path(),
                doing: "open the lock",
                error: io_error(),
            }),
            Box::new(MountError::DeviceDenied {
                mode: 0,
                owner: String::new(),
                error: io_error(),
            }),
            Box::new(MountError::System {
                action: "mount",
                path: path(),
                error: io_error(),
            }),
            Box::new(SessionError::Handshake {
                path: path(),
                error: io_error(),
            }),
            Box::new(SessionError::Threads(io_error())),
            Box::new(union::Error::Image(image_error())),
            Box::new(union::Error::State(state_error())),
            Box::new(union::Error::Upper(io_error())),
            Box::new(CommitError::Image(image_error())),
            Box::new(CommitError::Write(WriteError::Image(image_error()))),
            Box::new(CommitError::Union(union::Error::Image(image_error()))),
            Box::new(CommitError::State(state_error())),
            Box::new(CommitError::Io {
                doing: "open",
                path: path(),
                error: io_error(),
            }),
        ]
    }

    #[test]
    fn error_texts_contain_their_cause_once() {
        for error in errors_with_a_cause() {
            let mut chain = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                chain.push_str(&error.to_string());
                cause = error.source();
            }
            assert_eq!(chain.matches(CAUSE).count(), 1, "{error:?}: {chain}");
        }
    }
}
