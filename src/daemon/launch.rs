//! Starts daemons, and waits for their reports.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::client::Watch;
use super::failure::{Failure, Kind};
use super::log;
use super::prefix::prepare_prefix;
use super::protocol::{StartReport, Started};
use super::target::Target;
use crate::fault;
use crate::sys::mount::Rights;
use crate::sys::{process, regular};

/// The time after which the user is told that the daemon is still starting.
const SLOW_START: Duration = Duration::from_secs(3);

/// The number of bytes at the end of a log that are searched for messages.
const LOG_TAIL: u64 = 4096;

/// Starts a daemon with these options of its command line and this standard input.
pub(super) fn start_daemon(
    target: &Target,
    options: &[&OsStr],
    input: Stdio,
    rights: Rights,
    slow: &dyn Fn(),
) -> Result<StartReport, Failure> {
    prepare_prefix(&target.prefix)?;
    if fault::is_enabled("start.fails") {
        return Err(Failure::new(Kind::Daemon, "injected fault: start.fails"));
    }
    let (log, log_warning) = log::open_or_discard(&target.layout)
        .map_err(|error| Failure::io("cannot open /dev/null", &error))?;
    let log_start = log.metadata().map_or(0, |meta| meta.len());
    let mut words = vec![
        OsStr::new("__daemon"),
        OsStr::new("--home"),
        target.home.as_os_str(),
    ];
    if rights == Rights::Root {
        words.push(OsStr::new("--fakeroot"));
    }
    words.extend(options);
    words.extend([OsStr::new("--"), OsStr::new(&target.name)]);
    let mut report = match launch(&words, input, Stdio::from(log), slow)? {
        Launched::Ready(report) => report,
        Launched::Ended(status) => return Err(ended_early(target, status, log_start)),
    };
    report.warnings.extend(log_warning);
    Ok(report)
}

/// The outcome of starting a daemon.
#[derive(Debug)]
pub(super) enum Launched {
    /// It is ready.
    Ready(StartReport),
    /// It ended without reporting a failure.
    Ended(ExitStatus),
}

/// Executes this program as a daemon, and waits until it reports that it is ready or has failed.
/// Calls `slow` once if that takes long. Standard input may be a lock, which the daemon keeps.
///
/// When this returns without a failure of the system, this process has no more threads than before.
pub(super) fn launch(
    words: &[&OsStr],
    input: Stdio,
    log: Stdio,
    slow: &dyn Fn(),
) -> Result<Launched, Failure> {
    let mut child = Command::new(process::own_program())
        .args(words)
        // The daemon must not load libraries of an environment.
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("LD_PRELOAD")
        // Or it would count as a process that uses the environment.
        .env_remove("ENVFS_PREFIX")
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| Failure::io("cannot start the daemon", &error))?;
    let line = match child.stdout.take() {
        Some(stdout) => read_report(stdout, child.id(), slow)?,
        None => String::new(),
    };
    let report = serde_json::from_str(&line);
    let is_ready = matches!(report, Ok(Started::Ready { .. }));
    // The child only waits for the daemon, which is its own child. It is killed now: a program that
    // this process executes later must not have children that it does not know. If the daemon has
    // failed, it is about to end, and the child after it; waiting for the child ensures that the
    // daemon's locks are released.
    if is_ready && let Err(error) = child.kill() {
        tracing::debug!(%error, "cannot end the parent of the daemon");
    }
    let status = child
        .wait()
        .map_err(|error| Failure::io("cannot wait for the daemon", &error))?;
    match report {
        Ok(Started::Ready { lost, warnings, .. }) => {
            Ok(Launched::Ready(StartReport { lost, warnings }))
        }
        Ok(Started::Error(failure)) => Err(failure),
        Err(_) => Ok(Launched::Ended(status)),
    }
}

/// Waits for the line that a daemon writes after its start. The child `id` is the parent of the
/// daemon.
fn read_report(stdout: ChildStdout, id: u32, slow: &dyn Fn()) -> Result<String, Failure> {
    let (sender, received) = mpsc::channel();
    let reader = std::thread::Builder::new()
        .name(String::from("report"))
        .spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // Fails if the caller has given up.
            drop(sender.send(read.map(|_| line)));
        })
        .map_err(|error| Failure::io("cannot start a thread", &error))?;
    let started = Instant::now();
    let mut watch = Watch::new(None);
    let mut was_slow = false;
    loop {
        match received.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                // The caller may need to be the only thread.
                if reader.join().is_err() {
                    tracing::error!("the thread that read the report panicked");
                }
                return line
                    .map_err(|error| Failure::io("cannot read the daemon's report", &error));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(String::new()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                watch.pid = watch.pid.or_else(|| process::first_child(id));
                watch.check()?;
                if started.elapsed() > SLOW_START && !std::mem::replace(&mut was_slow, true) {
                    slow();
                }
            }
        }
    }
}

fn ended_early(target: &Target, status: ExitStatus, log_start: u64) -> Failure {
    let message = format!(
        "the daemon of {} ended before it was ready ({status})",
        target.name
    );
    let mut failure = Failure::new(Kind::Daemon, message);
    for line in last_lines(&target.log(), log_start) {
        failure = failure.detail(line);
    }
    failure.hint(format!("see its log: {}", target.log().display()))
}

/// Returns the last lines that a daemon wrote to its log after position `start`.
fn last_lines(path: &Path, start: u64) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = regular::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL))))?;
        let mut text = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(5))
        .map(|line| (*line).to_owned())
        .collect()
}
