//! `envfs paths`

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::daemon::lifecycle::State;
use crate::sys::text::{Text, quoted};

/// Show the paths of an environment.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs paths science\n  envfs paths --json | jq -r .image")]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Print NAME=PATH, exactly, each terminated by NUL.
    #[arg(short = 'z', long, conflicts_with = "json")]
    null: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Paths {
    prefix: Text,
    home: Text,
    database: Text,
    image: Option<Text>,
    images: Text,
    layers: Text,
    strays: Text,
    log: Text,
    socket: Option<Text>,
    config: Text,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        let layout = env.environment.layout();
        let paths = Paths {
            prefix: env.target.prefix.as_path().into(),
            home: layout.home().into(),
            database: layout.state_db().into(),
            image: match env.facts.image {
                Some(_) => Some(backend::image_file(&env.environment, None)?.into()),
                None => None,
            },
            images: layout.images().into(),
            layers: layout.layers().into(),
            strays: layout.strays().into(),
            log: layout.daemon_log().into(),
            socket: match env.state()? {
                State::Mounted(client) | State::Elsewhere(client) => Some(client.socket().into()),
                _ => env.runtime.socket(&env.target.id).map(Text::from),
            },
            config: env.store.layout().config().into(),
        };
        if self.json {
            return context.output.json(&paths);
        }
        let or_none = |path: &Option<Text>| {
            path.clone().unwrap_or_else(|| match self.null {
                true => Text::default(),
                false => Text::from("-"),
            })
        };
        let (image, socket) = (or_none(&paths.image), or_none(&paths.socket));
        for (word, path) in [
            ("prefix", &paths.prefix),
            ("home", &paths.home),
            ("database", &paths.database),
            ("image", &image),
            ("images", &paths.images),
            ("layers", &paths.layers),
            ("strays", &paths.strays),
            ("log", &paths.log),
            ("socket", &socket),
            ("config", &paths.config),
        ] {
            if self.null {
                let value = [word.as_bytes(), b"=", path.as_bytes()].concat();
                context.output.fields([value])?;
                continue;
            }
            context
                .output
                .line(format!("{word:9} {}", quoted(&path.0)))?;
        }
        Ok(())
    }
}
