//! `config.toml`, the preferences of a store. Every key is optional.
//!
//! ```toml
//! compression = "zstd:3"     # or gzip, xz, lz4, none, each with :LEVEL where it has levels
//! block_size = "128K"        # a power of two from 4K to 1M
//! threads = 4                # compressor threads; 0 or absent: one per processor
//! compact_percent = 25       # a commit compacts an image with more dead space than this
//! prompt = "({name}) "       # or true for this template, or false for no change
//! profile = "on"             # or "off": record what is read first; read it ahead, order images by it
//!
//! [cache]
//! data_mib = 28              # decompressed blocks in memory, per mount; absent: grows with memory
//! metadata_mib = 8           # inodes, directory listings and block lists, per mount
//!
//! [gc]
//! keep = 10                  # revisions that gc keeps
//! keep_for = "7d"            # and those that were current within this time
//!
//! [session]
//! in_job = "read-only"       # or "writable": the default of run and activate in batch jobs
//! when_busy = "fail"         # or "read-only", "ephemeral": if it is in use on another host
//! idle = "15m"               # unmount what was not used for this time; absent: never
//! memory_limit = "4G"        # of an ephemeral session in memory; absent: half of what is free
//!
//! [commit]
//! ignore = ["__pycache__/"]  # what commits leave uncommitted
//!
//! [history]
//! undo = 1                   # commits that undo can take back
//! forget = "after-commit"    # or "never": old revisions, but for
//! keep = 10                  # this number of the newest, and
//! keep_for = "30d"           # those that were current within this time
//! auto_checkpoint = true     # or false: a checkpoint before pip, conda, npm and so on change packages
//!
//! [daemon]
//! poll = "auto"              # or "off", or microseconds: how long to poll for the next request
//! ```

use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::age::Age;
use super::error::{Context, EnvironmentError, Result};
use crate::sys::regular;

/// The size limit of the configuration file, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Preferences of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Compression of new images (`zstd:3`).
    #[serde(deserialize_with = "compression")]
    pub compression: Option<String>,
    /// Compression level on conda-pack's scale: 0 none, 1 to 8 zstd, 9 xz. Cannot be combined
    /// with `compression`.
    pub level: Option<u8>,
    /// Block size of new images in bytes.
    #[serde(deserialize_with = "block_size")]
    pub block_size: Option<u32>,
    /// Compressor threads; 0 means one per processor.
    pub threads: usize,
    /// A commit compacts the image when more than this percentage of its data is dead space.
    #[serde(deserialize_with = "percent")]
    pub compact_percent: u8,
    /// How activation changes the shell's prompt.
    pub prompt: Prompt,
    /// Whether a mount records which blocks are read first and reads them ahead the next time.
    pub profile: ProfileUse,
    /// Cache sizes of a mount.
    pub cache: CacheConfig,
    /// Defaults of `envfs gc`.
    pub gc: GcConfig,
    /// Defaults of `envfs commit`.
    pub commit: CommitConfig,
    /// What is kept for an undo.
    pub history: HistoryConfig,
    /// How a daemon serves a mount.
    pub daemon: DaemonConfig,
    /// How environments are mounted.
    pub session: SessionConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            compression: None,
            level: None,
            block_size: None,
            threads: 0,
            compact_percent: 25,
            prompt: Prompt::Show(true),
            profile: ProfileUse::default(),
            cache: CacheConfig::default(),
            gc: GcConfig::default(),
            commit: CommitConfig::default(),
            history: HistoryConfig::default(),
            daemon: DaemonConfig::default(),
            session: SessionConfig::default(),
        }
    }
}

/// Whether access profiles are recorded and used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileUse {
    /// Record a profile at each mount and use the last one.
    #[default]
    On,
    /// Neither record nor use profiles.
    Off,
}

/// How activation changes the shell's prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "true, false or a template like \"({name}) \"")]
pub enum Prompt {
    /// The default template, or no change.
    Show(bool),
    /// A template for the text before the prompt; `{name}` is replaced.
    Template(String),
}

impl Prompt {
    /// Returns the text to put before the prompt, or None to leave the prompt alone.
    pub fn render(&self, name: &str) -> Option<String> {
        match self {
            Prompt::Show(false) => None,
            Prompt::Show(true) => Some(format!("({name}) ")),
            Prompt::Template(template) => Some(template.replace("{name}", name)),
        }
    }
}

/// Cache sizes of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Decompressed data blocks, in MiB. If absent, [`CacheConfig::DATA_MIB`], and more where there
    /// is much memory.
    pub data_mib: Option<u32>,
    /// Decompressed metadata, in MiB.
    pub metadata_mib: u32,
}

impl CacheConfig {
    /// The default of `data_mib`, on a host with little memory.
    pub const DATA_MIB: u32 = 28;
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            data_mib: None,
            metadata_mib: 8,
        }
    }
}

/// Defaults of `envfs gc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcConfig {
    /// Revisions to keep, at least 1: the current one is always kept.
    #[serde(deserialize_with = "at_least_one")]
    pub keep: u32,
    /// Keep all revisions that were current within this time, for sessions that left no note.
    pub keep_for: Option<Age>,
}

impl Default for GcConfig {
    fn default() -> Self {
        GcConfig {
            keep: 10,
            keep_for: None,
        }
    }
}

/// How environments are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionConfig {
    /// The default of `run` and `activate` in batch jobs.
    pub in_job: InJob,
    /// What to do if an environment is in use for writing on another host.
    pub when_busy: WhenBusy,
    /// Unmount what was not used for this time.
    pub idle: Option<Age>,
    /// The bytes that changes of an ephemeral session may take where they are in memory. If absent,
    /// half of what is free when it begins.
    #[serde(deserialize_with = "memory_limit")]
    pub memory_limit: Option<u64>,
}

/// The default of `run` and `activate` in batch jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InJob {
    /// The committed revision, read-only: any number of jobs can use it at once.
    #[default]
    ReadOnly,
    /// The current revision with its changes: one host.
    Writable,
}

/// What to do if an environment is in use for writing on another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenBusy {
    /// Fail, and name the holder.
    #[default]
    Fail,
    /// Mount the committed revision read-only.
    ReadOnly,
    /// Mount the committed revision, and drop changes at the end.
    Ephemeral,
}

/// Defaults of `envfs commit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommitConfig {
    /// Patterns of paths that commits leave uncommitted, unless the paths are committed already.
    #[serde(deserialize_with = "patterns")]
    pub ignore: Vec<String>,
}

fn patterns<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    let patterns = Vec::<String>::deserialize(input)?;
    for pattern in &patterns {
        if let Err(error) = globset::Glob::new(pattern) {
            let reason = error.kind();
            return Err(de::Error::custom(format!(
                "invalid pattern {pattern:?}: {reason}"
            )));
        }
        if pattern.starts_with('!') {
            return Err(de::Error::custom(format!(
                "invalid pattern {pattern:?}: patterns cannot be negated"
            )));
        }
    }
    Ok(patterns)
}

/// What is kept for an undo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryConfig {
    /// The number of commits whose changed files are kept, so that an undo makes them uncommitted
    /// changes again.
    pub undo: u32,
    /// Whether a mount makes a checkpoint before each package operation that it sees.
    pub auto_checkpoint: bool,
    /// When old revisions are forgotten.
    pub forget: ForgetUse,
    /// The number of the newest revisions that stay, at least 1.
    #[serde(deserialize_with = "at_least_one")]
    pub keep: u32,
    /// Revisions that were current within this time stay too.
    pub keep_for: Age,
}

/// When old revisions are forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForgetUse {
    /// After each commit.
    #[default]
    AfterCommit,
    /// Only by `envfs gc`.
    Never,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        HistoryConfig {
            undo: 1,
            forget: ForgetUse::default(),
            keep: 10,
            keep_for: Age::days(30),
            auto_checkpoint: true,
        }
    }
}

/// How a daemon serves a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonConfig {
    /// How the daemon waits for the next request.
    #[serde(deserialize_with = "poll")]
    pub poll: Poll,
}

/// How a daemon waits for the next request of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Polls for a short time while requests come close together and the processor is free.
    #[default]
    Auto,
    /// Sleeps at once.
    Off,
    /// As `Auto`, but polls for this many microseconds at most.
    #[serde(untagged)]
    Micros(u32),
}

/// The longest time that can be configured for polling, in microseconds.
const MAX_POLL_MICROS: u32 = 10_000;

impl std::fmt::Display for Poll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Poll::Auto => f.write_str("auto"),
            Poll::Off => f.write_str("off"),
            Poll::Micros(micros) => write!(f, "{micros} µs"),
        }
    }
}

impl Config {
    /// Reads a configuration file. Returns the defaults if the file does not exist.
    pub fn load(path: &Path) -> Result<Config> {
        let bytes = match regular::read_through_own_link(path, MAX_SIZE) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
            Err(e) => return Err(e).context(path, "read the configuration"),
        };
        let invalid = |detail: String| EnvironmentError::Config {
            path: path.to_owned(),
            detail,
        };
        let text =
            String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8 text".to_owned()))?;
        Config::parse(&text).map_err(invalid)
    }

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config =
            toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        if config.compression.is_some() && config.level.is_some() {
            return Err("'compression' and 'level' cannot be combined".to_owned());
        }
        if config.level.is_some_and(|level| level > 9) {
            return Err("invalid level: must be a number from 0 to 9".to_owned());
        }
        Ok(config)
    }
}

fn compression<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(input)?;
    let (codec, level) = match text.split_once(':') {
        Some((codec, level)) => (codec, Some(level)),
        None => (text.as_str(), None),
    };
    let known = ["zstd", "xz", "gzip", "lz4", "none"].contains(&codec);
    let numeric = level.is_none_or(|level| level.parse::<u8>().is_ok());
    if known && numeric {
        Ok(Some(text))
    } else {
        let expected = "zstd, xz, gzip, lz4 or none, optionally with :LEVEL";
        Err(de::Error::invalid_value(
            de::Unexpected::Str(&text),
            &expected,
        ))
    }
}

fn block_size<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a power of two from 4096 to 1048576, in bytes or as in \"128K\""
    )]
    enum Size {
        Bytes(u32),
        Text(String),
    }
    let bytes = match Size::deserialize(input)? {
        Size::Bytes(bytes) => Some(bytes),
        Size::Text(text) => parse_size(&text).and_then(|bytes| bytes.try_into().ok()),
    };
    match bytes {
        Some(bytes) if bytes.is_power_of_two() && (4096..=1 << 20).contains(&bytes) => {
            Ok(Some(bytes))
        }
        _ => Err(de::Error::custom(
            "invalid block size: must be a power of two from 4096 to 1048576",
        )),
    }
}

/// The smallest limit: a session needs some space for itself.
const MIN_LIMIT: u64 = 1 << 20;

fn memory_limit<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of bytes, or a size as in \"4G\"")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    let bytes = match Size::deserialize(input)? {
        Size::Bytes(bytes) => Some(bytes),
        Size::Text(text) => parse_size(&text),
    };
    match bytes {
        Some(bytes) if bytes >= MIN_LIMIT => Ok(Some(bytes)),
        _ => Err(de::Error::custom(
            "invalid limit: must be at least 1M, in bytes or as in \"4G\"",
        )),
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches("iB");
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 1 << 10),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 1 << 20),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 1 << 30),
        _ => (text, 1),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(unit)
}

fn at_least_one<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    match u32::deserialize(input)? {
        0 => Err(de::Error::custom(
            "must be at least 1: the current revision is always kept",
        )),
        keep => Ok(keep),
    }
}

fn poll<'de, D: Deserializer<'de>>(input: D) -> Result<Poll, D::Error> {
    let valid = "\"auto\", \"off\" or a number of microseconds from 1 to 10000";
    let invalid = || de::Error::custom(format!("invalid poll: must be {valid}"));
    match Poll::deserialize(input).map_err(|_| invalid())? {
        Poll::Micros(micros) if !(1..=MAX_POLL_MICROS).contains(&micros) => Err(invalid()),
        poll => Ok(poll),
    }
}

fn percent<'de, D: Deserializer<'de>>(input: D) -> Result<u8, D::Error> {
    match u8::deserialize(input)? {
        percent @ 0..=100 => Ok(percent),
        _ => Err(de::Error::custom("must be a percentage from 0 to 100")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fs;

    use super::*;

    #[test]
    fn a_missing_or_empty_file_means_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
        fs::write(&path, "").unwrap();
        assert_eq!(Config::load(&path).unwrap(), Config::default());
        fs::write(&path, b"prompt = \"\xff\"").unwrap();
        assert!(
            Config::load(&path)
                .unwrap_err()
                .to_string()
                .contains("UTF-8")
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(
            Config::load(&path),
            Err(EnvironmentError::Io { .. })
        ));
    }

    #[test]
    fn every_key_is_read() {
        let config = Config::parse(
            "compression = 'zstd:19'\nblock_size = '256K'\nthreads = 3\ncompact_percent = 40\nprompt = '[{name}] '\nprofile = 'off'\n\
             [cache]\ndata_mib = 1\nmetadata_mib = 2\n[gc]\nkeep = 3\nkeep_for = '7d'\n[daemon]\npoll = 'off'\n\
             [session]\nin_job = 'writable'\nwhen_busy = 'read-only'\nidle = '15m'\n\
             memory_limit = '4 GiB'",
        )
        .unwrap();
        assert_eq!(config.compression.as_deref(), Some("zstd:19"));
        assert_eq!(config.block_size, Some(1 << 18));
        assert_eq!((config.threads, config.gc.keep), (3, 3));
        assert_eq!(config.compact_percent, 40);
        assert_eq!(config.profile, ProfileUse::Off);
        assert_eq!(config.daemon.poll, Poll::Off);
        assert_eq!(config.gc.keep_for.unwrap().to_string(), "7d");
        assert_eq!(config.session.when_busy, WhenBusy::ReadOnly);
        assert_eq!(config.session.in_job, InJob::Writable);
        assert_eq!(config.session.idle.unwrap().duration().as_secs(), 900);
        assert_eq!(config.session.memory_limit, Some(4 << 30));
        for (text, poll) in [
            ("", Poll::Auto),
            ("daemon.poll = 'auto'", Poll::Auto),
            ("daemon.poll = 50", Poll::Micros(50)),
        ] {
            assert_eq!(Config::parse(text).unwrap().daemon.poll, poll, "{text}");
        }
        assert_eq!(
            (config.cache.data_mib, config.cache.metadata_mib),
            (Some(1), 2)
        );
        assert_eq!(config.prompt.render("x").as_deref(), Some("[x] "));
        assert_eq!(
            Config::parse("prompt = false").unwrap().prompt.render("x"),
            None
        );
        let default = Config::default().prompt.render("x");
        assert_eq!(default.as_deref(), Some("(x) "));
        assert_eq!(
            Config::parse("level = 9\nblock_size = 4096").unwrap().level,
            Some(9)
        );
    }

    #[test]
    fn errors_name_the_key_and_the_valid_values() {
        for (text, part) in [
            ("colour = 1", "colour"),
            ("[cache]\ndata = 1", "data"),
            ("compression = 'zip'", "zstd, xz"),
            ("compression = 'zstd:fast'", "zstd, xz"),
            ("block_size = 1000", "power of two"),
            ("block_size = '2M'", "power of two"),
            ("block_size = '9999999999K'", "power of two"),
            ("block_size = true", "power of two"),
            ("threads = -1", "threads"),
            ("compact_percent = 101", "0 to 100"),
            ("prompt = 3", "template"),
            ("profile = 'yes'", "on"),
            ("gc.keep = 0", "at least 1"),
            ("daemon.poll = 0", "1 to 10000"),
            ("daemon.poll = 10001", "1 to 10000"),
            ("daemon.poll = 'on'", "auto"),
            ("daemon.poll = -5", "off"),
            ("session.idle = '15'", "15m"),
            ("session.idle = 15", "string"),
            ("session.memory_limit = '4X'", "at least 1M"),
            ("session.memory_limit = 4096", "at least 1M"),
            ("session.memory_limit = true", "a size as in"),
            ("session.when_busy = 'wait'", "read-only"),
            ("level = 10", "0 to 9"),
            ("level = 1\ncompression = 'xz'", "cannot be combined"),
            ("level = ", "line 1"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
