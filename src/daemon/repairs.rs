//! Messages about differences between rows and files that were repaired on opening.

use crate::union::Reconciled;

/// The description of a file in [`Reconciled::lost`].
pub(crate) const LOST: &str = "its content was missing; the committed version is visible again";

/// Logs the differences between rows and files that were repaired.
pub(super) fn log_reconciled(reconciled: &Reconciled) {
    if !reconciled.is_empty() {
        tracing::warn!(
            moved = reconciled.moved,
            set_aside = reconciled.set_aside,
            renumbered = reconciled.renumbered,
            lost = reconciled.lost.len(),
            "repaired differences between rows and files"
        );
    }
    for path in &reconciled.lost {
        tracing::warn!(path = %path.display(), "{LOST}");
    }
}
