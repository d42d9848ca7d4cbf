//! `envfs man`.

use std::fs;

use crate::support::{TestEnv, has};

#[test]
fn the_manual_has_a_page_for_each_command() {
    let Some(env) = TestEnv::new() else { return };
    env.envfs(&["man", "--out", "pages/man1"]).ok();
    let names = env.sh("ls pages/man1").ok().out;
    for page in ["envfs.1", "envfs-commit.1", "envfs-image-pack.1"] {
        assert!(names.lines().any(|name| name == page), "{names}");
    }
    assert!(!names.contains("__"), "{names}");
    let own = fs::read_to_string(env.work().join("pages/man1/envfs.1")).unwrap();
    assert!(own.starts_with(".ie"), "{own}");
    assert_eq!(env.envfs(&["man"]).ok().out, own);
    let visible = envfs::cli::command();
    for command in visible.get_subcommands().filter(|one| !one.is_hide_set()) {
        let name = command.get_name();
        let page = env.work().join(format!("pages/man1/envfs-{name}.1"));
        let text = fs::read_to_string(page).unwrap();
        assert!(text.contains(&format!("envfs\\-{name} \\- ")), "{text}");
    }
    // The pages are written again.
    env.envfs(&["man", "--out", "pages/man1"]).ok();
    assert!(!env.store().exists(), "a store was created");
    env.write(&env.work().join("file"), "");
    env.envfs(&["man", "--out", "file"]).fails(4, &["file"]);
    if has("groff") {
        let done = env
            .sh("for page in pages/man1/*.1; do groff -k -man -Tutf8 -ww -z \"$page\"; done")
            .ok();
        assert_eq!(done.err, "");
    }
}
