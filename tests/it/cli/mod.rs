//! The commands, through the real program.

mod import;
mod shells;
mod venv;
