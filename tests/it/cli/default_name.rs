//! Commands without a NAME use the active environment.

#![allow(clippy::unwrap_used)]

use super::changed;

#[test]
fn name_defaults_to_envfs_env() {
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
        &["unmount"],
    ] {
        env.envfs(words).fails(2, &["activate"]);
        env.envfs_with("ENVFS_ENV", "e", words).ok();
        env.envfs_with("ENVFS_ENV", "gone", words)
            .fails(3, &["gone"]);
    }
}
