//! `envfs man`

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use clap_mangen::Man;

use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::sys::text::quoted;

/// Write the manual pages, one for each command.
///
/// For packages. Without --out, prints the page of envfs itself: envfs man | man -l -
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs man --out ~/.local/share/man/man1    then: man envfs-commit"
)]
pub struct Args {
    /// Write envfs.1, envfs-commit.1 and so on into this directory, which is created.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let mut command = crate::cli::command();
        command.build();
        let Some(out) = &self.out else {
            return context.output.raw(&page(command, "envfs")?);
        };
        std::fs::create_dir_all(out)
            .map_err(|error| CommandError::io(format!("cannot create {}", quoted(out)), &error))?;
        write(&command, "envfs", out)
    }
}

fn page(command: clap::Command, title: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command)
        .title(title)
        .render(&mut text)
        .map_err(|error| CommandError::io("cannot write a manual page", &error))?;
    Ok(text)
}

/// Writes the pages of a command and those below it.
fn write(command: &clap::Command, title: &str, dir: &Path) -> Result<()> {
    let file = dir.join(format!("{title}.1"));
    std::fs::write(&file, page(command.clone(), title)?)
        .map_err(|error| CommandError::io(format!("cannot write {}", quoted(&file)), &error))?;
    for below in command.get_subcommands() {
        if !below.is_hide_set() && below.get_name() != "help" {
            write(below, &format!("{title}-{}", below.get_name()), dir)?;
        }
    }
    Ok(())
}
