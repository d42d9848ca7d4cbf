//! What the mount table says about a session.

use std::fmt;

use crate::environment::SessionKind;

/// What the mount table says about a session: `envfs-KIND:NAME@REVISION:ENVIRONMENT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionSource {
    /// Read-only or ephemeral.
    pub kind: SessionKind,
    /// The name of the environment when the session began.
    pub name: String,
    /// The revision.
    pub revision: i64,
    /// The id of the environment.
    pub environment: String,
}

impl SessionSource {
    /// Parses the source of a mount. Returns `None` if it is not a session.
    pub(crate) fn parse(source: &str) -> Option<SessionSource> {
        let (word, rest) = source.split_once(':')?;
        let kind = [
            SessionKind::ReadOnly,
            SessionKind::Ephemeral,
            SessionKind::Try,
        ]
        .into_iter()
        .find(|kind| word.strip_prefix("envfs-") == Some(kind.word()))?;
        let (place, environment) = rest.split_once(':')?;
        let (name, revision) = place.split_once('@')?;
        Some(SessionSource {
            kind,
            name: name.to_owned(),
            revision: revision.parse().ok()?,
            environment: environment.to_owned(),
        })
    }
}

impl fmt::Display for SessionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.word();
        let SessionSource {
            name,
            revision,
            environment,
            ..
        } = self;
        write!(f, "envfs-{kind}:{name}@{revision}:{environment}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_source_names_the_session_and_no_other_mount_is_one() {
        for kind in [
            SessionKind::ReadOnly,
            SessionKind::Ephemeral,
            SessionKind::Try,
        ] {
            let source = SessionSource {
                kind,
                name: String::from("a.b-c"),
                revision: 12,
                environment: String::from("6f1c-2"),
            };
            assert_eq!(SessionSource::parse(&source.to_string()), Some(source));
        }
        for other in [
            "envfs:6f1c",
            "envfs-writable:a@1:6f1c",
            "envfs-read-only:a@x:6f1c",
            "envfs-read-only:6f1c",
            "read-only:a@1:6f1c",
            "",
        ] {
            assert_eq!(SessionSource::parse(other), None, "{other}");
        }
    }
}
