//! Sources and targets that are read or written once, from the beginning to the end: standard input
//! and output (`-`), FIFOs, and devices.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::context::Context;
use super::error::{CommandError, ExitCode, Result};
use crate::commit::{CommitError, Incoming};
use crate::shell::render::word;
use crate::sys::text::quoted;

/// Stands for standard input and output.
const DASH: &str = "-";
const STDOUT: &str = "standard output";

/// Returns whether a path is `-`, or that of a FIFO or a character device, as `/dev/stdout`.
pub(super) fn is_stream(path: &Path) -> bool {
    let is_special = |meta: fs::Metadata| {
        let kind = meta.file_type();
        kind.is_fifo() || kind.is_char_device()
    };
    path == Path::new(DASH) || fs::metadata(path).is_ok_and(is_special)
}

/// A target that is written to as a stream.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) file: File,
    /// Its path, or what it is.
    pub(super) shown: PathBuf,
}

impl Target {
    /// Opens a target. Fails if it is a terminal; `hint` then says what to do instead.
    pub(super) fn open(path: &Path, hint: &str) -> Result<Target> {
        let (file, shown) = match path == Path::new(DASH) {
            true => {
                let copy = io::stdout().as_fd().try_clone_to_owned();
                (copy.map(File::from), PathBuf::from(STDOUT))
            }
            false => (File::options().write(true).open(path), path.to_owned()),
        };
        let file = file.map_err(|error| {
            CommandError::of_named(format!("cannot write {}", quoted(path)), &error)
        })?;
        let target = Target { file, shown };
        if target.file.is_terminal() {
            let message = format!("{} is a terminal", target.shown());
            return Err(CommandError::usage(message).hint(hint));
        }
        Ok(target)
    }

    /// Returns its name for messages.
    pub(super) fn shown(&self) -> String {
        match self.shown == Path::new(STDOUT) {
            true => STDOUT.to_owned(),
            false => quoted(&self.shown),
        }
    }
}

/// Converts an error of writing to a stream. It is no failure if its reader wants no more.
pub(super) fn failed(error: CommitError) -> CommandError {
    match error {
        CommitError::Io { error, .. } if error.kind() == io::ErrorKind::BrokenPipe => {
            CommandError::silent(ExitCode::BrokenPipe)
        }
        error => error.into(),
    }
}

/// A source that was received from a stream.
#[derive(Debug)]
pub(super) struct Received {
    /// It has no name, so nothing is left of it, however the process ends.
    _file: File,
    path: PathBuf,
    /// The name of the stream in messages.
    shown: String,
    /// The same in commands.
    word: String,
}

impl Received {
    /// Receives a stream. `check` gets the name of the environment, if the stream is the archive of
    /// a history, and can refuse the stream before the rest is read.
    pub(super) fn of(
        context: &Context,
        path: &Path,
        offset: Option<u64>,
        check: impl FnOnce(Option<&str>) -> Result<()>,
    ) -> Result<Received> {
        let is_dash = path == Path::new(DASH);
        let shown = match is_dash {
            true => "standard input".to_owned(),
            false => quoted(path),
        };
        let opened = match is_dash {
            true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            false => File::open(path),
        };
        let from = opened
            .map_err(|error| CommandError::of_named(format!("cannot read {shown}"), &error))?;
        if from.is_terminal() {
            return Err(CommandError::usage(format!("{shown} is a terminal"))
                .hint("envfs import - NAME <FILE")
                .hint("ssh HOST envfs export NAME - | envfs import - NAME"));
        }
        let named = PathBuf::from(&shown);
        // Ctrl-C ends the process, which leaves nothing.
        let bar = context.output.bar();
        let incoming = Incoming::begin(from, &named, offset)?;
        check(incoming.history())?;
        let file = context.store()?.unnamed_file()?;
        incoming.save(&file, &named, &bar)?;
        bar.finish();
        Ok(Received {
            path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            _file: file,
            shown,
            word: word(path),
        })
    }

    /// Returns a path by which it can be opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its name for messages.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Names the stream in an error, rather than the path of the file.
    pub(super) fn name(&self, mut error: CommandError) -> CommandError {
        let path = self.path.to_string_lossy();
        let lines = std::iter::once(&mut error.message).chain(&mut error.details);
        for line in lines {
            *line = line.replace(&*path, &self.shown);
        }
        for hint in &mut error.hints {
            *hint = hint.replace(&*path, &self.word);
        }
        error
    }
}
