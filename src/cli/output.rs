//! The output of commands: results on standard output, everything else on standard error.
//!
//! Text for people cannot control their terminal or forge a line: it all passes through `shown`,
//! which escapes control characters, including newlines. Names in a text are quoted with
//! [`quoted`](crate::sys::text::quoted). Output for programs ([`Output::raw`], [`Output::exact`],
//! [`Output::fields`], [`Output::json`]) is exact.

mod format;
mod progress;

use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;

use indicatif::ProgressDrawTarget;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::error::{CommandError, ExitCode, Result};
use crate::sys::signals;
use crate::sys::text::{printable, shortened};

pub(super) use format::{changes, count, objects, size, summary, table, time, utc};
pub(super) use progress::Bar;

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// As JSON.
    Json,
}

impl Format {
    /// Returns the format that the option `--json` selects.
    pub(super) fn of(json: bool) -> Format {
        match json {
            true => Format::Json,
            false => Format::Text,
        }
    }
}

/// Which messages are printed besides results, warnings and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Notes and progress.
    Normal,
    /// None.
    Quiet,
}

/// Whether a stream is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colors {
    On,
    Off,
}

/// The destination and style of a command's output.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    colors: Colors,
    colors_err: Colors,
    verbosity: Verbosity,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
}

/// The meaning of a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Added, or in order.
    Good,
    /// Changed, or worth attention.
    Notice,
    /// Removed, or an error.
    Bad,
    /// Less important.
    Dim,
    /// Important.
    Strong,
}

impl Output {
    /// Creates the output, with colours as `choice` and the terminal determine.
    pub fn new(choice: ColorChoice, verbosity: Verbosity) -> Output {
        let wanted = |is_terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                is_terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
            }
        };
        let colors = |is_terminal: bool| match wanted(is_terminal) {
            true => Colors::On,
            false => Colors::Off,
        };
        let stdout_is_terminal = io::stdout().is_terminal();
        let stderr_is_terminal = io::stderr().is_terminal();
        Output {
            colors: colors(stdout_is_terminal),
            colors_err: colors(stderr_is_terminal),
            verbosity,
            stdout_is_terminal,
            stderr_is_terminal,
        }
    }

    /// Prints one line of the result for people.
    pub fn line(&self, text: impl AsRef<[u8]>) -> Result<()> {
        put(shown(text.as_ref(), self.colors).as_bytes(), b"\n")
    }

    /// Prints one line of a file's content: escaped on a terminal, exact elsewhere, where a program
    /// may read it as a patch.
    pub fn content(&self, text: &str) -> Result<()> {
        if self.stdout_is_terminal {
            return self.line(text);
        }
        put(text.as_bytes(), b"\n")
    }

    /// Prints one line exactly, for a command substitution (`cd "$(envfs mount x)"`).
    pub fn exact(&self, value: impl AsRef<[u8]>) -> Result<()> {
        put(value.as_ref(), b"\n")
    }

    /// Prints values exactly, each terminated by NUL, for options like `-z`.
    pub fn fields<T: AsRef<[u8]>>(&self, values: impl IntoIterator<Item = T>) -> Result<()> {
        values
            .into_iter()
            .try_for_each(|value| put(value.as_ref(), b"\0"))
    }

    /// Prints the result exactly.
    pub fn raw(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Prints the result as JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|error| {
            CommandError::new(crate::daemon::failure::Kind::Internal, error.to_string())
        })?;
        self.exact(text)
    }

    /// Prints a message to standard error, unless `--quiet` was given.
    pub fn note(&self, text: impl AsRef<str>) {
        if self.verbosity == Verbosity::Normal {
            self.print_err(text.as_ref());
        }
    }

    /// Prints a warning.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.print_err(&format!(
            "{} {}",
            self.err_tone("warning:", Tone::Notice),
            text.as_ref()
        ));
    }

    /// Prints the failure of the command.
    pub fn error(&self, error: &CommandError) {
        if error.message.is_empty() {
            return;
        }
        self.print_err(&format!(
            "{} {}",
            self.err_tone("envfs:", Tone::Bad),
            error.message
        ));
        for line in &error.details {
            self.print_err(&format!("  {line}"));
        }
        for hint in &error.hints {
            self.print_err(&format!("  {} {hint}", self.err_tone("→", Tone::Dim)));
        }
    }

    /// Returns the output with the colours of standard error, to prepare text for a note.
    pub fn of_notes(&self) -> Output {
        Output {
            colors: self.colors_err,
            ..*self
        }
    }

    /// Returns whether to draw bars in the result: for people, not for programs.
    pub fn has_bars(&self) -> bool {
        self.stdout_is_terminal
    }

    /// Colours a part of the result if colours are on.
    pub fn tone(&self, text: &str, tone: Tone) -> String {
        paint(text, tone, self.colors)
    }

    /// Prints a line to standard error. If that fails, there is nowhere to report it.
    fn print_err(&self, text: &str) {
        // The path of an entry of an archive may have more than 100,000 bytes.
        let lines = text.split('\n').map(|line| shortened(line, MAX_LINE));
        let text = lines.collect::<Vec<_>>().join("\n");
        let text = shown(text.as_bytes(), self.colors_err);
        let mut stderr = io::stderr().lock();
        drop(
            stderr
                .write_all(text.as_bytes())
                .and_then(|()| stderr.write_all(b"\n")),
        );
    }

    fn err_tone(&self, text: &str, tone: Tone) -> String {
        paint(text, tone, self.colors_err)
    }

    /// Asks the user for confirmation. Fails without a terminal, or if the answer is not yes.
    pub fn confirm(&self, question: &str) -> Result<()> {
        if !(io::stdin().is_terminal() && self.stderr_is_terminal) {
            return Err(
                CommandError::usage(format!("cannot ask \"{question}\": not a terminal"))
                    .hint("pass -y to answer yes"),
            );
        }
        let question = shown(question.as_bytes(), self.colors_err);
        let mut stderr = io::stderr().lock();
        let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
        asked.map_err(|error| CommandError::io("cannot ask", &error))?;
        let mut answer = String::new();
        io::stdin()
            .lock()
            .read_line(&mut answer)
            .map_err(|error| CommandError::io("cannot read the answer", &error))?;
        match answer.trim() {
            "y" | "Y" | "yes" | "Yes" | "YES" => Ok(()),
            _ => Err(CommandError::new(
                crate::daemon::failure::Kind::Cancelled,
                "nothing was changed",
            )),
        }
    }

    /// Asks the user a question. [`Answer::None`] if the input ends or Ctrl-C is pressed, which
    /// the caller records (see [`signals::survive_with_child`]).
    pub fn ask(&self, question: &str) -> Result<Answer> {
        let failed = |error: io::Error| CommandError::io("cannot ask", &error);
        let question = shown(question.as_bytes(), self.colors_err);
        loop {
            {
                let mut stderr = io::stderr().lock();
                let asked = write!(stderr, "{question} [y/n] ").and_then(|()| stderr.flush());
                asked.map_err(failed)?;
            }
            if !wait_for_input().map_err(failed)? {
                self.print_err("");
                return Ok(Answer::None);
            }
            let mut answer = String::new();
            if io::stdin().lock().read_line(&mut answer).map_err(failed)? == 0 {
                self.print_err("");
                return Ok(Answer::None);
            }
            match answer.trim().to_ascii_lowercase().as_str() {
                "y" | "yes" => return Ok(Answer::Yes),
                "n" | "no" => return Ok(Answer::No),
                _ => self.print_err("answer y or n (Ctrl-C to decide later)"),
            }
        }
    }

    /// Returns a progress bar and starts handling Ctrl-C: the first one cancels the operation, the
    /// second one ends the process.
    pub fn progress(&self) -> Bar {
        if let Err(error) = signals::record_interrupts() {
            tracing::debug!(%error, "cannot handle Ctrl-C; it will end the process at once");
        }
        self.bar()
    }

    /// Returns a progress bar for work that leaves nothing if Ctrl-C ends the process.
    pub fn bar(&self) -> Bar {
        let is_visible = self.stderr_is_terminal && self.verbosity == Verbosity::Normal;
        Bar::new(match is_visible {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        })
    }
}

/// The answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Yes,
    /// No.
    No,
    /// The user did not answer.
    None,
}

/// Waits for a line of input. Returns false after Ctrl-C.
fn wait_for_input() -> io::Result<bool> {
    let stdin = io::stdin();
    while !signals::was_interrupted() {
        let mut input = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut input, PollTimeout::from(100_u8)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn paint(text: &str, tone: Tone, colors: Colors) -> String {
    match colors {
        Colors::On => format!("{}{text}{PLAIN}", tone.code()),
        Colors::Off => text.to_owned(),
    }
}

/// Resets the colour set by [`Tone::code`].
const PLAIN: &str = "\x1b[0m";
/// The length of a line on standard error, in bytes, above which it is shortened: that of the
/// longest path twice.
const MAX_LINE: usize = 2 * 4096;

impl Tone {
    const ALL: [Tone; 5] = [Tone::Good, Tone::Notice, Tone::Bad, Tone::Dim, Tone::Strong];

    fn code(self) -> &'static str {
        match self {
            Tone::Good => "\x1b[32m",
            Tone::Notice => "\x1b[33m",
            Tone::Bad => "\x1b[31m",
            Tone::Dim => "\x1b[2m",
            Tone::Strong => "\x1b[1m",
        }
    }
}

/// Escapes control characters in a line, except our own colour codes if colours are on.
fn shown(text: &[u8], colors: Colors) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while colors == Colors::On
        && let Some(at) = rest.iter().position(|&byte| byte == 0x1b)
    {
        let (before, from) = rest.split_at(at);
        out.push_str(&printable(before));
        let mut own = Tone::ALL.map(Tone::code).into_iter().chain([PLAIN]);
        let code = own.find(|code| from.starts_with(code.as_bytes()));
        let (taken, after) = from.split_at(code.map_or(1, str::len));
        match code {
            Some(code) => out.push_str(code),
            None => out.push_str(&printable(taken)),
        }
        rest = after;
    }
    out.push_str(&printable(rest));
    out
}

fn put(text: &[u8], end: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(text).and_then(|()| stdout.write_all(end)))
}

fn written(result: io::Result<()>) -> Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CommandError::silent(ExitCode::BrokenPipe),
        _ => CommandError::io("cannot write the result", &error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_contain_no_control_characters_but_our_own_colours() {
        let forged = "a\n\x1b[31mb\x1b[0m\x1b]0;title\x07 \x1b";
        assert_eq!(
            shown(forged.as_bytes(), Colors::Off),
            "a\\n\\033[31mb\\033[0m\\033]0;title\\a \\033"
        );
        assert_eq!(
            shown(forged.as_bytes(), Colors::On),
            "a\\n\x1b[31mb\x1b[0m\\033]0;title\\a \\033"
        );
        for tone in Tone::ALL {
            let painted = paint("x", tone, Colors::On);
            assert_eq!(shown(painted.as_bytes(), Colors::On), painted);
        }
    }
}
