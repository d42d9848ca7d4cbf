//! The lock under which a command starts or stops a daemon. Waiting for it has a time limit,
//! because a command that was stopped keeps its lock.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use fs2::FileExt;

use super::failure::{Failure, Kind};
use crate::sys::process;

/// The time limit for another command. Opening a large environment after an unclean shutdown takes
/// long.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// Locks a file and writes the process id to it. `path` is for messages.
pub(super) fn wait(file: &File, path: &Path, timeout: Duration) -> Result<(), Failure> {
    let failed = |error| Failure::io(format!("cannot lock {}", path.display()), &error);
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        match file.try_lock_exclusive() {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
        if Instant::now() > deadline {
            return Err(held(path, timeout));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let noted = file
        .set_len(0)
        .and_then(|()| (&mut &*file).write_all(format!("{}\n", std::process::id()).as_bytes()));
    if let Err(error) = noted {
        tracing::debug!(%error, "cannot write the process id to the start lock");
    }
    Ok(())
}

fn held(path: &Path, timeout: Duration) -> Failure {
    let holder = fs::read_to_string(path).ok();
    let pid: Option<u32> = holder.and_then(|text| text.trim().parse().ok());
    let shown = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let failure = Failure::new(
        Kind::Busy,
        format!(
            "another command{shown} has been starting or stopping the daemon of this environment for \
             more than {} s",
            timeout.as_secs()
        ),
    );
    match pid {
        Some(pid) if process::is_stopped(pid) => failure.hint(format!(
            "it is stopped: kill -CONT {pid} resumes it, kill -9 {pid} ends it"
        )),
        Some(pid) => failure.hint(format!("wait until it has finished, or end it: kill {pid}")),
        None => failure.hint("wait until it has finished, or end it"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn waiting_for_another_command_has_a_time_limit_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let open = || {
            let mut options = File::options();
            options.create(true).truncate(false).write(true);
            options.open(&path).unwrap()
        };
        let (first, second) = (open(), open());
        wait(&first, &path, Duration::ZERO).unwrap();
        let failure = wait(&second, &path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(failure.kind, Kind::Busy);
        let own = std::process::id().to_string();
        assert!(failure.message.contains(&own), "{failure}");
        drop(first);
        wait(&second, &path, Duration::from_secs(20)).unwrap();
    }
}
