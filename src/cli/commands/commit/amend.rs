//! `envfs commit --amend`

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::process::Command;

use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::output::Format;
use crate::daemon::failure::Kind;
use crate::daemon::protocol::AmendOptions;
use crate::sys::text::quoted;

/// Changes the message of the current revision, to one from the editor by default.
pub(super) fn run(
    context: &Context,
    env: &Env,
    message: Option<&str>,
    format: Format,
) -> Result<()> {
    let message = match message {
        Some(message) => message.to_owned(),
        None => edited(env)?,
    };
    let progress = context.output.progress();
    let done = env.service()?.amend(&AmendOptions { message }, &progress)?;
    progress.finish();
    if format == Format::Json {
        return context.output.json(&done);
    }
    let (name, revision) = (env.name(), done.revision);
    context.output.note(match done.from == done.message {
        true => format!("{name}: revision {revision} has this message already"),
        false => format!(
            "{name}: changed the message of revision {revision} from {} to {}",
            quoted(&done.from),
            quoted(&done.message)
        ),
    });
    Ok(())
}

/// Lets the user edit the message of the current revision.
fn edited(env: &Env) -> Result<String> {
    let usage = |message: String| CommandError::usage(message).hint("or give the message with -m");
    let editor = ["VISUAL", "EDITOR"]
        .iter()
        .find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    let editor: OsString = editor.ok_or_else(|| {
        usage("--amend without -m opens an editor, and neither VISUAL nor EDITOR is set".to_owned())
    })?;
    let failed = |error: &std::io::Error| CommandError::io("cannot write a temporary file", error);
    let mut file = tempfile::Builder::new()
        .prefix("envfs-message-")
        .suffix(".txt")
        .tempfile()
        .map_err(|error| failed(&error))?;
    let revision = env.facts.revision.as_ref();
    let before = revision.map_or("", |revision| revision.message.as_str());
    writeln!(file, "{before}").map_err(|error| failed(&error))?;
    // The variable may contain options, so that the shell splits it, as git does.
    let status = Command::new("sh")
        .arg("-c")
        .arg("exec $1 \"$2\"")
        .arg("sh")
        .arg(&editor)
        .arg(file.path())
        .status()
        .map_err(|error| CommandError::io("cannot run the editor", &error))?;
    if !status.success() {
        let message = format!("the editor {} failed: {status}", quoted(&editor));
        return Err(CommandError::new(Kind::System, message).hint("the message is unchanged"));
    }
    // Editors may replace the file.
    let text = fs::read_to_string(file.path())
        .map_err(|error| CommandError::io("cannot read the edited message", &error))?;
    let text = text.trim_end();
    match text.is_empty() {
        true => Err(usage(
            "the message is empty, so that nothing was changed".to_owned(),
        )),
        false => Ok(text.to_owned()),
    }
}
