//! Environments as files: names, the store, the layout on disk, locks, prefixes, configuration.
//!
//! The content of an environment is defined by its database (`state`). This module finds, creates,
//! renames and removes the directory that holds the database and all other files.

mod age;
mod config;
mod error;
mod holder;
mod home_id;
mod in_place;
mod launchers;
mod layout;
mod lock;
mod name;
mod prefix;
mod process;
mod session;
mod store;
mod trust;

pub use age::{Age, span};
pub use config::{
    CacheConfig, Config, DaemonConfig, ForgetUse, GcConfig, InJob, Poll, ProfileUse, Prompt,
    SessionConfig, WhenBusy,
};
pub use error::{EnvironmentError, Result};
pub use holder::{Holder, MOUNTED};
pub use home_id::HomeId;
pub use in_place::{DirectoryId, InPlace, Stage};
pub use launchers::{Exposure, LauncherRecord};
pub use layout::{Layout, StoreLayout};
pub use lock::{EnvLock, Hold, LEASE};
pub use name::EnvName;
pub use prefix::{Prefix, real_path};
pub use process::HostProcess;
pub use session::{
    AnnouncedRemoval, HEARTBEAT, NotedSession, SessionKind, SessionNote, SessionNotes, WrittenNote,
};
pub use store::{Environment, Garbage, NewEnvironment, Store};
pub use trust::{TRUST, other_owner, refuse_replaceable, refuse_replaceable_except};
