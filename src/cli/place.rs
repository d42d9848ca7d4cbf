//! Finds which environment a path is in.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::backend;
use super::error::{CommandError, Result};
use crate::daemon::failure::Kind;
use crate::environment::{Environment, Store, real_path};
use crate::shell::render::word;
use crate::sys::text::quoted;

/// Returns whether a word is meant as a path even if an environment has that name.
pub(super) fn is_path(text: &Path) -> bool {
    text.as_os_str().as_encoded_bytes().contains(&b'/')
        || text.as_os_str() == "."
        || text.as_os_str() == ".."
}

/// Splits `NAME@REV`, or `PATH@REV`, into the name and the revision. The name may be empty, for the
/// active environment. Returns a path that leads to a file as it is.
pub(super) fn split_revision(word: &str) -> (&str, Option<&str>) {
    let path = Path::new(word);
    let split = match is_path(path) {
        true if path.symlink_metadata().is_ok() => None,
        true => word.rsplit_once('@').filter(|(_, rev)| !rev.contains('/')),
        false => word.split_once('@'),
    };
    match split {
        Some((name, revision)) => (name, Some(revision)),
        None => (word, None),
    }
}

/// Returns the absolute path with symbolic links resolved where possible, as in the mount table.
/// The last component need not exist.
pub(super) fn resolve(path: &Path) -> Result<PathBuf> {
    let failed = |error| CommandError::io(format!("cannot find {}", quoted(path)), &error);
    if let Ok(found) = fs::canonicalize(path) {
        return Ok(found);
    }
    let path = std::path::absolute(path).map_err(failed)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => match fs::canonicalize(parent) {
            Ok(parent) => Ok(parent.join(name)),
            Err(_) => Ok(path),
        },
        _ => Ok(path),
    }
}

/// Returns the environment whose prefix contains a path, and the rest of the path below it.
pub(super) fn find(store: &Store, path: &Path) -> Result<Option<(Environment, PathBuf)>> {
    for (name, prefix) in backend::prefixes(store)? {
        if let Some(rest) = below(&prefix, path) {
            return Ok(Some((store.open(&name)?, rest)));
        }
    }
    Ok(None)
}

/// Returns the rest of a path below a prefix, or `None` if it is outside. Symbolic links are
/// resolved up to the prefix, but nothing in it is accessed, because its mount may not respond.
pub(super) fn below(prefix: &Path, path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let has_parents = path.components().any(|part| part == Component::ParentDir);
    if !has_parents && let Ok(rest) = path.strip_prefix(prefix) {
        return Some(rest.to_owned());
    }
    let parent = real_path(prefix.parent()?).ok()?;
    let target = parent.join(prefix.file_name()?);
    let mut real = PathBuf::from("/");
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        match part {
            Component::Normal(name) => real.push(name),
            Component::ParentDir => {
                real.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => continue,
        }
        if real != target
            && let Ok(resolved) = fs::canonicalize(&real)
        {
            real = resolved;
        }
        if let Ok(inside) = real.strip_prefix(&target) {
            return normalize(&inside.join(parts.as_path()));
        }
    }
    None
}

/// Resolves `.` and `..` lexically. Returns `None` if they lead above the start.
pub(super) fn normalize(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(out)
}

/// Returns the environments whose prefix is below a directory, as hints.
fn inside(store: &Store, dir: &Path) -> Vec<String> {
    const MOST: usize = 3;
    let all = backend::prefixes(store).unwrap_or_default();
    let real = |path: &Path| real_path(path).unwrap_or_else(|_| path.to_owned());
    let own = real(dir);
    // The path of a mount may not respond.
    let is_inside = |prefix: &PathBuf| {
        prefix
            .parent()
            .is_some_and(|dir| real(dir).starts_with(&own))
    };
    let found = all.into_iter().filter(|(_, prefix)| is_inside(prefix));
    let hint = |(name, prefix): (_, PathBuf)| format!("{name} is below it, at {}", quoted(&prefix));
    found.take(MOST).map(hint).collect()
}

/// Returns the error for a path that is in no environment.
pub(super) fn none_at(store: &Store, path: &Path) -> CommandError {
    let shown = quoted(path);
    let error = |message: String| CommandError::new(Kind::NotFound, message);
    let list = "envfs list shows all environments";
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let mut error = error(format!("{shown} is not in an environment"));
            error.hints = inside(store, path);
            if error.hints.is_empty() {
                error = error.hint(format!(
                    "make the directory an environment at its path: envfs import --in-place {}",
                    word(path)
                ));
            }
            error.hint(list)
        }
        Ok(_) => error(format!("{shown} is not in an environment"))
            .hint("envfs import FILE NAME makes an environment of an image or archive")
            .hint(list),
        Err(e) => {
            CommandError::of_named(format!("there is no environment at {shown}"), &e).hint(list)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_cannot_lead_out_of_the_environment() {
        assert_eq!(
            normalize(Path::new("a/./b/../c")),
            Some(PathBuf::from("a/c"))
        );
        assert_eq!(normalize(Path::new("./")), Some(PathBuf::new()));
        assert_eq!(normalize(Path::new("a/../../b")), None);
    }

    #[test]
    fn only_what_can_be_no_name_is_a_path() {
        for path in [".", "..", "./x", "/x", "x/", "a/b"] {
            assert!(is_path(Path::new(path)), "{path}");
        }
        for name in ["x", ".venv", "x.y", ""] {
            assert!(!is_path(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn a_revision_follows_the_name_or_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("env@3");
        fs::create_dir(&odd).unwrap();
        let odd = odd.to_str().unwrap();
        let tagged = format!("{odd}@paper");
        for (word, name, revision) in [
            ("science", "science", None),
            ("science@3", "science", Some("3")),
            ("science@paper", "science", Some("paper")),
            ("science@a@b", "science", Some("a@b")),
            ("science@", "science", Some("")),
            ("@3", "", Some("3")),
            ("/none/env@3", "/none/env", Some("3")),
            ("./none@3", "./none", Some("3")),
            ("/none@3/env", "/none@3/env", None),
            (odd, odd, None),
            (&tagged, odd, Some("paper")),
        ] {
            assert_eq!(split_revision(word), (name, revision), "{word}");
        }
    }

    #[test]
    fn a_path_is_found_through_links_and_parents() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let prefix = root.join("real/env");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        fs::create_dir_all(root.join("real/other")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("real/env", root.join("direct")).unwrap();
        std::os::unix::fs::symlink("real/env/bin", root.join("inner")).unwrap();
        let by_link = root.join("link/env");
        for prefix in [&prefix, &by_link] {
            for (path, rest) in [
                ("real/env", Some("")),
                ("link/env/", Some("")),
                ("direct", Some("")),
                ("inner/x", Some("bin/x")),
                ("link/env/bin/none", Some("bin/none")),
                ("real/other/../env/bin", Some("bin")),
                ("link/../real/env", Some("")),
                ("real", None),
                ("real/environment", None),
                ("real/other", None),
                ("none/env", None),
            ] {
                let found = below(prefix, &root.join(path));
                assert_eq!(found.as_deref(), rest.map(Path::new), "{path}");
            }
        }
    }
}
