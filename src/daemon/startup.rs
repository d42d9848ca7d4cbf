//! The start of a daemon, and its report to the command that started it.

use std::fs::File;
use std::io::Write;

use super::failure::{Failure, Kind};
use super::protocol::Started;
use crate::sys::daemonize;
use crate::sys::signals::TerminationSignals;

/// The state of a daemon after its startup.
pub(super) struct Startup<T> {
    /// The signals that end the daemon.
    pub(super) signals: TerminationSignals,
    /// Warnings for the user.
    pub(super) warnings: Vec<String>,
    /// The opened environment or images.
    pub(super) opened: T,
}

/// Becomes a daemon, then calls `open`. Sends a failure to the command that waits.
pub(super) fn start_up<T>(
    open: impl FnOnce() -> Result<T, Failure>,
) -> Result<Startup<T>, Failure> {
    daemonize::limit_allocator();
    // Blocked before any thread exists, so that only the thread that waits for them receives them.
    let started = TerminationSignals::block()
        .and_then(|signals| Ok((signals, daemonize::become_daemon()?)))
        .map_err(|error| Failure::io("cannot become a daemon", &error))
        .and_then(|(signals, warnings)| {
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            Ok(Startup {
                signals,
                warnings,
                opened: open()?,
            })
        });
    if let Err(failure) = &started {
        report_start(&Started::Error(failure.clone()))?;
    }
    started
}

/// Writes the outcome of the start to standard output, then replaces standard output by the log.
/// That closes the pipe to the command.
pub(super) fn report_start(started: &Started) -> Result<(), Failure> {
    let io = |error| Failure::io("cannot answer the command that started the daemon", &error);
    let mut line =
        serde_json::to_vec(started).map_err(|error| Failure::of(Kind::Internal, &error))?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(&line)
        .and_then(|()| stdout.flush())
        .map_err(io)?;
    let log = File::options()
        .append(true)
        .open("/proc/self/fd/2")
        .or_else(|_| File::options().write(true).open("/dev/null"))
        .map_err(io)?;
    daemonize::replace_stdout(&log).map_err(io)?;
    daemonize::release_program();
    Ok(())
}
