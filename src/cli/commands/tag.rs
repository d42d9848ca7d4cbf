//! `envfs tag`

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::output::table;
use crate::daemon::protocol::TagOptions;
use crate::environment::EnvName;
use crate::sys::text::quoted;

/// Tag a revision, or list tags.
///
/// Rollback and export accept a tag instead of a revision number, and gc keeps tagged revisions.
/// Setting an existing tag moves it.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs tag                          lists the tags\n  envfs tag science before-upgrade   tags the current revision\n  envfs tag science paper 3          tags revision 3\n  envfs tag science -d paper\n  envfs rollback science before-upgrade"
)]
pub struct Args {
    /// Environment [default: the active one], the tag, and the revision by number or tag [default:
    /// the current one].
    #[arg(value_name = "[NAME] [TAG] [REV]", num_args = 0..=3)]
    words: Vec<String>,
    /// Revision, by number or tag.
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Delete the tag; the revision is kept.
    #[arg(short, long, conflicts_with = "rev")]
    delete: bool,
    /// Print only the tags, each terminated by NUL.
    #[arg(short = 'z', long, conflicts_with_all = ["json", "delete", "rev"])]
    null: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    tag: String,
    revision: i64,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, tag, rev) = self.target(context)?;
        let rev = match (rev, &self.rev) {
            (Some(_), Some(_)) => {
                return Err(CommandError::usage("two revisions given")
                    .hint(format!("envfs tag {} TAG REV", env.name())));
            }
            (Some(rev), None) => Some(rev),
            (None, rev) => rev.clone(),
        };
        if rev.is_some() && (self.delete || self.null) {
            return Err(CommandError::usage("a revision is only given to set a tag")
                .hint(format!("envfs tag {} TAG REV", env.name())));
        }
        let Some(tag) = tag else {
            if rev.is_some() || self.delete {
                return Err(CommandError::usage("no tag given")
                    .hint(format!("envfs tag {} TAG", env.name())));
            }
            return self.list(context, &env);
        };
        let name = EnvName::new(&tag)
            .ok()
            .filter(|_| backend::number(&tag).is_none());
        if name.is_none() && !self.delete {
            return Err(
                CommandError::usage(format!("{} is not a valid tag", quoted(&tag))).hint(
                    "a tag has up to 64 letters, digits, '.', '_' and '-', and is not a number",
                ),
            );
        }
        let revision = match (&rev, self.delete) {
            (_, true) => None,
            (Some(rev), false) => Some(backend::revision(&env.environment, rev)?),
            (None, false) => env.facts.revision.as_ref().map(|revision| revision.id.0),
        };
        if revision.is_none() && !self.delete {
            return Err(CommandError::usage(format!(
                "{} has no revision yet",
                env.name()
            )));
        }
        env.tag(&TagOptions {
            tag: tag.clone(),
            revision,
        })?;
        context.output.note(match revision {
            Some(revision) => format!("{}: tagged revision {revision} as {tag}", env.name()),
            None => format!("{}: deleted tag {tag}", env.name()),
        });
        Ok(())
    }

    /// The first word is an environment if one has that name or none is active, or if there are
    /// three words; else it is a tag of the active one. Returns the environment, the tag and the
    /// revision.
    fn target(&self, context: &Context) -> Result<(Env, Option<String>, Option<String>)> {
        let (name, words) = match self.words.split_first() {
            Some((word, rest))
                if self.words.len() > 2
                    || context.is_name(word)
                    || crate::cli::context::active_name().is_none() =>
            {
                (Some(word.as_str()), rest)
            }
            _ => (None, self.words.as_slice()),
        };
        let env = context.environment(name)?;
        Ok((env, words.first().cloned(), words.get(1).cloned()))
    }

    fn list(&self, context: &Context, env: &Env) -> Result<()> {
        let tags = backend::tags(&env.environment)?;
        let rows = tags.into_iter().map(|tag| Row {
            tag: tag.name,
            revision: tag.revision.0,
        });
        let rows: Vec<Row> = rows.collect();
        if self.json {
            return context.output.json(&rows);
        }
        if self.null {
            return context.output.fields(rows.iter().map(|row| &row.tag));
        }
        if rows.is_empty() {
            context.output.note(format!("{}: no tags", env.name()));
        }
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| vec![row.tag.clone(), row.revision.to_string()])
            .collect();
        table(&cells)
            .into_iter()
            .try_for_each(|line| context.output.line(line))
    }
}
