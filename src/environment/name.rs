//! Names of environments.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use super::error::{EnvironmentError, Result};
use crate::sys::text::printable;

/// Words with a special meaning for commands. Case is ignored.
const RESERVED: &[&str] = &["all", "none", "current"];

/// The longest name, in bytes.
const MAX_LENGTH: usize = 64;

/// The checked name of an environment: safe as a file name and as an argument.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnvName(String);

impl EnvName {
    /// Checks a name against the rule.
    pub fn new(name: &str) -> Result<EnvName> {
        let fail = |why| {
            Err(EnvironmentError::BadName {
                name: printable(name),
                why,
            })
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() {
            return fail("it is empty");
        }
        if name.contains('/') {
            return fail("it is a path, not a name");
        }
        if !name.chars().all(allowed) {
            return fail("it contains a character that is not allowed");
        }
        if name.len() > MAX_LENGTH {
            return fail("it is longer than 64 characters");
        }
        if name.starts_with('-') {
            return fail("it starts with '-', like an option");
        }
        if name.starts_with('.') {
            return fail("it starts with '.', like a hidden file");
        }
        if RESERVED.iter().any(|word| name.eq_ignore_ascii_case(word)) {
            return fail("it is a reserved word");
        }
        Ok(EnvName(name.to_owned()))
    }

    /// Returns the name that people would give to the environment in a directory: its own, or that
    /// of the project if the directory's name is the same in every project (`.venv`,
    /// `node_modules`, `.pixi/envs/default`). Characters that names cannot contain become `-`.
    pub fn for_directory(dir: &Path) -> Result<EnvName> {
        const GENERIC: &[&str] = &["venv", "env", "virtualenv", "node_modules", "conda"];
        let mut parts: Vec<String> = dir
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        let last = parts.pop().unwrap_or_default();
        let is = |part: Option<&String>, name: &str| part.is_some_and(|part| part == name);
        let mut name = last.clone();
        if is(parts.last(), "envs") && is(parts.iter().rev().nth(1), ".pixi") {
            parts.truncate(parts.len() - 2);
            let project = parts.pop();
            name = match project {
                Some(project) if last == "default" => project,
                Some(project) => format!("{project}-{last}"),
                None => last,
            };
        } else if GENERIC.contains(&last.trim_start_matches('.')) {
            name = parts.pop().unwrap_or(last);
        }
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name: String = name
            .chars()
            .map(|c| if valid(c) { c } else { '-' })
            .collect();
        let name = name.trim_start_matches(['.', '-']).trim_end_matches('-');
        let end = name.len().min(MAX_LENGTH);
        EnvName::new(name.get(..end).unwrap_or(name))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EnvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for EnvName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for EnvName {
    type Err = EnvironmentError;

    fn from_str(name: &str) -> Result<EnvName> {
        EnvName::new(name)
    }
}

/// Returns those of `names` that are similar to `wanted`, best first.
pub(super) fn similar(wanted: &str, names: impl IntoIterator<Item = EnvName>) -> Vec<String> {
    let wanted = wanted.to_ascii_lowercase();
    let limit = 1 + wanted.len() / 4;
    let mut found: Vec<(usize, String)> = names
        .into_iter()
        .filter_map(|name| {
            let lower = name.0.to_ascii_lowercase();
            let distance = distance(wanted.as_bytes(), lower.as_bytes());
            let is_prefix = wanted.len() >= 3 && lower.starts_with(&wanted);
            (distance <= limit || is_prefix).then_some((distance, name.0))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).take(3).collect()
}

/// Returns the Levenshtein distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            left = (diagonal + usize::from(x != y))
                .min(above + 1)
                .min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn valid_names_are_accepted_unchanged() {
        for name in [
            "a",
            "science",
            "py3.12",
            "_x",
            "A-b_c.d",
            "9",
            &"x".repeat(64),
        ] {
            assert_eq!(EnvName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn invalid_names_are_refused_with_the_rule() {
        let long = "x".repeat(65);
        for name in [
            "", ".", "..", ".hidden", "-x", "--all", "a/b", "/", "a b", "a\nb", "ä", "a\0", "all",
            "ALL", "current", "none", "a:b", "a@1", &long,
        ] {
            let refused = EnvName::new(name).unwrap_err().to_string();
            assert!(refused.contains("1 to 64"), "{refused}");
            assert!(!refused.contains('\n'), "{refused:?}");
        }
    }

    #[test]
    fn a_directory_is_called_as_people_call_it() {
        for (dir, name) in [
            ("/home/u/miniforge3/envs/science", "science"),
            ("/home/u/miniforge3", "miniforge3"),
            ("/home/u/proj/.venv", "proj"),
            ("/home/u/proj/venv/", "proj"),
            ("/home/u/app/node_modules", "app"),
            ("/home/u/proj/.pixi/envs/default", "proj"),
            ("/home/u/proj/.pixi/envs/test", "proj-test"),
            ("/home/u/.conda", "u"),
            ("/home/u/my project!/.venv", "my-project"),
            ("/home/u/.hidden", "hidden"),
            ("/home/u/größe", "gr--e"),
            ("/venv", "venv"),
        ] {
            let made = EnvName::for_directory(Path::new(dir)).unwrap();
            assert_eq!(made.as_str(), name, "{dir}");
        }
        let long = format!("/home/u/{}", "x".repeat(80));
        assert_eq!(
            EnvName::for_directory(Path::new(&long)).unwrap().0.len(),
            64
        );
        for dir in ["/", "/home/u/---", "/home/u/all"] {
            EnvName::for_directory(Path::new(dir)).unwrap_err();
        }
    }

    #[test]
    fn similar_names_are_suggested() {
        let names = || ["science", "silence", "web", "webserver"].map(|n| EnvName::new(n).unwrap());
        assert_eq!(similar("scince", names()), ["science"]);
        assert_eq!(similar("Web", names()), ["web", "webserver"]);
        assert_eq!(similar("nothing-like-it", names()), Vec::<String>::new());
    }

    #[test]
    fn distance_is_the_levenshtein_distance() {
        for (a, b, d) in [
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
            ("x", "x", 0),
        ] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), d, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), d, "{b} {a}");
        }
    }
}
