//! Interfaces of the operating system; the only module with `unsafe` code.
//!
//! - [`cgroup`]: tell jobs of batch systems apart
//! - [`clock`]: find the offset of local time
//! - [`daemonize`]: set up this process as a daemon
//! - [`descriptors`]: send open files through Unix sockets
//! - [`durable`]: make files and names durable
//! - [`extents`]: measure the space that files share
//! - [`holders`]: find the processes that use a mount
//! - [`medium`]: detect file systems that hosts share, and full ones
//! - [`memory`]: read how much memory is available
//! - [`mount`]: mount and unmount FUSE, as root or through `fusermount3`
//! - [`mountinfo`]: read the mount table, find mounts of envfs and dead ones
//! - [`private`]: create directories that only their owner can use
//! - `probe`: query a file system that may not respond
//! - [`process`]: identify processes, boots, users and groups; execute programs
//! - [`reflink`]: share blocks between files
//! - [`regular`]: open files that must be regular files, such as those of a store
//! - [`signals`]: handle the signals of this process
//! - [`text`]: write names that need not be UTF-8 as JSON and on terminals
//! - [`walk`]: walk directory trees of any depth

pub mod cgroup;
pub mod clock;
pub mod daemonize;
pub mod descriptors;
pub mod durable;
pub mod extents;
pub mod holders;
pub mod medium;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod private;
mod probe;
pub mod process;
pub mod reflink;
pub mod regular;
pub mod signals;
pub mod text;
pub mod walk;
