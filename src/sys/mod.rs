//! Interfaces of the operating system; the only module with `unsafe` code.
//!
//! - [`durable`]: make files and names durable
//! - [`holders`]: find the processes that use a mount
//! - [`medium`]: detect file systems that hosts share, and full ones
//! - [`mount`]: mount and unmount FUSE, as root or through `fusermount3`
//! - [`mountinfo`]: read the mount table, find mounts of envfs and dead ones
//! - [`private`]: create directories that only their owner can use
//! - `probe`: query a file system that may not respond
//! - [`process`]: identify processes, boots and users; set up a daemon
//! - [`reflink`]: share blocks between files
//! - [`regular`]: open files that must be regular files, such as those of a store
//! - [`text`]: write names that need not be UTF-8 as JSON and on terminals
//! - [`walk`]: walk directory trees of any depth

pub mod durable;
pub mod holders;
pub mod medium;
pub mod mount;
pub mod mountinfo;
pub mod private;
mod probe;
pub mod process;
pub mod reflink;
pub mod regular;
pub mod text;
pub mod walk;
