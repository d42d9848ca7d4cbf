//! The commands, through the real program.

mod daemon;
mod facts;
mod held;
mod import;
mod shells;
mod trouble;
mod venv;
