//! What is left out of an import or an export, by patterns as in `.gitignore` and `rsync`.
//!
//! | | |
//! |---|---|
//! | `*.pyc`, `__pycache__` | no slash: the name of a file or directory, wherever it is |
//! | `pkgs/cache`, `/pkgs` | a slash: the path below the source |
//! | `share/**/*.h` | `**` stands for any directories, also none |
//! | `*` `?` `[a-z]` `[!a-z]` | any bytes, one byte, one of these, none of these; never a slash |
//! | `\*` | the byte itself |
//!
//! With a directory goes all that is in it.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Patterns, any of which leaves an entry out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Exclude(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Name(Vec<u8>),
    /// By components.
    Path(Vec<Vec<u8>>),
}

impl Exclude {
    pub(super) fn new(patterns: &[PathBuf]) -> Exclude {
        let parse = |pattern: &PathBuf| {
            let bytes = pattern.as_os_str().as_bytes();
            let is_path = bytes.strip_suffix(b"/").unwrap_or(bytes).contains(&b'/');
            let parts = bytes.split(|byte| *byte == b'/');
            let mut parts: Vec<_> = parts
                .filter(|part| !part.is_empty() && *part != b".")
                .map(<[u8]>::to_vec)
                .collect();
            match parts.pop() {
                Some(name) if !is_path => Some(Pattern::Name(name)),
                Some(name) => {
                    parts.push(name);
                    Some(Pattern::Path(parts))
                }
                None => None,
            }
        };
        Exclude(patterns.iter().filter_map(parse).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an entry is left out. Whoever walks a tree does not ask about what is below one that is.
    pub(super) fn matches(&self, path: &[&[u8]]) -> bool {
        let name = path.last().copied().unwrap_or_default();
        self.0.iter().any(|pattern| match pattern {
            Pattern::Name(pattern) => matches_name(pattern, name),
            Pattern::Path(pattern) => matches_path(pattern, path),
        })
    }

    /// Whether an entry is left out, or a directory above it.
    pub(super) fn covers(&self, path: &[&[u8]]) -> bool {
        (1..=path.len()).any(|depth| self.matches(path.get(..depth).unwrap_or_default()))
    }
}

fn matches_path(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == b"**" => {
            (0..=path.len()).any(|skip| matches_path(rest, path.get(skip..).unwrap_or_default()))
        }
        (Some((first, rest)), Some((name, below))) => {
            matches_name(first, name) && matches_path(rest, below)
        }
        _ => false,
    }
}

/// Goes back to the last star only, so the cost is at most the product of both lengths.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', rest)) = pattern.split_first() {
            star = Some((rest, name));
            pattern = rest;
            continue;
        }
        match (one(pattern, name.first().copied()), name.split_first()) {
            (Some(rest), Some((_, below))) => (pattern, name) = (rest, below),
            (_, None) if pattern.is_empty() => return true,
            _ => match star {
                Some((after, from)) if !from.is_empty() => {
                    let from = from.get(1..).unwrap_or_default();
                    star = Some((after, from));
                    (pattern, name) = (after, from);
                }
                _ => return false,
            },
        }
    }
}

/// What of a pattern follows when its first element (no star) stands for this byte.
fn one(pattern: &[u8], byte: Option<u8>) -> Option<&[u8]> {
    let byte = byte?;
    let (first, rest) = pattern.split_first()?;
    match first {
        b'?' => Some(rest),
        b'\\' => rest
            .split_first()
            .filter(|(escaped, _)| **escaped == byte)
            .map(|(_, rest)| rest),
        b'[' => {
            // A "]" that comes first is one of them.
            let negated = matches!(rest.first(), Some(b'!' | b'^'));
            let set = rest.get(usize::from(negated)..)?;
            let end = 1 + set.iter().skip(1).position(|byte| *byte == b']')?;
            let (mut inside, after) = (set.get(..end)?, set.get(end + 1..)?);
            let mut found = false;
            while let Some((from, later)) = inside.split_first() {
                match later {
                    [b'-', to, later @ ..] => {
                        found |= (*from..=*to).contains(&byte);
                        inside = later;
                    }
                    _ => {
                        found |= *from == byte;
                        inside = later;
                    }
                }
            }
            (found != negated).then_some(after)
        }
        _ => (*first == byte).then_some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(pattern: &str, path: &str) -> bool {
        let path: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        Exclude::new(&[PathBuf::from(pattern)]).matches(&path)
    }

    #[test]
    fn names_match_anywhere_and_paths_from_the_source() {
        for (pattern, path) in [
            ("__pycache__", "lib/a/__pycache__"),
            ("*.pyc", "x/y.pyc"),
            ("*.pyc", ".pyc"),
            ("pkgs/cache", "pkgs/cache"),
            ("/pkgs", "pkgs"),
            ("pkgs/", "a/pkgs"),
            ("./pkgs/x", "pkgs/x"),
            ("a/*/c", "a/b/c"),
            ("a/**/c", "a/c"),
            ("a/**/c", "a/b/b/c"),
            ("**/c", "c"),
            ("a/**", "a/b/c"),
            ("?b[c-e]f", "abdf"),
            ("[!a]x", "bx"),
            ("[]-]", "]"),
            ("\\*x", "*x"),
            ("a*b*c", "aXbYbc"),
            ("*", ""),
        ] {
            assert!(excludes(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("__pycache__", "lib/__pycache__x"),
            ("*.pyc", "x.pyc/y"),
            ("pkgs/cache", "a/pkgs/cache"),
            ("/pkgs", "a/pkgs"),
            ("a/*/c", "a/b/b/c"),
            ("?", ""),
            ("[!a]x", "ax"),
            ("[abc", "a"),
            ("\\*x", "yx"),
            ("a*b*c", "aXbYb"),
            ("", "a"),
            ("/", "a"),
            ("\\", "a"),
        ] {
            assert!(!excludes(pattern, path), "{pattern} {path}");
        }
        let of_a: Vec<PathBuf> = vec!["a".into()];
        assert!(Exclude::new(&of_a).covers(&[b"x", b"a", b"y"]));
        assert!(!Exclude::new(&of_a).covers(&[b"x", b"y"]));
    }

    #[test]
    fn many_stars_cost_no_more_than_both_lengths() {
        let pattern = "*a".repeat(500) + "b";
        assert!(!excludes(&pattern, &"a".repeat(255)));
    }
}
