//! An environment that is open: its database and its merged view, with or without a mount in front.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::Result;
use super::cleanup;
use crate::environment::{Config, Environment, Layout};
use crate::squashfs::{Compression, ReaderOptions};
use crate::state::{NewRevision, StateDb};
use crate::sys::process;
use crate::union::{OpenOptions, Paths, Reconciled, Union};

/// An open environment. Its holder has the environment's exclusive lock.
#[derive(Debug)]
pub struct Workspace {
    env: Environment,
    db: Arc<StateDb>,
    union: Arc<Union>,
    options: OpenOptions,
    settings: Settings,
}

/// How images are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Codec and level of new images.
    pub compression: Compression,
    /// Block size of new images, in bytes.
    pub block_size: u32,
    /// Threads that compress.
    pub threads: NonZeroUsize,
    /// A commit compacts when more than so many percent of the old data belong to nothing.
    pub compact_percent: u8,
}

impl Settings {
    /// Takes the settings from a configuration, with the defaults where it is silent.
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
        }
    }
}

impl Workspace {
    /// Opens an environment, mends what an unclean end left, and removes what a finished operation
    /// did not get round to. Returns what was mended.
    pub fn open(env: Environment, config: &Config) -> Result<(Workspace, Reconciled)> {
        let layout = env.layout();
        layout.check_directories()?;
        let db = Arc::new(StateDb::open(&layout.state_db())?);
        let options = OpenOptions {
            reader: ReaderOptions {
                metadata_cache_bytes: (config.cache.metadata_mib as usize) << 20,
                data_cache_bytes: (config.cache.data_mib as usize) << 20,
            },
        };
        cleanup::sweep(&db, layout)?;
        let (union, reconciled) = Union::open(db.clone(), paths(layout), &options)?;
        let settings = Settings::from_config(config);
        Ok((
            Workspace {
                env,
                db,
                union: Arc::new(union),
                options,
                settings,
            },
            reconciled,
        ))
    }

    /// Makes everything durable and notes a clean end. Call when nothing uses the view any more.
    pub fn close(&self) -> Result<()> {
        Ok(self.union.close()?)
    }

    /// The environment.
    pub fn env(&self) -> &Environment {
        &self.env
    }

    /// Its database.
    pub fn db(&self) -> &Arc<StateDb> {
        &self.db
    }

    /// User and group whom the image that it began with belonged to.
    pub fn image_owner(&self) -> Result<Option<(u32, u32)>> {
        Ok(self.db.image_owner()?)
    }

    /// Its merged view.
    pub fn union(&self) -> &Arc<Union> {
        &self.union
    }

    /// How its images are opened.
    pub fn open_options(&self) -> &OpenOptions {
        &self.options
    }

    /// How its images are written.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// Where a view has its files.
pub fn paths(layout: &Layout) -> Paths {
    Paths {
        images: layout.images(),
        images_are_links: false,
        layers: layout.layers(),
        strays: layout.strays(),
    }
}

/// The command line of this process, as the history keeps it.
pub fn command_line() -> String {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    words.collect::<Vec<_>>().join(" ")
}

/// Describes a revision that is about to be made: who, where, by which command.
pub fn new_revision(message: &str, command: &str) -> NewRevision {
    NewRevision {
        message: message.to_owned(),
        user: process::user_name(process::user_id()),
        host: process::host_name(),
        command: command.to_owned(),
    }
}
