//! `envfs run`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args as ClapArgs;

use super::activate::{PromptChange, prepare, variables};
use crate::cli::access::Access;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::private::{self, Mounting};
use crate::cli::program;
use crate::cli::session::{self, DefaultSessionArgs, Entered};
use crate::cli::trial;
use crate::daemon::failure::Kind;
use crate::shell::Shell;
use crate::shell::plan::{Nesting, SYSTEM_PATH, Script, Variables};
use crate::shell::render::render;
use crate::sys::text::quoted;

/// Run a command in an environment.
///
/// Mounts the environment unless it is mounted, and sets the variables of an activated shell. The
/// command then replaces the envfs process, so input, output, signals, process id and exit status
/// are the command's own. It is looked up in PATH as a shell does. If the environment's program
/// cannot be executed, no other program of that name is run instead.
///
/// With NAME@REV, --read-only or --ephemeral, a committed revision is mounted at the prefix
/// instead, without a lock. An ephemeral session ends with the command, and its changes are
/// dropped.
///
/// With --private, only the command and its children see the mount. This needs neither root nor
/// fusermount3, and is the default without fusermount3 and in batch jobs. Commands in the same job
/// step, or in the same terminal or service, share one mount, which ends with the last of them.
///
/// Exit status 125: envfs failed, or the environment cannot be entered; 126: the command cannot be
/// executed; 127: the command was not found.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs run science python train.py --epochs 10\n  envfs run --read-only science python train.py\n  envfs run --ephemeral science@3 -- pip install -q numpy\n  srun envfs run --private --read-only science python train.py\n  envfs run -e OMP_NUM_THREADS=1 science -- python -c 'import numpy'\n  #!/usr/bin/env -S envfs run science python      as the first line of a script"
)]
pub struct Args {
    /// Set a variable for the command.
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
    variables: Vec<OsString>,
    /// Run the command in this directory.
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Start with only HOME, USER, LOGNAME, TERM, LANG, TZ and the system's PATH.
    #[arg(long)]
    clean_env: bool,
    /// Do not run the environment's activate.d scripts.
    #[arg(long)]
    no_scripts: bool,
    /// Mount the environment so that only the command and its children see it.
    #[arg(long)]
    pub(super) private: bool,
    /// Enter the session of this trial.
    #[arg(long, hide = true, value_name = "TOKEN")]
    trial: Option<String>,
    #[command(flatten)]
    session: DefaultSessionArgs,
    /// Environment, or a revision of it as NAME@REV.
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

impl Args {
    /// Returns the command line that runs one program without further options.
    pub(super) fn of(name: String, session: DefaultSessionArgs, program: OsString) -> Args {
        Args {
            variables: Vec::new(),
            cwd: None,
            clean_env: false,
            no_scripts: false,
            private: false,
            trial: None,
            session,
            name,
            command: vec![program],
        }
    }

    /// Returns how the command accesses the store.
    pub(in crate::cli) fn access(&self) -> Access {
        Access::of_session(self.session.kind(Some(&self.name)))
    }

    /// Executes the command; returns only on failure.
    pub fn run(&self, context: &Context) -> Result<()> {
        let failed = |error: CommandError| error.with_code(ExitCode::RunFailed);
        let environment = self.environment(context).map_err(failed)?;
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(failed(CommandError::usage("no command given")));
        };
        if let Some(dir) = &self.cwd {
            std::env::set_current_dir(dir).map_err(|error| {
                failed(CommandError::io(
                    format!("cannot change to {}", quoted(dir)),
                    &error,
                ))
            })?;
        }
        let path = environment.get(OsStr::new("PATH"));
        let path = path.map_or(OsStr::new(""), OsString::as_os_str);
        let prefix = environment.get(OsStr::new("ENVFS_PREFIX"));
        let prefix = Path::new(prefix.map_or(OsStr::new("/"), OsString::as_os_str));
        let error = match program::find(program, path, prefix) {
            Ok(file) => program::execute(&file, program, arguments, &environment),
            Err(error) => error,
        };
        Err(match error.kind {
            Kind::NotFound => error.with_code(ExitCode::RunNotFound),
            _ => error.with_code(ExitCode::RunNotExecutable),
        })
    }

    /// Mounts the environment and returns the variables of the command.
    fn environment(&self, context: &Context) -> Result<Variables> {
        let mut variables = variables();
        if self.clean_env {
            variables.retain(|name, _| CLEAN.iter().any(|known| name == known));
            variables.remove(OsStr::new("PATH"));
        }
        // The environment's scripts need it as well.
        variables
            .entry("PATH".into())
            .or_insert_with(|| SYSTEM_PATH.into());
        let entered = match &self.trial {
            Some(token) => trial::enter(context, &self.name, token)?,
            None => {
                let args = self.session.resolve(context, Some(&self.name))?;
                let how = match self.private {
                    true => Mounting::Private,
                    false => Mounting::choose(),
                };
                private::enter_or_mount(context, &self.name, &args, how)?
            }
        };
        let scripts = match self.no_scripts {
            true => Scripts::Skip,
            false => Scripts::Source,
        };
        let mut variables = in_environment(&entered, scripts, variables)?;
        for assignment in &self.variables {
            let (name, value) = split(assignment).ok_or_else(|| {
                CommandError::usage(format!("{} is not NAME=VALUE", quoted(assignment)))
            })?;
            variables.insert(name, value);
        }
        Ok(variables)
    }
}

/// Whether the activate.d scripts are sourced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scripts {
    Source,
    Skip,
}

/// Mounts an environment and returns the variables after its activation.
pub(super) fn activated(
    context: &Context,
    name: Option<&str>,
    options: &DefaultSessionArgs,
    scripts: Scripts,
    variables: Variables,
) -> Result<Variables> {
    let args = options.resolve(context, name)?;
    let entered = session::enter(context, name, &args, None)?;
    in_environment(&entered, scripts, variables)
}

/// Returns the variables after the activation of an environment that is mounted.
fn in_environment(
    entered: &Entered,
    scripts: Scripts,
    mut variables: Variables,
) -> Result<Variables> {
    let mut script = prepare(entered, Nesting::Replace, &variables, PromptChange::None)?;
    if scripts == Scripts::Skip {
        script.before.clear();
        script.after.clear();
    }
    if script.before.is_empty() && script.after.is_empty() {
        script.apply(&mut variables);
        return Ok(variables);
    }
    through_shell(&script, &variables)
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

/// Evaluates the script in bash and returns the resulting variables. Output of the scripts goes to
/// standard error.
fn through_shell(script: &Script, variables: &Variables) -> Result<Variables> {
    let mut text = b"exec 3>&1 1>&2\n".to_vec();
    text.extend_from_slice(&render(script, Shell::Bash));
    text.extend_from_slice(b"command -p env -0 >&3\n");
    let output = Command::new("/bin/bash")
        .args(["--noprofile", "--norc", "-c"])
        .arg(OsString::from_vec(text))
        .env_clear()
        .envs(variables)
        // This bash must not read the user's startup file.
        .env_remove("BASH_ENV")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| {
            CommandError::io(
                "cannot run bash for the environment's activate.d scripts",
                &error,
            )
            .hint("envfs run --no-scripts skips them")
        })?;
    if !output.status.success() {
        return Err(CommandError::new(
            Kind::System,
            format!(
                "the environment's activate.d scripts failed ({})",
                output.status
            ),
        )
        .hint("envfs run --no-scripts skips them"));
    }
    let mut after: Variables = output
        .stdout
        .split(|&byte| byte == 0)
        .filter_map(|entry| split(&OsString::from_vec(entry.to_vec())))
        .collect();
    // Variables that bash sets itself.
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
