//! `envfs modulefile`

use clap::Args as ClapArgs;

use crate::cli::access::Access;
use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::session::{self, DefaultSessionArgs};
use crate::shell::facts::PrefixFacts;
use crate::shell::module::{Language, Module, NotText};
use crate::shell::render::word;
use crate::sys::process;
use crate::sys::text::quoted;

/// Print a modulefile, for clusters whose users load modules.
///
/// The module mounts the environment as `envfs mount` does and sets the variables that `envfs
/// activate` sets; unloading it restores them. Tcl is for Environment Modules, and also works in
/// Lmod; Lua is for Lmod. The options choose the session that the module mounts.
///
/// The head of the text says what unloading cannot restore.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs modulefile science > ~/modules/science\n  envfs modulefile --lua --read-only science@paper > ~/modules/science/paper.lua\n  module use ~/modules && module load science"
)]
pub struct Args {
    /// Print Lua, for Lmod.
    #[arg(long, conflicts_with = "tcl")]
    lua: bool,
    /// Print Tcl, for Environment Modules and Lmod. This is the default.
    #[arg(long)]
    tcl: bool,
    #[command(flatten)]
    session: DefaultSessionArgs,
    /// Environment, or a revision of it as NAME@REV [default: the active environment].
    name: Option<String>,
}

impl Args {
    /// Returns how the command accesses the store.
    pub(in crate::cli) fn access(&self) -> Access {
        Access::of_session(self.session.kind(self.name.as_deref()))
    }

    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let given = self.name.as_deref();
        // Its files tell which variables it needs.
        let args = self.session.resolve(context, given)?;
        let entered = session::enter(context, given, &args, None)?;
        let env = &entered.env;
        let facts = PrefixFacts::read(env.name(), &env.target.prefix, None);
        let text = |value: &std::ffi::OsStr| {
            let text = value
                .to_str()
                .ok_or_else(|| not_text(&NotText(value.into())))?;
            Ok::<_, CommandError>(text.to_owned())
        };
        let mut mount = vec![
            text(process::own_program().as_os_str())?,
            "--home".to_owned(),
            text(env.store.layout().root().as_os_str())?,
            "--quiet".to_owned(),
            "mount".to_owned(),
        ];
        let options = self.session.words()?;
        for option in &options {
            mount.push(text(option)?);
        }
        let place = match given.map(crate::cli::place::split_revision) {
            Some((_, Some(revision))) => format!("{}@{revision}", env.name()),
            _ => env.name().to_owned(),
        };
        mount.push(place.clone());
        let language = match self.lua {
            true => Language::Lua,
            false => Language::Tcl,
        };
        let mut command = vec![format!(
            "envfs modulefile --{}",
            if self.lua { "lua" } else { "tcl" }
        )];
        command.extend(options.iter().map(word));
        command.push(word(&place));
        let module = Module {
            facts: &facts,
            mount,
            command: command.join(" "),
        };
        let text = module.render(language).map_err(|error| not_text(&error))?;
        context.output.raw(text.as_bytes())
    }
}

fn not_text(NotText(path): &NotText) -> CommandError {
    let message = format!(
        "{} is not UTF-8, so no modulefile can name it",
        quoted(path)
    );
    CommandError::usage(message).hint("relocate the environment: envfs relocate NAME PREFIX")
}
