//! `envfs __daemon`: serves one environment until it is unmounted. Started by other commands.

use clap::Args as ClapArgs;

use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::host::{self, Mounted};
use crate::daemon::mount::{mount_environment, mount_request};
use crate::daemon::private::PrivateSpec;
use crate::daemon::target::Target;
use crate::sys::mount::Rights;

/// Serve an environment (for internal use).
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Give the user root's rights in the mount.
    #[arg(long)]
    fakeroot: bool,
    /// The description of a private session, as JSON.
    #[arg(long)]
    private: Option<String>,
    /// Environment.
    name: String,
}

impl Args {
    /// Runs the daemon. Failures are sent through the pipe to the process that started it, and
    /// logged.
    pub fn run(&self, context: &Context) -> Result<()> {
        // An unknown environment is reported in the same way.
        // Without recovery, which would start a daemon.
        let found = context
            .store()
            .and_then(|store| Env::new(store, context.files_of(Some(&self.name))?));
        let (id, runtime) = match &found {
            Ok(env) => {
                crate::daemon::log::enable_rotation(&env.target.layout);
                (env.target.id.clone(), env.runtime.clone())
            }
            Err(_) => (String::new(), crate::daemon::runtime::RuntimeDir::open()),
        };
        let rights = match self.fakeroot {
            true => Rights::Root,
            false => Rights::Own,
        };
        let private = self.private.as_ref().map(|text| serde_json::from_str(text));
        host::run(&id, &runtime, || {
            let private = private
                .transpose()
                .map_err(|error| Failure::of(Kind::Internal, &error))?;
            match found {
                Ok(env) => mount(&env, rights, private.as_ref()),
                Err(error) => Err(to_failure(error)),
            }
        })
        .map_err(CommandError::from)
    }
}

/// Opens and mounts an environment, privately if that is described.
fn mount(env: &Env, rights: Rights, private: Option<&PrivateSpec>) -> Result<Mounted, Failure> {
    let Target { prefix, id, .. } = &env.target;
    let request = || mount_request(prefix.clone(), id.clone(), rights);
    // Before anything is opened: there must be no thread yet.
    let private = private.map(|spec| spec.mount(&request())).transpose()?;
    let config = env.environment.store().config()?;
    mount_environment(env.environment.clone(), &config, rights, private)
}

fn to_failure(error: CommandError) -> Failure {
    Failure {
        kind: error.kind,
        message: error.message,
        details: error.details,
        hints: error.hints,
    }
}
