//! Patterns of entries to exclude from an import or an export, as in `.gitignore` and `rsync`.
//!
//! | pattern | matches |
//! |---|---|
//! | `*.pyc`, `__pycache__` | without a slash: the name of a file or directory at any depth |
//! | `pkgs/cache`, `/pkgs` | with a slash: the path below the source |
//! | `share/**/*.h` | `**` matches any number of directories, including none |
//! | `*` `?` `[a-z]` `[!a-z]` `{a,b}` | any bytes, one byte, a byte of a set, one not in it, either word; never a slash |
//! | `\*` | the character itself |
//!
//! A directory that matches is excluded with all its entries.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::error::{CommitError, Result};

/// A set of patterns. An entry that matches any of them is excluded.
#[derive(Debug, Clone, Default)]
pub(super) struct Exclude {
    names: GlobSet,
    paths: GlobSet,
}

impl Exclude {
    /// Compiles the patterns. Ignores empty ones, and fails at the first invalid one.
    pub(super) fn new(patterns: &[PathBuf]) -> Result<Exclude> {
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for given in patterns {
            let invalid = |reason: String| CommitError::InvalidPattern {
                pattern: given.to_string_lossy().into_owned(),
                reason,
            };
            let text = given
                .to_str()
                .ok_or_else(|| invalid("it is not UTF-8".into()))?;
            let pattern = text.strip_suffix('/').unwrap_or(text);
            let set = if pattern.contains('/') {
                &mut paths
            } else {
                &mut names
            };
            let pattern = pattern.trim_start_matches("./").trim_start_matches('/');
            if pattern.is_empty() {
                continue;
            }
            let glob = GlobBuilder::new(pattern)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| invalid(error.kind().to_string()))?;
            set.add(glob);
        }
        let build = |set: GlobSetBuilder| {
            set.build().map_err(|error| CommitError::InvalidPattern {
                pattern: error.glob().unwrap_or("--exclude").to_owned(),
                reason: error.kind().to_string(),
            })
        };
        Ok(Exclude {
            names: build(names)?,
            paths: build(paths)?,
        })
    }

    /// Returns true if there are no patterns.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.paths.is_empty()
    }

    /// Returns true if a pattern matches this entry. Sufficient for a walk that does not descend
    /// into excluded directories.
    pub(super) fn matches(&self, path: &[&[u8]]) -> bool {
        let name = path.last().copied().unwrap_or_default();
        self.names.is_match(Path::new(OsStr::from_bytes(name)))
            || (!self.paths.is_empty()
                && self
                    .paths
                    .is_match(Path::new(OsStr::from_bytes(&path.join(&b'/')))))
    }

    /// Returns true if a pattern matches this entry or a directory above it.
    pub(super) fn covers(&self, path: &[&[u8]]) -> bool {
        (1..=path.len()).any(|depth| self.matches(path.get(..depth).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn excludes(pattern: &str, path: &str) -> bool {
        let path: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        Exclude::new(&[PathBuf::from(pattern)])
            .unwrap()
            .matches(&path)
    }

    #[test]
    fn names_match_at_any_depth_and_paths_from_the_source() {
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
            ("*.{o,a}", "lib/x.a"),
        ] {
            assert!(excludes(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("__pycache__", "lib/__pycache__x"),
            ("*.pyc", "x.pyc/y"),
            ("pkgs/cache", "a/pkgs/cache"),
            ("/pkgs", "a/pkgs"),
            ("a/*/c", "a/b/b/c"),
            ("a/**", "a"),
            ("?", ""),
            ("[!a]x", "ax"),
            ("\\*x", "yx"),
            ("a*b*c", "aXbYb"),
            ("", "a"),
            ("/", "a"),
        ] {
            assert!(!excludes(pattern, path), "{pattern} {path}");
        }
        let of_a = Exclude::new(&["a".into()]).unwrap();
        assert!(of_a.covers(&[b"x", b"a", b"y"]));
        assert!(!of_a.covers(&[b"x", b"y"]));
        assert!(of_a.matches(&[b"\xff", b"a"]));
        assert!(Exclude::new(&[]).unwrap().is_empty());
    }

    #[test]
    fn an_invalid_pattern_is_named() {
        for pattern in ["[abc", "a{b", "x/[z-a]"] {
            let error = Exclude::new(&[PathBuf::from(pattern)]).unwrap_err();
            assert!(error.to_string().contains(pattern), "{error}");
        }
        let bytes = PathBuf::from(OsStr::from_bytes(b"\xff"));
        assert!(Exclude::new(&[bytes]).is_err());
    }

    #[test]
    fn many_stars_cost_no_more_than_both_lengths() {
        let pattern = "*a".repeat(500) + "b";
        assert!(!excludes(&pattern, &"a".repeat(255)));
    }
}
