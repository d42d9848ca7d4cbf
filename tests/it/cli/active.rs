//! Commands without a NAME take the active environment.

#![allow(clippy::unwrap_used)]

use super::changed;

#[test]
fn the_active_environment_is_meant_where_none_is_named() {
    let Some(env) = changed() else { return };
    for words in [
        &["status"][..],
        &["diff"],
        &["paths"],
        &["log"],
        &["verify"],
        &["mount"],
        &["status", "--json"],
        &["commit", "-q"],
        &["discard", "-y"],
        &["rollback", "-y"],
        &["gc"],
        &["unmount"],
    ] {
        if words == ["gc"] {
            continue; // Means all.
        }
        env.envfs(words).fails(2, &["activate"]);
        env.envfs_with("ENVFS_ENV", "e", words).ok();
        env.envfs_with("ENVFS_ENV", "gone", words)
            .fails(3, &["gone"]);
    }
}
