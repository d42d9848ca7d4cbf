//! One process per mounted environment, and how commands speak with it.
//!
//! - [`lifecycle`]: makes sure that an environment is mounted, or no longer is; heals dead mounts
//! - [`host`]: the life of the daemon itself
//! - [`protocol`]: the messages, one JSON object a line
//! - [`direct`]: a mount without a store: an image, and a directory for its changes
//! - [`server`] and [`client`]: the two ends of the control socket
//! - `profile`: what of an image is used first, to be ahead of it the next time
//! - [`stats`]: what a mount has done and how long that took
//! - [`log`]: the daemon's log, kept short
//! - [`failure`]: an error that travels from the daemon to the command's user
//!
//! A daemon is started by executing the program anew (`envfs __daemon`), never by a fork of a process
//! with threads; it forks once before it does anything, to be nobody's child. Its
//! standard output is a pipe on which it says `{"ready":…}` or `{"error":…}` once; its standard
//! error is the environment's log. It never outlives its mount, and its mount outlives it only
//! if it was killed: then the next command that needs the mount detaches it and starts another.

pub mod client;
pub mod direct;
pub mod failure;
pub mod host;
pub mod lifecycle;
pub mod log;
mod profile;
pub mod protocol;
pub mod runtime;
pub mod server;
pub mod service;
mod start_lock;
pub mod stats;

#[cfg(test)]
mod tests;
