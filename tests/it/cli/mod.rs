//! The commands, through the real program.

mod copies;
mod create;
mod daemon;
mod facts;
mod full;
mod held;
mod import;
mod lost;
mod shells;
mod trouble;
mod venv;
