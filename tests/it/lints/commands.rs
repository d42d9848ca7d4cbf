//! Every command has a file of tests.

use std::path::Path;

/// Commands whose tests are in another file than `tests/it/cli/COMMAND.rs`, with the reason.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("deactivate", "cli/activate.rs", "undoes what activate does"),
    (
        "reactivate",
        "cli/activate.rs",
        "repeats what activate does",
    ),
    ("try", "cli/trial.rs", "`try` is a keyword of Rust"),
];

#[test]
fn every_command_has_a_file_of_tests() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let commands = envfs::cli::command();
    let mut missing = Vec::new();
    let mut checked = 0;
    for command in commands.get_subcommands().filter(|one| !one.is_hide_set()) {
        let name = command.get_name();
        let elsewhere = ELSEWHERE.iter().find(|one| one.0 == name);
        let file = elsewhere.map_or_else(|| format!("cli/{name}.rs"), |one| one.1.to_owned());
        checked += 1;
        // A call has the name as a word of its own: `env.envfs(&["commit", "-q", "e"])`.
        let calls = std::fs::read_to_string(tests.join(&file)).unwrap_or_default();
        if !calls.contains(&format!("\"{name}\"")) && !calls.contains(&format!("envfs {name}")) {
            missing.push(file);
        }
    }
    assert!(checked > 40, "{checked}");
    assert!(
        missing.is_empty(),
        "these files do not exist, or do not run their command: {missing:#?}"
    );
    let unknown: Vec<_> = ELSEWHERE
        .iter()
        .filter(|(name, ..)| commands.find_subcommand(name).is_none())
        .collect();
    assert!(unknown.is_empty(), "these are no commands: {unknown:#?}");
}
