//! `envfs commit --all`

use serde_json::{Map, Value, json};

use super::{Args, print_result};
use crate::cli::context::Context;
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::output::Format;
use crate::daemon::failure::Kind;
use crate::daemon::protocol::Selection;

/// Commits every environment of the store that has changes.
pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let store = context.store()?;
    let mut report = Map::new();
    let mut has_failed = false;
    for name in store.list()? {
        match one(context, args, name.as_str()) {
            Ok(value) => drop(report.insert(name.to_string(), value)),
            // Removed by another command since the store was listed.
            Err(_) if !store.exists(&name) => {}
            Err(error) if error.kind == Kind::Cancelled => return Err(error),
            Err(error) => {
                has_failed = true;
                report.insert(name.to_string(), json!({ "error": error.message }));
                let message = format!("{name}: {}", error.message);
                context.output.error(&CommandError { message, ..error });
            }
        }
    }
    if args.json {
        context.output.json(&report)?;
    }
    match has_failed {
        true => Err(CommandError::silent(ExitCode::Failure)),
        false => Ok(()),
    }
}

fn one(context: &Context, args: &Args, name: &str) -> Result<Value> {
    let env = context.environment(Some(name))?;
    let part = args.part(Selection::default());
    let service = env.service()?;
    let value = |done: serde_json::Result<Value>| {
        done.map_err(|error| CommandError::new(Kind::Internal, error.to_string()))
    };
    if let Some(unmet) = args.condition().check(&*service, &part)? {
        if !args.json {
            unmet.print(context, name, Format::Text)?;
        }
        return value(serde_json::to_value(&unmet));
    }
    let progress = context.output.progress();
    let committed = service.commit(&args.options(&part), &progress)?;
    progress.finish();
    // Most environments have no changes, which is nothing to report.
    if !args.json && committed.is_some() {
        print_result(context, name, committed.as_ref());
    }
    value(serde_json::to_value(&committed))
}
