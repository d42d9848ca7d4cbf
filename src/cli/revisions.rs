//! Which words of a command line are revisions.
//!
//! `[NAME] [REV] [REV] [PATH...] [-- PATH...]`: after the name come revisions, then paths. A number
//! or a tag is a revision; `@3` and `@tag` always are; `A..B` is two, and `NAME@REV` the first. All
//! words after the first that is no revision are paths, and so is everything after `--`. A number
//! or a tag that is also the name of a file at the top of the environment is an error, as it is in
//! git.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::backend;
use super::context::{Context, Env};
use super::error::{CommandError, Result};
use super::place;
use crate::daemon::failure::Kind;
use crate::environment::EnvName;
use crate::sys::text::quoted;

/// The revisions at the beginning of some words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Revisions<'a> {
    /// At most two.
    pub(super) numbers: Vec<i64>,
    /// The words after them, which are paths.
    pub(super) paths: &'a [OsString],
}

/// Revisions of two environments, and the words after them, which are paths.
#[derive(Debug)]
pub(super) struct OfTwo<'a> {
    pub(super) old: (Env, i64),
    pub(super) new: (Env, i64),
    pub(super) paths: &'a [OsString],
}

/// Parses `NAME@REV OTHER@REV [PATH...]`. `None` if the words do not name two environments.
pub(super) fn of_two<'a>(context: &Context, words: &'a [OsString]) -> Result<Option<OfTwo<'a>>> {
    let [one, other, paths @ ..] = words else {
        return Ok(None);
    };
    let (Some(one), Some(other)) = (one.to_str(), other.to_str()) else {
        return Ok(None);
    };
    if !is_named(context, one) || !is_named(context, other) {
        return Ok(None);
    }
    let (old, new) = (
        context.environment_at(Some(one))?,
        context.environment_at(Some(other))?,
    );
    Ok(match (old, new) {
        ((old, Some(from)), (new, Some(to))) if old.name() != new.name() => Some(OfTwo {
            old: (old, from),
            new: (new, to),
            paths,
        }),
        _ => None,
    })
}

/// Parses `[NAME] [REV...] [PATH...]`. The name may carry the first revision: `NAME@REV`.
pub(super) fn parse<'a>(
    context: &Context,
    words: &'a [OsString],
    most: usize,
) -> Result<(Env, Revisions<'a>)> {
    if let Some((word, rest)) = words.split_first()
        && let Some(word) = word.to_str()
        && is_named(context, word)
        && let (env, Some(first)) = context.environment_at(Some(word))?
    {
        // The second revision may be given in the same way.
        if let Some((other, rest)) = rest.split_first()
            && most > 1
            && let Some(other) = other.to_str()
            && is_named(context, other)
            && let (of_other, Some(second)) = context.environment_at(Some(other))?
        {
            if of_other.name() != env.name() {
                return Err(CommandError::usage(format!(
                    "{} and {} are revisions of different environments",
                    quoted(word),
                    quoted(other)
                )));
            }
            let numbers = vec![first, second];
            return Ok((
                env,
                Revisions {
                    numbers,
                    paths: rest,
                },
            ));
        }
        let found = split(&env, Some(first), rest, most)?;
        return Ok((env, found));
    }
    let (env, rest) = context.environment_and_rest(words)?;
    let found = split(&env, None, rest, most)?;
    Ok((env, found))
}

/// Returns whether a word is `NAME@REV`, or `PATH@REV` with the path of an environment.
fn is_named(context: &Context, word: &str) -> bool {
    match place::split_revision(word) {
        (_, None) | ("", _) => false,
        (name, Some(_)) if place::is_path(Path::new(name)) => context.is_name(name),
        (name, Some(_)) => EnvName::new(name).is_ok(),
    }
}

/// Splits words into at most `most` revisions and paths. `first` is a revision that was given with
/// the name of the environment.
fn split<'a>(
    env: &Env,
    first: Option<i64>,
    words: &'a [OsString],
    most: usize,
) -> Result<Revisions<'a>> {
    let mut numbers: Vec<i64> = first.into_iter().collect();
    let mut rest = words;
    while numbers.len() < most
        && let Some((word, after)) = rest.split_first()
    {
        let range = match numbers.len() + 2 <= most {
            true => range(env, word)?,
            false => None,
        };
        if let Some((from, to)) = range {
            numbers.extend([from, to]);
        } else if let Some(number) = single(env, word)? {
            numbers.push(number);
        } else {
            break;
        }
        rest = after;
    }
    Ok(Revisions {
        numbers,
        paths: rest,
    })
}

/// Returns the two revisions of `A..B`. Without one of them, the current revision stands for it.
fn range(env: &Env, word: &OsStr) -> Result<Option<(i64, i64)>> {
    let Some((from, to)) = word.to_str().and_then(|text| text.split_once("..")) else {
        return Ok(None);
    };
    // Otherwise a path like `../lib`.
    let is_end = |text: &str| !text.contains(['/', '.']);
    if from.is_empty() && to.is_empty() || !is_end(from) || !is_end(to) {
        return Ok(None);
    }
    let current = env.facts.revision.as_ref().map(|revision| revision.id.0);
    let find = |text: &str| match text {
        "" => current.map_or_else(|| number(env, text), Ok),
        text => number(env, text),
    };
    Ok(Some((find(from)?, find(to)?)))
}

/// Returns the number of a revision that exists, given by number (`3` or `@3`) or tag.
pub(super) fn number(env: &Env, text: &str) -> Result<i64> {
    let text = text.strip_prefix('@').unwrap_or(text);
    let number = backend::revision(&env.environment, text)?;
    backend::check_revision(&env.environment, number)?;
    Ok(number)
}

/// Returns the revision that a word names; `None` if it is a path.
fn single(env: &Env, word: &OsStr) -> Result<Option<i64>> {
    let Some(text) = word.to_str() else {
        return Ok(None);
    };
    if let Some(rest) = text.strip_prefix('@') {
        return Ok(Some(number(env, rest)?));
    }
    if place::is_path(Path::new(text)) {
        return Ok(None);
    }
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let tags = backend::tags(&env.environment)?;
    if !is_number && !tags.iter().any(|tag| tag.name == text) {
        return Ok(None);
    }
    let is_file = || -> Result<bool> {
        let current = backend::open_revision(&env.environment, None)?;
        let found = current.find(text.as_bytes())?;
        Ok(found.is_some() || env.has_entry(Path::new(OsStr::from_bytes(text.as_bytes()))))
    };
    match (number(env, text), is_file()?) {
        (Ok(number), false) => Ok(Some(number)),
        (Ok(_), true) => Err(CommandError::usage(format!(
            "{} is a revision and a file of {}",
            quoted(text),
            env.name()
        ))
        .hint(format!("@{text} is the revision, ./{text} the file"))),
        (Err(_), true) => Ok(None),
        (Err(error), false) => Err(error),
    }
}

/// Returns the error for a word that is no revision, where no path can be.
pub(super) fn none(env: &Env, word: &OsStr) -> CommandError {
    let message = format!("{} has no revision {}", env.name(), quoted(word));
    CommandError::new(Kind::NotFound, message)
        .hint(format!("envfs log {} shows numbers and tags", env.name()))
}
