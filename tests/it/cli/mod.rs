//! The commands, through the real program.

mod activate;
mod copies;
mod create;
mod daemon;
mod facts;
mod full;
mod held;
mod hints;
mod hostile;
mod import;
mod list;
mod lost;
mod names;
mod outlives;
mod read_only;
mod run;
mod trouble;
mod trust;
mod venv;
mod waits;
