//! The help of the program: its commands by purpose, as git lists them.

use clap::CommandFactory;

use super::Cli;

/// The commands by what one wants to do.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "start an environment",
        &[
            "create",
            "import",
            "hook",
            "activate",
            "deactivate",
            "reactivate",
        ],
    ),
    (
        "work in it",
        &["run", "shell", "mount", "unmount", "list", "ps", "paths"],
    ),
    (
        "see and save changes",
        &["status", "diff", "commit", "checkpoint", "discard"],
    ),
    (
        "go back in its history",
        &["log", "show", "cat", "restore", "undo", "rollback", "tag"],
    ),
    (
        "share it",
        &["export", "clone", "image", "rename", "relocate", "remove"],
    ),
    (
        "look after it",
        &[
            "verify",
            "gc",
            "du",
            "stats",
            "doctor",
            "completions",
            "man",
            "demo",
        ],
    ),
];

/// Verbs of other tools for which envfs has no command of that name, and what to use.
const FOREIGN: [(&str, &str); 4] = [
    (
        "config",
        "edit config.toml in the store; envfs paths NAME prints its path",
    ),
    (
        "top",
        "envfs ps NAME lists the processes that use an environment",
    ),
    (
        "install",
        "activate the environment and use its own installer, or: envfs run NAME pip install …",
    ),
    ("save", "envfs commit"),
];

/// Returns what to use instead of a command that does not exist.
pub(super) fn instead_of(word: &str) -> Option<&'static str> {
    let found = FOREIGN.iter().find(|(verb, _)| *verb == word);
    found.map(|(_, hint)| *hint)
}

/// Returns the command line's definition, with the commands listed by purpose.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let mut list = String::new();
    for (purpose, names) in GROUPS {
        list.push_str(&format!("\n{purpose}\n"));
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(clap::Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            list.push_str(&format!("   {name:<12} {about}\n"));
        }
    }
    let mut command = command.help_template(format!(
        "{{name}}: {{about}}\n\n{{usage-heading}} {{usage}}\n{list}\n{{options}}{{after-help}}"
    ));
    // With the long explanations of the options it would not fit on a screen.
    let short = command.render_help();
    command.override_help(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_is_in_one_group_and_no_foreign_verb_is_a_command() {
        let command = Cli::command();
        let mut listed: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        listed.sort_unstable();
        let mut visible: Vec<&str> = command
            .get_subcommands()
            .filter(|below| !below.is_hide_set())
            .map(clap::Command::get_name)
            .collect();
        visible.sort_unstable();
        assert_eq!(listed, visible);
        for (verb, _) in FOREIGN {
            assert!(command.find_subcommand(verb).is_none(), "{verb}");
        }
    }
}
