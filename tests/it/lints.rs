//! Rules for the source text that neither rustfmt nor clippy enforces on the stable toolchain.

mod commands;
mod imports;

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

/// Functions of `src` that may have a `bool` parameter, by file, with the reason.
const BOOL_PARAMETERS: &[(&str, &str, &str)] = &[
    (
        "src/cli/commands/demo.rs",
        "verdict",
        "an assertion: what is claimed, and whether it holds",
    ),
    ("src/cli/output.rs", "of", "makes an enum of an option"),
    (
        "src/cli/relocation.rs",
        "force",
        "makes an enum of two options",
    ),
    (
        "src/fuse/requests.rs",
        "fsync",
        "the trait of another crate",
    ),
    (
        "src/fuse/requests.rs",
        "fsyncdir",
        "the trait of another crate",
    ),
    (
        "src/squashfs/writer/feed.rs",
        "block",
        "becomes the field of a message",
    ),
    (
        "src/union/privileges.rs",
        "clear_if",
        "makes an enum of a flag of the kernel",
    ),
];

/// Returns the names of functions with a `bool` parameter in the text of a source file.
fn with_bool_parameter(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let before = text[..at].chars().next_back();
        let line = text[..at].rsplit('\n').next().unwrap_or_default();
        if before.is_some_and(is_word) || line.trim_start().starts_with("//") {
            continue;
        }
        let rest = &text[at + 3..];
        let name = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
        let Some(open) = rest.find('(') else { continue };
        let mut depth = 0;
        let close = rest[open..].find(|c| {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0
        });
        let parameters = &rest[open..open + close.unwrap_or_default()];
        let is_bool = |parameter: &str| {
            let kind = parameter.split_once(": ").map(|(_, kind)| kind);
            kind.is_some_and(|kind| kind.trim_start_matches("&mut ").trim() == "bool")
        };
        if !name.is_empty() && parameters.split(',').any(is_bool) {
            found.push(name);
        }
    }
    found
}

#[test]
fn parameters_are_enums_rather_than_flags() {
    let example = "fn a(x: u8, y: bool) {}\n// fn b(x: bool)\nfn c(&self) -> bool {}\n\
                   fn d<T>(\n    f: impl Fn(bool) -> bool,\n    z: &mut bool,\n) {}";
    assert_eq!(with_bool_parameter(example), ["a", "d"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(root.join("src")) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap();
        let is_test = path.components().any(|part| part.as_os_str() == "tests");
        if path.extension().is_none_or(|ending| ending != "rs") || is_test {
            continue;
        }
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap();
        let code = text
            .split("\n#[cfg(test)]\nmod ")
            .next()
            .unwrap_or_default();
        let names = with_bool_parameter(code).into_iter();
        found.extend(names.map(|name| (path.display().to_string(), name.to_owned())));
    }
    let allowed = |(file, name): &(String, String)| {
        let mut listed = BOOL_PARAMETERS.iter();
        listed.any(|one| one.0 == file && one.1 == name)
    };
    let new: Vec<_> = found.iter().filter(|one| !allowed(one)).collect();
    assert!(new.is_empty(), "give these parameters an enum: {new:#?}");
    let gone: Vec<_> = BOOL_PARAMETERS
        .iter()
        .filter(|(file, name, _)| !found.iter().any(|one| one.0 == *file && one.1 == *name))
        .collect();
    assert!(gone.is_empty(), "these are not needed any more: {gone:#?}");
}

/// The largest number of lines of a source file.
const MAX_LINES: usize = 600;

/// Files that may be longer, with the reason.
const LONG_FILES: &[(&str, &str)] = &[("src/fuse/requests.rs", "one implementation of one trait")];

#[test]
fn files_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long = Vec::new();
    for entry in walkdir::WalkDir::new(root.join("src")) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap();
        let path = path.display().to_string();
        if !path.ends_with(".rs") || LONG_FILES.iter().any(|(file, _)| *file == path) {
            continue;
        }
        let lines = fs::read_to_string(entry.path()).unwrap().lines().count();
        if lines > MAX_LINES {
            long.push(format!("{path}: {lines} lines"));
        }
    }
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:#?}");
}
