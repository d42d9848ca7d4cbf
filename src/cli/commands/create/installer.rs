//! The installers that `envfs create` knows: finds the program, and returns the commands to run.
//!
//! `{prefix}` in a command is the mount point. It is an empty directory that exists already, which
//! some installers refuse as the place of a new environment.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use crate::cli::error::{CommandError, Result};
use crate::cli::program;
use crate::daemon::failure::Kind;
use crate::sys::text::quoted;

const PREFIX: &str = "{prefix}";
const PYTHON: &str = "{prefix}/bin/python";

/// The options that choose an installer. Its arguments are all words that follow.
#[derive(Debug, ClapArgs)]
pub(super) struct Installer {
    /// Install these packages with conda, mamba or micromamba, the first that is in PATH.
    #[arg(
        long,
        value_name = "ARG",
        num_args = 0..,
        allow_hyphen_values = true,
        conflicts_with_all = ["venv", "uv", "npm", "file", "command"]
    )]
    conda: Option<Vec<OsString>>,
    /// Make a Python environment with venv, and pass these arguments to pip install.
    #[arg(
        long,
        value_name = "ARG",
        num_args = 0..,
        allow_hyphen_values = true,
        conflicts_with_all = ["uv", "npm", "file", "command"]
    )]
    venv: Option<Vec<OsString>>,
    /// Make a Python environment with uv, and pass these arguments to uv pip install.
    #[arg(
        long,
        value_name = "ARG",
        num_args = 0..,
        allow_hyphen_values = true,
        conflicts_with_all = ["npm", "file", "command"]
    )]
    uv: Option<Vec<OsString>>,
    /// Pass these arguments to npm install.
    #[arg(
        long,
        value_name = "ARG",
        num_args = 0..,
        allow_hyphen_values = true,
        conflicts_with_all = ["file", "command"]
    )]
    npm: Option<Vec<OsString>>,
    /// Install what a file lists: environment.yml with conda, mamba or micromamba, requirements.txt
    /// with venv and pip, uv.lock with uv, package-lock.json with npm.
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,
}

/// A command: a program and its arguments.
pub(super) type Step = Vec<OsString>;

/// The programs that install conda packages, in the order in which they are looked for.
#[derive(Clone, Copy)]
enum CondaInstaller {
    Conda,
    Mamba,
    Micromamba,
}

impl CondaInstaller {
    fn find() -> Result<CondaInstaller> {
        for (name, conda) in [
            ("conda", CondaInstaller::Conda),
            ("mamba", CondaInstaller::Mamba),
            ("micromamba", CondaInstaller::Micromamba),
        ] {
            if program::is_in_path(name) {
                return Ok(conda);
            }
        }
        let message = "conda, mamba and micromamba are not in PATH";
        let error = CommandError::new(Kind::NotFound, message);
        Err(match program::is_in_path("pixi") {
            true => error.hint(
                "pixi installs only into its projects: run pixi install, then envfs import \
                 --in-place .pixi/envs/default",
            ),
            false => error.hint(
                "install micromamba (https://mamba.readthedocs.io) or Miniforge \
                 (https://conda-forge.org/download)",
            ),
        })
    }

    fn packages(self, arguments: &[OsString]) -> Vec<Step> {
        match self {
            CondaInstaller::Conda => {
                vec![step(&["conda", "create", "-y", "-p", PREFIX], arguments)]
            }
            CondaInstaller::Mamba => vec![
                self.mark(),
                step(&["mamba", "install", "-y", "-p", PREFIX], arguments),
            ],
            CondaInstaller::Micromamba => vec![
                self.mark(),
                step(&["micromamba", "install", "-y", "-p", PREFIX], arguments),
            ],
        }
    }

    fn file(self, file: &Path) -> Vec<Step> {
        let file = [OsString::from("-f"), file.into()];
        match self {
            // With -y, conda removes the directory first.
            CondaInstaller::Conda => vec![step(&["conda", "env", "create", "-p", PREFIX], &file)],
            CondaInstaller::Mamba => vec![
                self.mark(),
                step(&["mamba", "env", "update", "-p", PREFIX], &file),
            ],
            CondaInstaller::Micromamba => vec![
                self.mark(),
                step(&["micromamba", "install", "-y", "-p", PREFIX], &file),
            ],
        }
    }

    /// Makes an empty conda environment of the directory: mamba creates none in a directory that
    /// exists, but installs into an environment.
    fn mark(self) -> Step {
        let history = "{prefix}/conda-meta/history";
        step(&["install", "-D", "-m", "644", "/dev/null", history], &[])
    }
}

impl Installer {
    /// Returns the commands of the installer; empty if none was chosen. Fails if its program or the
    /// file is missing.
    pub(super) fn steps(&self) -> Result<Vec<Step>> {
        if let Some(arguments) = &self.conda {
            return Ok(CondaInstaller::find()?.packages(arguments));
        }
        if let Some(arguments) = &self.venv {
            return venv(arguments);
        }
        if let Some(arguments) = &self.uv {
            return uv(arguments);
        }
        if let Some(arguments) = &self.npm {
            require("npm", "install Node.js (https://nodejs.org)")?;
            return Ok(vec![step(
                &["npm", "install", "--prefix", PREFIX],
                arguments,
            )]);
        }
        match &self.file {
            Some(file) => of_file(file),
            None => Ok(Vec::new()),
        }
    }
}

fn of_file(file: &Path) -> Result<Vec<Step>> {
    let failed = |error| {
        let doing = format!("cannot read {}", quoted(file));
        CommandError::of_named(doing, &error)
    };
    let path = std::path::absolute(file).map_err(failed)?;
    std::fs::File::open(&path).map_err(failed)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default();
    let ends_with = |end: &str| Path::new(name).extension() == Some(OsStr::new(end));
    if name == "uv.lock" {
        require_uv()?;
        let place = [
            "env",
            "UV_LINK_MODE=copy",
            "UV_PROJECT_ENVIRONMENT={prefix}",
        ];
        let sync = [&place[..], &["uv", "sync", "--frozen", "--project"]].concat();
        Ok(vec![step(&sync, &[dir.into()])])
    } else if name == "package-lock.json" {
        require("npm", "install Node.js (https://nodejs.org)")?;
        let files = [dir.join("package.json").into(), path.into(), PREFIX.into()];
        Ok(vec![
            step(&["cp", "--"], &files),
            step(&["npm", "ci", "--prefix", PREFIX], &[]),
        ])
    } else if ends_with("yml") || ends_with("yaml") {
        Ok(CondaInstaller::find()?.file(&path))
    } else if ends_with("txt") {
        venv(&["-r".into(), path.into()])
    } else {
        let message = format!("the name of {} tells no installer", quoted(file));
        Err(CommandError::usage(message)
            .hint("known are *.yml, *.txt, uv.lock and package-lock.json")
            .hint("for any other file: envfs create NAME -- CMD, where {prefix} is the place"))
    }
}

fn venv(arguments: &[OsString]) -> Result<Vec<Step>> {
    require(
        "python3",
        "install Python (on Debian: apt install python3-venv)",
    )?;
    let mut steps = vec![step(&["python3", "-m", "venv", PREFIX], &[])];
    if !arguments.is_empty() {
        steps.push(step(&[PYTHON, "-m", "pip", "install"], arguments));
    }
    Ok(steps)
}

fn uv(arguments: &[OsString]) -> Result<Vec<Step>> {
    require_uv()?;
    let mut steps = vec![step(&["uv", "venv", PREFIX], &[])];
    if !arguments.is_empty() {
        // Its cache is on another file system than the mount.
        let pip = [
            "env",
            "UV_LINK_MODE=copy",
            "uv",
            "pip",
            "install",
            "--python",
            PYTHON,
        ];
        steps.push(step(&pip, arguments));
    }
    Ok(steps)
}

fn require_uv() -> Result<()> {
    require(
        "uv",
        "install it: pip install uv, or https://docs.astral.sh/uv",
    )
}

/// Fails if a program is missing, and says how to install it.
fn require(name: &str, how: &str) -> Result<()> {
    match program::is_in_path(name) {
        true => Ok(()),
        false => Err(CommandError::new(Kind::NotFound, format!("{name} is not in PATH")).hint(how)),
    }
}

fn step(words: &[&str], arguments: &[OsString]) -> Step {
    let words = words.iter().map(OsString::from);
    words.chain(arguments.iter().cloned()).collect()
}
