//! The output of commands: results on standard output, everything else on standard error.
//!
//! Text for people cannot control their terminal or forge a line: it all passes through `shown`,
//! which escapes control characters, including newlines. Names in a text are quoted with
//! [`quoted`](crate::sys::text::quoted). Output for programs ([`Output::raw`], [`Output::exact`],
//! [`Output::fields`], [`Output::json`]) is exact.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::{CommandError, ExitCode, Result};
use crate::progress::{Progress, Report};
use crate::sys::clock;
use crate::sys::signals;
use crate::sys::text::{printable, shortened};
use crate::union::Summary;

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

    /// Returns a progress bar and starts handling Ctrl-C: the first one cancels the operation, the
    /// second one ends the process.
    pub fn progress(&self) -> Bar {
        if let Err(error) = signals::record_interrupts() {
            tracing::debug!(%error, "cannot handle Ctrl-C; it will end the process at once");
        }
        let is_visible = self.stderr_is_terminal && self.verbosity == Verbosity::Normal;
        Bar::new(match is_visible {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        })
    }
}

fn paint(text: &str, tone: Tone, colors: Colors) -> String {
    match colors {
        Colors::On => format!("{}{text}{PLAIN}", tone.code()),
        Colors::Off => text.to_owned(),
    }
}

/// Resets the colour set by [`Tone::code`].
/// The length of a line on standard error, in bytes, above which it is shortened: that of the
/// longest path twice.
const MAX_LINE: usize = 2 * 4096;
const PLAIN: &str = "\x1b[0m";

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

/// A progress bar. It is shown only on a terminal.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    phase: String,
    files_only: bool,
}

impl Bar {
    fn new(target: ProgressDrawTarget) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let shown = Shown {
            phase: String::new(),
            files_only: false,
        };
        Bar {
            bar,
            shown: Mutex::new(shown),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn style(&self, report: &Report) {
        let files_only = counts_files_only(report);
        let known = if files_only {
            report.files_total
        } else {
            report.bytes_total
        } > 0;
        let template = match (files_only, known) {
            (false, true) => {
                "{prefix} {msg}  {bytes} / {total_bytes}  {binary_bytes_per_sec}  {bar:24} {percent}%  {eta} left"
            }
            (false, false) => "{prefix} {msg}  {bytes}  {binary_bytes_per_sec}",
            (true, true) => "{prefix} {msg}  {bar:24} {percent}%  {eta} left",
            (true, false) => "{prefix} {msg}",
        };
        // The templates are constants and valid. With an invalid one the default bar would be
        // shown.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }
}

/// Returns whether an operation reports numbers of files, but not bytes.
fn counts_files_only(report: &Report) -> bool {
    report.bytes_total == 0 && report.bytes_done == 0
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for Bar {
    fn report(&self, report: &Report) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let files_only = counts_files_only(report);
        if shown.phase != report.phase || shown.files_only != files_only {
            shown.phase.clone_from(&report.phase);
            shown.files_only = files_only;
            self.bar.reset();
            self.style(report);
            self.bar.set_prefix(printable(&report.phase));
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        let (done, total) = if files_only {
            (report.files_done, report.files_total)
        } else {
            (report.bytes_done, report.bytes_total)
        };
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(match report.files_total {
            0 => count(report.files_done, "file"),
            total => format!("{} / {}", report.files_done, count(total, "file")),
        });
    }

    fn is_cancelled(&self) -> bool {
        signals::was_interrupted()
    }
}

/// Formats a number of bytes with three significant digits and binary units.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!(
        "{value:.digits$} {}",
        UNITS.get(unit).copied().unwrap_or_default()
    )
}

/// Formats a count with its noun in the singular or plural.
pub(super) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Summarizes changes. Omits kinds without changes.
pub(super) fn changes(summary: &Summary) -> String {
    let words: Vec<String> = [
        (summary.added, "added"),
        (summary.modified, "modified"),
        (summary.touched, "touched"),
        (summary.removed, "removed"),
        (summary.renamed, "renamed"),
    ]
    .into_iter()
    .filter(|(tally, _)| tally.entries > 0)
    .map(|(tally, word)| format!("{} {word}", tally.entries))
    .collect();
    match words.is_empty() {
        true => String::from("nothing"),
        false => words.join(", "),
    }
}

/// A kind of change with its number and size, as a row of a table.
pub(super) struct SummaryRow {
    word: &'static str,
    tone: Tone,
    rest: String,
}

impl SummaryRow {
    /// Returns the row as a line.
    pub(super) fn colored(&self, output: &Output) -> String {
        let word = output.tone(&format!("{:9}", self.word), self.tone);
        format!("{word} {}", self.rest)
    }
}

/// Returns numbers and sizes of changes. Omits kinds without changes.
pub(super) fn summary(changes: &Summary) -> Vec<SummaryRow> {
    let rows = [
        ("added", changes.added, Tone::Good, ""),
        ("modified", changes.modified, Tone::Notice, ""),
        (
            "touched",
            changes.touched,
            Tone::Dim,
            "  only times changed",
        ),
        ("removed", changes.removed, Tone::Bad, ""),
        ("renamed", changes.renamed, Tone::Notice, ""),
    ];
    let rows = rows
        .into_iter()
        .filter(|(_, tally, _, _)| tally.entries > 0);
    let rows = rows.map(|(word, tally, tone, more)| SummaryRow {
        word,
        tone,
        rest: format!("{:>7}  {}{more}", tally.entries, size(tally.bytes)),
    });
    rows.collect()
}

/// Formats a time (in seconds since 1970) in the local time zone, with its offset from UTC.
pub(super) fn time(seconds: i64) -> String {
    let offset = clock::utc_offset(seconds);
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.unsigned_abs() / 60;
    format!(
        "{} {sign}{:02}{:02}",
        civil(seconds.saturating_add(offset), ' '),
        minutes / 60,
        minutes % 60
    )
}

/// Formats a time (in seconds since 1970) in UTC as ISO 8601 and RFC 3339 have it.
pub(super) fn utc(seconds: i64) -> String {
    format!("{}Z", civil(seconds, 'T'))
}

/// Formats the date and time of day that many seconds after the start of 1970.
fn civil(seconds: i64, between: char) -> String {
    // Howard Hinnant's "chrono-compatible low-level date algorithms": days since 1970 to a date.
    let days = seconds.div_euclid(86_400);
    let rest = seconds.rem_euclid(86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}{between}{:02}:{:02}:{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Aligns rows in columns. Cells must not contain colours.
pub(super) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let escape = |row: &Vec<String>| row.iter().map(printable).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(escape).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                line.push_str(cell);
                if column + 1 < row.len() {
                    let width = widths.get(column).copied().unwrap_or(0);
                    line.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
                }
            }
            line.trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_significant_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_240, "10.0 KiB"),
            (1_048_575, "1.00 MiB"),
            (1 << 30, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_are_formatted_as_dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }

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
        assert_eq!(table(&[vec!["a\nb".into(), "c".into()]]), ["a\\nb  c"]);
    }

    #[test]
    fn summaries_omit_kinds_without_changes() {
        let mut summary = Summary::default();
        assert_eq!(changes(&summary), "nothing");
        summary.added.add(1);
        summary.renamed.add(1);
        assert_eq!(changes(&summary), "1 added, 1 renamed");
        assert_eq!(
            (count(1, "image"), count(0, "image")),
            ("1 image".into(), "0 images".into())
        );
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".into(), "b".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), ["a    b", "ccc  d"]);
    }
}
