//! An open environment: its database and its merged view, mounted or not.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Result;
use super::exclude::Exclude;
use super::{cleanup, retired};
use crate::environment::{CacheConfig, Config, Environment, ForgetUse, Layout, ProfileUse};
use crate::squashfs::{Compression, ReaderOptions};
use crate::state::{NewRevision, StateDb};
use crate::sys::memory::Memory;
use crate::sys::process;
use crate::union::{OpenOptions, Paths, Reconciled, Union};

/// An open environment. Its owner holds the environment's exclusive lock.
#[derive(Debug)]
pub struct Workspace {
    env: Environment,
    db: Arc<StateDb>,
    union: Arc<Union>,
    options: OpenOptions,
    settings: Settings,
    /// What commits leave out.
    ignore: Exclude,
}

/// How images are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Codec and level of new images.
    pub compression: Compression,
    /// Block size of new images, in bytes.
    pub block_size: u32,
    /// Number of compressing threads.
    pub threads: NonZeroUsize,
    /// A commit compacts the image if more than this percentage of its data area is dead.
    pub compact_percent: u8,
    /// Whether images begin with the files of the access profile.
    pub profile: ProfileUse,
    /// The number of commits whose layers are kept for an undo.
    pub undo: u32,
    /// Which revisions are forgotten after a commit; `None` for none.
    pub forget: Option<Forget>,
}

/// Which revisions are kept after a commit: all of these, besides the current one, tagged ones, and
/// those that a session or an undo needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forget {
    /// This number of the newest ones.
    pub keep: u32,
    /// Those that were current within this time.
    pub keep_for: Option<Duration>,
}

impl Settings {
    /// Returns the settings of a configuration, with defaults for missing keys.
    pub fn from_config(config: &Config) -> Settings {
        let level = || config.level.and_then(Compression::from_conda_pack_level);
        let compression = config
            .compression
            .as_ref()
            .and_then(|text| text.parse().ok())
            .or_else(level);
        let available = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Settings {
            compression: compression.unwrap_or_default(),
            block_size: config
                .block_size
                .unwrap_or(crate::squashfs::format::DEFAULT_BLOCK_SIZE),
            threads: NonZeroUsize::new(config.threads).unwrap_or_else(available),
            compact_percent: config.compact_percent,
            profile: config.profile,
            undo: config.history.undo,
            forget: (config.history.forget == ForgetUse::AfterCommit).then(|| Forget {
                keep: config.history.keep,
                keep_for: Some(config.history.keep_for.duration()),
            }),
        }
    }
}

/// Returns the caches of a mount with this configuration.
pub fn reader_options(cache: &CacheConfig) -> ReaderOptions {
    let data_mib = cache.data_mib.unwrap_or(CacheConfig::DATA_MIB);
    ReaderOptions {
        metadata_cache_bytes: (cache.metadata_mib as usize) << 20,
        data_cache_bytes: (data_mib as usize) << 20,
        data_cache_limit: match cache.data_mib {
            Some(_) => None,
            None => Some(data_cache_limit),
        },
    }
}

impl Workspace {
    /// Opens an environment: removes the unreferenced files of interrupted operations, and
    /// reconciles rows and files if the last close was not clean. Returns what was repaired.
    pub fn open(env: Environment, config: &Config) -> Result<(Workspace, Reconciled)> {
        let layout = env.layout();
        layout.check_directories()?;
        let db = Arc::new(StateDb::open(&layout.state_db())?);
        let options = OpenOptions {
            reader: reader_options(&config.cache),
            limit: None,
        };
        cleanup::revert_relocation(&db, layout)?;
        cleanup::sweep(&db, layout)?;
        let (union, reconciled) = Union::open(db.clone(), paths(layout), &options)?;
        // Opening may have made a frozen layer writable again, in place of an empty one.
        retired::sweep_retired(&db, layout)?;
        let settings = Settings::from_config(config);
        let patterns: Vec<PathBuf> = config.commit.ignore.iter().map(PathBuf::from).collect();
        let ignore = Exclude::new(&patterns)?;
        Ok((
            Workspace {
                env,
                db,
                union: Arc::new(union),
                options,
                settings,
                ignore,
            },
            reconciled,
        ))
    }

    /// Makes everything durable and records a clean close. The view must no longer be in use.
    pub fn close(&self) -> Result<()> {
        Ok(self.union.close()?)
    }

    /// Returns the environment.
    pub fn env(&self) -> &Environment {
        &self.env
    }

    /// Returns the state database.
    pub fn db(&self) -> &Arc<StateDb> {
        &self.db
    }

    /// Returns the owner and group of the root of the first image.
    pub fn image_owner(&self) -> Result<Option<(u32, u32)>> {
        Ok(self.db.image_owner()?)
    }

    /// Returns the merged view.
    pub fn union(&self) -> &Arc<Union> {
        &self.union
    }

    /// Returns the options for opening its images.
    pub fn open_options(&self) -> &OpenOptions {
        &self.options
    }

    /// Returns the patterns of paths that commits leave out.
    pub(super) fn ignore(&self) -> &Exclude {
        &self.ignore
    }

    /// Returns the settings for writing its images.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// A host with less memory than this, in bytes, is not used for larger caches.
const MUCH_MEMORY: u64 = 8 << 30;
/// The part of the available memory that the cache of data may use, and its limit in bytes.
const PART_OF_AVAILABLE: u64 = 16;
const DATA_CACHE_LIMIT: u64 = 1 << 30;

/// Returns the bytes to which the cache of data of a mount may grow now.
fn data_cache_limit() -> usize {
    match Memory::now() {
        Some(memory) if memory.total >= MUCH_MEMORY => {
            (memory.available / PART_OF_AVAILABLE).min(DATA_CACHE_LIMIT) as usize
        }
        _ => 0,
    }
}

/// Returns the paths of the files of a view.
pub fn paths(layout: &Layout) -> Paths {
    Paths {
        images: layout.images(),
        images_are_links: false,
        layers: layout.layers(),
        strays: layout.strays(),
    }
}

/// Returns the command line of this process, for the history.
pub fn command_line() -> String {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    words.collect::<Vec<_>>().join(" ")
}

/// Returns a new revision by the current user on this host.
pub fn new_revision(message: &str, command: &str) -> NewRevision {
    NewRevision {
        message: message.to_owned(),
        user: process::user_name(process::user_id()),
        host: process::host_name(),
        command: command.to_owned(),
        packages: None,
    }
}
