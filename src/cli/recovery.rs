//! Recovers environments from operations in place that were interrupted.

use super::backend;
use super::env::{Env, is_read_only};
use super::error::Result;
use super::output::Output;
use crate::commit::in_place;
use crate::daemon::failure::Failure;
use crate::environment::{Environment, InPlace, Stage, Store};
use crate::sys::text::quoted;

/// Recovers all environments of a store from operations in place that were interrupted.
pub(super) fn recover_all(output: &Output, store: &Store) -> Result<()> {
    for name in store.list()? {
        if let Ok(environment) = store.open(&name) {
            recover(output, store, &environment);
        }
    }
    Ok(())
}

/// Completes or takes back an operation in place that was interrupted, and says so. An environment
/// whose original was moved away is mounted. A failure is a warning: the command may work anyway.
pub(super) fn recover(output: &Output, store: &Store, environment: &Environment) {
    let stage = match InPlace::read(environment.layout()) {
        Ok(Some(note)) if note.stage != Stage::Kept => note.stage,
        _ => return,
    };
    if is_read_only(environment.layout().home()) {
        return;
    }
    let name = environment.name();
    match recovered(store, environment) {
        Ok(None) => {}
        Ok(Some(done)) => output.warn(format!(
            "{} of {name} was interrupted; {done}",
            operation(stage)
        )),
        Err(error) => {
            let mut text = format!(
                "{} of {name} was interrupted and cannot be completed: {}",
                operation(stage),
                error.message
            );
            for hint in &error.hints {
                text.push_str(&format!("\n  {hint}"));
            }
            output.warn(text);
        }
    }
}

fn operation(stage: Stage) -> &'static str {
    match stage {
        Stage::Importing | Stage::Kept => "the import in place",
        Stage::Undoing => "undoing the import",
        Stage::Finishing => "deleting the backup",
    }
}

fn recovered(store: &Store, environment: &Environment) -> Result<Option<String>> {
    let Some(prefix) = backend::prefix(environment)? else {
        return Ok(None);
    };
    let done = in_place::recover(environment, &prefix).map_err(Failure::from)?;
    let shown = quoted(&prefix);
    Ok(Some(match done {
        None => return Ok(None),
        Some(in_place::Recovered::TakenBack) => {
            format!("the directory is at {shown}, and the environment is removed")
        }
        Some(in_place::Recovered::Swapped(mut note)) => {
            Env::new(store.clone(), environment.clone())?.ensure_mounted()?;
            in_place::complete(environment, &mut note).map_err(Failure::from)?;
            format!("it is complete now, and the environment is mounted at {shown}")
        }
        Some(in_place::Recovered::Finished) => "it is complete now".to_owned(),
    }))
}
