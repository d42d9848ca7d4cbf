//! May this command use this store? Asked once, before the command begins.

use super::commands::Command;
use super::context::Context;
use super::error::{CommandError, ExitCode, Result};
use super::read_only;
use crate::daemon::failure::Kind;
use crate::environment::{TRUST, other_owner, refuse_replaceable};
use crate::shell::render::quote;
use crate::sys::process;
use crate::sys::text::quoted;

/// What a command does with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing.
    None,
    /// It reads.
    Look,
    /// It ends the use of an environment, which must always be possible for its owner.
    Leave,
    /// It changes the store, or runs what is in it.
    Change,
}

impl Command {
    /// Returns what the command does with the store.
    pub(super) fn access(&self) -> Access {
        match self {
            Command::Mount(args) if !args.uses_store() => Access::None,
            Command::Import(_)
            | Command::Create(_)
            | Command::Activate(_)
            | Command::Reactivate(_)
            | Command::Run(_)
            | Command::Mount(_)
            | Command::Commit(_)
            | Command::Discard(_)
            | Command::Rollback(_)
            | Command::Tag(_)
            | Command::Gc(_)
            | Command::Rename(_)
            | Command::Daemon(_) => Access::Change,
            Command::Unmount(_) | Command::Remove(_) => Access::Leave,
            Command::List(_)
            | Command::Status(_)
            | Command::Diff(_)
            | Command::Paths(_)
            | Command::Log(_)
            | Command::Export(_)
            | Command::Verify(_)
            | Command::Doctor(_)
            | Command::Stats(_)
            | Command::Complete(_) => Access::Look,
            Command::Deactivate(_)
            | Command::Hook(_)
            | Command::Completions(_)
            | Command::Image(_)
            | Command::Demo(_)
            | Command::Serve(_)
            | Command::Shell(_) => Access::None,
        }
    }
}

/// Refuses a command that may not use the store. Root that looks at the store of another user goes on
/// as that user, so that nothing of root's stays behind and no link of the user leads further than the
/// user may go.
pub(super) fn admit(context: &Context, command: &Command) -> Result<()> {
    let access = command.access();
    if access == Access::None {
        return Ok(());
    }
    let refused = |error: CommandError| match command {
        Command::Run(_) => error.with_code(ExitCode::RunFailed),
        _ => error,
    };
    let store = context.store().map_err(refused)?;
    let root = store.layout().root();
    // Nothing can be changed there, by anybody. What root has mounted read-only may be used by all.
    if read_only::is_read_only(root) {
        return Ok(());
    }
    if let Some((owner, group)) = other_owner(root).map_err(CommandError::from)? {
        if access != Access::Look {
            return Err(refused(belongs(root, owner)));
        }
        if process::user_id() == 0 {
            process::become_user(owner, group).map_err(|error| {
                let doing = format!("cannot look at {} as its owner", root.display());
                CommandError::io(doing, &error).hint(as_owner(owner))
            })?;
        }
    }
    if access == Access::Change {
        refuse_replaceable(root).map_err(|error| refused(error.into()))?;
    }
    Ok(())
}

fn belongs(root: &std::path::Path, owner: u32) -> CommandError {
    let what = format!(
        "{} belongs to {}, and this is {}",
        quoted(root),
        process::user_name(owner),
        process::user_name(process::user_id())
    );
    CommandError::new(Kind::Conflict, what)
        .hint(as_owner(owner))
        .hint("or set ENVFS_HOME to a store of your own (sudo -H uses that of root)")
        .hint(format!(
            "or, where files of both in it do no harm: export {TRUST}={}",
            quoted(root)
        ))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c)
}

/// The same command as the owner of the store.
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
