//! The daemon of a mounted environment, and its communication with commands.
//!
//! - [`target`]: the environment that a command acts on
//! - [`lifecycle`]: mounts and unmounts an environment, and replaces dead mounts
//! - [`unmount`]: unmounting, by commands and by daemons
//! - `launch`: starts a daemon and waits for its report
//! - [`prefix`]: checks that an environment can be mounted at a path
//! - `startup`: becomes a daemon and reports to the command that started it
//! - [`host`]: the daemon of a writable mount, from its start to its end
//! - [`idle`]: the end of mounts that are not used
//! - [`protocol`]: the messages, one JSON object per line
//! - [`spec`]: what a daemon is told to serve, on its command line
//! - [`direct`]: mounts without a store: images, and a directory for changes
//! - [`session`]: mounts of a committed revision, beside the writable mount
//! - [`trial`]: mounts of the current state with further changes, which are kept or dropped
//! - [`private`]: mounts in namespaces of their own, which commands enter
//! - [`server`] and [`client`]: the two ends of the control socket
//! - [`service`]: the operations on an open environment
//! - [`repairs`]: messages about differences that were repaired on opening
//! - [`mount`]: mounts an environment and connects its service with the mount
//! - [`selection`]: the paths that a request selects
//! - `profile`: records what is read first after a mount, and reads it ahead the next time
//! - [`runtime`]: the directory of sockets and start locks
//! - [`stats`]: the requests that a mount has served, and their latency
//! - [`log`]: the daemon's log and its rotation
//! - [`failure`]: errors that are sent from the daemon to the command
//!
//! A command starts a daemon by executing the program again (`envfs __daemon`), because a process
//! with threads cannot fork safely. The new process forks once before it does anything else, so
//! that the daemon becomes a child of init. Its standard output is a pipe to which it writes one
//! line, `{"ready":…}` or `{"error":…}`; its standard error is the environment's log. A daemon ends
//! with its mount. If it is killed, its mount remains and is dead: the next command that needs the
//! mount detaches it and starts another daemon.

mod auto_checkpoint;
pub(crate) mod client;
pub(crate) mod direct;
pub(crate) mod failure;
pub(crate) mod host;
pub(crate) mod idle;
mod launch;
pub(crate) mod lifecycle;
pub(crate) mod log;
pub(crate) mod mount;
pub(crate) mod prefix;
pub(crate) mod private;
mod profile;
pub(crate) mod protocol;
pub(crate) mod repairs;
pub(crate) mod runtime;
pub(crate) mod selection;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod spec;
mod start_lock;
mod startup;
pub(crate) mod stats;
pub(crate) mod target;
pub(crate) mod trial;
pub(crate) mod unmount;

#[cfg(test)]
mod tests;
