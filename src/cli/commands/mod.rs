//! The commands, one file each.

use clap::Subcommand;

use super::context::Context;
use super::error::Result;

pub(super) mod activate;
pub(super) mod cat;
pub(super) mod checkpoint;
pub(super) mod clone;
pub(super) mod commit;
pub(super) mod complete;
pub(super) mod completions;
pub(super) mod create;
pub(super) mod daemon;
pub(super) mod demo;
pub(super) mod diff;
pub(super) mod discard;
pub(super) mod doctor;
pub(super) mod du;
pub(super) mod env;
pub(super) mod export;
pub(super) mod expose;
pub(super) mod gc;
pub(super) mod hook;
pub(super) mod image;
pub(super) mod import;
pub(super) mod list;
pub(super) mod log;
pub(super) mod log_all;
pub(super) mod man;
pub(super) mod modulefile;
pub(super) mod mount;
pub(super) mod paths;
pub(super) mod ps;
pub(super) mod relocate;
pub(super) mod remove;
pub(super) mod rename;
pub(super) mod restore;
pub(super) mod rollback;
pub(super) mod run;
pub(super) mod serve;
pub(super) mod shell;
pub(super) mod show;
pub(super) mod stats;
pub(super) mod status;
pub(super) mod subshell;
pub(super) mod tag;
pub(super) mod trial;
pub(super) mod undo;
pub(super) mod unmount;
pub(super) mod verify;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(visible_alias = "pack")]
    #[allow(missing_docs)]
    Import(import::Args),
    #[allow(missing_docs)]
    Create(create::Args),
    #[allow(missing_docs)]
    Clone(clone::Args),
    #[allow(missing_docs)]
    Activate(activate::ActivateArgs),
    #[allow(missing_docs)]
    Deactivate(activate::DeactivateArgs),
    #[allow(missing_docs)]
    Reactivate(activate::ReactivateArgs),
    #[allow(missing_docs)]
    Run(run::Args),
    #[command(name = "shell")]
    #[allow(missing_docs)]
    Subshell(subshell::Args),
    #[command(name = "try")]
    #[allow(missing_docs)]
    Trial(trial::Args),
    #[allow(missing_docs)]
    Expose(expose::Args),
    #[allow(missing_docs)]
    Env(env::Args),
    Modulefile(modulefile::Args),
    #[allow(missing_docs)]
    Mount(mount::Args),
    #[command(visible_alias = "umount")]
    #[allow(missing_docs)]
    Unmount(unmount::Args),
    #[command(visible_alias = "ls")]
    #[allow(missing_docs)]
    List(list::Args),
    #[allow(missing_docs)]
    Ps(ps::Args),
    #[allow(missing_docs)]
    Status(status::Args),
    #[allow(missing_docs)]
    Diff(diff::Args),
    #[allow(missing_docs)]
    Du(du::Args),
    #[allow(missing_docs)]
    Paths(paths::Args),
    #[allow(missing_docs)]
    Commit(commit::Args),
    #[allow(missing_docs)]
    Checkpoint(checkpoint::Args),
    #[allow(missing_docs)]
    Discard(discard::Args),
    #[command(visible_alias = "history")]
    #[allow(missing_docs)]
    Log(log::Args),
    #[allow(missing_docs)]
    Show(show::Args),
    #[allow(missing_docs)]
    Cat(cat::Args),
    #[allow(missing_docs)]
    Restore(restore::Args),
    #[allow(missing_docs)]
    Undo(undo::Args),
    #[allow(missing_docs)]
    Rollback(rollback::Args),
    #[allow(missing_docs)]
    Tag(tag::Args),
    #[allow(missing_docs)]
    Gc(gc::Args),
    #[command(visible_aliases = ["rm", "delete"])]
    #[allow(missing_docs)]
    Remove(remove::Args),
    #[allow(missing_docs)]
    Rename(rename::Args),
    #[allow(missing_docs)]
    Relocate(relocate::Args),
    #[allow(missing_docs)]
    Export(export::Args),
    #[allow(missing_docs)]
    Verify(verify::Args),
    #[allow(missing_docs)]
    Doctor(doctor::Args),
    #[allow(missing_docs)]
    Hook(hook::Args),
    #[allow(missing_docs)]
    Completions(completions::Args),
    #[allow(missing_docs)]
    Man(man::Args),
    #[allow(missing_docs)]
    Stats(stats::Args),
    #[allow(missing_docs)]
    Image(image::Args),
    #[allow(missing_docs)]
    Demo(demo::Args),
    #[command(name = "__daemon", hide = true)]
    #[allow(missing_docs)]
    Daemon(daemon::Args),
    #[command(name = "__serve", hide = true)]
    #[allow(missing_docs)]
    Serve(serve::Args),
    #[command(name = "__shell", hide = true)]
    #[allow(missing_docs)]
    Shell(shell::Args),
    #[command(name = "__complete", hide = true)]
    #[allow(missing_docs)]
    Complete(complete::Args),
}

impl Command {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        match self {
            Command::Import(args) => args.run(context),
            Command::Create(args) => args.run(context),
            Command::Clone(args) => args.run(context),
            Command::Activate(args) => args.run(context),
            Command::Deactivate(args) => args.run(context),
            Command::Reactivate(args) => args.run(context),
            Command::Run(args) => args.run(context),
            Command::Subshell(args) => args.run(context),
            Command::Expose(args) => args.run(context),
            Command::Env(args) => args.run(context),
            Command::Modulefile(args) => args.run(context),
            Command::Trial(args) => args.run(context),
            Command::Mount(args) => args.run(context),
            Command::Unmount(args) => args.run(context),
            Command::List(args) => args.run(context),
            Command::Ps(args) => args.run(context),
            Command::Status(args) => args.run(context),
            Command::Diff(args) => args.run(context),
            Command::Du(args) => args.run(context),
            Command::Paths(args) => args.run(context),
            Command::Commit(args) => args.run(context),
            Command::Checkpoint(args) => args.run(context),
            Command::Discard(args) => args.run(context),
            Command::Log(args) => args.run(context),
            Command::Show(args) => args.run(context),
            Command::Cat(args) => args.run(context),
            Command::Restore(args) => args.run(context),
            Command::Undo(args) => args.run(context),
            Command::Rollback(args) => args.run(context),
            Command::Tag(args) => args.run(context),
            Command::Gc(args) => args.run(context),
            Command::Remove(args) => args.run(context),
            Command::Rename(args) => args.run(context),
            Command::Relocate(args) => args.run(context),
            Command::Export(args) => args.run(context),
            Command::Verify(args) => args.run(context),
            Command::Doctor(args) => args.run(context),
            Command::Stats(args) => args.run(context),
            Command::Image(args) => args.run(context),
            Command::Demo(args) => args.run(context),
            Command::Hook(args) => args.run(context),
            Command::Completions(args) => args.run(context),
            Command::Man(args) => args.run(context),
            Command::Daemon(args) => args.run(context),
            Command::Serve(args) => args.run(),
            Command::Shell(args) => args.run(context),
            Command::Complete(args) => args.run(context),
        }
    }
}
