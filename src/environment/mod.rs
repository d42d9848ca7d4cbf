//! Environments as files: names, the store, the layout on disk, locks, prefixes, configuration.
//!
//! What an environment *is* at any moment is told by its database (`state`); this module finds,
//! makes, names and removes the directory in which everything lies.

mod config;
mod error;
mod layout;
mod lock;
mod name;
mod prefix;
mod store;
mod trust;

pub use config::{CacheConfig, Config, GcConfig, ProfileUse, Prompt};
pub use error::{EnvironmentError, Result};
pub use layout::{Layout, Place, StoreLayout};
pub use lock::{EnvLock, Holder, LEASE};
pub use name::EnvName;
pub use prefix::Prefix;
pub use store::{Environment, Garbage, NewEnvironment, Store};
pub use trust::{TRUST, other_owner, refuse_replaceable};
