//! Commands and options that messages and documents name must exist.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::support::TestEnv;

/// Source files whose texts name an option without a command, and the commands that have it.
const BARE: &[(&str, &str, &[&str])] = &[
    (
        "src/environment/prefix.rs",
        "--prefix",
        &["import", "create"],
    ),
    ("src/daemon/prefix.rs", "--prefix", &["import", "create"]),
    ("src/daemon/lifecycle.rs", "--fakeroot", &["mount"]),
    ("src/daemon/launch.rs", "--fakeroot", &["mount"]),
    ("src/cli/creation.rs", "--prefix", &["import", "create"]),
    ("src/cli/session.rs", "--ephemeral", SESSIONS),
    (
        "src/cli/commands/ps.rs",
        "--upper-dir",
        &["run", "mount", "shell"],
    ),
    ("src/cli/session.rs", "--read-only", SESSIONS),
    (
        "src/cli/session.rs",
        "--writable",
        &["activate", "run", "shell"],
    ),
    ("src/cli/session.rs", "--upper-dir", SESSIONS),
    ("src/daemon/session/remains.rs", "--upper-dir", SESSIONS),
    ("src/daemon/private.rs", "--private", &["run", "shell"]),
    (
        "src/daemon/failure.rs",
        "--prefix",
        &["import", "create", "clone"],
    ),
    (
        "src/daemon/failure.rs",
        "--force",
        &["import", "clone", "relocate"],
    ),
    ("src/commit/import.rs", "--rebuild", &["commit"]),
    (
        "src/commit/exclude.rs",
        "--exclude",
        &["import", "image pack"],
    ),
    ("src/cli/new_file.rs", "--force", &["export", "image pack"]),
];
/// The commands that begin a session.
const SESSIONS: &[&str] = &["activate", "mount", "run", "shell"];
/// Options of other programs that texts name.
const FOREIGN: &[&str] = &[
    "--append",
    "--device",
    "--format",
    "--sparse",
    "--user",
    "--map-current-user",
    "--keep-caps",
    "--mount",
    "--reuid",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the texts of a document, or the string literals and help texts of a source file.
fn texts(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    if file.extension().is_some_and(|extension| extension == "md") {
        let quoted = text.split('`').skip(1).step_by(2);
        return quoted.flat_map(str::lines).map(str::to_owned).collect();
    }
    // Joins literals that continue on the next line.
    let text = text.split("#[cfg(test)]").next().unwrap();
    let mut joined = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        joined.push_str(line);
        let mut last = line;
        while last.ends_with('\\') {
            joined.pop();
            last = lines.next().unwrap_or("");
            joined.push_str(last.trim_start());
        }
        joined.push('\n');
    }
    let mut found = Vec::new();
    for line in joined.lines() {
        let code = line.trim_start();
        if let Some(help) = code.strip_prefix("///") {
            found.push(help.to_owned());
        } else if !code.starts_with("//") {
            let escaped = line.replace("\\\"", "\u{1}");
            let literals = escaped.split('"').skip(1).step_by(2);
            found.extend(
                literals.flat_map(|text| text.split("\\n").map(str::to_owned).collect::<Vec<_>>()),
            );
        }
    }
    found
}

fn sources() -> Vec<PathBuf> {
    let src = root().join("src");
    // The name of the checkout's directory does not matter.
    let is_test = |path: &Path| {
        let below = path.strip_prefix(&src).unwrap();
        below.to_string_lossy().contains("tests")
    };
    let files = walkdir::WalkDir::new(&src).into_iter().flatten();
    let mut found: Vec<PathBuf> = files
        .map(walkdir::DirEntry::into_path)
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| !is_test(path))
        .collect();
    found.sort();
    found
}

fn has_option(command: &clap::Command, word: &str) -> bool {
    let name = word.split(['=', '[']).next().unwrap_or(word);
    let is_meant = |argument: &clap::Arg| match name.strip_prefix("--") {
        Some(long) => {
            argument.get_long() == Some(long)
                || argument
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&long))
        }
        None => name.chars().nth(1) == argument.get_short(),
    };
    command.get_arguments().any(is_meant)
}

/// Options after which the arguments of another program follow.
const INSTALLERS: [&str; 4] = ["--conda", "--venv", "--uv", "--npm"];

/// Checks the words after `envfs` in a text; returns how many options were looked up.
fn check(words: &str, place: &str) -> usize {
    let mut command = envfs::cli::Cli::command();
    command.build();
    let mut current = &command;
    let mut seen = 0;
    for word in words.split_whitespace() {
        let word = word.trim_end_matches(['.', ',', ':', ')', '\'']);
        if word == "--" {
            break;
        }
        // The option is filled in.
        if word == "--{}" {
            continue;
        }
        if word.starts_with('-') && word.len() > 1 {
            seen += 1;
            assert!(
                has_option(current, word) || has_option(&command, word),
                "{place}: 'envfs {words}': {} has no {word}",
                current.get_name()
            );
            if INSTALLERS.contains(&word) {
                break;
            }
        } else if let Some(below) = current.find_subcommand(word) {
            current = below;
            // After NAME follows the command line of another program.
            if word == "run" {
                break;
            }
        } else if current.get_name() == "envfs" && seen == 0 {
            // "envfs failed": a sentence, not a command line.
            break;
        }
    }
    seen
}

#[test]
fn options_named_in_messages_and_documents_exist() {
    let mut files = sources();
    files.push(root().join("README.md"));
    files.extend(
        fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            // The changelog may name commands that were renamed since.
            .filter(|path| !path.ends_with("changelog.md")),
    );
    let (mut seen, mut bare) = (0, 0);
    let mut command = envfs::cli::Cli::command();
    command.build();
    for file in files {
        let place = file
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        for text in texts(&file) {
            let mut parts = text.split("envfs ");
            let before = parts.next().unwrap_or("").to_owned();
            for part in parts {
                let end = part.find([')', ';', '|', '&', '`', '(', '\u{1}', '>', '#', '→', '"']);
                seen += check(part.get(..end.unwrap_or(part.len())).unwrap(), &place);
            }
            if !place.starts_with("src/") || before.trim_start().starts_with("--") {
                continue;
            }
            // Options before any command.
            for word in before.split([' ', '(', ')', ',', ';', ':']) {
                let is_option = word.starts_with("--")
                    && word.len() > 3
                    && word[2..]
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c == '-');
                // Every command has the global options.
                if !is_option || FOREIGN.contains(&word) || has_option(&command, word) {
                    continue;
                }
                let known = BARE
                    .iter()
                    .find(|(file, option, _)| *file == place && *option == word);
                let own = match Path::new(&place).file_stem().unwrap().to_str().unwrap() {
                    "subshell" => "shell",
                    "log_all" => "log",
                    "trial" => "try",
                    name => name,
                };
                let owners: Vec<&str> = match known {
                    Some((_, _, commands)) => commands.to_vec(),
                    None if place.starts_with("src/cli/commands/") => vec![own],
                    None => panic!("{place}: '{text}': name the command that has {word}"),
                };
                for owner in owners {
                    let mut found = &command;
                    for name in owner.split(' ') {
                        found = found
                            .find_subcommand(name)
                            .unwrap_or_else(|| panic!("{place}: '{text}': which command?"));
                    }
                    bare += 1;
                    assert!(
                        has_option(found, word),
                        "{place}: '{text}': {owner} has no {word}"
                    );
                }
            }
        }
    }
    assert!(
        seen > 60 && bare > 10,
        "only {seen} options with and {bare} without a command were found: is the search broken?"
    );
}

#[test]
fn mount_on_an_occupied_prefix_suggests_no_import_options() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.write(&env.prefix("e").join("file"), "x");
    let done = env.envfs(&["mount", "e"]).fails(4, &["not empty", "move"]);
    assert!(!done.err.contains("--prefix"), "{done}");
    let at = env.prefix("e").display().to_string();
    env.envfs(&["create", "--prefix", &at, "f"])
        .fails(2, &["not empty", "--prefix"]);
}
