//! `envfs diff`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::changed;

#[test]
fn diff_content_shows_text_files_only() {
    let Some(env) = changed() else { return };
    fs::write(env.prefix("e").join("binary"), b"\0\x01\xff\n\0").unwrap();
    let shown = env.envfs(&["diff", "--content", "e"]).ok();
    assert!(shown.out.contains("+delta"), "{shown}");
    assert!(!shown.out.contains("-gamma"), "{shown}");
    assert!(shown.out.contains("+12345"), "{shown}");
    assert!(!shown.out.contains('\0'), "{shown}");
}
