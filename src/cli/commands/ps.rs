//! `envfs ps`

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::output::{size, table};
use crate::daemon::client::Client;
use crate::daemon::lifecycle::State;
use crate::daemon::session::{self, SessionMount};
use crate::environment::{
    EnvLock, HostProcess, Layout, NotedSession, SessionKind, SessionNote, SessionNotes, span,
};
use crate::object::Timestamp;
use crate::sys::holders::{self, Holder};
use crate::sys::mountinfo::{self, Health, MountEntry};
use crate::sys::process;
use crate::sys::text::{Text, quoted};
use crate::sys::walk;

/// The size of a large write, in bytes.
const LARGE_WRITE: u64 = 128 << 10;

/// The number of processes that are shown for each session.
const SHOWN: usize = 10;

/// List sessions: where environments are in use, by which hosts and processes.
///
/// Shows the writable mount, and read-only, ephemeral and try sessions on this host and, as far
/// as they left a note, on others. CHANGES are the bytes that a session has written. Processes of
/// other users are visible to root only.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs ps\n  envfs ps science\n  envfs ps --json | jq -r '.[].pid'"
)]
pub struct Args {
    /// Environment [default: all].
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A session.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    revision: Option<i64>,
    kind: SessionKind,
    /// `running`, `dead` (its daemon was killed) or `unresponsive`.
    state: &'static str,
    host: String,
    /// The daemon, if it is known.
    pid: Option<u32>,
    /// When it began, in seconds since 1970, if that is known.
    since: Option<i64>,
    mount_point: Text,
    /// Bytes of changes; `None` if it has none or they are on another host.
    changed_bytes: Option<u64>,
    /// The bytes that the changes may take, if there is a limit.
    limit_bytes: Option<u64>,
    /// Whether they have reached it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_full: bool,
    /// The processes that use it, on this host.
    processes: Vec<Holder>,
}

impl Row {
    /// Returns the text for its changes.
    fn changes(&self) -> Option<String> {
        let changed = self.changed_bytes.filter(|bytes| *bytes > 0)?;
        Some(match self.limit_bytes {
            Some(limit) => format!("{} of {}", size(changed), size(limit)),
            None => size(changed),
        })
    }
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let mut rows = Vec::new();
        match &self.name {
            Some(name) => rows.extend(of_environment(&context.committed(Some(name))?.0)?),
            None => {
                for name in context.store()?.list()? {
                    // One that is damaged must not hide the others.
                    let found = context
                        .committed(Some(name.as_str()))
                        .and_then(|(env, _)| of_environment(&env));
                    match found {
                        Ok(found) => rows.extend(found),
                        Err(error) => context.output.warn(format!("{name}: {}", error.message)),
                    }
                }
            }
        }
        if self.json {
            return context.output.json(&rows);
        }
        show(context, &rows)
    }
}

fn show(context: &Context, rows: &[Row]) -> Result<()> {
    if rows.is_empty() {
        context.output.note("no environment is in use");
        return Ok(());
    }
    let head = [
        "ENVIRONMENT",
        "KIND",
        "HOST",
        "PID",
        "SINCE",
        "CHANGES",
        "MOUNT POINT",
    ];
    let mut cells: Vec<Vec<String>> = vec![head.map(String::from).to_vec()];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| String::from("-"));
    for row in rows {
        let revision = or_dash(row.revision.map(|revision| revision.to_string()));
        let kind = match row.state {
            "running" => row.kind.word().to_owned(),
            state => format!("{}, {state}", row.kind.word()),
        };
        let age = |since: i64| span(Timestamp::now().secs.saturating_sub(since));
        cells.push(vec![
            format!("{}@{revision}", row.name),
            kind,
            row.host.clone(),
            or_dash(row.pid.map(|pid| pid.to_string())),
            or_dash(row.since.map(age)),
            or_dash(row.changes()),
            quoted(&row.mount_point.0),
        ]);
    }
    let mut lines = table(&cells).into_iter();
    if let Some(head) = lines.next() {
        context.output.line(head)?;
    }
    for (line, row) in lines.zip(rows) {
        context.output.line(line)?;
        if row.is_full {
            context.output.line(
                "    its changes have reached the limit, so that writes fail (ENOSPC): raise \
                 session.memory_limit, or use --upper-dir",
            )?;
        }
        for holder in row.processes.iter().take(SHOWN) {
            context.output.line(format!("    {holder}"))?;
        }
        if row.processes.len() > SHOWN {
            let more = row.processes.len() - SHOWN;
            context.output.line(format!("    and {more} more"))?;
        }
    }
    Ok(())
}

/// Returns the sessions of an environment: first the writable one.
fn of_environment(env: &Env) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = writable(env)?.into_iter().collect();
    rows.extend(sessions(env)?);
    Ok(rows)
}

fn writable(env: &Env) -> Result<Option<Row>> {
    let holder = EnvLock::current_holder(env.environment.layout());
    let mut row = Row {
        name: env.name().to_owned(),
        revision: env.facts.revision.as_ref().map(|revision| revision.id.0),
        kind: SessionKind::Writable,
        state: "running",
        host: process::host_name(),
        pid: holder.as_ref().map(|holder| holder.process.pid),
        since: holder.as_ref().map(|holder| holder.since),
        mount_point: env.target.prefix.as_path().into(),
        changed_bytes: backend::upper_use(&env.environment).ok().map(|used| used.1),
        limit_bytes: None,
        is_full: false,
        processes: Vec::new(),
    };
    if let Some(holder) = holder.filter(|holder| !holder.is_local()) {
        row.host = holder.process.host;
        return Ok(Some(row));
    }
    let by = |client: &Client| Some(client.hello().pid);
    match env.state() {
        Ok(State::Mounted(client) | State::Elsewhere(client)) => row.pid = by(&client),
        Ok(State::Unreachable) => {}
        Ok(State::Dead(_)) => (row.state, row.pid) = ("dead", None),
        // A command that holds the lock for a moment is no session.
        Ok(State::Unmounted | State::Copy(_)) => return Ok(None),
        Err(_) => row.state = "unresponsive",
    }
    row.processes = crate::daemon::unmount::holders(&env.target.id);
    row.processes
        .extend(row.pid.into_iter().flat_map(holders::in_private_mounts_of));
    Ok(Some(row))
}

/// Returns the read-only and ephemeral sessions of an environment: those in the mount table, and
/// those that have a note on this host or in the home.
fn sessions(env: &Env) -> Result<Vec<Row>> {
    let is_wanted = |id: &str| id == env.target.id;
    let mut noted = session::noted_here(&env.runtime);
    let notes = SessionNotes::new(env.environment.layout().sessions()).read();
    noted.extend(
        notes.map_err(|error| CommandError::io("cannot read the notes of sessions", &error))?,
    );
    noted.retain(|noted| noted.is_live && is_wanted(&noted.note.environment));
    let mut seen: Vec<HostProcess> = Vec::new();
    noted.retain(|noted| {
        let is_new = !seen.contains(&noted.note.process);
        seen.push(noted.note.process.clone());
        is_new
    });
    let mut rows = Vec::new();
    for mounted in session::mounts()? {
        if !is_wanted(&mounted.source.environment) {
            continue;
        }
        let note = noted.iter().position(|noted| is_of(noted, &mounted));
        let note = note.map(|at| noted.remove(at));
        rows.push(of_mount(&mounted, note.as_ref()));
    }
    rows.extend(noted.iter().map(of_note));
    Ok(rows)
}

fn is_of(noted: &NotedSession, mounted: &SessionMount) -> bool {
    let note = &noted.note;
    note.is_visible()
        && note.mount_point.as_path() == mounted.entry.mount_point
        && note.environment == mounted.source.environment
        && note.kind == mounted.source.kind
        && note.revision == mounted.source.revision
}

fn of_mount(mounted: &SessionMount, noted: Option<&NotedSession>) -> Row {
    let note = noted.map(|noted| &noted.note);
    Row {
        name: mounted.source.name.clone(),
        revision: Some(mounted.source.revision),
        kind: mounted.source.kind,
        state: match mounted.entry.health() {
            Health::Healthy => "running",
            Health::Dead => "dead",
            Health::Unresponsive => "unresponsive",
        },
        host: process::host_name(),
        pid: note.map(|note| note.process.pid),
        since: note.map(|note| note.since),
        mount_point: mounted.entry.mount_point.as_path().into(),
        changed_bytes: note.and_then(changed_bytes),
        limit_bytes: note.and_then(|note| note.limit),
        is_full: note.is_some_and(is_full),
        processes: users_of(&mounted.entry),
    }
}

/// Describes a session that is not in this mount table: in another namespace, or on another host.
fn of_note(noted: &NotedSession) -> Row {
    let note = &noted.note;
    let is_here = note.is_visible();
    let entry = is_here.then(|| {
        let table = mountinfo::of_process(note.process.pid).unwrap_or_default();
        table
            .into_iter()
            .rev()
            .find(|entry| entry.mount_point == note.mount_point.as_path())
    });
    Row {
        name: note.name.clone(),
        revision: Some(note.revision),
        kind: note.kind,
        state: "running",
        host: note.process.host.clone(),
        pid: Some(note.process.pid),
        since: Some(note.since),
        mount_point: note.mount_point.clone(),
        changed_bytes: is_here.then(|| changed_bytes(note)).flatten(),
        limit_bytes: note.limit,
        is_full: is_here && is_full(note),
        processes: match entry.flatten() {
            _ if is_here && note.is_private => holders::in_private_mounts_of(note.process.pid),
            Some(entry) => holders::in_other_namespaces(&entry).1,
            None => Vec::new(),
        },
    }
}

/// Returns the processes that use a mount, in all mount namespaces.
fn users_of(entry: &MountEntry) -> Vec<Holder> {
    let mut users = holders::of_mount(entry);
    users.extend(holders::in_other_namespaces(entry).1);
    users
}

/// Returns whether the changes of a session have reached their limit: the next large write fails.
fn is_full(note: &SessionNote) -> bool {
    let (Some(limit), Some(upper)) = (note.limit, &note.upper) else {
        return false;
    };
    walk::space_used(upper.as_path()).saturating_add(LARGE_WRITE) > limit
}

/// Returns the bytes of the changes of a session, or `None` if it has no directory for them.
fn changed_bytes(note: &SessionNote) -> Option<u64> {
    let upper = note.upper.as_ref()?;
    Some(walk::content_size(&match note.kind {
        SessionKind::Try => upper.as_path().to_path_buf(),
        _ => Layout::new(upper.as_path()).layers(),
    }))
}
