//! Rules for the source text that neither rustfmt nor clippy enforces on the stable toolchain.

use std::fs;
use std::path::Path;

/// The maximum width of a line with a comment, as of code (`comment_width` of rustfmt is unstable).
const MAX_COLUMNS: usize = 100;

#[test]
fn comments_are_not_wider_than_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    let mut wide = Vec::new();
    for dir in ["src", "tests", "examples", "benches", "fuzz/targets"] {
        for entry in walkdir::WalkDir::new(root.join(dir)) {
            let entry = entry.unwrap();
            if entry.path().extension().is_none_or(|ending| ending != "rs") {
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap();
            let mut is_in_code = false;
            for (index, line) in text.lines().enumerate() {
                let comment = line.trim_start();
                if !comment.starts_with("//") {
                    continue;
                }
                is_in_code ^= comment.contains("```");
                // Code, rows of tables and URLs cannot be wrapped.
                if is_in_code || comment.contains(" | ") || comment.contains("://") {
                    continue;
                }
                checked += 1;
                if line.chars().count() > MAX_COLUMNS {
                    wide.push(format!("{}:{}", entry.path().display(), index + 1));
                }
            }
        }
    }
    assert!(checked > 1000, "{checked}");
    assert!(
        wide.is_empty(),
        "wider than {MAX_COLUMNS} columns: {wide:#?}"
    );
}
