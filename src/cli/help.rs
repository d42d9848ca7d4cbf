//! The help of the program: its commands by purpose, as git lists them.

use clap::CommandFactory;

use super::Cli;

/// Commands for one purpose.
struct Group {
    purpose: &'static str,
    /// Those that are used most, listed with their descriptions.
    main: &'static [&'static str],
    /// The others, listed by name.
    also: &'static [&'static str],
}

/// The commands by what one wants to do.
const GROUPS: [Group; 6] = [
    Group {
        purpose: "start an environment",
        main: &["create", "import", "activate", "deactivate"],
        also: &["hook", "reactivate"],
    },
    Group {
        purpose: "work in it",
        main: &["run", "shell", "list"],
        also: &[
            "try",
            "env",
            "expose",
            "modulefile",
            "mount",
            "unmount",
            "ps",
            "paths",
        ],
    },
    Group {
        purpose: "see and save changes",
        main: &["status", "diff", "commit", "discard"],
        also: &["checkpoint"],
    },
    Group {
        purpose: "go back in its history",
        main: &["log", "show", "undo", "rollback"],
        also: &["restore", "cat", "tag"],
    },
    Group {
        purpose: "share it",
        main: &["export", "clone", "remove"],
        also: &["image", "rename", "relocate"],
    },
    Group {
        purpose: "look after it",
        main: &["verify", "gc", "du", "doctor"],
        also: &["stats", "completions", "man", "demo"],
    },
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
    for group in GROUPS {
        list.push_str(&format!("\n{}\n", group.purpose));
        for name in group.main {
            let about = command
                .find_subcommand(name)
                .and_then(clap::Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            list.push_str(&format!("   {name:<12} {about}\n"));
        }
        list.push_str(&format!("   also         {}\n", group.also.join(", ")));
    }
    let command = command.help_template(format!(
        "envfs: an environment as one compressed file, used as a writable directory\n\n{{usage-heading}} {{usage}}\n{list}\n{{options}}{{after-help}}"
    ));
    // With the long explanations of the options it would not fit on a screen.
    let mut short = command
        .clone()
        .disable_version_flag(true)
        .disable_help_flag(true);
    let short = short.render_help();
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
            .flat_map(|group| group.main.iter().chain(group.also).copied())
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
