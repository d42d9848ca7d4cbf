//! `envfs list`

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::{Context, Env, active_name};
use crate::cli::error::Result;
use crate::cli::in_place::{self, Backup};
use crate::cli::output::{size, table};
use crate::cli::place;
use crate::cli::recovery;
use crate::daemon::lifecycle::State;
use crate::daemon::session;
use crate::sys::text::{Text, quoted};

/// List environments with their state, revision and sizes.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Print only the names, each terminated by NUL.
    #[arg(short = 'z', long, conflicts_with = "json")]
    null: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One environment in the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// `mounted`, `unmounted`, `read-only` or `ephemeral` (a session is at the prefix), `dead` (its
    /// daemon was killed), `unreachable` (its daemon does not respond or its socket no longer
    /// exists), `elsewhere`, `copy` (of one that is mounted from another store) or `damaged`.
    state: &'static str,
    active: bool,
    revision: Option<i64>,
    /// Identity of the history, which clones and imported archives have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    image_bytes: u64,
    /// Disk space used by changed files.
    upper_bytes: u64,
    upper_files: u64,
    prefix: Text,
    /// The original directory, if it was imported in place and not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<Backup>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let active = active_name();
        recovery::recover_all(&context.output, &store)?;
        if self.null {
            let names = store.list()?;
            return context
                .output
                .fields(names.iter().map(|name| name.as_str()));
        }
        let mut rows = Vec::new();
        for name in store.list()? {
            rows.push(row(context, name.as_str(), active.as_deref()));
        }
        if self.json {
            return context.output.json(&rows);
        }
        if rows.is_empty() {
            context
                .output
                .note("There are no environments. Create one: envfs import DIR NAME");
            return Ok(());
        }
        let mut cells: Vec<Vec<String>> = vec![
            ["  NAME", "STATE", "REV", "IMAGE", "CHANGES", "PREFIX"]
                .map(String::from)
                .to_vec(),
        ];
        for row in &rows {
            cells.push(vec![
                format!("{} {}", if row.active { '*' } else { ' ' }, row.name),
                row.state.to_owned(),
                row.revision
                    .map_or_else(|| String::from("-"), |revision| revision.to_string()),
                size(row.image_bytes),
                if row.upper_files == 0 {
                    String::from("-")
                } else {
                    size(row.upper_bytes)
                },
                row.problem.clone().unwrap_or_else(|| row.place()),
            ]);
        }
        for line in table(&cells) {
            context.output.line(line)?;
        }
        Ok(())
    }
}

impl Row {
    /// Returns the prefix, and whether its original directory is kept.
    fn place(&self) -> String {
        let prefix = quoted(&self.prefix.0);
        match &self.backup {
            Some(backup) if backup.exists => format!("{prefix} (original kept)"),
            Some(_) => format!("{prefix} (original missing)"),
            None => prefix,
        }
    }
}

fn row(context: &Context, name: &str, active: Option<&str>) -> Row {
    let mut row = Row {
        name: name.to_owned(),
        state: "damaged",
        active: active == Some(name),
        revision: None,
        origin: None,
        image_bytes: 0,
        upper_bytes: 0,
        upper_files: 0,
        prefix: Text::default(),
        backup: None,
        problem: None,
    };
    let env = match context.environment(Some(name)) {
        Ok(env) => env,
        Err(error) => {
            row.problem = Some(error.message);
            return row;
        }
    };
    row.state = match env.state() {
        Ok(State::Unmounted) => of_session(&env).unwrap_or("unmounted"),
        Ok(state) => describe(&state),
        Err(error) => {
            row.problem = Some(error.message);
            "unreachable"
        }
    };
    row.origin = Some(env.facts.origin.clone());
    row.revision = env.facts.revision.as_ref().map(|revision| revision.id.0);
    row.image_bytes = env.facts.image.as_ref().map_or(0, |image| image.size);
    match backend::upper_use(&env.environment) {
        Ok(used) => (row.upper_files, row.upper_bytes) = used,
        Err(error) => row.problem = Some(error.message),
    }
    if let Some(newer) = &env.facts.newer {
        let newer = newer.display();
        row.problem = Some(format!("{newer} is newer than the state database"));
    }
    row.prefix = Text::from(env.target.prefix.as_path());
    match in_place::backup(&env) {
        Ok(backup) => row.backup = backup,
        Err(error) => row.problem = Some(error.message),
    }
    row
}

/// Returns the kind of the session at the prefix in one word.
fn of_session(env: &Env) -> Option<&'static str> {
    let prefix = place::resolve(&env.target.prefix).ok()?;
    let found = session::at(&prefix).ok()??;
    let is_ours = found.source.environment == env.target.id;
    is_ours.then(|| match found.entry.is_dead() {
        true => "dead",
        false => found.source.kind.word(),
    })
}

/// Returns the state of a mount in one word.
pub(crate) fn describe(state: &State) -> &'static str {
    match state {
        State::Unmounted => "unmounted",
        State::Mounted(_) => "mounted",
        State::Unreachable => "unreachable",
        State::Dead(_) => "dead",
        State::Elsewhere(_) => "elsewhere",
        State::Copy(_) => "copy",
    }
}
