//! `envfs cat`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::follow::{Followed, follow};
use crate::commit::OpenRevision;
use crate::daemon::failure::Kind;
use crate::object;
use crate::sys::text::quoted;

/// Print files of a revision.
///
/// Write NAME@REV:PATH; without @REV the current revision, without NAME the active environment. The
/// path is relative to the prefix, or absolute. Uncommitted changes are not shown. Symbolic links
/// are followed inside the environment.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs cat science@3:lib/config.ini\n  envfs cat science@before-upgrade:etc/settings > settings.old\n  envfs cat @3:bin/tool"
)]
pub struct Args {
    /// Environment, revision and path.
    #[arg(value_name = "[NAME][@REV]:PATH", required = true)]
    words: Vec<OsString>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        for word in &self.words {
            print(context, word)?;
        }
        Ok(())
    }
}

fn print(context: &Context, word: &OsStr) -> Result<()> {
    let bytes = word.as_bytes();
    let Some(colon) = bytes.iter().position(|byte| *byte == b':') else {
        return Err(CommandError::usage(format!("no path in {}", quoted(word)))
            .hint("write NAME@REV:PATH, or :PATH for the active environment"));
    };
    let (head, path) = bytes.split_at(colon);
    let path = OsString::from_vec(path.get(1..).unwrap_or_default().to_vec());
    let head = std::str::from_utf8(head)
        .map_err(|_| CommandError::usage(format!("{} names no environment", quoted(word))))?;
    let (env, number) = context.committed((!head.is_empty()).then_some(head))?;
    let selection = env.select(&[path])?;
    let inner = selection
        .paths
        .first()
        .map_or(&b""[..], |path| path.as_bytes());
    let revision = backend::open_revision(&env.environment, number)?;
    let ino = find_file(&env, &revision, inner)?;
    revision.read(ino, |part| context.output.raw(part))
}

/// Finds a regular file, through symbolic links inside the environment.
fn find_file(env: &Env, revision: &OpenRevision, path: &[u8]) -> Result<object::Ino> {
    let shown = quoted(OsStr::from_bytes(path));
    match follow(&env.target.prefix, revision, path)? {
        Followed::Inside(ino, attr) if attr.kind == object::Kind::File => Ok(ino),
        Followed::Inside(_, attr) => {
            let what = match attr.kind {
                object::Kind::Directory => "a directory",
                _ => "no regular file",
            };
            Err(CommandError::usage(format!("{shown} is {what}")))
        }
        Followed::Outside(target) => {
            let message = format!(
                "{shown} leads out of the environment, to {}",
                quoted(OsStr::from_bytes(&target))
            );
            Err(CommandError::new(Kind::NotFound, message))
        }
        Followed::Missing => {
            let number = revision.revision.id;
            let message = format!("revision {number} of {} has no {shown}", env.name());
            Err(CommandError::new(Kind::NotFound, message))
        }
    }
}
