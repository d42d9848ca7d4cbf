//! The progress bar of a long operation.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::count;
use crate::progress::{Progress, Report};
use crate::sys::signals;
use crate::sys::text::printable;

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
    pub(super) fn new(target: ProgressDrawTarget) -> Bar {
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
