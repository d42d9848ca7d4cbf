//! `envfs doctor`

mod tools;

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, ExitCode, Result};
use crate::cli::output::{Tone, count, size};
use crate::cli::relocation;
use crate::daemon::client;
use crate::daemon::runtime::RuntimeDir;
use crate::daemon::session;
use crate::environment::SessionNotes;
use crate::relocate::{Foreign, ForeignKind};
use crate::shell::render::word;
use crate::sys::medium::network_file_system;
use crate::sys::mount::{self, MountError};
use crate::sys::mountinfo::{Health, MountEntry};
use crate::sys::text::quoted;
use crate::sys::{mountinfo, process};
use tools::Content;

/// The free space below which a warning is printed.
const LITTLE_SPACE: u64 = 1 << 30;
/// The number of free inodes below which a warning is printed.
const FEW_INODES: u64 = 10_000;

/// Check that this system can run envfs.
///
/// Prints what to do about each problem. Exits with status 1 if there is one. Changes nothing,
/// except for a trial mount in a temporary directory.
///
/// With NAME, searches the files of that environment for paths of other environments instead:
/// scripts that other programs run, placeholders, and the path where it was made. Also says how
/// conda, Jupyter and development environments find it.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs doctor\n  envfs doctor science")]
pub struct Args {
    /// Environment whose files are searched.
    name: Option<String>,
    /// Another path to search for. Can be repeated.
    #[arg(long, value_name = "PATH", requires = "name")]
    prefix: Vec<PathBuf>,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Works now, but may fail later or in some cases.
    Warning,
    /// Does not work.
    Problem,
    /// For information.
    Info,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    message: String,
    hints: Vec<String>,
}

impl Finding {
    fn new(check: &'static str, level: Level, message: impl Into<String>) -> Finding {
        Finding {
            check,
            level,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Finding {
        self.hints.push(hint.into());
        self
    }

    fn of_mount_error(check: &'static str, level: Level, error: &MountError) -> Finding {
        Finding {
            hints: error.hints(),
            ..Finding::new(check, level, error.to_string())
        }
    }
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        if let Some(name) = &self.name {
            return self.search(context, name);
        }
        let mut findings = vec![device(), helper(), trial(), namespaces()];
        findings.push(runtime());
        match context.store() {
            Ok(store) => {
                let root = store.layout().root().to_path_buf();
                findings.extend(store_location(&root));
                findings.push(apparmor(&store.layout().prefixes()));
                match store.garbage() {
                    Ok(garbage) if garbage.is_empty() => {}
                    Ok(garbage) => findings.push(
                        Finding::new(
                            "remains",
                            Level::Warning,
                            format!(
                                "remains of interrupted commands in the store: {}",
                                garbage.len()
                            ),
                        )
                        .hint("envfs gc removes them"),
                    ),
                    Err(error) => {
                        findings.push(Finding::new("store", Level::Problem, error.to_string()));
                    }
                }
                if let Err(error) = store.config() {
                    findings.push(
                        Finding::new("configuration", Level::Problem, error.to_string())
                            .hint("correct the file, or remove it"),
                    );
                }
            }
            Err(error) => {
                findings.push(Finding {
                    hints: error.hints,
                    ..Finding::new("store", Level::Problem, error.message)
                });
            }
        }
        findings.extend(
            context
                .store()
                .ok()
                .and_then(|store| tools::of_store(&store)),
        );
        findings.extend(stale_mounts());
        findings.extend(ended_sessions(context));
        let is_well = findings
            .iter()
            .all(|finding| finding.level != Level::Problem);
        if self.json {
            context.output.json(&findings)?;
        } else {
            show(context, &findings)?;
        }
        if is_well {
            Ok(())
        } else {
            Err(CommandError::silent(ExitCode::Failure))
        }
    }
}

impl Args {
    /// Lists references to other prefixes in an environment, and how other tools find it.
    fn search(&self, context: &Context, name: &str) -> Result<()> {
        let env = context.environment(Some(name))?;
        let progress = context.output.progress();
        let (references, content) = relocation::in_tree(&env, |tree| {
            let references = relocation::foreign(&env, tree, &self.prefix, &progress)?;
            Ok((references, Content::of(tree)))
        })?;
        progress.finish();
        let tools = tools::of_environment(&env, &content);
        if self.json {
            return context.output.json(&Searched { references, tools });
        }
        let of_reference = |one| reference(&env, one);
        let mut findings: Vec<Finding> = references.iter().map(of_reference).collect();
        if findings.is_empty() {
            let message = format!("all paths lead to {}", quoted(&env.target.prefix));
            findings.push(Finding::new("prefix", Level::Ok, message));
        }
        findings.extend(tools);
        show(context, &findings)
    }
}

/// What was found in one environment.
#[derive(Debug, Serialize)]
struct Searched {
    /// Files that refer to other prefixes.
    references: Vec<Foreign>,
    /// How other tools find the environment.
    tools: Vec<Finding>,
}

/// Describes files that refer to another prefix.
fn reference(env: &Env, found: &Foreign) -> Finding {
    let files = count(found.paths.len() as u64, "file");
    let prefix = quoted(relocation::path_of(&found.prefix));
    let (check, level, message) = match found.kind {
        ForeignKind::Interpreter => {
            let message = format!("{files} in bin run programs in {prefix}");
            ("scripts", Level::Warning, message)
        }
        ForeignKind::Placeholder => {
            let message = format!("{files} contain a placeholder of conda");
            ("placeholders", Level::Warning, message)
        }
        ForeignKind::OldPrefix => {
            let message = format!("{files} contain {prefix}");
            ("prefix", Level::Warning, message)
        }
        ForeignKind::Link => {
            let links = count(found.paths.len() as u64, "symbolic link");
            ("links", Level::Info, format!("{links} lead to {prefix}"))
        }
    };
    let mut finding = Finding::new(check, level, message);
    for path in found.paths.iter().take(5) {
        finding = finding.hint(quoted(relocation::path_of(&path.0)));
    }
    if found.paths.len() > 5 {
        finding = finding.hint(format!(
            "and {} more; --json lists all",
            found.paths.len() - 5
        ));
    }
    match level {
        Level::Warning => finding.hint(format!(
            "envfs relocate {} --from {} rewrites them",
            env.name(),
            word(Path::new(relocation::path_of(&found.prefix)))
        )),
        _ => finding,
    }
}

fn show(context: &Context, findings: &[Finding]) -> Result<()> {
    let out = &context.output;
    for finding in findings {
        let (word, tone) = match finding.level {
            Level::Ok => ("ok     ", Tone::Good),
            Level::Info => ("info   ", Tone::Dim),
            Level::Warning => ("warning", Tone::Notice),
            Level::Problem => ("problem", Tone::Bad),
        };
        out.line(format!(
            "{}  {}: {}",
            out.tone(word, tone),
            finding.check,
            finding.message
        ))?;
        for hint in &finding.hints {
            out.line(format!("           → {hint}"))?;
        }
    }
    Ok(())
}

fn device() -> Finding {
    match mount::device_is_usable() {
        Ok(()) => Finding::new(
            "device",
            Level::Ok,
            format!("{} can be opened", mount::DEVICE),
        ),
        Err(error) => Finding::of_mount_error("device", Level::Problem, &error),
    }
}

fn helper() -> Finding {
    let is_root = process::user_id() == 0;
    let level = if is_root { Level::Info } else { Level::Problem };
    match mount::helper() {
        Err(error) => Finding::of_mount_error("fusermount3", level, &error),
        Ok(path) if mount::helper_is_setuid(&path) => Finding::new(
            "fusermount3",
            Level::Ok,
            format!("{} is setuid root", quoted(&path)),
        ),
        Ok(helper) => Finding::of_mount_error(
            "fusermount3",
            level,
            &MountError::HelperNotSetuid { helper },
        ),
    }
}

/// Mounts and unmounts a file system in a temporary directory.
fn trial() -> Finding {
    match mount::test_mount() {
        Ok(()) => Finding::new("trial mount", Level::Ok, "mounting works"),
        Err(error) => Finding::of_mount_error("trial mount", Level::Problem, &error),
    }
}

/// Mounts a file system in namespaces of its own.
fn namespaces() -> Finding {
    let check = "private sessions";
    match mount::test_private_mount() {
        Ok(()) => Finding::new(
            check,
            Level::Ok,
            "work: envfs run --private needs no fusermount3",
        ),
        Err(error) => Finding::of_mount_error(check, Level::Info, &error),
    }
}

fn apparmor(prefixes: &Path) -> Finding {
    let check = "AppArmor";
    if !mount::apparmor_confines_helper() {
        return Finding::new(check, Level::Ok, "does not restrict fusermount3");
    }
    if mount::apparmor_allows(prefixes) {
        return Finding::new(
            check,
            Level::Ok,
            format!("restricts fusermount3, but allows {}", quoted(prefixes)),
        );
    }
    Finding::new(
        check,
        Level::Warning,
        format!(
            "its profile for fusermount3 may refuse mounts at {}",
            quoted(prefixes)
        ),
    )
    .hint("keep environments below $HOME (unset ENVFS_HOME, or envfs import --prefix DIR)")
    .hint(format!(
        "or, as root, add to /etc/apparmor.d/local/fusermount3: mount fstype=@{{fuse_types}} \
         options=(nosuid,nodev) options in (ro,rw) -> {}/**/,",
        quoted(prefixes)
    ))
}

fn runtime() -> Finding {
    let dir = RuntimeDir::open();
    Finding::new("sockets", Level::Ok, format!("in {dir}"))
}

/// Returns the path itself or the nearest directory above it that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
        .to_path_buf()
}

/// Checks the file system of the store.
fn store_location(root: &Path) -> Vec<Finding> {
    let dir = existing(root);
    let shown = quoted(root);
    let mut findings = Vec::new();
    match nix::unistd::access(&dir, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => findings.push(Finding::new("store", Level::Ok, shown.to_string())),
        Err(error) => findings.push(
            Finding::new(
                "store",
                Level::Problem,
                format!("{shown}: {}", error.desc()),
            )
            .hint("set ENVFS_HOME to a directory that you can write to"),
        ),
    }
    match nix::sys::statvfs::statvfs(&dir) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let message = format!("{} free for {shown}", size(free));
            findings.push(if free < LITTLE_SPACE {
                Finding::new("disk", Level::Warning, message)
                    .hint("envfs gc removes old images; a commit needs space for a whole image")
            } else {
                Finding::new("disk", Level::Ok, message)
            });
            // File systems without a fixed number of inodes report 0.
            if stat.files() > 0 {
                let free = stat.files_available();
                let message = format!("{free} inodes free for {shown}");
                findings.push(if free < FEW_INODES {
                    Finding::new("inodes", Level::Warning, message)
                        .hint("envfs commit packs changed files into the image")
                } else {
                    Finding::new("inodes", Level::Ok, message)
                });
            }
        }
        Err(error) => findings.push(Finding::new(
            "disk",
            Level::Warning,
            format!(
                "cannot determine the free space of {}: {}",
                quoted(&dir),
                error.desc()
            ),
        )),
    }
    if let Ok(Some(kind)) = network_file_system(&dir) {
        findings.push(Finding::new(
            "network",
            Level::Info,
            format!("the store is on {kind}: safe; one host at a time can use an environment"),
        ));
    }
    findings
}

/// Returns the finding for a mount whose daemon does not respond.
fn unresponsive(mount: &MountEntry) -> Finding {
    let path = quoted(&mount.mount_point);
    let pid = mount.environment_id().and_then(|id| {
        let socket = RuntimeDir::open().socket(id)?;
        client::process_at(&socket)
    });
    let failure = client::unresponsive(pid, "does not respond");
    let mut finding = Finding::new(
        "mounts",
        Level::Problem,
        format!("{path}: {}", failure.message),
    );
    finding.hints = failure.hints;
    finding.hint(format!("or detach the mount: fusermount3 -uz {path}"))
}

fn stale_mounts() -> Vec<Finding> {
    let mounts = match mountinfo::read() {
        Ok(mounts) => mounts,
        Err(error) => {
            return vec![Finding::new(
                "mounts",
                Level::Warning,
                format!("cannot read the mount table: {error}"),
            )];
        }
    };
    // Mounts of other users are not accessible.
    let user = process::user_id();
    let ours: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.environment_id().is_some() && mount.user_id == Some(user))
        .collect();
    let mut findings: Vec<Finding> = ours
        .iter()
        .filter_map(|mount| {
            let path = quoted(&mount.mount_point);
            match mount.health() {
                Health::Healthy => None,
                Health::Dead => Some(
                    Finding::new(
                        "mounts",
                        Level::Warning,
                        format!("the daemon of {path} was killed"),
                    )
                    .hint("the next activate, mount or run repairs it; no data is lost")
                    .hint(format!("or detach it: fusermount3 -uz {path}")),
                ),
                Health::Unresponsive => Some(unresponsive(mount)),
            }
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::new(
            "mounts",
            Level::Ok,
            format!("{} mounted, all working", ours.len()),
        ));
    }
    findings
}

/// Finds sessions whose daemon was killed: their mounts, and what they have left in memory, on this
/// disk and in the homes of environments.
fn ended_sessions(context: &Context) -> Vec<Finding> {
    let warning = |message: String| Finding::new("sessions", Level::Warning, message);
    let mut findings = Vec::new();
    for dead in session::mounts().unwrap_or_default() {
        if dead.entry.user_id == Some(process::user_id()) && dead.entry.health() == Health::Dead {
            let path = quoted(&dead.entry.mount_point);
            let message = format!("the daemon of {} at {path} was killed", dead.describe());
            findings.push(warning(message).hint(format!("detach it: envfs unmount {path}")));
        }
    }
    let mut left = session::noted_here(&RuntimeDir::open());
    if let Ok(store) = context.store() {
        for name in store.list().unwrap_or_default() {
            let home = store.open(&name).map(|env| env.layout().sessions());
            let notes = home.map(|dir| SessionNotes::new(dir).read().unwrap_or_default());
            left.extend(notes.unwrap_or_default());
        }
    }
    left.retain(|noted| !noted.is_live);
    if !left.is_empty() {
        let notes = count(left.len() as u64, "note");
        let message = format!("{notes} of sessions that have ended without removing them");
        findings.push(
            warning(message).hint(
                "envfs gc removes them, and the changes of ephemeral sessions that were killed",
            ),
        );
    }
    findings
}
