//! `envfs status`

use clap::Args as ClapArgs;
use serde::Serialize;

use super::list::describe;
use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::in_place::{self, Backup};
use crate::cli::output::{Tone, changes, count, size, summary};
use crate::cli::packages;
use crate::daemon::lifecycle::State;
use crate::daemon::protocol::{Service, Status};
use crate::daemon::unmount;
use crate::sys::holders::Holder;
use crate::sys::text::{Text, quoted};

/// Show the state of an environment: changes, paths and users.
///
/// Changes are shown as packages that were installed, removed, upgraded or edited, and the number
/// of changed files that belong to none. With --files, counts all changed files instead.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs status\n  envfs status science --json")]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Count the changed files, without packages.
    #[arg(long, conflicts_with = "json")]
    files: bool,
    /// List the paths that commit.ignore leaves uncommitted.
    #[arg(long, conflicts_with = "json")]
    ignored: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How changes are shown.
#[derive(Debug, Clone, Copy)]
enum Shown {
    Packages,
    Files,
}

/// Whether ignored paths are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IgnoredPaths {
    Count,
    List,
}

/// The most packages of a kind that are shown.
const MOST_PACKAGES: usize = 12;

#[derive(Debug, Serialize)]
struct Facts {
    name: String,
    state: &'static str,
    daemon_pid: Option<u32>,
    prefix: Text,
    log: Text,
    home: Text,
    message: Option<String>,
    /// The original directory, if it was imported in place and not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<Backup>,
    #[serde(flatten)]
    status: Status,
    holders: Vec<Holder>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        backend::warn_of_newer(&env.environment, &env.facts);
        let state = env.state()?;
        let holders = if state.is_mounted() {
            unmount::holders(&env.target.id)
        } else {
            Vec::new()
        };
        let status = match &state {
            State::Mounted(client) | State::Elsewhere(client) => client.status()?,
            _ => env.service()?.status()?,
        };
        let facts = Facts {
            name: env.name().to_owned(),
            state: describe(&state),
            daemon_pid: match &state {
                State::Mounted(client) | State::Elsewhere(client) => Some(client.hello().pid),
                _ => None,
            },
            prefix: env.target.prefix.as_path().into(),
            log: env.target.log().into(),
            home: env.environment.layout().home().into(),
            message: env
                .facts
                .revision
                .as_ref()
                .map(|revision| revision.message.clone()),
            backup: in_place::backup(&env)?,
            status,
            holders,
        };
        if self.json {
            return context.output.json(&facts);
        }
        let shown = match self.files {
            true => Shown::Files,
            false => Shown::Packages,
        };
        let ignored = match self.ignored {
            true => IgnoredPaths::List,
            false => IgnoredPaths::Count,
        };
        show(context, &facts, shown, ignored)
    }
}

fn show(context: &Context, facts: &Facts, shown: Shown, ignored: IgnoredPaths) -> Result<()> {
    let out = &context.output;
    let status = &facts.status;
    let daemon = facts
        .daemon_pid
        .map(|pid| format!(" (daemon {pid})"))
        .unwrap_or_default();
    out.line(format!(
        "{}  {}{daemon}",
        out.tone(&facts.name, Tone::Strong),
        facts.state
    ))?;
    out.line(format!("  prefix    {}", quoted(&facts.prefix.0)))?;
    let revision = status
        .revision
        .map_or_else(|| String::from("none"), |rev| rev.to_string());
    let message = facts
        .message
        .as_deref()
        .and_then(|text| text.lines().next());
    let message = message.map(|text| format!("  {text}")).unwrap_or_default();
    out.line(format!(
        "  revision  {revision}, image {}{message}",
        size(status.image_bytes)
    ))?;
    if status.changes.is_empty() && status.upper_files > 0 {
        out.line(format!(
            "  changes   none; {} in {} on disk {} the committed content",
            size(status.upper_bytes),
            count(status.upper_files, "file"),
            if status.upper_files == 1 {
                "equals"
            } else {
                "equal"
            },
        ))?;
    } else if status.changes.is_empty() {
        out.line("  changes   none")?;
    } else {
        out.line(format!(
            "  changes   {} in {} on disk",
            size(status.upper_bytes),
            count(status.upper_files, "file")
        ))?;
        show_changes(context, status, shown)?;
    }
    if status.ignored.entries > 0 {
        out.line(format!(
            "  ignored   {}, {}",
            count(status.ignored.entries, "path"),
            size(status.ignored.bytes)
        ))?;
    }
    if ignored == IgnoredPaths::List {
        for path in &status.ignored_paths {
            out.line(format!("    {}", quoted(path.as_path())))?;
        }
    }
    if let Some(backup) = &facts.backup {
        out.line(format!(
            "  backup    {}",
            in_place::describe(&facts.name, backup)
        ))?;
    }
    for (place, holder) in facts.holders.iter().take(10).enumerate() {
        let head = if place == 0 { "used by" } else { "" };
        out.line(format!("  {head:9} {holder}"))?;
    }
    if facts.holders.len() > 10 {
        out.line(format!("            and {} more", facts.holders.len() - 10))?;
    }
    out.line(format!("  log       {}", quoted(&facts.log.0)))?;
    Ok(())
}

/// Shows the packages that changed and counts other files; without packages, counts files by what
/// happened to them.
fn show_changes(context: &Context, status: &Status, shown: Shown) -> Result<()> {
    let out = &context.output;
    let found = &status.packages;
    let counted = match shown {
        Shown::Files => status.changes,
        Shown::Packages => found.other,
    };
    let by_package = matches!(shown, Shown::Packages);
    if by_package {
        for line in packages::lines(out, found, MOST_PACKAGES) {
            out.line(format!("    {line}"))?;
        }
    }
    if by_package && !found.is_empty() {
        let files: u64 = packages::entries(&counted);
        if files > 0 {
            out.line(format!(
                "    and {} outside packages: {}",
                count(files, "file"),
                changes(&counted)
            ))?;
        }
    } else {
        for row in summary(&counted) {
            out.line(format!("    {}", row.colored(out)))?;
        }
    }
    if by_package && let Some(line) = packages::bytecode(out, found) {
        out.line(format!("    {line}"))?;
    }
    Ok(())
}
