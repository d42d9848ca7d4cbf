//! `envfs __complete`: prints the possible completions of a word, one per line.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::builder::ValueHint;
use clap::{Arg, Args as ClapArgs};

use crate::cli::backend;
use crate::cli::context::{Context, active_name};
use crate::cli::error::Result;
use crate::daemon::protocol::Selection;
use crate::squashfs::format::InodeKind;
use crate::squashfs::{Image, ReaderOptions};

/// Tells the shell to complete file names.
const FILES: &str = "//files";
/// Tells the shell to complete names of directories.
const DIRECTORIES: &str = "//dirs";

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
        for candidate in candidates(self.index, &words, &Store { context }) {
            // A shell reads one candidate per line.
            if !candidate.contains('\n') {
                context.output.raw(format!("{candidate}\n").as_bytes())?;
            }
        }
        Ok(())
    }
}

/// What can be completed besides the command line itself. On failure there are no completions.
trait Source {
    /// The names of environments.
    fn names(&self) -> Vec<String>;
    /// The numbers of an environment's revisions, newest first.
    fn revisions(&self, name: Option<&str>) -> Vec<String>;
    /// An environment's tags.
    fn tags(&self, name: Option<&str>) -> Vec<String>;
    /// The paths of an environment that have changes.
    fn changed(&self, name: Option<&str>) -> Vec<String>;
    /// The programs that `envfs run` finds in an environment.
    fn programs(&self, name: &str) -> Vec<String>;
    /// The active environment.
    fn active(&self) -> Option<String>;
}

/// The store of a context.
struct Store<'a> {
    context: &'a Context,
}

impl Source for Store<'_> {
    fn names(&self) -> Vec<String> {
        let names = self.context.store().and_then(|store| Ok(store.list()?));
        names
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn revisions(&self, name: Option<&str>) -> Vec<String> {
        let history = self
            .context
            .environment(name)
            .and_then(|env| backend::history(&env.environment));
        let (revisions, _) = history.unwrap_or_default();
        let numbers = revisions.iter().rev();
        numbers.map(|revision| revision.id.0.to_string()).collect()
    }

    fn tags(&self, name: Option<&str>) -> Vec<String> {
        let tags = self
            .context
            .environment(name)
            .and_then(|env| backend::tags(&env.environment));
        tags.unwrap_or_default()
            .into_iter()
            .map(|tag| tag.name)
            .collect()
    }

    fn changed(&self, name: Option<&str>) -> Vec<String> {
        let Ok(env) = self.context.environment(name) else {
            return Vec::new();
        };
        let changes = env
            .service()
            .and_then(|service| Ok(service.changes(&Selection::default())?));
        // Commands take paths relative to a working directory in the environment.
        let inside = std::env::current_dir().ok().and_then(|dir| {
            let inside = dir.strip_prefix(&env.target.prefix).ok()?;
            Some(inside.to_path_buf())
        });
        changes
            .unwrap_or_default()
            .iter()
            .filter_map(|change| {
                let path = Path::new(OsStr::from_bytes(&change.path));
                let path = match &inside {
                    Some(inside) => path.strip_prefix(inside).ok()?,
                    None => path,
                };
                path.to_str().map(str::to_owned)
            })
            .filter(|path| !path.is_empty())
            .collect()
    }

    fn programs(&self, name: &str) -> Vec<String> {
        let Ok(env) = self.context.environment(Some(name)) else {
            return Vec::new();
        };
        let dirs = ["bin", "node_modules/.bin"];
        let mut found = BTreeSet::new();
        for dir in dirs {
            found.extend(executables(&env.target.prefix.join(dir)));
        }
        // It is not mounted for a completion.
        if found.is_empty()
            && let Ok(file) = backend::image_file(&env.environment, None)
        {
            for dir in dirs {
                found.extend(executables_in_image(&file, dir).unwrap_or_default());
            }
        }
        found.into_iter().collect()
    }

    fn active(&self) -> Option<String> {
        active_name()
    }
}

fn executables(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            // Of a symbolic link, its target counts.
            std::fs::metadata(entry.path())
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn executables_in_image(file: &PathBuf, dir: &str) -> Option<Vec<String>> {
    let image = Image::open(file, ReaderOptions::default()).ok()?;
    let mut at = image.inode(image.root()).ok()?;
    for part in dir.split('/') {
        let entry = image.lookup(&at, part.as_bytes()).ok()??;
        at = image.entry_inode(&entry).ok()?;
    }
    let names = image.read_dir(&at).ok()?;
    let executable = names.iter().filter(|(_, entry)| {
        // Permissions of symbolic links are 0777.
        image
            .entry_inode(entry)
            .is_ok_and(|inode| inode.kind() != InodeKind::Directory && inode.mode & 0o111 != 0)
    });
    Some(
        executable
            .filter_map(|(name, _)| String::from_utf8(name.to_vec()).ok())
            .collect(),
    )
}

/// What a positional argument of a command is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Name,
    Revision,
    Tag,
    Changed,
    Program,
    File,
    /// Something that the user makes up, or nothing.
    New,
}

/// Returns what the positional arguments of a command are; the last one repeats.
fn positionals(command: &str) -> &'static [Word] {
    match command {
        "activate" | "mount" | "unmount" | "ps" | "status" | "paths" | "commit" | "log" | "gc"
        | "doctor" | "remove" | "verify" | "stats" | "rename" | "clone" | "undo" | "checkpoint" => {
            &[Word::Name, Word::New]
        }
        "diff" | "discard" => &[Word::Name, Word::Changed],
        "rollback" | "show" => &[Word::Name, Word::Revision, Word::New],
        "tag" => &[Word::Name, Word::Tag, Word::Revision, Word::New],
        "run" => &[Word::Name, Word::Program, Word::File],
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
    let has_name = given
        .first()
        .is_some_and(|word| names.iter().any(|name| name == word));
    let name = given.first().copied().filter(|_| has_name);
    let is_optional = source.active().is_some() && kinds.first() == Some(&Word::Name);
    // A first word that is no name belongs to the active environment.
    if is_optional && at > 0 && !has_name && command.get_name() != "run" {
        at += 1;
    }
    let words_of = |kind: Word| match kind {
        Word::Name => names.clone(),
        Word::Revision => [source.revisions(name), source.tags(name)].concat(),
        Word::Tag => source.tags(name),
        Word::Changed => next_parts(typed, source.changed(name)),
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
mod tests {
    use super::*;

    struct Sample {
        active: Option<&'static str>,
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    impl Source for Sample {
        fn names(&self) -> Vec<String> {
            strings(&["science", "web"])
        }
        fn revisions(&self, name: Option<&str>) -> Vec<String> {
            match name.or(self.active) {
                Some("web") => strings(&["2", "1"]),
                _ => Vec::new(),
            }
        }
        fn tags(&self, name: Option<&str>) -> Vec<String> {
            match name.or(self.active) {
                Some("web") => strings(&["good"]),
                _ => Vec::new(),
            }
        }
        fn changed(&self, name: Option<&str>) -> Vec<String> {
            match name.or(self.active) {
                Some("web") => strings(&["etc/a", "lib/x/1", "lib/x/2", "lib/y"]),
                _ => Vec::new(),
            }
        }
        fn programs(&self, name: &str) -> Vec<String> {
            strings(if name == "web" { &["node", "npm"] } else { &[] })
        }
        fn active(&self) -> Option<String> {
            self.active.map(str::to_owned)
        }
    }

    fn complete_in(active: Option<&'static str>, line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        candidates(words.len() - 1, &words, &Sample { active })
    }

    fn complete(line: &str) -> Vec<String> {
        complete_in(None, line)
    }

    #[test]
    fn commands_options_and_names_are_completed() {
        assert_eq!(complete("envfs act"), ["activate"]);
        assert!(complete("envfs ").contains(&String::from("doctor")));
        assert!(!complete("envfs ").iter().any(|word| word.starts_with("__")));
        assert_eq!(complete("envfs status s"), ["science"]);
        assert_eq!(complete("envfs -q activate "), ["science", "web"]);
        assert_eq!(complete("envfs --color never status w"), ["web"]);
        assert!(complete("envfs commit --me").contains(&String::from("--message")));
        assert_eq!(complete("envfs --color a"), ["auto", "always"]);
        assert_eq!(complete("envfs --color=n"), ["--color=never"]);
        assert_eq!(complete("envfs image ver"), ["verify"]);
        assert!(complete("envfs hook ").contains(&String::from("fish")));
        assert!(complete("envfs completions ").contains(&String::from("zsh")));
        assert_eq!(complete("envfs activate x --shell f"), ["fish"]);
    }

    #[test]
    fn revisions_tags_changes_and_programs_are_completed() {
        assert_eq!(complete("envfs rollback web "), ["2", "1", "good"]);
        assert_eq!(complete("envfs export web --rev g"), ["good"]);
        assert_eq!(complete("envfs tag web "), ["good"]);
        assert_eq!(complete("envfs tag web new "), ["2", "1", "good"]);
        assert_eq!(complete("envfs discard web "), ["etc/", "lib/"]);
        assert_eq!(complete("envfs discard web lib/"), ["lib/x/", "lib/y"]);
        assert_eq!(
            complete("envfs diff web etc/a lib/x/"),
            ["lib/x/1", "lib/x/2"]
        );
        assert_eq!(complete("envfs run web n"), ["node", "npm"]);
        assert_eq!(complete("envfs run -e A=1 web -- no"), ["node"]);
        let active = |line| complete_in(Some("web"), line);
        assert_eq!(
            active("envfs rollback "),
            ["science", "web", "2", "1", "good"]
        );
        assert_eq!(active("envfs discard l"), ["lib/"]);
        assert_eq!(active("envfs diff etc/a l"), ["lib/"]);
        assert_eq!(active("envfs diff science "), [""; 0]);
    }

    #[test]
    fn files_are_completed_only_where_a_file_is_meant() {
        for line in [
            "envfs import ",
            "envfs export web ",
            "envfs image info ",
            "envfs run web node ",
            "envfs run web node -x ",
            "envfs create new -- pyth",
        ] {
            assert_eq!(complete(line), [FILES], "{line}");
        }
        assert_eq!(complete("envfs run --cwd "), [DIRECTORIES]);
        assert_eq!(complete("envfs doctor "), ["science", "web"]);
        for line in [
            "envfs nonsense ",
            "envfs activate web ",
            "envfs deactivate ",
            "envfs create ",
            "envfs rename web ",
            "envfs import dir ",
            "envfs rollback web 1 ",
            "envfs commit -m ",
            "envfs log -n ",
            "envfs status z",
        ] {
            assert_eq!(complete(line), [""; 0], "{line}");
        }
    }
}
