//! `envfs paths`

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::Context;
use crate::cli::error::Result;
use crate::daemon::lifecycle::State;

/// Show where the parts of an environment are.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs paths science\n  envfs paths --json | jq -r .image")]
pub struct Args {
    /// Environment [default: the active one].
    name: Option<String>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Places {
    prefix: PathBuf,
    home: PathBuf,
    database: PathBuf,
    image: Option<PathBuf>,
    images: PathBuf,
    layers: PathBuf,
    strays: PathBuf,
    log: PathBuf,
    socket: PathBuf,
    config: PathBuf,
}

impl Args {
    /// Does it.
    pub fn run(&self, context: &Context) -> Result<()> {
        let env = context.environment(self.name.as_deref())?;
        let layout = env.environment.layout();
        let places = Places {
            prefix: env.target.prefix.clone(),
            home: layout.home().to_path_buf(),
            database: layout.state_db(),
            image: match env.facts.image {
                Some(_) => Some(backend::image_file(&env.environment, None)?),
                None => None,
            },
            images: layout.images(),
            layers: layout.layers(),
            strays: layout.strays(),
            log: layout.daemon_log(),
            socket: match env.state()? {
                State::Mounted(client) | State::Elsewhere(client) => client.socket().to_owned(),
                _ => env.runtime.socket(&env.target.id),
            },
            config: env.store.layout().config(),
        };
        if self.json {
            return context.output.json(&places);
        }
        let image = places.image.clone().unwrap_or_else(|| PathBuf::from("-"));
        for (word, path) in [
            ("prefix", &places.prefix),
            ("home", &places.home),
            ("database", &places.database),
            ("image", &image),
            ("images", &places.images),
            ("layers", &places.layers),
            ("strays", &places.strays),
            ("log", &places.log),
            ("socket", &places.socket),
            ("config", &places.config),
        ] {
            context
                .output
                .line(format!("{word:9} {}", path.display()))?;
        }
        Ok(())
    }
}
