//! `envfs discard`.

#![allow(clippy::unwrap_used)]

use crate::support::TestEnv;

#[test]
fn discard_reports_where_files_are_kept() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let at = env.mount("e").display().to_string();
    let discard = |words: &[&str]| {
        let done = env.envfs(&[&["discard", "-y", "e"], words].concat()).ok();
        format!("{}{}", done.out, done.err)
    };
    let nothing = env.envfs(&["discard", "--json", "e"]).ok().json();
    assert_eq!(nothing["changes"]["added"]["entries"], 0, "{nothing}");
    env.sh(&format!("echo changed >'{at}/lib/c.txt'")).ok();
    let said = discard(&[&format!("{at}/lib/c.txt")]);
    assert!(said.contains("envfs undo"), "{said}");
    env.envfs(&["undo", "e"]).ok();
    env.sh(&format!("test \"$(cat '{at}/lib/c.txt')\" = changed"))
        .ok();
    discard(&[]);
    env.sh(&format!("echo changed >'{at}/lib/c.txt'")).ok();
    let said = discard(&[]);
    let list = env.envfs(&["list", "--json"]).ok().json();
    assert_eq!(list[0]["upper_files"], 0, "kept files are no changes");
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(status["upper_files"], 0, "{status}");
    env.envfs(&["unmount", "e"]).ok();
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(status["upper_files"], 0, "{status}");
    assert!(said.contains("envfs undo"), "{said}");
    env.envfs(&["gc", "e"]).ok();
    let layers = env.home_of("e").join("layers");
    assert_eq!(
        std::fs::read_dir(layers).unwrap().count(),
        1,
        "the writable one"
    );
}
