//! Runs the examples in `docs/semantics.md`.

use super::direct::Direct;
use crate::support::{TestEnv, samples};

#[test]
fn examples_in_semantics_md_pass() {
    let text = include_str!("../../../docs/semantics.md");
    let examples: Vec<&str> = text
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(examples.len() >= 12, "{} examples", examples.len());
    for example in examples {
        for env in TestEnv::of_all_users() {
            let source = env.work().join("source");
            samples::small(&env, &source);
            let Some(direct) = Direct::of(env, &source, "") else {
                return;
            };
            let (at, upper) = (direct.at(), direct.upper());
            let head = format!("cd '{}'; U='{}/layers'", at.display(), upper.display());
            direct.env.sh(&format!("{head}\n{example}")).ok();
        }
    }
}
