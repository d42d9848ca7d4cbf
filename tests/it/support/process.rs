//! Runs commands, and waits for processes and conditions.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(150);

/// The output and exit status of a command.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The command, for messages.
    pub(crate) line: String,
    /// Its exit status; 128 plus the signal if it was killed.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    fn new(line: String, output: Output) -> Run {
        let status = output.status;
        Run {
            line,
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Run {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// Fails the test unless the command failed with this status and printed these words as errors.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> Run {
        assert_eq!(self.code, code, "{self}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {self}");
        }
        assert!(
            !self.err.contains("panicked") && !self.err.contains("RUST_BACKTRACE"),
            "{self}"
        );
        self
    }

    /// Returns the first line of the output.
    pub(crate) fn line(&self) -> &str {
        self.out.lines().next().unwrap_or("")
    }

    /// Parses the output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ended with {}\n--- output\n{}\n--- errors\n{}",
            self.line, self.code, self.out, self.err
        )
    }
}

/// Runs a command and waits for it.
#[track_caller]
pub(crate) fn run(command: Command) -> Run {
    run_with_input(command, b"")
}

/// Like [`run`], with a limit in seconds for commands that take long.
#[track_caller]
pub(crate) fn run_for(mut command: Command, seconds: u64) -> Run {
    let line = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(&mut command, &line);
    finish_within(child, line, Duration::from_secs(seconds))
}

/// Starts a command. A child that another thread has just forked may still have the program open
/// for writing that this thread has copied, so a busy program is tried again.
#[track_caller]
fn spawn(command: &mut Command, line: &str) -> Child {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match command.spawn() {
            Ok(child) => return child,
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{line}: {error}"),
        }
    }
}

/// Like [`run`], with standard input.
#[track_caller]
pub(crate) fn run_with_input(mut command: Command, input: &[u8]) -> Run {
    let line = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = spawn(&mut command, &line);
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).unwrap();
    }
    finish(child, line)
}

/// Waits for a command. One that hangs is killed and fails the test.
#[track_caller]
pub(crate) fn finish(child: Child, line: String) -> Run {
    finish_within(child, line, PATIENCE)
}

#[track_caller]
fn finish_within(child: Child, line: String, patience: Duration) -> Run {
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(patience) {
        Ok(output) => Run::new(line, output.unwrap()),
        Err(_) => {
            kill(pid, Signal::SIGKILL).ok();
            panic!("hangs: {line}");
        }
    }
}

/// Waits until a condition is true, for at most 30 s.
#[track_caller]
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns whether a process is running; a zombie is not.
pub(crate) fn is_alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}
