//! Checkpoints before package operations that are seen in the mount.
//!
//! A request that changes a name tells which process sent it. The first change by an installer, or
//! in a directory of packages after some quiet, makes a checkpoint before it is carried out. This
//! happens in the request, so it never waits for an operation on the whole environment, which may
//! itself wait for requests, and waits for content that is being written only for a short time. If
//! it fails, the request goes on, and the log of the daemon says why.
//!
//! One run of an installer makes one checkpoint: its changes, and those of its child processes, are
//! recognised by the process. A program that has loaded the library of an installer may install
//! several times, so its changes anywhere count as one package operation until there was none for
//! some time. Python's bytecode does not count.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::service::Local;
use crate::commit::CheckpointOptions;
use crate::fuse::BeforeChange;
use crate::object::Ino;
use crate::sys::process::{self, Requester};
use crate::union::Union;

/// Programs that install packages, by the name of the program, script or module.
const INSTALLERS: &[&str] = &[
    "pip",
    "uv",
    "easy_install",
    "poetry",
    "pdm",
    "pipx",
    "conda",
    "mamba",
    "micromamba",
    "pixi",
    "npm",
    "npm-cli",
    "pnpm",
    "yarn",
];

/// Libraries with which other programs install packages, by the beginning of the names of their
/// files.
const LIBRARIES: &[&str] = &["rattler.", "libmamba"];

/// Programs that load such libraries.
const INTERPRETERS: &[&str] = &["python", "pypy"];

/// Their commands that run other programs.
const RUNNING: &[&str] = &["run", "run-script", "shell", "exec", "start", "test"];

/// The most processes that are looked at between a requester and an installer.
const MOST_ANCESTORS: usize = 32;

/// Directories of packages: a change in one, or of its name, belongs to a package operation.
const DIRECTORIES: &[&[u8]] = &[
    b"site-packages",
    b"dist-packages",
    b"conda-meta",
    b"node_modules",
];

/// Changes in such directories by programs that are no known installers belong together unless
/// there was none for this time.
const QUIET: Duration = Duration::from_secs(5);

/// How long what is known of a process or thread is used without another look.
const REMEMBERED: Duration = Duration::from_secs(2);

/// How long to wait for content that is being written.
const PATIENCE: Duration = Duration::from_millis(200);

/// Frozen layers of a stack above which no checkpoint is made: a bound for what reads look into.
const MOST_LAYERS: usize = 32;

/// The most processes, threads and directories that are remembered.
const MOST_KNOWN: usize = 4096;

/// The longest command in the log, in characters.
const LONGEST_COMMAND: usize = 200;

/// Decides when a checkpoint is due.
pub(super) struct Watch {
    local: Weak<Local>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Threads that sent requests.
    requesters: HashMap<u32, (Instant, Verdict)>,
    /// Processes of installers whose checkpoint was made, with their start times.
    running: HashMap<u32, u64>,
    /// What is in directories.
    directories: HashMap<Ino, Place>,
    /// The last change of a package by a program that is no installer.
    last: Option<Instant>,
}

/// What is known of a requester.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It belongs to an installer whose checkpoint was made.
    Running,
    /// It has loaded the library of an installer.
    Library,
    /// It is no installer.
    Other,
}

/// What a name belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A directory of packages, or what is in one.
    Packages,
    Bytecode,
    Elsewhere,
}

/// Where a change comes from.
enum Origin {
    /// An installer whose checkpoint was made.
    Running,
    /// This installer, which has changed nothing yet.
    New(Requester),
    /// A program with the library of an installer.
    Library,
    /// Another program.
    Other,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Returns the watch of an environment.
    pub(super) fn new(local: Weak<Local>) -> Watch {
        Watch {
            local,
            known: Mutex::default(),
        }
    }

    /// Returns whether a change begins a package operation, and the command then.
    fn begins(&self, union: &Union, pid: u32, dir: Ino, name: &[u8]) -> Option<String> {
        let mut guard = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *guard;
        let now = Instant::now();
        let seen = known.requesters.get(&pid).copied();
        let seen = seen.filter(|(at, _)| now.duration_since(*at) < REMEMBERED);
        match seen {
            Some((_, Verdict::Running)) => return None,
            Some((_, verdict)) => return known.change(union, verdict, (pid, dir, name), now),
            None => {}
        }
        let requester = process::requester(pid);
        match requester.map_or(Origin::Other, |found| known.origin(found)) {
            Origin::Running => {
                known.remember(pid, now, Verdict::Running);
                None
            }
            Origin::New(installer) => {
                known.running.insert(installer.pid, installer.started);
                known.remember(pid, now, Verdict::Running);
                Some(shown(&installer.arguments))
            }
            Origin::Library => {
                known.remember(pid, now, Verdict::Library);
                known.change(union, Verdict::Library, (pid, dir, name), now)
            }
            Origin::Other => {
                known.remember(pid, now, Verdict::Other);
                known.change(union, Verdict::Other, (pid, dir, name), now)
            }
        }
    }
}

impl Known {
    fn remember(&mut self, pid: u32, now: Instant, verdict: Verdict) {
        if self.requesters.len() >= MOST_KNOWN {
            self.requesters.clear();
        }
        self.requesters.insert(pid, (now, verdict));
    }

    /// Finds the installer that a process is, or descends from.
    fn origin(&mut self, requester: Requester) -> Origin {
        self.running
            .retain(|pid, started| process::is_running(*pid, *started));
        let has_library = INTERPRETERS.contains(&program_file(&requester.arguments))
            && process::has_mapped(requester.pid, LIBRARIES);
        let mut at = Some(requester);
        let mut nearest = None;
        for _ in 0..MOST_ANCESTORS {
            let Some(found) = at else { break };
            if self.running.contains_key(&found.pid) {
                return Origin::Running;
            }
            at = process::parent(found.pid).and_then(process::requester);
            if nearest.is_none() && is_installer(&found.arguments) {
                nearest = Some(found);
            }
        }
        match nearest {
            Some(installer) => Origin::New(installer),
            None if has_library => Origin::Library,
            None => Origin::Other,
        }
    }

    /// Returns the command of a requester that is no installer if it is the first for some time
    /// that changes a package.
    fn change(
        &mut self,
        union: &Union,
        verdict: Verdict,
        (pid, dir, name): (u32, Ino, &[u8]),
        now: Instant,
    ) -> Option<String> {
        let place = self.place(union, dir, name);
        match (verdict, place) {
            (Verdict::Library, Place::Packages | Place::Elsewhere) => {}
            (Verdict::Other, Place::Packages) => {}
            _ => return None,
        }
        let last = self.last.replace(now);
        if last.is_some_and(|last| now.duration_since(last) < QUIET) {
            return None;
        }
        let command = process::requester(pid).map(|found| shown(&found.arguments));
        Some(command.unwrap_or_else(|| "a program".to_owned()))
    }

    fn place(&mut self, union: &Union, dir: Ino, name: &[u8]) -> Place {
        if is_bytecode(name) {
            return Place::Bytecode;
        }
        if DIRECTORIES.contains(&name) {
            return Place::Packages;
        }
        if let Some(known) = self.directories.get(&dir) {
            return *known;
        }
        let path = union.path_of_dir(dir).unwrap_or_default();
        let mut place = Place::Elsewhere;
        for part in &path {
            if is_bytecode(part) {
                place = Place::Bytecode;
                break;
            }
            if DIRECTORIES.contains(&&part[..]) {
                place = Place::Packages;
            }
        }
        if self.directories.len() >= MOST_KNOWN {
            self.directories.clear();
        }
        self.directories.insert(dir, place);
        place
    }
}

impl BeforeChange for Watch {
    fn before(&self, pid: u32, dir: Ino, name: &[u8]) {
        let Some(local) = self.local.upgrade() else {
            return;
        };
        let union = local.workspace().union();
        let Some(command) = self.begins(union, pid, dir, name) else {
            return;
        };
        let layers = union.lower().frozen().len();
        if layers >= MOST_LAYERS {
            return tracing::warn!(
                command,
                "no automatic checkpoint: there are {layers} layers of changes; the next commit \
                 merges them"
            );
        }
        let began = Instant::now();
        let options = CheckpointOptions {
            message: format!("automatic, before: {command}"),
            command: command.clone(),
        };
        match local.try_checkpoint(&options, PATIENCE) {
            Ok(operation) => {
                let millis = began.elapsed().as_secs_f64() * 1000.0;
                tracing::info!(command, ?operation, millis, "automatic checkpoint");
            }
            Err(failure) => {
                tracing::warn!(command, "no automatic checkpoint: {}", failure.message);
            }
        }
    }

    fn renamed(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.directories.clear();
    }
}

fn is_bytecode(name: &[u8]) -> bool {
    name == b"__pycache__"
        || name.ends_with(b".pyc")
        || name.windows(5).any(|part| part == b".pyc.")
}

/// Returns the name of the program that a command line executes.
fn program_file(arguments: &[String]) -> &str {
    let first = arguments.first().map_or("", String::as_str);
    without_version(file_name(first))
}

/// Returns the name of the program, script or Python module that a command line runs.
fn program_of(arguments: &[String]) -> &str {
    let mut words = arguments.iter().map(String::as_str);
    let Some(first) = words.next() else { return "" };
    let mut program = without_version(file_name(first));
    let is_interpreter = [
        "python", "pypy", "node", "sh", "bash", "dash", "ruby", "perl",
    ];
    if is_interpreter.contains(&program) {
        while let Some(word) = words.next() {
            match word {
                "-c" => break,
                "-m" => {
                    program = words.next().unwrap_or_default();
                    break;
                }
                "-W" | "-X" => drop(words.next()),
                option if option.starts_with('-') => {}
                script => {
                    program = file_name(script);
                    break;
                }
            }
        }
    }
    let program = program
        .strip_suffix(".py")
        .or_else(|| program.strip_suffix(".js"))
        .unwrap_or(program);
    without_version(program)
}

/// Returns whether a command installs packages.
fn is_installer(arguments: &[String]) -> bool {
    let program = program_of(arguments);
    let runs = arguments
        .iter()
        .any(|word| RUNNING.contains(&word.as_str()));
    INSTALLERS.contains(&program) && !runs
}

/// Returns the part of a path after the last slash.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns `pip` for `pip3.12`.
fn without_version(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.')
}

/// Returns a command line for the log: without the directories of programs, passwords in addresses
/// and control characters.
fn shown(arguments: &[String]) -> String {
    let mut words: Vec<String> = Vec::new();
    let program = program_of(arguments);
    let is_program = |word: &String| !program.is_empty() && file_name(word).starts_with(program);
    let skipped = arguments.iter().position(is_program).unwrap_or(0);
    for (at, word) in arguments.iter().skip(skipped).enumerate() {
        let word = match at {
            0 => file_name(word),
            _ => word,
        };
        words.push(without_password(word));
    }
    let text = words.join(" ");
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut clean: String = clean.take(LONGEST_COMMAND + 1).collect();
    if clean.chars().count() > LONGEST_COMMAND {
        clean.pop();
        clean.push('…');
    }
    clean
}

/// Removes the user and the password from an address.
fn without_password(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let host = rest.split('/').next().unwrap_or(rest);
    match host.rfind('@') {
        Some(at) => format!("{scheme}://{}", rest.get(at + 1..).unwrap_or_default()),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn installers_are_recognised_by_program_script_and_module() {
        for (command, program) in [
            ("/env/bin/python3.12 /env/bin/pip install x", "pip"),
            ("/env/bin/python -m pip install x", "pip"),
            ("python3 -I -m pip install x", "pip"),
            ("/usr/bin/pip3.12 install x", "pip"),
            ("uv pip install x", "uv"),
            (
                "node /usr/lib/node_modules/npm/bin/npm-cli.js install",
                "npm-cli",
            ),
            (
                "/opt/conda/bin/python3.11 /opt/conda/bin/conda install x",
                "conda",
            ),
            ("micromamba install x", "micromamba"),
        ] {
            assert_eq!(program_of(&words(command)), program, "{command}");
            assert!(is_installer(&words(command)), "{command}");
        }
        for command in [
            "python script.py",
            "cp -r a b",
            "python",
            "bash -c pip",
            "",
            "uv run x",
        ] {
            assert!(!is_installer(&words(command)), "{command}");
        }
    }

    #[test]
    fn commands_are_shown_without_paths_and_passwords() {
        let shows = |command: &str, expected: &str| assert_eq!(shown(&words(command)), expected);
        shows(
            "/env/bin/python /env/bin/pip install six",
            "pip install six",
        );
        shows("/env/bin/python -m pip install six", "pip install six");
        shows(
            "uv pip install --index-url https://me:secret@host/simple x",
            "uv pip install --index-url https://host/simple x",
        );
        shows("cp\u{1b}[2J a", "cp?[2J a");
        assert!(shown(&words(&"x".repeat(500))).chars().count() <= LONGEST_COMMAND + 1);
    }
}
