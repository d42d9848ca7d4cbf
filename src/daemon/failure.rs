//! An error in the form in which it reaches the user, also from another process.

use std::io;

use serde::{Deserialize, Serialize};

use crate::environment::{EnvironmentError, TRUST};
use crate::fuse::session::SessionError;
use crate::state::StateError;
use crate::sys::mount::MountError;
use crate::sys::process::error_text;
use crate::sys::regular;

/// What kind of trouble it is. Decides the exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The system refused something: input and output, permissions.
    System,
    /// The command was not given what it needs.
    Usage,
    /// No such environment, revision, file or source.
    NotFound,
    /// It exists already, or what is there stands in the way.
    Conflict,
    /// Somebody uses it or holds its lock.
    Busy,
    /// An image or database is damaged, no image at all, or newer than this program.
    Damaged,
    /// FUSE cannot be used here.
    Fuse,
    /// No space or quota left.
    NoSpace,
    /// The daemon ended or does not answer.
    Daemon,
    /// The user asked to stop; everything is as it was.
    Cancelled,
    /// A fault of this program.
    Internal,
}

/// What failed, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of trouble it is.
    pub kind: Kind,
    /// What failed, with its causes, in one line as a rule.
    pub message: String,
    /// What belongs to the message and has lines of its own, for example who uses a mount. Neither a
    /// message nor a line here holds a newline that is meant to be one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// What to type or do next, one hint a line.
    #[serde(default)]
    pub hints: Vec<String>,
}

impl Failure {
    /// Makes a failure without hints.
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

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }

    /// Makes one of an error of the system, met while doing what `doing` says
    /// ("cannot read /x").
    pub fn io(doing: impl std::fmt::Display, error: &io::Error) -> Failure {
        let failure = Failure::new(kind_of_io(error), format!("{doing}: {}", error_text(error)));
        match failure.kind {
            Kind::NoSpace => failure.hint(MAKE_ROOM),
            _ => failure,
        }
    }

    /// The same for what the user has named: where it does not exist, it is not found.
    pub fn of_named(doing: impl std::fmt::Display, error: &io::Error) -> Failure {
        let mut failure = Failure::io(doing, error);
        if error.kind() == io::ErrorKind::NotFound {
            failure.kind = Kind::NotFound;
        }
        failure
    }

    /// Makes one of any error, with all its causes in the message.
    pub fn of(kind: Kind, error: &dyn std::error::Error) -> Failure {
        Failure::new(kind, with_causes(error))
    }
}

/// What to do where there is no room.
pub const MAKE_ROOM: &str = "make room (envfs gc drops old images), then try again";

/// What to do where something else lies in the place of a file of a store.
const REPAIR: &str =
    "envfs verify names what is wrong, and envfs verify --repair repairs what it can";

/// Returns the kind of trouble that an error of the system means. A file of ours that is missing is
/// not what the user has named and what does not exist.
pub fn kind_of_io(error: &io::Error) -> Kind {
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

/// Joins an error and its causes; a cause that the text before it tells already is left out.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Failure {
        let kind = match &error {
            MountError::Busy { .. } => Kind::Busy,
            MountError::System { source, .. } => kind_of_io(source),
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

/// Says that a store cannot be written to.
fn read_only(failure: Failure) -> Failure {
    Failure {
        message: format!("{}: the store is read-only for you", failure.message),
        ..failure
    }
    .hint("copy it to where you can write (cp -a)")
    .hint("or mount an image of it alone: envfs mount --image FILE -o ro DIR")
}

impl From<EnvironmentError> for Failure {
    fn from(error: EnvironmentError) -> Failure {
        let failure = |kind| Failure::of(kind, &error);
        match &error {
            EnvironmentError::BadName { .. } | EnvironmentError::BadPrefix { .. } => {
                failure(Kind::Usage)
            }
            EnvironmentError::Unknown { .. } => {
                failure(Kind::NotFound).hint("envfs list shows what there is")
            }
            EnvironmentError::Exists { name } => failure(Kind::Conflict).hint(format!(
                "choose another name, or remove it: envfs remove {name}"
            )),
            EnvironmentError::Held { holder: None, .. } => failure(Kind::Busy).hint(
                "wait until it is done; on a file system that hosts share, a lock that names nobody is \
                 free 5 minutes after it was last renewed",
            ),
            EnvironmentError::Held { .. } => {
                failure(Kind::Busy).hint("wait until it is done, or end it")
            }
            EnvironmentError::Replaceable { path, dir, .. } => failure(Kind::Conflict)
                .hint(format!(
                    "take the permission away: chmod go-w {}",
                    dir.display()
                ))
                .hint("or choose another place for it")
                .hint(format!(
                    "or, where you trust everybody who may change it: export {TRUST}={}",
                    path.display()
                )),
            EnvironmentError::Config { .. } => failure(Kind::Usage),
            EnvironmentError::NoHome => failure(Kind::Usage),
            EnvironmentError::Io { source, .. }
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                read_only(failure(Kind::System))
            }
            EnvironmentError::Io { source, .. } if regular::as_not_regular(source).is_some() => {
                failure(Kind::Damaged).hint(REPAIR)
            }
            EnvironmentError::Io { source, .. } => failure(kind_of_io(source)),
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
            StateError::Io { source, .. } if regular::as_not_regular(source).is_some() => {
                Kind::Damaged
            }
            StateError::Io { source, .. } => kind_of_io(source),
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
