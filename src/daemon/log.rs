//! The log of a daemon. It is rotated when it exceeds [`LIMIT`]; the previous one is kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::environment::Layout;
use crate::sys::{daemonize, process, regular};

/// The size in bytes above which a log is rotated.
pub(crate) const LIMIT: u64 = 1 << 20;

/// The environment whose log is the standard error of this process, if it is a daemon.
static OWN: OnceLock<Layout> = OnceLock::new();

/// Opens the log of an environment for appending. Rotates it first if it is longer than `limit`.
pub(crate) fn open(layout: &Layout, limit: u64) -> io::Result<File> {
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

/// Opens the log of a daemon to be started, or `/dev/null` if that fails, as a mount must not fail
/// for its log. Returns a warning in that case.
pub(crate) fn open_or_discard(layout: &Layout) -> io::Result<(File, Option<String>)> {
    match open(layout, LIMIT) {
        Ok(file) => Ok((file, None)),
        Err(error) => {
            let path = layout.daemon_log();
            let warning = format!(
                "cannot write the log {} ({}): the daemon of this mount logs nothing",
                path.display(),
                process::error_text(&error)
            );
            let null = File::options().append(true).open("/dev/null")?;
            Ok((null, Some(warning)))
        }
    }
}

/// Enables rotation of this process's log. Its standard error must be the log of this environment.
pub(crate) fn enable_rotation(layout: &Layout) {
    // A second call has no effect.
    drop(OWN.set(layout.clone()));
}

/// Writes to standard error, where daemons log.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Writer;

impl Write for Writer {
    /// Never fails: a full disk must not end a daemon or a command, and there is nowhere else to
    /// report that the log cannot be written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match io::stderr().write(bytes) {
            Ok(0) | Err(_) => bytes.len(),
            Ok(count) => count,
        };
        if let Some(layout) = OWN.get() {
            rotate_if_long(layout);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Rotates the log if it is too long.
fn rotate_if_long(layout: &Layout) {
    static ROTATION: Mutex<()> = Mutex::new(());
    let is_long = || {
        nix::sys::stat::fstat(io::stderr().as_fd())
            .is_ok_and(|stat| u64::try_from(stat.st_size).is_ok_and(|size| size > LIMIT))
    };
    if !is_long() {
        return;
    }
    let _rotation = ROTATION.lock().unwrap_or_else(PoisonError::into_inner);
    if is_long()
        && let Ok(file) = open(layout, LIMIT)
    {
        // If this fails, logging continues in the old file. There is nowhere to report it.
        drop(daemonize::replace_stderr(&file));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_log_that_is_not_a_regular_file_is_not_opened() {
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
    fn a_long_log_is_rotated_and_the_previous_one_is_kept() {
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
