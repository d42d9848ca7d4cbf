//! envfs stores an environment (conda, venv, Node prefix, any directory tree) as one compressed
//! SquashFS file and mounts it as an ordinary writable directory, without root.
//!
//! Modules depend only on modules below them:
//!
//! ```text
//!  cli ───────────────► shell
//!   │
//!  daemon
//!   │    │
//!  fuse  commit              siblings: neither depends on the other
//!   │    │
//!   │   packages, relocate   changed files as changed packages; prefixes in files
//!   │    │
//!  union                     POSIX semantics; generic over one trait for read-only layers
//!   │
//!  squashfs   upper   state   environment
//!                │       │        │
//!                └── sys ┴────────┘        the only unsafe code
//! ```
//!
//! Only `fuse` uses the fuser crate, only [`state`] uses rusqlite, only [`cli`] prints, only
//! [`sys`] has unsafe code, only `main` exits. [`squashfs`] uses no other module of envfs.
//! [`object`], [`progress`] and [`fault`] are used by all modules but `squashfs`.

pub mod cli;
pub mod commit;
pub(crate) mod daemon;
pub mod environment;
pub mod fault;
pub(crate) mod fuse;
pub mod object;
pub(crate) mod packages;
pub mod progress;
pub mod relocate;
pub mod shell;
pub mod squashfs;
pub mod state;
pub mod sys;
pub mod union;
pub(crate) mod upper;
