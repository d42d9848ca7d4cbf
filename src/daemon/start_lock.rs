//! Waiting for another command that starts or stops the same daemon, but not for ever: one that is stopped
//! keeps its lock.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use fs2::FileExt;

use super::failure::{Failure, Kind};
use crate::sys::process;

/// How long another command may take. The opening of a large environment after an unclean end takes a while.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Locks a file, and notes in it who has the lock. `path` names it in messages.
pub(super) fn wait(file: &File, path: &Path, patience: Duration) -> Result<(), Failure> {
    let failed = |error| Failure::io(format!("cannot lock {}", path.display()), &error);
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        match file.try_lock_exclusive() {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
        if Instant::now() > deadline {
            return Err(held(path, patience));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let noted = file
        .set_len(0)
        .and_then(|()| (&mut &*file).write_all(format!("{}\n", std::process::id()).as_bytes()));
    if let Err(error) = noted {
        tracing::debug!(%error, "the holder of a start lock is not noted");
    }
    Ok(())
}

fn held(path: &Path, patience: Duration) -> Failure {
    let holder = fs::read_to_string(path).ok();
    let pid: Option<u32> = holder.and_then(|text| text.trim().parse().ok());
    let who = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let failure = Failure::new(
        Kind::Busy,
        format!(
            "another command{who} has been starting or stopping the daemon of this environment for more \
             than {} s",
            patience.as_secs()
        ),
    );
    match pid {
        Some(pid) if process::is_stopped(pid) => failure.hint(format!(
            "it is stopped: kill -CONT {pid} lets it go on, kill -9 {pid} ends it"
        )),
        Some(pid) => failure.hint(format!("wait until it is done, or end it: kill {pid}")),
        None => failure.hint("wait until it is done, or end it"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn another_command_is_waited_for_with_an_end_and_named() {
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
