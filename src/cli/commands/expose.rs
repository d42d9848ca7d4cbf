//! `envfs expose`

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::access::Access;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::launchers::{self, Foreign, Renewed};
use crate::cli::output::{count, table};
use crate::cli::place;
use crate::cli::session::DefaultSessionArgs;
use crate::daemon::failure::Kind;
use crate::environment::{Exposure, LauncherRecord};
use crate::fault;
use crate::sys::text::{Text, quoted};

/// Make launchers for the programs of an environment.
///
/// Writes a small script for each program into DIR. Put DIR first in PATH: then the programs work
/// without activation, for other programs and in batch jobs too. Each call is an `envfs run`: in a
/// job it uses a private read-only session, elsewhere the writable mount, unless options choose
/// another session. Inside, programs find each other at the prefix, not through launchers.
///
/// Programs are the executable files in bin and node_modules/.bin of the committed revision. After
/// a commit, rollback, undo or relocation, launchers are added and removed accordingly; those of
/// NAME@REV stay. DIR then has launchers for exactly the given programs. Only launchers of this
/// environment are replaced or removed.
///
/// Without DIR, lists the directories with launchers.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs expose science ~/science-bin\n  envfs expose --read-only science /apps/science/bin python pip\n  envfs expose science@paper ~/paper-bin\n  envfs expose --remove science ~/science-bin"
)]
pub struct Args {
    /// Mount the environment so that only the program and its children see it.
    #[arg(long)]
    private: bool,
    #[command(flatten)]
    session: DefaultSessionArgs,
    /// Remove the launchers in DIR.
    #[arg(long, requires = "dir", conflicts_with_all = ["refresh", "programs", "private", "read_only", "ephemeral", "writable"])]
    remove: bool,
    /// Renew the launchers in DIR, or in all directories, as commits do.
    #[arg(long, conflicts_with_all = ["programs", "private", "read_only", "ephemeral", "writable"])]
    refresh: bool,
    /// Environment, or a revision of it as NAME@REV.
    name: String,
    /// Directory, created if it does not exist.
    dir: Option<PathBuf>,
    /// Programs [default: all].
    #[arg(value_name = "PROGRAM")]
    programs: Vec<OsString>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A directory with launchers, in JSON.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    exposure: Exposure,
    /// Whether the directory exists.
    exists: bool,
}

/// A directory whose launchers were renewed, in JSON.
#[derive(Debug, Serialize)]
struct Done {
    dir: Text,
    #[serde(flatten)]
    renewed: Renewed,
}

impl Args {
    /// Returns how the command accesses the store.
    pub(in crate::cli) fn access(&self) -> Access {
        match self.dir.is_none() && !self.refresh {
            true => Access::Read,
            false => Access::Write,
        }
    }

    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (_, revision) = place::split_revision(&self.name);
        // Fails if there is no such revision.
        let (env, _) = context.environment_at(Some(&self.name))?;
        let revision = revision.map(str::to_owned);
        if self.refresh {
            return self.renew(context, &env);
        }
        let Some(dir) = &self.dir else {
            return self.list(context, &env);
        };
        if self.remove {
            return self.remove(context, &env, &real(dir)?);
        }
        self.expose(context, &env, revision, dir)
    }

    fn expose(
        &self,
        context: &Context,
        env: &Env,
        revision: Option<String>,
        dir: &Path,
    ) -> Result<()> {
        if let Some(bad) = self.programs.iter().find(|name| !is_name(name)) {
            let message = format!("{} is not the name of a program", quoted(bad));
            return Err(CommandError::usage(message).hint("give names without directories"));
        }
        if place::below(&env.target.prefix, dir).is_some() {
            let message = format!("{} is inside the environment", quoted(dir));
            return Err(CommandError::usage(message).hint("choose a directory outside"));
        }
        let mut options: Vec<Text> = self.session.words()?.into_iter().map(Text).collect();
        if self.private {
            options.push(Text::from("--private"));
        }
        // Without a directory, as the arguments are checked before anything is written.
        let mut exposure = Exposure {
            dir: Text::from(dir),
            revision,
            programs: (!self.programs.is_empty())
                .then(|| self.programs.iter().cloned().map(Text).collect()),
            options,
        };
        if exposure.revision.is_some() {
            // A revision cannot be used with --writable.
            self.session.resolve(context, Some(&self.name))?;
        }
        launchers::check_programs(env, &exposure)?;
        fs::create_dir_all(dir).map_err(|error| {
            CommandError::of_named(format!("cannot create {}", quoted(dir)), &error)
        })?;
        let dir = real(dir)?;
        exposure.dir = Text::from(dir.as_path());
        let mut record = LauncherRecord::open(env.environment.layout())?;
        let before = record.of(&dir).cloned();
        record.exposures.retain(|other| other.dir.as_path() != dir);
        record.exposures.push(exposure.clone());
        // Before the launchers, so that a command that was interrupted leaves none unrecorded.
        record.write()?;
        fault::point("expose.recorded");
        let renewed = launchers::renew(env, &exposure, Foreign::Refuse).or_else(|error| {
            if error.kind == Kind::Conflict {
                record.exposures.pop();
                record.exposures.extend(before);
                record.write()?;
            }
            Err(error)
        })?;
        if self.json {
            let dir = exposure.dir;
            return context.output.json(&[Done { dir, renewed }]);
        }
        context.output.note(format!(
            "{}: {} in {}; to use them: {}",
            env.name(),
            launchers::describe(renewed),
            quoted(&dir),
            launchers::path_hint(&dir)
        ));
        Ok(())
    }

    fn remove(&self, context: &Context, env: &Env, dir: &Path) -> Result<()> {
        let mut record = LauncherRecord::open(env.environment.layout())?;
        let is_recorded = record.of(dir).is_some();
        let removed = launchers::remove(dir, &env.target.id)?;
        if !is_recorded && removed == 0 {
            let message = format!("{} has no launchers of {}", quoted(dir), env.name());
            return Err(CommandError::new(Kind::NotFound, message)
                .hint(format!("envfs expose {} lists the directories", env.name())));
        }
        record.exposures.retain(|other| other.dir.as_path() != dir);
        record.write()?;
        context.output.note(format!(
            "{}: removed {} from {}",
            env.name(),
            count(removed, "launcher"),
            quoted(dir)
        ));
        Ok(())
    }

    fn renew(&self, context: &Context, env: &Env) -> Result<()> {
        let dir = self.dir.as_deref().map(real).transpose()?;
        let record = LauncherRecord::open(env.environment.layout())?;
        let mut done = Vec::new();
        let mut failed: Option<CommandError> = None;
        let mut is_known = dir.is_none();
        for exposure in &record.exposures {
            if dir
                .as_ref()
                .is_some_and(|dir| exposure.dir.as_path() != dir)
            {
                continue;
            }
            is_known = true;
            match launchers::renew(env, exposure, Foreign::Leave) {
                Ok(renewed) => done.push(Done {
                    dir: exposure.dir.clone(),
                    renewed,
                }),
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        context.output.error(&earlier);
                    }
                }
            }
        }
        if let Some(dir) = dir.filter(|_| !is_known) {
            let message = format!("{} is not known to have launchers", quoted(&dir));
            return Err(CommandError::new(Kind::NotFound, message).hint(format!(
                "envfs expose {} {}",
                env.name(),
                quoted(&dir)
            )));
        }
        if self.json {
            context.output.json(&done)?;
        } else {
            for Done { dir, renewed } in &done {
                let (at, what) = (quoted(&dir.0), launchers::describe(*renewed));
                context
                    .output
                    .note(format!("{}: {what} in {at}", env.name()));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn list(&self, context: &Context, env: &Env) -> Result<()> {
        let exposures = LauncherRecord::read(env.environment.layout())?;
        if self.json {
            let row = |exposure: Exposure| Row {
                exists: exposure.dir.as_path().is_dir(),
                exposure,
            };
            let rows: Vec<Row> = exposures.into_iter().map(row).collect();
            return context.output.json(&rows);
        }
        if exposures.is_empty() {
            context.output.note(format!("{}: no launchers", env.name()));
            return Ok(());
        }
        let mut rows = vec![
            ["DIRECTORY", "REVISION", "PROGRAMS", "SESSION"]
                .map(String::from)
                .to_vec(),
        ];
        for exposure in &exposures {
            let options: Vec<String> = exposure
                .options
                .iter()
                .map(|word| quoted(&word.0))
                .collect();
            let programs = exposure.programs.as_ref();
            rows.push(vec![
                match exposure.dir.as_path().is_dir() {
                    true => quoted(&exposure.dir.0),
                    false => format!("{} (gone)", quoted(&exposure.dir.0)),
                },
                exposure
                    .revision
                    .clone()
                    .unwrap_or_else(|| "current".to_owned()),
                programs.map_or_else(|| "all".to_owned(), |names| names.len().to_string()),
                match options.is_empty() {
                    true => "default".to_owned(),
                    false => options.join(" "),
                },
            ]);
        }
        for line in table(&rows) {
            context.output.line(line)?;
        }
        Ok(())
    }
}

fn is_name(name: &OsString) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty() && !bytes.contains(&b'/') && !bytes.starts_with(b".")
}

/// Returns the absolute path of a directory, which may be gone.
fn real(dir: &Path) -> Result<PathBuf> {
    place::resolve(dir)
}
