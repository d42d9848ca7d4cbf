//! `envfs log`

use clap::Args as ClapArgs;
use serde::Serialize;

use super::log_all;
use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::output::{Format, Tone, size, time, utc};
use crate::cli::packages;
use crate::packages::PackageChanges;
use crate::state::{Revision, RevisionId, Tag};

/// Show the history of an environment, newest first.
///
/// Also shows the packages that each commit changed, the size of each image, and how many bytes of
/// it no other revision has: its removal frees them.
///
/// With --all, shows what undo can take back: commits, discards, rollbacks, checkpoints and undos,
/// and the space that they keep.
///
/// Times are local. In JSON, `time` is in seconds since 1970 and `date` in UTC.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Show operations instead of revisions.
    #[arg(long)]
    all: bool,
    /// Show at most this many revisions or operations.
    #[arg(short = 'n', long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What the history says of a revision.
#[derive(Debug, Serialize)]
pub(super) struct RevisionFacts {
    pub revision: i64,
    pub current: bool,
    pub parent: Option<i64>,
    pub kind: &'static str,
    /// For a rollback, the revision that was restored.
    pub of: Option<i64>,
    pub message: String,
    pub tags: Vec<String>,
    /// Seconds since 1970.
    pub time: i64,
    /// The same in UTC.
    pub date: String,
    pub user: String,
    pub host: String,
    pub command: String,
}

impl RevisionFacts {
    /// Describes a revision. `tags` are those of all revisions.
    pub(super) fn of(
        revision: &Revision,
        current: Option<RevisionId>,
        tags: &[Tag],
    ) -> RevisionFacts {
        let tags = tags.iter().filter(|tag| tag.revision == revision.id);
        RevisionFacts {
            revision: revision.id.0,
            current: Some(revision.id) == current,
            parent: revision.parent.map(|id| id.0),
            kind: revision.kind.as_str(),
            of: revision.source.map(|id| id.0),
            message: revision.message.clone(),
            tags: tags.map(|tag| tag.name.clone()).collect(),
            time: revision.time,
            date: utc(revision.time),
            user: revision.user.clone(),
            host: revision.host.clone(),
            command: revision.command.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    facts: RevisionFacts,
    image: Option<String>,
    image_bytes: Option<u64>,
    /// Bytes on the disk that no other revision has.
    frees_bytes: u64,
    /// The changed packages, if there are any.
    packages: Option<PackageChanges>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        if self.all {
            let limit = self.limit.unwrap_or(usize::MAX);
            return log_all::print(context, &env, limit, Format::of(self.json));
        }
        let (revisions, images) = backend::history(&env.environment)?;
        let tags = backend::tags(&env.environment)?;
        let current = env.facts.revision.as_ref().map(|revision| revision.id);
        let entries: Vec<Entry> = revisions
            .iter()
            .rev()
            .take(self.limit.unwrap_or(usize::MAX))
            .map(|revision| {
                let image = images.iter().find(|image| image.id == revision.image);
                let frees = image.map(|image| backend::frees(&env.environment, &revisions, image));
                Entry {
                    frees_bytes: frees.unwrap_or(0),
                    facts: RevisionFacts::of(revision, current, &tags),
                    image: image.map(|image| image.file.clone()),
                    image_bytes: image.map(|image| image.size),
                    packages: revision
                        .packages
                        .as_deref()
                        .and_then(PackageChanges::from_record),
                }
            })
            .collect();
        if self.json {
            return context.output.json(&entries);
        }
        for entry in &entries {
            let facts = &entry.facts;
            let mark = if facts.current { '*' } else { ' ' };
            let of = facts.of.map(|of| format!(" to {of}")).unwrap_or_default();
            let names = match facts.tags.as_slice() {
                [] => String::new(),
                tags => {
                    let tags = format!("[{}]", tags.join(", "));
                    format!("  {}", context.output.tone(&tags, Tone::Strong))
                }
            };
            let image = match (entry.image_bytes, entry.frees_bytes) {
                (None, _) => String::from("empty"),
                (Some(bytes), 0) => size(bytes),
                (Some(bytes), frees) => format!("{}, frees {}", size(bytes), size(frees)),
            };
            context.output.line(format!(
                "{mark} {:>4}  {}  {}{of}  {image}  {}@{}{names}",
                context
                    .output
                    .tone(&facts.revision.to_string(), Tone::Notice),
                time(facts.time),
                facts.kind,
                facts.user,
                facts.host,
            ))?;
            for line in facts.message.lines() {
                context.output.line(format!("          {line}"))?;
            }
            if let Some(changed) = &entry.packages {
                for line in packages::summary(&context.output, changed) {
                    context.output.line(format!("          {line}"))?;
                }
            }
        }
        Ok(())
    }
}
