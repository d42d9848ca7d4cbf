//! `envfs show`

use std::ffi::OsString;

use clap::Args as ClapArgs;
use serde::Serialize;

use super::diff;
use super::log::RevisionFacts;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::output::{self, Tone, count, size, time};
use crate::cli::{backend, packages, revisions};
use crate::daemon::failure::Kind;
use crate::daemon::protocol::Selection;
use crate::packages::{OwnedChange, Owner, PackageChanges};
use crate::state::{ImageRow, Revision};
use crate::sys::extents::Space;
use crate::union::{Change, Summary};

/// Changed paths that are printed unless all are asked for.
const SHOWN: usize = 20;

/// Show a revision: message, author, command and what it changed.
///
/// Compares the revision with its parent: packages, and files that belong to none of them. "On
/// disk" is the space of its image and, if the file system reports it, the part shared with images
/// of other revisions.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs show                     the current revision\n  envfs show science 3\n  envfs show science@before-upgrade --json"
)]
pub struct Args {
    /// Environment [default: the active one], and revision by number or tag [default: the current
    /// one].
    #[arg(value_name = "[NAME] [REV]")]
    words: Vec<OsString>,
    /// List all changed paths, not only the first.
    #[arg(short, long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Facts {
    #[serde(flatten)]
    history: RevisionFacts,
    /// Identity of the history, which clones and imported archives have in common.
    origin: String,
    image: Image,
    /// The differences from the parent, if it is in the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packages: Option<PackageChanges>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<OwnedChange>>,
}

#[derive(Debug, Serialize)]
struct Image {
    file: String,
    bytes: u64,
    inodes: u32,
    compression: String,
    /// Bytes of its data to which no file refers.
    dead_bytes: u64,
    /// Space on the disk; `None` if the file is missing.
    disk_bytes: Option<u64>,
    /// The part of that which other files share, if the file system tells.
    shared_bytes: Option<u64>,
    /// What is freed if only this revision is removed: bytes on the disk that no other revision
    /// has.
    frees_bytes: u64,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, found) = revisions::parse(context, &self.words, 1)?;
        if let Some(word) = found.paths.first() {
            return Err(revisions::none(&env, word));
        }
        let facts = Facts::of(&env, found.numbers.first().copied())?;
        match self.json {
            true => context.output.json(&facts),
            false => self.print(context, &env, &facts),
        }
    }

    fn print(&self, context: &Context, env: &Env, facts: &Facts) -> Result<()> {
        let (out, history) = (&context.output, &facts.history);
        let tags = match history.tags.as_slice() {
            [] => String::new(),
            tags => format!("  [{}]", tags.join(", ")),
        };
        let current = if history.current { "  (current)" } else { "" };
        let number = format!("revision {}", history.revision);
        out.line(format!(
            "{}{current}{}",
            out.tone(&number, Tone::Notice),
            out.tone(&tags, Tone::Strong)
        ))?;
        for line in history.message.lines() {
            out.line(format!("    {line}"))?;
        }
        out.line(format!("  time      {}", time(history.time)))?;
        out.line(format!("  by        {}@{}", history.user, history.host))?;
        let restored = history.of.map(|id| format!(" to {id}")).unwrap_or_default();
        out.line(format!("  kind      {}{restored}", history.kind))?;
        if !history.command.is_empty() {
            out.line(format!("  command   {}", history.command))?;
        }
        if let Some(parent) = history.parent {
            let lost = if facts.changes.is_none() {
                ", which gc removed"
            } else {
                ""
            };
            out.line(format!("  parent    {parent}{lost}"))?;
        }
        out.line(format!("  origin    {}", facts.origin))?;
        let image = &facts.image;
        out.line(format!(
            "  image     {}, {}, {}, {}",
            image.file,
            size(image.bytes),
            count(u64::from(image.inodes), "inode"),
            image.compression
        ))?;
        let disk = match (image.disk_bytes, image.shared_bytes) {
            (None, _) => String::from("missing"),
            (Some(bytes), None) => size(bytes),
            (Some(bytes), Some(shared)) => {
                format!("{}, {} of it shared", size(bytes), size(shared))
            }
        };
        out.line(format!(
            "  on disk   {disk}; {} that no other revision has",
            size(image.frees_bytes)
        ))?;
        let (Some(summary), Some(changes)) = (&facts.summary, &facts.changes) else {
            return Ok(());
        };
        if changes.is_empty() {
            return out.line("  changes   none");
        }
        out.line("  changes")?;
        for row in output::summary(summary) {
            out.line(format!("    {}", row.colored(out)))?;
        }
        if let Some(found) = &facts.packages {
            let lines = packages::lines(out, found, SHOWN).into_iter();
            let mut lines = lines.chain(packages::bytecode(out, found));
            lines.try_for_each(|line| out.line(format!("    {line}")))?;
        }
        // The files of packages are not listed, unless all are.
        let listed: Vec<&Change> = changes
            .iter()
            .filter(|one| !one.change.is_touched() && (self.all || one.owner == Owner::Other))
            .map(|one| &one.change)
            .collect();
        let shown = if self.all { listed.len() } else { SHOWN };
        for change in listed.iter().take(shown) {
            diff::show(context, change)?;
        }
        if let (Some(more), Some(parent)) = (listed.len().checked_sub(shown), history.parent)
            && more > 0
        {
            out.note(format!(
                "and {more} more: envfs diff {} {parent} {}",
                env.name(),
                history.revision
            ));
        }
        Ok(())
    }
}

impl Facts {
    fn of(env: &Env, number: Option<i64>) -> Result<Facts> {
        let environment = &env.environment;
        let current = env.facts.revision.as_ref().map(|revision| revision.id);
        let (all, images) = backend::history(environment)?;
        let wanted = number.or(current.map(|id| id.0));
        let missing = |what: &str| {
            let message = format!("{} has no {what}", env.name());
            CommandError::new(Kind::Damaged, message)
        };
        let revision = all.iter().find(|revision| Some(revision.id.0) == wanted);
        let revision: &Revision = revision.ok_or_else(|| missing("revision"))?;
        let image = images.iter().find(|image| image.id == revision.image);
        let image = image.ok_or_else(|| missing("image of that revision"))?;
        let parent = revision.parent.map(|id| id.0);
        let is_kept = |id: i64| all.iter().any(|revision| revision.id.0 == id);
        let changes = match parent.filter(|id| is_kept(*id)) {
            Some(old) => {
                let all = Selection::default();
                Some(backend::differences(environment, old, wanted, &all)?)
            }
            None => None,
        };
        let (packages, changes) = changes.map(|found| (found.packages, found.changes)).unzip();
        Ok(Facts {
            history: RevisionFacts::of(revision, current, &backend::tags(environment)?),
            origin: env.facts.origin.clone(),
            image: Image::of(env, image, backend::frees(environment, &all, image)),
            summary: changes
                .as_ref()
                .map(|all: &Vec<OwnedChange>| Summary::of(all.iter().map(|one| &one.change))),
            packages,
            changes,
        })
    }
}

impl Image {
    fn of(env: &Env, row: &ImageRow, frees_bytes: u64) -> Image {
        let path = env.environment.layout().image(&row.file);
        let space = crate::sys::regular::open(&path).and_then(|file| Space::of(&file));
        let space = space.ok();
        Image {
            file: row.file.clone(),
            bytes: row.size,
            inodes: row.inodes,
            compression: row.compression.clone(),
            dead_bytes: row.dead_bytes,
            disk_bytes: space.map(|space| space.bytes),
            shared_bytes: space.and_then(|space| space.shared),
            frees_bytes,
        }
    }
}
