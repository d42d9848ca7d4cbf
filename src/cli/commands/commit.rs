//! `envfs commit`

mod all;
mod amend;
mod condition;
mod preview;

use std::ffi::OsString;
use std::num::NonZeroUsize;

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::cli::launchers;
use crate::cli::output::{Format, changes, size};
use crate::cli::packages;
use crate::commit::{CommitOptions, Committed, Ignored, Way};
use crate::daemon::protocol::{Committable, Selection};
use crate::environment::ProfileUse;
use crate::squashfs::Compression;

/// Record the changes as a new revision.
///
/// Writes a new image: unchanged data is copied as it is, changed data is compressed. You can use
/// the environment meanwhile. Ctrl-C stops the commit and changes nothing. Without changes, no
/// revision is created.
///
/// With paths, only their changes are committed and all others stay uncommitted. A part that cannot
/// be recorded alone, such as one end of a rename, is refused. Paths that patterns of commit.ignore
/// in the configuration match stay uncommitted too, unless they are committed already.
///
/// With --dry-run, compresses what changed and shows what a commit would record; nothing is
/// written. With --amend, changes only the message of the current revision: number, tags, time and
/// content stay.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs commit -m 'add polars'\n  envfs commit science lib/python3.12 -m 'only the packages'\n  envfs commit --all --if-changed 10  every environment, for timers\n  envfs commit science --rebuild --compression xz\n  envfs commit -n                    show what would be recorded, and its compressed size\n  envfs commit --amend -m 'add polars 1.9'\n  envfs commit science --if-changed 10 --if-larger-than 1M"
)]
pub struct Args {
    /// Environment [default: the active one], and paths whose changes are committed alone, with
    /// everything below them [default: all].
    #[arg(value_name = "[NAME] [PATH]")]
    words: Vec<OsString>,
    /// Commit every environment of the store that has changes. A failure of one does not stop the
    /// others; the exit status is 1 then.
    #[arg(long, conflicts_with_all = ["words", "amend", "dry_run", "stats"])]
    all: bool,
    /// Commit also what patterns of commit.ignore leave out.
    #[arg(long)]
    no_ignore: bool,
    /// Message to record in the history.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Show what would be recorded, and how large it is when compressed.
    #[arg(short = 'n', long, conflicts_with_all = ["amend", "rebuild", "compact", "stats", "compression", "compress_level", "block_size"])]
    dry_run: bool,
    /// Change the message of the current revision. Without -m, $VISUAL or $EDITOR opens with the
    /// message.
    #[arg(long, conflicts_with_all = ["rebuild", "compact", "stats", "compression", "compress_level", "block_size", "if_changed", "if_larger_than"])]
    amend: bool,
    /// Commit only if at least this number of files, directories and links changed. Otherwise the
    /// exit status is 0, too.
    #[arg(long, value_name = "COUNT")]
    if_changed: Option<u64>,
    /// Commit only if the changed files have more than this number of bytes, as in 500K, 10M or 2G,
    /// before compression.
    #[arg(long, value_name = "SIZE", value_parser = condition::bytes)]
    if_larger_than: Option<u64>,
    /// Write the whole image anew instead of building on the old one.
    #[arg(long, alias = "full")]
    rebuild: bool,
    /// Drop all unreferenced data.
    #[arg(long)]
    compact: bool,
    /// Print how much was carried over, compressed and left unreferenced, and how long each step
    /// took.
    #[arg(long)]
    stats: bool,
    /// Codec and level of the image: zstd:3, xz, gzip, lz4, none. Implies --rebuild.
    #[arg(long, value_name = "CODEC[:LEVEL]")]
    compression: Option<Compression>,
    /// Compression level as in conda-pack: 0 stores, 1 to 8 use zstd, 9 uses xz. Implies --rebuild.
    #[arg(
        long,
        value_name = "0-9",
        conflicts_with = "compression",
        value_parser = clap::value_parser!(u8).range(0..=9)
    )]
    compress_level: Option<u8>,
    /// Block size of the image in bytes. Implies --rebuild.
    #[arg(long, value_name = "BYTES", value_parser = super::import::block_size)]
    block_size: Option<u32>,
    /// Number of compressor threads [default: one per processor].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Do not use the access profile: with --rebuild or --compact, order the data of files by path.
    /// Otherwise files that programs read first after earlier mounts come first.
    #[arg(long)]
    no_profile: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        if self.all {
            return all::run(context, self);
        }
        let (env, selection) = context.environment_and_paths(&self.words)?;
        let part = self.part(selection);
        let format = Format::of(self.json);
        if self.amend {
            let message = (!self.message.is_empty()).then_some(self.message.as_str());
            return amend::run(context, &env, message, format);
        }
        if self.dry_run {
            return preview::run(context, &env, &part, format);
        }
        let options = self.options(&part);
        let service = env.service()?;
        let condition = self.condition();
        if let Some(unmet) = condition.check(&*service, &part)? {
            return unmet.print(context, env.name(), format);
        }
        let progress = context.output.progress();
        let committed = service.commit(&options, &progress)?;
        progress.finish();
        if committed.is_some() {
            launchers::renew_all(&env, &context.output);
        }
        if self.json {
            return context.output.json(&committed);
        }
        print_result(context, env.name(), committed.as_ref());
        if self.stats
            && let Some(committed) = &committed
        {
            for (what, value) in stats(committed) {
                context.output.line(format!("{what:22} {value}"))?;
            }
        }
        Ok(())
    }
}

impl Args {
    fn part(&self, selection: Selection) -> Committable {
        Committable {
            selection,
            ignored: match self.no_ignore {
                true => Ignored::Include,
                false => Ignored::LeaveOut,
            },
        }
    }

    fn condition(&self) -> condition::Condition {
        condition::Condition {
            changed: self.if_changed,
            larger_than: self.if_larger_than,
        }
    }

    fn options(&self, part: &Committable) -> CommitOptions {
        let compression = super::import::compression(self.compression, self.compress_level);
        CommitOptions {
            message: self.message.clone(),
            command: crate::commit::command_line(),
            rebuild: self.rebuild || compression.is_some() || self.block_size.is_some(),
            compact: self.compact,
            compression,
            block_size: self.block_size,
            threads: self.threads,
            profile: match self.no_profile {
                true => ProfileUse::Off,
                false => ProfileUse::On,
            },
            paths: part.selection.paths.clone(),
            ignored: part.ignored,
            ..CommitOptions::default()
        }
    }
}

/// Returns the details of a commit as names and values.
fn stats(committed: &Committed) -> Vec<(&'static str, String)> {
    let (image, data, millis) = (&committed.image, &committed.image.data, &committed.millis);
    let way = match (committed.way, &committed.because) {
        (Way::Append, _) => "append".to_owned(),
        (Way::Compact, _) => "compact".to_owned(),
        (Way::Rebuild, None) => "rebuild".to_owned(),
        (Way::Rebuild, Some(why)) => format!("rebuild: {why}"),
    };
    let mut rows = vec![
        ("way", way),
        ("carried over", size(data.bytes_carried)),
        ("  data blocks", data.blocks_carried.to_string()),
        ("  fragment blocks", data.fragments_carried.to_string()),
        ("packed", size(data.fresh_bytes)),
        ("  blocks compressed", data.blocks_compressed.to_string()),
        ("  blocks stored", data.blocks_stored_raw.to_string()),
        ("  fragments repacked", data.fragments_repacked.to_string()),
        ("  duplicate files", data.duplicates.to_string()),
        ("tables carried over", size(image.tables_carried)),
        ("  appended", size(image.tables_appended)),
        ("written", size(image.bytes_written)),
        ("dead", size(committed.dead_bytes)),
        ("  in used fragments", size(data.dead_in_fragments)),
    ];
    let times = [
        ("time to freeze", millis.rotate),
        ("time to plan", millis.plan),
        ("time for data", millis.data),
        ("time for tables", millis.tables),
        ("time to sync", millis.sync),
        ("time for digests", millis.digest),
        ("time to check", millis.check),
        ("time to publish", millis.publish),
        ("time to clean up", millis.clean),
    ];
    rows.extend(times.map(|(what, time)| (what, format!("{} ms", time.as_millis()))));
    rows
}

/// Names revisions, with ranges: `revisions 3–5, 7`.
fn revisions(numbers: &[i64]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let word = if numbers.len() == 1 {
        "revision"
    } else {
        "revisions"
    };
    let ranges = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}–{last}"),
    });
    format!("{word} {}", ranges.collect::<Vec<_>>().join(", "))
}

/// Prints the result of a commit.
pub(crate) fn print_result(context: &Context, name: &str, committed: Option<&Committed>) {
    let Some(committed) = committed else {
        context.output.note(format!("{name}: nothing changed"));
        return;
    };
    // The first revision has no image to carry data over from.
    let carried = match committed.image.data.bytes_carried {
        0 => String::new(),
        bytes => format!(" ({} carried over)", size(bytes)),
    };
    context.output.note(format!(
        "{name}: revision {}, image {}{carried}; {}",
        committed.revision.0,
        size(committed.image.image_size),
        changes(&committed.changes),
    ));
    for line in packages::summary_for_notes(&context.output, &committed.packages) {
        context.output.note(format!("  {line}"));
    }
    if let Some(forgot) = &committed.forgot {
        context.output.note(format!(
            "{name}: forgot {} ({}); history.keep and history.keep_for",
            revisions(&forgot.revisions),
            size(forgot.image_bytes)
        ));
    }
}
