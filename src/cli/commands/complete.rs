//! `envfs __complete`: prints the possible completions of a word, one per line.

use std::ffi::OsString;

use clap::{Args as ClapArgs, CommandFactory};

use crate::cli::context::Context;
use crate::cli::error::Result;

/// Tells the shell to complete file names.
const FILES: &str = "//files";

/// Print the possible completions of a word.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Index of the word to complete; word 0 is the name of the program.
    index: usize,
    /// The words of the command line.
    #[arg(last = true)]
    words: Vec<OsString>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let words: Vec<String> = self
            .words
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let names = || -> Vec<String> {
            let names = context.store().and_then(|store| Ok(store.list()?));
            // On failure, there are no completions.
            names
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        for candidate in candidates(self.index, &words, names) {
            context.output.line(candidate)?;
        }
        Ok(())
    }
}

/// Returns the possible completions of the word at `index`.
fn candidates(index: usize, words: &[String], names: impl Fn() -> Vec<String>) -> Vec<String> {
    let typed = words.get(index).map_or("", String::as_str);
    let starts = |list: Vec<String>| -> Vec<String> {
        list.into_iter()
            .filter(|word| word.starts_with(typed))
            .collect()
    };
    let mut root = crate::cli::Cli::command();
    root.build();
    let before = words.get(1..index.min(words.len())).unwrap_or_default();
    let Some(position) = before.iter().position(|word| !word.starts_with('-')) else {
        if typed.starts_with('-') {
            return starts(options(&root));
        }
        return starts(
            root.get_subcommands()
                .filter(|command| !command.is_hide_set())
                .map(|command| command.get_name().to_owned())
                .collect(),
        );
    };
    let Some(command) = before
        .get(position)
        .and_then(|word| root.find_subcommand(word))
    else {
        return vec![FILES.to_owned()];
    };
    let given = before.get(position + 1..).unwrap_or_default();
    if given.iter().any(|word| word == "--") {
        return vec![FILES.to_owned()];
    }
    if typed.starts_with('-') {
        return starts(options(command));
    }
    let count = given.iter().filter(|word| !word.starts_with('-')).count();
    match (command.get_name(), count) {
        ("hook", 0) => starts(["bash", "fish", "zsh"].map(String::from).to_vec()),
        ("completions", 0) => {
            let shells = ["bash", "elvish", "fish", "powershell", "zsh"];
            starts(shells.map(String::from).to_vec())
        }
        ("import", _) | ("create" | "reactivate" | "deactivate" | "doctor", 0) => {
            vec![FILES.to_owned()]
        }
        (_, 0) => starts(names()),
        _ => vec![FILES.to_owned()],
    }
}

fn options(command: &clap::Command) -> Vec<String> {
    command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .filter_map(|argument| Some(format!("--{}", argument.get_long()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(line: &[&str]) -> Vec<String> {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        candidates(words.len() - 1, &words, || {
            vec!["science".into(), "web".into()]
        })
    }

    #[test]
    fn commands_options_names_and_files_are_completed() {
        assert_eq!(complete(&["envfs", "act"]), ["activate"]);
        assert!(complete(&["envfs", ""]).contains(&String::from("doctor")));
        assert!(
            !complete(&["envfs", ""])
                .iter()
                .any(|word| word.starts_with("__"))
        );
        assert_eq!(complete(&["envfs", "status", "s"]), ["science"]);
        assert_eq!(
            complete(&["envfs", "-q", "activate", ""]),
            ["science", "web"]
        );
        assert!(complete(&["envfs", "commit", "--me"]).contains(&String::from("--message")));
        assert_eq!(complete(&["envfs", "import", ""]), [FILES]);
        assert_eq!(complete(&["envfs", "run", "web", "--", "l"]), [FILES]);
        assert_eq!(complete(&["envfs", "nonsense", ""]), [FILES]);
    }
}
