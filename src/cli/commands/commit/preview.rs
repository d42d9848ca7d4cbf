//! `envfs commit --dry-run`

use serde::Serialize;

use crate::cli::commands::diff;
use crate::cli::context::{Context, Env};
use crate::cli::error::Result;
use crate::cli::output::{self, Format, count, size};
use crate::cli::packages;
use crate::commit::Preview;
use crate::daemon::protocol::Committable;
use crate::packages::Owner;
use crate::union::Summary;

/// Packages of a kind, and paths, that are printed.
const SHOWN: usize = 20;

#[derive(Debug, Serialize)]
struct Facts<'a> {
    summary: Summary,
    #[serde(flatten)]
    preview: &'a Preview,
}

/// Shows what a commit would record.
pub(super) fn run(context: &Context, env: &Env, part: &Committable, format: Format) -> Result<()> {
    let progress = context.output.progress();
    let preview = env.service()?.preview(part, &progress)?;
    progress.finish();
    let (out, changes) = (&context.output, &preview.differences.changes);
    let summary = Summary::of(changes.iter().map(|one| &one.change));
    if format == Format::Json {
        return out.json(&Facts {
            summary,
            preview: &preview,
        });
    }
    if changes.is_empty() {
        out.note(format!("{}: nothing changed", env.name()));
        return Ok(());
    }
    for row in output::summary(&summary) {
        out.line(row.colored(out))?;
    }
    let found = &preview.differences.packages;
    let lines = packages::lines(out, found, SHOWN).into_iter();
    let mut lines = lines.chain(packages::bytecode(out, found));
    lines.try_for_each(|line| out.line(line))?;
    let others = changes
        .iter()
        .filter(|one| !one.change.is_touched() && one.owner == Owner::Other);
    let others: Vec<_> = others.map(|one| &one.change).collect();
    for change in others.iter().take(SHOWN) {
        diff::show(context, change)?;
    }
    if let Some(more) = others.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        out.note(format!("and {more} more: envfs diff {}", env.name()));
    }
    out.line(format!(
        "{} with new content, {}; {} when compressed ({}), less where the image has the same content",
        count(preview.files, "file"),
        size(preview.bytes),
        size(preview.compressed_bytes),
        preview.compression
    ))
}
