//! envfs keeps an environment (conda, venv, Node prefix, any tree) as one compressed
//! SquashFS file and shows it as an ordinary writable directory, without root.
//!
//! The modules are rooms, and the arrows between them go down only:
//!
//! ```text
//!  cli ───────────────► shell
//!   │
//!  daemon
//!   │    │
//!  fuse  commit              siblings: neither sees the other
//!   │    │
//!  union                     semantics; generic over one trait for read-only layers
//!   │
//!  squashfs   upper   state   environment
//!                │       │        │
//!                └── sys ┴────────┘        the only unsafe code
//! ```
//!
//! Only [`fuse`] names the fuser crate, only [`state`] names rusqlite, only [`cli`] prints,
//! only [`sys`] is unsafe, only `main` exits. [`squashfs`] knows nothing else of ours.
//! [`object`] and [`progress`] are plain vocabulary, seen by all but `squashfs`.

pub mod cli;
pub mod commit;
pub mod daemon;
pub mod environment;
pub mod fault;
pub mod fuse;
pub mod object;
pub mod progress;
pub mod shell;
pub mod squashfs;
pub mod state;
pub mod sys;
pub mod union;
pub mod upper;
