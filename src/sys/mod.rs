//! What the operating system does for us: the only room with `unsafe` code.
//!
//! - [`durable`]: making files and names durable
//! - [`medium`]: which file systems are shared between hosts
//! - [`mount`]: mounting and unmounting FUSE, as root or through `fusermount3`
//! - [`mountinfo`]: what is mounted here, which of it is ours, which of it is dead
//! - [`holders`]: which processes use a mount
//! - [`private`]: directories for one user alone
//! - `probe`: asking a file system that may never answer
//! - [`process`]: identity of processes, boots and users; what a daemon needs
//! - [`reflink`]: sharing blocks between files
//! - [`regular`]: opening files that must be regular files, such as those of a store
//! - [`text`]: names that need not be UTF-8, written as JSON
//! - [`walk`]: walks of directory trees of any depth

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
