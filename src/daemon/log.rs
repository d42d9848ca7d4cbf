//! The log of a daemon, which does not grow without end: past [`LIMIT`] a new one is begun, and
//! the one before is kept until then.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::environment::Layout;
use crate::sys::{daemonize, process, regular};

/// Size in bytes from which on a log is not continued.
pub const LIMIT: u64 = 1 << 20;

/// Whose log the standard error of this process is, if it is a daemon's.
static OWN: OnceLock<Layout> = OnceLock::new();

/// Opens the log of an environment to continue it, or a new one where it is longer than `limit`.
pub fn open(layout: &Layout, limit: u64) -> io::Result<File> {
    let path = layout.daemon_log();
    let append = || {
        let mut options = File::options();
        regular::open_with(&path, options.create(true).append(true).mode(0o600))
    };
    let file = append()?;
    if file.metadata()?.len() <= limit {
        return Ok(file);
    }
    match fs::rename(&path, layout.old_daemon_log()) {
        Ok(()) => append(),
        // A long log is better than none.
        Err(_) => Ok(file),
    }
}

/// Opens the log of a daemon that is about to start, or `/dev/null` where that fails: a mount is worth
/// more than its log. Returns why with it.
pub fn open_or_discard(layout: &Layout) -> io::Result<(File, Option<String>)> {
    match open(layout, LIMIT) {
        Ok(file) => Ok((file, None)),
        Err(error) => {
            let path = layout.daemon_log();
            let why = format!(
                "the log {} cannot be written ({}): the daemon of this mount logs nothing",
                path.display(),
                process::error_text(&error)
            );
            Ok((File::options().append(true).open("/dev/null")?, Some(why)))
        }
    }
}

/// From now on what this process logs goes to a new file whenever the log has become too long.
/// Its standard error is the log of this environment.
pub fn bound_own(layout: &Layout) {
    // A second call would be a mistake, and changes nothing.
    drop(OWN.set(layout.clone()));
}

/// Standard error, as the place where a daemon logs.
#[derive(Debug, Default, Clone, Copy)]
pub struct Writer;

impl Write for Writer {
    /// Never fails: a full disk must end neither a daemon nor a command, and there is no other place to
    /// tell of a log that cannot be written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match io::stderr().write(bytes) {
            Ok(0) | Err(_) => bytes.len(),
            Ok(count) => count,
        };
        if let Some(layout) = OWN.get() {
            bound(layout);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins a new log if the one that is written is too long.
fn bound(layout: &Layout) {
    static TURN: Mutex<()> = Mutex::new(());
    let is_long = || {
        nix::sys::stat::fstat(io::stderr().as_fd())
            .is_ok_and(|stat| u64::try_from(stat.st_size).is_ok_and(|size| size > LIMIT))
    };
    if !is_long() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if is_long()
        && let Ok(file) = open(layout, LIMIT)
    {
        // If this fails the log goes on where it is; there is no better place to say so.
        drop(daemonize::replace_stderr(&file));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_lies_in_the_place_of_a_log_is_neither_waited_for_nor_written() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let path = layout.daemon_log();
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        let discarded = |what: &str| {
            assert!(open(&layout, 12).is_err(), "{what}");
            let (mut file, why) = open_or_discard(&layout).unwrap();
            assert!(why.unwrap().contains("daemon.log"), "{what}");
            file.write_all(b"line\n").unwrap();
        };
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        discarded("a FIFO");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        discarded("a link");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        discarded("a directory");
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn a_long_log_is_begun_anew_and_the_one_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap_or_default();
        for (text, log, old) in [
            ("first\n", "first\n", ""),
            ("second\n", "first\nsecond\n", ""),
            ("third\n", "third\n", "first\nsecond\n"),
            ("fourth\n", "third\nfourth\n", "first\nsecond\n"),
            ("fifth\n", "fifth\n", "third\nfourth\n"),
        ] {
            open(&layout, 12)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            assert_eq!(read(layout.daemon_log()), log, "{text}");
            assert_eq!(read(layout.old_daemon_log()), old, "{text}");
        }
    }
}
