//! The commands, through the real program.

mod daemon;
mod facts;
mod import;
mod shells;
mod trouble;
mod venv;
