//! `envfs __complete`: prints the possible completions of a word, one per line.

mod bash;
mod source;

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::builder::ValueHint;
use clap::{Arg, Args as ClapArgs};

use self::source::{Source, Store};
use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::place;

/// Tells the shell to complete file names.
const FILES: &str = "//files";
/// Tells the shell to complete names of directories.
const DIRECTORIES: &str = "//dirs";

/// Print the possible completions of a word.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Index of the word to complete; word 0 is the name of the program.
    #[arg(required_unless_present = "bash")]
    index: Option<usize>,
    /// The line up to the cursor as it was typed in bash, and the characters that divide words.
    #[arg(long, num_args = 2, value_names = ["LINE", "BREAKS"])]
    bash: Option<Vec<OsString>>,
    /// The words of the command line.
    #[arg(last = true)]
    words: Vec<OsString>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let text = |word: &OsString| word.to_string_lossy().into_owned();
        let source = Store { context };
        let print = |candidate: &str| context.output.raw(format!("{candidate}\n").as_bytes());
        if let Some([line, breaks]) = self.bash.as_deref() {
            let line = bash::Line::parse(&text(line), &text(breaks));
            for candidate in candidates(line.words.len() - 1, &line.words, &source) {
                let inserted = match candidate.starts_with("//") {
                    true => Some(candidate),
                    false => line.inserted(&candidate),
                };
                inserted.map_or(Ok(()), |inserted| print(&inserted))?;
            }
            return Ok(());
        }
        let words: Vec<String> = self.words.iter().map(text).collect();
        for candidate in candidates(self.index.unwrap_or_default(), &words, &source) {
            // A shell reads one candidate per line.
            if !candidate.contains('\n') {
                print(&candidate)?;
            }
        }
        Ok(())
    }
}

/// What a positional argument of a command is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Name,
    /// `NAME` or `NAME@REV`.
    NameRevision,
    Revision,
    Tag,
    Changed,
    /// A revision or a changed path.
    RevisionOrChanged,
    /// A path in the environment.
    Entry,
    RevisionOrEntry,
    /// `NAME@REV:PATH`.
    Content,
    Program,
    File,
    /// Something that the user makes up, or nothing.
    New,
}

/// Returns what the positional arguments of a command are; the last one repeats.
fn positionals(command: &str) -> &'static [Word] {
    match command {
        "activate" | "mount" | "unmount" | "ps" | "shell" | "verify" => {
            &[Word::NameRevision, Word::New]
        }
        "status" | "paths" | "commit" | "log" | "gc" | "doctor" | "remove" | "stats" | "rename"
        | "clone" | "undo" | "checkpoint" => &[Word::Name, Word::New],
        "diff" => &[
            Word::NameRevision,
            Word::RevisionOrChanged,
            Word::RevisionOrChanged,
            Word::Changed,
        ],
        "discard" => &[Word::Name, Word::Changed],
        "restore" => &[Word::Name, Word::Entry],
        "du" => &[
            Word::NameRevision,
            Word::RevisionOrEntry,
            Word::Entry,
            Word::New,
        ],
        "cat" => &[Word::Content],
        "show" => &[Word::NameRevision, Word::Revision, Word::New],
        "rollback" => &[Word::Name, Word::Revision, Word::New],
        "tag" => &[Word::Name, Word::Tag, Word::Revision, Word::New],
        "run" => &[Word::NameRevision, Word::Program, Word::File],
        "try" => &[Word::Name, Word::Program, Word::File],
        "expose" => &[Word::NameRevision, Word::File, Word::Program],
        "export" | "relocate" => &[Word::Name, Word::File],
        "import" => &[Word::File, Word::New],
        _ => &[Word::New],
    }
}

/// Returns the possible completions of the word at `index`.
fn candidates(index: usize, words: &[String], source: &dyn Source) -> Vec<String> {
    let typed = words.get(index).map_or("", String::as_str);
    let mut root = crate::cli::command();
    root.build();
    let mut command = &root;
    let mut is_image = false;
    let mut given: Vec<&str> = Vec::new();
    let mut before = words
        .get(1..index.min(words.len()))
        .unwrap_or_default()
        .iter();
    let mut is_verbatim = false;
    let active = source.active();
    while let Some(word) = before.next() {
        let is_program = command.get_name() == "run" && given.len() > 1;
        if is_verbatim || is_program || !word.starts_with('-') {
            match command.find_subcommand(word) {
                Some(below) if given.is_empty() && !is_verbatim => {
                    is_image |= command.get_name() == "image";
                    command = below;
                }
                _ if command.has_subcommands() && !is_verbatim => return Vec::new(),
                _ => given.push(word),
            }
        } else if word == "--" {
            is_verbatim = true;
            if command.get_name() == "try" && given.is_empty() {
                // The program of the active environment follows.
                given.extend(active.as_deref());
            }
        } else if let Some(option) = option(command, word).filter(|option| {
            option.get_action().takes_values() && !word.contains('=') && is_whole(word)
        }) && before.next().is_none()
        {
            let name = given.first().copied();
            return matching(typed, value(option, name, source));
        }
    }
    if typed.starts_with('-') && !is_verbatim && !(command.get_name() == "run" && given.len() > 1) {
        if let Some((word, start)) = typed.split_once('=') {
            let name = given.first().copied();
            let values = option(command, word).map(|option| value(option, name, source));
            // The shell replaces the whole word.
            return matching(start, values.unwrap_or_default())
                .into_iter()
                .filter(|found| !found.starts_with("//"))
                .map(|found| format!("{word}={found}"))
                .collect();
        }
        return matching(typed, options(command));
    }
    if command.has_subcommands() {
        let shown = command
            .get_subcommands()
            .filter(|below| !below.is_hide_set());
        return matching(
            typed,
            shown.map(|below| below.get_name().to_owned()).collect(),
        );
    }
    if is_verbatim && command.get_name() == "create" {
        return vec![FILES.to_owned()];
    }
    // Values that the command line defines itself, as names of shells.
    let defined = command.get_positionals().nth(given.len());
    let defined: Vec<String> = defined.map(possible).unwrap_or_default();
    if !defined.is_empty() {
        return matching(typed, defined);
    }
    let kinds = match is_image {
        true => &[Word::File],
        false => positionals(command.get_name()),
    };
    let mut at = given.len();
    let names = source.names();
    let takes_name = matches!(kinds.first(), Some(Word::Name | Word::NameRevision));
    let has_name = takes_name && given.first().is_some_and(|word| is_name(word, &names));
    let name = given.first().copied().filter(|_| has_name);
    let is_optional = source.active().is_some() && takes_name;
    // A first word that is no name belongs to the active environment.
    if is_optional && at > 0 && !has_name && command.get_name() != "run" {
        at += 1;
    }
    let base = name.map(|name| place::split_revision(name).0);
    let revisions = || [source.revisions(base), source.tags(base)].concat();
    let words_of = |kind: Word| match kind {
        Word::Name => names.clone(),
        Word::NameRevision => with_revisions(typed, &names, source),
        Word::Revision => revisions(),
        Word::Tag => source.tags(base),
        Word::Changed => next_parts(typed, source.changed(base)),
        Word::RevisionOrChanged => [revisions(), next_parts(typed, source.changed(base))].concat(),
        Word::Entry => entries(typed, name, source),
        Word::RevisionOrEntry => [revisions(), entries(typed, name, source)].concat(),
        Word::Content => contents(typed, &names, source),
        Word::Program => given
            .first()
            .map_or_else(Vec::new, |name| source.programs(name)),
        Word::File => vec![FILES.to_owned()],
        Word::New => Vec::new(),
    };
    let kind = |at: usize| kinds.get(at).or(kinds.last()).copied().unwrap_or(Word::New);
    let mut found = words_of(kind(at));
    // Without a name, the second kind of word may come first.
    if at == 0 && is_optional && !matches!(kind(1), Word::New | Word::Program | Word::File) {
        found.extend(words_of(kind(1)));
    }
    matching(typed, found)
}

/// Returns whether a word names an environment: a name, `NAME@REV` or a path.
fn is_name(word: &str, names: &[String]) -> bool {
    let (base, _) = place::split_revision(word);
    names.iter().any(|name| name == base) || word.starts_with(['.', '/'])
}

/// Returns the names of environments, or after `NAME@` its revisions.
fn with_revisions(typed: &str, names: &[String], source: &dyn Source) -> Vec<String> {
    match place::split_revision(typed) {
        (base, Some(_)) => {
            let of = (!base.is_empty()).then_some(base);
            let found = [source.revisions(of), source.tags(of)].concat();
            found
                .iter()
                .map(|found| format!("{base}@{found}"))
                .collect()
        }
        _ => names.to_vec(),
    }
}

/// Returns the paths in an environment that begin with what was typed, one directory at a time.
fn entries(typed: &str, name: Option<&str>, source: &dyn Source) -> Vec<String> {
    let end = typed.rfind('/').map_or(0, |slash| slash + 1);
    let dir = typed.get(..end).unwrap_or_default();
    let found = source.entries(name, dir);
    found.iter().map(|found| format!("{dir}{found}")).collect()
}

/// Returns the completions of `NAME@REV:PATH`.
fn contents(typed: &str, names: &[String], source: &dyn Source) -> Vec<String> {
    let Some((of, path)) = typed.split_once(':') else {
        let found = with_revisions(typed, names, source);
        return found.iter().map(|found| format!("{found}:")).collect();
    };
    let found = entries(path, (!of.is_empty()).then_some(of), source);
    found.iter().map(|found| format!("{of}:{found}")).collect()
}

fn matching(typed: &str, all: Vec<String>) -> Vec<String> {
    all.into_iter()
        .filter(|word| word.starts_with(typed) || word.starts_with("//"))
        .collect()
}

/// Shortens paths to the next directory below what was typed, so that a choice has few candidates.
fn next_parts(typed: &str, paths: Vec<String>) -> Vec<String> {
    let shortened = |path: String| match path.get(typed.len()..).and_then(|rest| rest.find('/')) {
        Some(end) => path[..=typed.len() + end].to_owned(),
        None => path,
    };
    let matching = paths.into_iter().filter(|path| path.starts_with(typed));
    let parts: BTreeSet<String> = matching.map(shortened).collect();
    // A directory that has changes itself is completed as one.
    let is_below = |part: &String| parts.contains(&format!("{part}/"));
    parts
        .iter()
        .filter(|part| !is_below(part))
        .cloned()
        .collect()
}

fn option<'a>(command: &'a clap::Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or_default();
    command
        .get_arguments()
        .find(|argument| match name.strip_prefix("--") {
            Some(long) => argument.get_long() == Some(long),
            None => argument.get_short().is_some() && argument.get_short() == name.chars().nth(1),
        })
}

/// Returns whether the value of an option is the next word: `-n 3`, but not `-n3`.
fn is_whole(word: &str) -> bool {
    word.starts_with("--") || word.chars().count() == 2
}

fn possible(argument: &Arg) -> Vec<String> {
    let values = argument.get_possible_values();
    let shown = values.iter().filter(|value| !value.is_hide_set());
    shown.map(|value| value.get_name().to_owned()).collect()
}

/// Returns the possible values of an option.
fn value(option: &Arg, name: Option<&str>, source: &dyn Source) -> Vec<String> {
    let defined = possible(option);
    if !defined.is_empty() {
        return defined;
    }
    let named = option.get_value_names().and_then(<[_]>::first);
    match (named.map(|name| name.as_str()), option.get_value_hint()) {
        (Some("REV"), _) => [source.revisions(name), source.tags(name)].concat(),
        (Some("ID"), _) => source.operations(name),
        (Some("DIR"), _) => vec![DIRECTORIES.to_owned()],
        (Some("PATTERN"), _) => Vec::new(),
        (_, ValueHint::AnyPath | ValueHint::FilePath) => vec![FILES.to_owned()],
        _ => Vec::new(),
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
mod tests;
