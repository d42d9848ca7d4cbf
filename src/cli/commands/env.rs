//! `envfs env`

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args as ClapArgs;
use serde::Serialize;

use super::activate::{ShellName, variables};
use super::run;
use crate::cli::access::Access;
use crate::cli::context::{Context, active_name};
use crate::cli::error::Result;
use crate::cli::session::DefaultSessionArgs;
use crate::shell::Shell;
use crate::shell::plan::{self, Script, Variables};
use crate::shell::render::render;
use crate::sys::text::{Text, printable};

/// Show the variables that activation sets.
///
/// For IDEs, direnv and scripts that start programs of an environment by themselves. Mounts the
/// environment, as activation does, and includes what its activate.d scripts set. Prints NAME=VALUE
/// for each variable that is set, and NAME alone for each that is unset. If the environment is
/// active, its own values are shown, not the differences from now, except for what its scripts have
/// set already.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs env science\n  envfs env --json science | jq -r .set.PATH\n  eval \"$(envfs env --shell bash science)\"\n  envfs env -z science@3 | xargs -0 -I{} echo {}"
)]
pub struct Args {
    /// Environment, or a revision of it as NAME@REV [default: the active environment].
    name: Option<String>,
    #[command(flatten)]
    session: DefaultSessionArgs,
    /// Do not source the activate.d scripts.
    #[arg(long)]
    no_scripts: bool,
    /// Print text for this shell to evaluate.
    #[arg(long, value_enum, conflicts_with_all = ["json", "null"])]
    shell: Option<ShellName>,
    /// Print exactly, each variable terminated by NUL.
    #[arg(short = 'z', long, conflicts_with = "json")]
    null: bool,
    /// Print JSON: an object `set` and a list `unset`.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Changes {
    set: BTreeMap<String, Text>,
    unset: Vec<String>,
}

impl Args {
    /// Returns how the command accesses the store.
    pub(in crate::cli) fn access(&self) -> Access {
        Access::of_session(self.session.kind(self.name.as_deref()))
    }

    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let mut before = variables();
        if active_name().is_some() {
            plan::deactivate(&before.clone()).apply(&mut before);
        }
        let scripts = match self.no_scripts {
            true => run::Scripts::Skip,
            false => run::Scripts::Source,
        };
        let name = self.name.as_deref();
        let after = run::activated(context, name, &self.session, scripts, before.clone())?;
        let changes = Changes::between(&before, &after);
        if self.json {
            return context.output.json(&changes);
        }
        if let Some(shell) = self.shell {
            return context.output.raw(&changes.text(Shell::from(shell)));
        }
        let set = changes.set.iter();
        let lines = set.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        let unset = changes.unset.iter().map(|name| name.as_bytes().to_vec());
        if self.null {
            return context.output.fields(lines.chain(unset));
        }
        let mut lines = lines.chain(unset);
        lines.try_for_each(|line| context.output.line(printable(line)))
    }
}

impl Changes {
    fn between(before: &Variables, after: &Variables) -> Changes {
        let name = |name: &OsString| name.to_str().map(str::to_owned);
        let is_new = |(name, value): &(&OsString, &OsString)| before.get(*name) != Some(*value);
        let set = after.iter().filter(is_new);
        let unset = before.keys().filter(|name| !after.contains_key(*name));
        Changes {
            set: set
                .filter_map(|(key, value)| Some((name(key)?, Text(value.clone()))))
                .collect(),
            unset: unset.filter_map(name).collect(),
        }
    }

    /// Returns the text with which a shell makes the changes.
    fn text(&self, shell: Shell) -> Vec<u8> {
        let script = Script {
            unset: self.unset.iter().map(OsString::from).collect(),
            export: self
                .set
                .iter()
                .map(|(name, value)| {
                    let value = OsStr::from_bytes(value.as_bytes()).to_owned();
                    (OsString::from(name), value)
                })
                .collect(),
            ..Script::default()
        };
        render(&script, shell)
    }
}
