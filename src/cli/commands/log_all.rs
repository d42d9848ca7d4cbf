//! `envfs log --all`

use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::Result;
use crate::cli::output::{Format, Tone, size, time, utc};
use crate::environment::Layout;
use crate::state::{Layer, LayerRole, Operation, OperationId, RecordedLayer};
use crate::sys::walk;

/// An operation as it is printed.
#[derive(Debug, Serialize)]
struct Entry {
    operation: i64,
    kind: &'static str,
    /// For an undo, the operation that it took back.
    undoes: Option<i64>,
    /// The current revision before and after it.
    before: i64,
    after: i64,
    /// Whether envfs undo --operation can return to the state before it.
    undoable: bool,
    /// Disk space of layers outside of the stack that are kept for its undo.
    kept_bytes: u64,
    message: String,
    /// Seconds since 1970.
    time: i64,
    /// The same in UTC.
    date: String,
    user: String,
    host: String,
    command: String,
}

/// Prints the log of operations, newest first.
pub(super) fn print(context: &Context, env: &Env, limit: usize, format: Format) -> Result<()> {
    let (operations, layers) = backend::operations(&env.environment)?;
    let layout = env.environment.layout();
    let last = operations.last().map(|operation| operation.id);
    let newest = operations.into_iter().rev().take(limit);
    let entries: Vec<Entry> = newest
        .map(|operation| entry(operation, last, &layers, layout))
        .collect();
    if format == Format::Json {
        return context.output.json(&entries);
    }
    if last.is_none() {
        context.output.note(format!(
            "{}: no operation yet; envfs log shows its revisions",
            env.name()
        ));
    }
    for entry in &entries {
        let what = match entry.undoes {
            Some(undoes) => format!("{} of {undoes}", entry.kind),
            None => entry.kind.to_owned(),
        };
        let revision = match entry.before == entry.after {
            true => format!("revision {}", entry.after),
            false => format!("revision {} to {}", entry.before, entry.after),
        };
        let kept = match (entry.undoable, entry.kept_bytes) {
            (false, _) => String::from("  cannot be undone"),
            (true, 0) => String::new(),
            (true, bytes) => format!("  keeps {}", size(bytes)),
        };
        context.output.line(format!(
            "{:>6}  {}  {what}  {revision}  {}@{}{kept}",
            context
                .output
                .tone(&entry.operation.to_string(), Tone::Notice),
            time(entry.time),
            entry.user,
            entry.host,
        ))?;
        for line in entry.message.lines() {
            context.output.line(format!("          {line}"))?;
        }
    }
    Ok(())
}

fn entry(
    operation: Operation,
    last: Option<OperationId>,
    layers: &[Layer],
    layout: &Layout,
) -> Entry {
    let is_kept = |wanted: &RecordedLayer| {
        layers.iter().any(|layer| {
            *wanted == RecordedLayer::Upper(layer.id)
                && matches!(layer.role, LayerRole::Trash | LayerRole::Retired)
        })
    };
    let kept = operation.before.iter().filter(|layer| is_kept(layer));
    let kept_bytes = kept.map(|layer| bytes_of(*layer, layout)).sum();
    Entry {
        operation: operation.id.0,
        kind: operation.kind.as_str(),
        undoes: operation.undoes.map(|id| id.0),
        before: operation.head_before.0,
        after: operation.head_after.0,
        undoable: operation.is_complete && (!operation.has_newer || Some(operation.id) == last),
        kept_bytes,
        message: operation.message,
        time: operation.time,
        date: utc(operation.time),
        user: operation.user,
        host: operation.host,
        command: operation.command,
    }
}

fn bytes_of(layer: RecordedLayer, layout: &Layout) -> u64 {
    match layer {
        RecordedLayer::Upper(layer) => walk::disk_use(&layout.layer(layer)).1,
        RecordedLayer::Image(_) => 0,
    }
}
