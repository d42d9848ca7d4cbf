//! Steps that all new environments share.

use super::error::{Context, Result};
use crate::environment::{Layout, NewEnvironment};
use crate::state::{StackPart, StateDb};
use crate::upper::UpperDir;

/// Returns the identity of a new environment.
pub(super) fn new_uuid(layout: &Layout) -> Result<String> {
    crate::sys::process::new_uuid().context("create a UUID for", layout.home())
}

/// Creates the directories of the layers, and closes the database.
pub(super) fn complete(new: &NewEnvironment, db: StateDb) -> Result<()> {
    let layout = new.layout();
    for layer in db.stack()? {
        if layer.part == StackPart::Writable {
            let upper = layout.layer(layer.id);
            UpperDir::create(&upper, &layout.strays()).context("create", &upper)?;
        }
    }
    db.close()?;
    Ok(())
}
