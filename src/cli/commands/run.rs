//! `envfs run`

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args as ClapArgs;

use super::activate::{prepare, variables};
use crate::cli::context::Context;
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::daemon::failure::Kind;
use crate::shell::Shell;
use crate::shell::plan::{Nesting, Script, Variables};
use crate::shell::render::render;

/// Run a command in an environment.
///
/// The environment is mounted if need be, the variables are those of an activated shell, and the
/// command takes the place of envfs: its input and output, signals, process id and exit status
/// are its own. Status 125: envfs failed; 126: the command cannot be executed; 127: not found.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs run science python train.py --epochs 10\n  envfs run -e OMP_NUM_THREADS=1 science -- python -c 'import numpy'\n  #!/usr/bin/env -S envfs run science python      as the first line of a script"
)]
pub struct Args {
    /// Set a variable for the command.
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
    variables: Vec<OsString>,
    /// Start the command in this directory.
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Start with nothing but HOME, USER, LOGNAME, TERM, LANG, TZ and the system's PATH.
    #[arg(long)]
    clean_env: bool,
    /// Do not run the environment's activate.d scripts.
    #[arg(long)]
    no_scripts: bool,
    /// Environment.
    name: String,
    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

const CLEAN: [&str; 7] = [
    "HOME",
    "USER",
    "LOGNAME",
    "TERM",
    "LANG",
    "TZ",
    "ENVFS_HOME",
];
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

impl Args {
    /// Does it; returns only on failure.
    pub fn run(&self, context: &Context) -> Result<()> {
        let failed = |error: CommandError| error.with_code(ExitCode::RunFailed);
        let environment = self.environment(context).map_err(failed)?;
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(failed(CommandError::usage("no command is given")));
        };
        let path = environment.get(OsStr::new("PATH")).cloned();
        let path = path.as_deref();
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment);
        if let Some(dir) = &self.cwd {
            std::env::set_current_dir(dir).map_err(|error| {
                failed(CommandError::io(
                    format!("cannot go to {}", dir.display()),
                    &error,
                ))
            })?;
        }
        let error = command.exec();
        let shown = program.to_string_lossy();
        Err(match is_missing(&error, program, path) {
            true => CommandError::new(
                Kind::NotFound,
                format!(
                    "{shown}: not found in {} (or its interpreter is not)",
                    self.name
                ),
            )
            .with_code(ExitCode::RunNotFound),
            false => CommandError::io(format!("cannot execute {shown}"), &error)
                .with_code(ExitCode::RunNotExecutable),
        })
    }

    /// Mounts the environment and returns the variables of the command.
    fn environment(&self, context: &Context) -> Result<Variables> {
        let mut variables = variables();
        if self.clean_env {
            variables.retain(|name, _| CLEAN.iter().any(|known| name == known));
            variables.insert("PATH".into(), SYSTEM_PATH.into());
        }
        let name = Some(self.name.as_str());
        let mut script = prepare(context, name, Nesting::Replace, &variables, false)?;
        if self.no_scripts {
            script.before.clear();
            script.after.clear();
        }
        let mut variables = if script.before.is_empty() && script.after.is_empty() {
            script.apply(&mut variables);
            variables
        } else {
            through_shell(&script, &variables)?
        };
        for assignment in &self.variables {
            let (name, value) = split(assignment).ok_or_else(|| {
                CommandError::usage(format!(
                    "'{}' is not NAME=VALUE",
                    assignment.to_string_lossy()
                ))
            })?;
            variables.insert(name, value);
        }
        Ok(variables)
    }
}

/// Returns whether a command could not be started because there is none of this name.
pub fn is_missing(error: &io::Error, program: &OsStr, path: Option<&OsStr>) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || (error.kind() == io::ErrorKind::PermissionDenied && !is_in_path(program, path))
}

/// Returns whether there is a file of this name where the system looks for programs. The system
/// itself says "permission denied" as soon as it may not look into one of the directories.
fn is_in_path(program: &OsStr, path: Option<&OsStr>) -> bool {
    if program.as_bytes().contains(&b'/') {
        return true;
    }
    let path = path.unwrap_or(OsStr::new("/bin:/usr/bin"));
    std::env::split_paths(path).any(|dir| dir.join(program).is_file())
}

fn split(assignment: &OsString) -> Option<(OsString, OsString)> {
    let bytes = assignment.clone().into_vec();
    let place = bytes
        .iter()
        .position(|&byte| byte == b'=')
        .filter(|&place| place > 0)?;
    let (name, value) = bytes.split_at(place);
    let value = value.get(1..).unwrap_or_default();
    Some((
        OsString::from_vec(name.to_vec()),
        OsString::from_vec(value.to_vec()),
    ))
}

/// Lets bash do what the script says and returns its variables afterwards. What the scripts say
/// goes to standard error.
fn through_shell(script: &Script, variables: &Variables) -> Result<Variables> {
    let mut text = b"exec 3>&1 1>&2\n".to_vec();
    text.extend_from_slice(&render(script, Shell::Bash));
    text.extend_from_slice(b"command -p env -0 >&3\n");
    let output = Command::new("/bin/bash")
        .args(["--noprofile", "--norc", "-c"])
        .arg(OsString::from_vec(text))
        .env_clear()
        .envs(variables)
        // Startup files named by variables are for shells, not for us.
        .env_remove("BASH_ENV")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| {
            CommandError::io(
                "cannot run bash for the environment's activate.d scripts",
                &error,
            )
            .hint("envfs run --no-scripts does without them")
        })?;
    if !output.status.success() {
        return Err(CommandError::new(
            Kind::System,
            format!(
                "the environment's activate.d scripts failed ({})",
                output.status
            ),
        )
        .hint("envfs run --no-scripts does without them"));
    }
    let mut after: Variables = output
        .stdout
        .split(|&byte| byte == 0)
        .filter_map(|entry| split(&OsString::from_vec(entry.to_vec())))
        .collect();
    // Bash's own: they are those of our child, not of the command.
    for name in ["_", "SHLVL", "PWD", "OLDPWD"] {
        match variables.get(OsStr::new(name)) {
            Some(value) => {
                after.insert(name.into(), value.clone());
            }
            None => {
                after.remove(OsStr::new(name));
            }
        }
    }
    if let Some(value) = variables.get(OsStr::new("BASH_ENV")) {
        after.insert("BASH_ENV".into(), value.clone());
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scripts_change_the_variables_of_a_command() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b.sh");
        std::fs::write(
            &file,
            "echo talk; export ADDED=\"$GIVEN\n'x'\"; unset GONE; cd /\n",
        )
        .unwrap();
        let script = Script {
            export: vec![("GIVEN".into(), "one two".into())],
            after: vec![file],
            ..Script::default()
        };
        let before: Variables = [("PATH", "/usr/bin:/bin"), ("GONE", "1"), ("PWD", "/here")]
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let after = through_shell(&script, &before).unwrap();
        let get = |name: &str| after.get(OsStr::new(name)).map(|v| v.to_str().unwrap());
        assert_eq!(get("ADDED"), Some("one two\n'x'"));
        assert_eq!(get("GONE"), None);
        assert_eq!(get("PWD"), Some("/here"));
        assert_eq!(get("SHLVL"), None);
    }
}
