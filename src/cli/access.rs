//! Checks, before a command runs, that it may use the store.

use super::commands::Command;
use super::context::Context;
use super::env::is_read_only;
use super::error::{CommandError, ExitCode, Result};
use crate::daemon::failure::Kind;
use crate::environment::{
    SessionKind, TRUST, other_owner, refuse_replaceable, refuse_replaceable_except,
};
use crate::shell::render::quote;
use crate::sys::process;
use crate::sys::text::quoted;

/// How a command accesses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Does not use the store.
    None,
    /// Reads only.
    Read,
    /// Reads only, and runs programs that are in it.
    Session,
    /// Unmounts or removes an environment, which its owner can always do.
    Release,
    /// Changes the store, or runs programs that are in it.
    Write,
}

impl Access {
    /// Returns the access of a command that mounts a session of this kind, by default writable.
    pub(super) fn of_session(kind: Option<SessionKind>) -> Access {
        match kind {
            None | Some(SessionKind::Writable) => Access::Write,
            Some(_) => Access::Session,
        }
    }
}

impl Command {
    /// Returns how the command accesses the store.
    pub(super) fn access(&self) -> Access {
        match self {
            Command::Mount(args) => args.access(),
            Command::Activate(args) => args.access(),
            Command::Run(args) => args.access(),
            Command::Env(args) => args.access(),
            Command::Subshell(args) => args.access(),
            Command::Unmount(args) => args.access(),
            Command::Modulefile(args) => args.access(),
            Command::Expose(args) => args.access(),
            Command::Import(_)
            | Command::Create(_)
            | Command::Clone(_)
            | Command::Reactivate(_)
            | Command::Commit(_)
            | Command::Checkpoint(_)
            | Command::Discard(_)
            | Command::Undo(_)
            | Command::Trial(_)
            | Command::Rollback(_)
            | Command::Restore(_)
            | Command::Tag(_)
            | Command::Gc(_)
            | Command::Rename(_)
            | Command::Relocate(_)
            | Command::Daemon(_) => Access::Write,
            Command::Remove(_) => Access::Release,
            Command::List(_)
            | Command::Ps(_)
            | Command::Status(_)
            | Command::Diff(_)
            | Command::Du(_)
            | Command::Paths(_)
            | Command::Log(_)
            | Command::Show(_)
            | Command::Cat(_)
            | Command::Export(_)
            | Command::Verify(_)
            | Command::Doctor(_)
            | Command::Stats(_)
            | Command::Complete(_) => Access::Read,
            Command::Deactivate(_)
            | Command::Hook(_)
            | Command::Completions(_)
            | Command::Man(_)
            | Command::Image(_)
            | Command::Demo(_)
            | Command::Serve(_)
            | Command::Shell(_) => Access::None,
        }
    }
}

/// Fails if the command may not use the store. If root reads the store of another user, the process
/// becomes that user, so that it leaves no files of root there and symbolic links lead only where
/// the user may go.
pub(super) fn check(context: &Context, command: &Command) -> Result<()> {
    let access = command.access();
    if access == Access::None {
        return Ok(());
    }
    let refused = |error: CommandError| match command {
        Command::Run(_) | Command::Trial(_) => error.with_code(ExitCode::RunFailed),
        _ => error,
    };
    let store = context.store().map_err(refused)?;
    let root = store.layout().root();
    // Nothing can be changed there. A store that root has mounted read-only may be used by all
    // users.
    if is_read_only(root) {
        return Ok(());
    }
    if let Some((owner, group)) = other_owner(root).map_err(CommandError::from)? {
        match access {
            Access::Read => {}
            // As with any program of another user, the caller decides whether to trust it. Root
            // must not do so by mistake.
            Access::Session if process::user_id() != 0 => {
                return refuse_replaceable_except(root, root)
                    .map_err(|error| refused(error.into()));
            }
            _ => {
                let mut error = wrong_owner(root, owner);
                if matches!(
                    command,
                    Command::Mount(_) | Command::Activate(_) | Command::Run(_)
                ) && process::user_id() != 0
                {
                    error = error.hint(
                        "or use what is committed: envfs run --read-only NAME CMD, envfs mount --read-only \
                         NAME",
                    );
                }
                return Err(refused(error));
            }
        }
        if process::user_id() == 0 {
            process::become_user(owner, group).map_err(|error| {
                let doing = format!("cannot read {} as its owner", root.display());
                CommandError::io(doing, &error).hint(as_owner(owner))
            })?;
        }
    }
    if matches!(access, Access::Write | Access::Session) {
        refuse_replaceable(root).map_err(|error| refused(error.into()))?;
    }
    Ok(())
}

fn wrong_owner(root: &std::path::Path, owner: u32) -> CommandError {
    let what = format!(
        "{} belongs to {}, not to {}",
        quoted(root),
        process::user_name(owner),
        process::user_name(process::user_id())
    );
    CommandError::new(Kind::Conflict, what)
        .hint(as_owner(owner))
        .hint("or set ENVFS_HOME to a store of your own (sudo -H uses root's)")
        .hint(format!(
            "or, if files of both users in it are acceptable: export {TRUST}={}",
            quoted(root)
        ))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c)
}

/// Returns a hint to run this command as the owner of the store.
fn as_owner(owner: u32) -> String {
    let words = std::env::args_os().skip(1);
    let words: Vec<String> = words
        .map(|word| match word.to_str() {
            Some(text) if !text.is_empty() && text.chars().all(is_plain) => text.to_owned(),
            _ => String::from_utf8_lossy(&quote(&word)).into_owned(),
        })
        .collect();
    let name = process::user_name(owner);
    let user = match name.parse::<u32>() {
        Ok(number) => format!("'#{number}'"),
        Err(_) => name,
    };
    format!(
        "use it as its owner: sudo -u {user} envfs {}",
        words.join(" ")
    )
}
