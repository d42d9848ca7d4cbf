//! `envfs __complete`: prints the possible completions of a word, one per line.

mod bash;

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
use crate::cli::place;
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
    /// The ids of an environment's operations, newest first.
    fn operations(&self, name: Option<&str>) -> Vec<String>;
    /// The names in a directory of an environment or of a revision (`NAME@REV`); those of
    /// directories end with a slash.
    fn entries(&self, name: Option<&str>, dir: &str) -> Vec<String>;
    /// The programs that `envfs run` finds in an environment or a revision.
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

    fn operations(&self, name: Option<&str>) -> Vec<String> {
        let found = self
            .context
            .environment(name)
            .and_then(|env| backend::operations(&env.environment));
        let (operations, _) = found.unwrap_or_default();
        let ids = operations.iter().rev();
        ids.map(|operation| operation.id.0.to_string()).collect()
    }

    fn entries(&self, name: Option<&str>, dir: &str) -> Vec<String> {
        let Ok((env, revision)) = self.context.committed(name) else {
            return Vec::new();
        };
        let mut found = BTreeSet::new();
        if let Ok(file) = backend::image_file(&env.environment, revision) {
            found.extend(entries_in_image(&file, dir, Wanted::All).unwrap_or_default());
        }
        let is_below = !Path::new(dir)
            .components()
            .any(|part| part.as_os_str() == "..");
        if revision.is_none() && is_below && !Path::new(dir).is_absolute() {
            // Also what is not committed, if it is mounted.
            found.extend(names_of(&env.target.prefix.join(dir)));
        }
        found.into_iter().collect()
    }

    fn programs(&self, name: &str) -> Vec<String> {
        let Ok((env, revision)) = self.context.committed(Some(name)) else {
            return Vec::new();
        };
        let dirs = ["bin", "node_modules/.bin"];
        let mut found = BTreeSet::new();
        if revision.is_none() {
            for dir in dirs {
                found.extend(executables(&env.target.prefix.join(dir)));
            }
        }
        // It is not mounted for a completion.
        if found.is_empty()
            && let Ok(file) = backend::image_file(&env.environment, revision)
        {
            for dir in dirs {
                let names = entries_in_image(&file, dir, Wanted::Programs);
                found.extend(names.unwrap_or_default());
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

/// Returns the names in a directory; those of directories end with a slash.
fn names_of(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        Some(if is_dir { name + "/" } else { name })
    });
    named.collect()
}

/// Which names of a directory in an image are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Programs,
}

fn entries_in_image(file: &PathBuf, dir: &str, wanted: Wanted) -> Option<Vec<String>> {
    let image = Image::open(file, ReaderOptions::default()).ok()?;
    let mut at = image.inode(image.root()).ok()?;
    for part in dir.split('/').filter(|part| !part.is_empty()) {
        let entry = image.lookup(&at, part.as_bytes()).ok()??;
        at = image.entry_inode(&entry).ok()?;
    }
    let names = image.read_dir(&at).ok()?;
    let named = names.iter().filter_map(|(name, entry)| {
        let name = String::from_utf8(name.to_vec()).ok()?;
        let is_dir = entry.kind == InodeKind::Directory;
        match wanted {
            Wanted::All if is_dir => Some(name + "/"),
            Wanted::All => Some(name),
            // Permissions of symbolic links are 0777.
            Wanted::Programs => {
                let inode = image.entry_inode(&entry).ok()?;
                (!is_dir && inode.mode & 0o111 != 0).then_some(name)
            }
        }
    });
    Some(named.collect())
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
        fn operations(&self, name: Option<&str>) -> Vec<String> {
            match name.or(self.active) {
                Some("web") => strings(&["8", "7"]),
                _ => Vec::new(),
            }
        }
        fn entries(&self, name: Option<&str>, dir: &str) -> Vec<String> {
            match (name.or(self.active), dir) {
                (Some("web" | "web@1"), "") => strings(&["bin/", "lib/", "readme"]),
                (Some("web" | "web@1"), "lib/") => strings(&["x", "y/"]),
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
    fn programs_of_a_try_are_completed() {
        assert_eq!(complete("envfs try w"), ["web"]);
        assert_eq!(complete("envfs try web -- n"), ["node", "npm"]);
        assert_eq!(complete_in(Some("web"), "envfs try -- n"), ["node", "npm"]);
        assert_eq!(complete("envfs try web -- node "), ["//files"]);
        assert!(complete("envfs try --ke").contains(&String::from("--keep-on-success")));
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
    fn revisions_follow_a_name_and_paths_are_those_of_the_environment() {
        for command in [
            "show", "diff", "activate", "mount", "run", "shell", "verify", "du",
        ] {
            let line = format!("envfs {command} web@");
            assert_eq!(complete(&line), ["web@2", "web@1", "web@good"], "{line}");
        }
        assert_eq!(complete("envfs status web@"), [""; 0]);
        assert_eq!(
            complete("envfs diff web@1 "),
            ["2", "1", "good", "etc/", "lib/"]
        );
        assert_eq!(complete("envfs undo web --operation "), ["8", "7"]);
        assert_eq!(complete("envfs undo --operation 7 w"), ["web"]);
        assert_eq!(complete("envfs restore web "), ["bin/", "lib/", "readme"]);
        assert_eq!(complete("envfs restore web lib/"), ["lib/x", "lib/y/"]);
        assert_eq!(complete("envfs restore web lib/x --from g"), ["good"]);
        assert_eq!(complete("envfs du web l"), ["lib/"]);
        assert_eq!(complete("envfs du web 1 r"), ["readme"]);
        assert_eq!(complete("envfs cat w"), ["web:"]);
        assert_eq!(complete("envfs cat web@g"), ["web@good:"]);
        assert_eq!(complete("envfs cat web@1:li"), ["web@1:lib/"]);
        let active = |line| complete_in(Some("web"), line);
        assert_eq!(active("envfs restore re"), ["readme"]);
        assert_eq!(active("envfs cat :lib/"), [":lib/x", ":lib/y/"]);
        assert_eq!(active("envfs show @g"), ["@good"]);
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
