//! `envfs stats`

use std::os::unix::ffi::OsStrExt;

use clap::Args as ClapArgs;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::output;
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::stats::{Cache, Polling, Stats};

/// Show the requests that a mount has served, and how long they took.
///
/// For each kind of request: the count, the total time, the median and 99th percentile (within a
/// factor of two), and the maximum. Then bytes read and written, objects that the kernel holds,
/// polls for the next request and how long they took, and data read and decompressed from the
/// images. Requests that the kernel answers from its caches are not counted.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs stats science\n  envfs stats --json | jq .requests.read.p99_us\n  envfs stats --profile science > profile"
)]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Print the files that were read first after the last mounts, in order, one a line. This is
    /// the profile for envfs import --profile. The environment need not be mounted.
    #[arg(long, conflicts_with = "json")]
    profile: bool,
    /// Print JSON; times are in microseconds.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        if self.profile {
            let environment = context.files_of(self.name.as_deref())?;
            for path in backend::used_first(&environment)? {
                context.output.exact(path.as_os_str().as_bytes())?;
            }
            return Ok(());
        }
        let env = context.environment(self.name.as_deref())?;
        let stats = env.service()?.stats()?;
        let empty = stats.as_object().is_none_or(serde_json::Map::is_empty);
        if empty {
            let message = format!("{} is not mounted, so there are no statistics", env.name());
            return Err(CommandError::new(Kind::NotFound, message)
                .hint(format!("envfs mount {}", env.name())));
        }
        if self.json {
            return context.output.json(&stats);
        }
        let stats: Stats =
            serde_json::from_value(stats).map_err(|error| Failure::of(Kind::Daemon, &error))?;
        for line in lines(&stats) {
            context.output.line(line)?;
        }
        Ok(())
    }
}

fn lines(stats: &Stats) -> Vec<String> {
    let heading = ["request", "count", "total", "median", "99 %", "maximum"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for (kind, requests) in &stats.requests {
        rows.push(vec![
            kind.clone(),
            requests.count.to_string(),
            time(requests.total_us),
            time(requests.p50_us),
            time(requests.p99_us),
            time(requests.max_us),
        ]);
    }
    let mut lines = output::table(&rows);
    let images = &stats.images;
    let hits = |cache: &Cache| format!("{} of {}", cache.hits, cache.hits + cache.misses);
    let facts = [
        ("read by programs", output::size(stats.read_bytes)),
        ("written by programs", output::size(stats.written_bytes)),
        (
            "held by the kernel",
            output::count(stats.held_objects, "object"),
        ),
        ("polling", polling(&stats.polling)),
        (
            "read from images",
            format!(
                "{} in {}",
                output::size(images.bytes_read),
                output::count(images.reads, "read")
            ),
        ),
        (
            "decompressed",
            format!(
                "{} of data, {} of metadata",
                output::count(images.data_blocks, "block"),
                images.metadata_blocks
            ),
        ),
        ("data in cache", hits(&images.data_cache)),
        ("metadata in cache", hits(&images.metadata_cache)),
        ("directories in cache", hits(&images.directory_cache)),
        ("layouts in cache", hits(&images.layout_cache)),
    ];
    lines.push(String::new());
    lines.extend(facts.map(|(what, value)| format!("{what:20} {value}")));
    lines
}

/// Formats the polls for requests.
fn polling(polling: &Polling) -> String {
    let setting = polling.poll;
    match polling.polls {
        0 => setting.to_string(),
        polls => format!(
            "{setting}: {} of {} found a request, {}",
            polling.found,
            output::count(polls, "poll"),
            time(polling.total_us)
        ),
    }
}

/// Formats a time in a suitable unit.
fn time(micros: f64) -> String {
    if micros < 1000.0 {
        format!("{micros:.1} µs")
    } else if micros < 1e6 {
        format!("{:.1} ms", micros / 1e3)
    } else {
        format!("{:.2} s", micros / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_formatted_in_a_suitable_unit() {
        for (micros, told) in [
            (0.0, "0.0 µs"),
            (12.34, "12.3 µs"),
            (1500.0, "1.5 ms"),
            (61e6, "61.00 s"),
        ] {
            assert_eq!(time(micros), told);
        }
    }
}
