//! The rules for prefixes, the paths where environments are mounted.
//!
//! Programs in an environment embed its prefix, above all in the first line of scripts, which the
//! kernel truncates at 127 bytes. So prefixes are short, and no command changes them implicitly.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::error::{Context, EnvironmentError, Result};
use super::layout::StoreLayout;
use super::name::EnvName;
use super::trust;
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::text::quoted;

/// A long interpreter path in the first line of a script, after the prefix.
const INTERPRETER: &str = "/bin/python3.99";

/// The longest first line of a script, including `#!`, that every kernel accepts.
const SHEBANG_LIMIT: usize = 127;

/// The length above which a warning is printed: interpreter options need space too.
const SHEBANG_WARNING: usize = 80;

/// A checked prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The path, absolute.
    pub path: PathBuf,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl Prefix {
    /// Checks the requested prefix, or the default prefix of the environment. The path must not
    /// exist or must be an empty directory.
    ///
    /// The caller checks that no other environment has the same prefix.
    pub fn choose(store: &StoreLayout, name: &EnvName, wanted: Option<&Path>) -> Result<Prefix> {
        let path = match wanted {
            Some(path) => without_parents(path).context(path, "find the prefix")?,
            None => store.default_prefix(name),
        };
        // Removes a trailing slash, "." and "//".
        let path: PathBuf = path.components().collect();
        let mounts = mountinfo::read().context(&path, "read the list of mounts")?;
        check(store, path, &mounts, Existing::Empty)
    }

    /// Checks a directory that is to be replaced by an environment at the same path. Where the last
    /// component is a symbolic link or the path contains `..`, the prefix is what it leads to.
    /// Links above it stay, since files in the directory may contain the path as the user knows it.
    pub fn in_place(store: &StoreLayout, dir: &Path) -> Result<Prefix> {
        let has_parent = dir.components().any(|part| part == Component::ParentDir);
        let is_link = fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.is_symlink());
        let path = match has_parent || is_link {
            true => fs::canonicalize(dir),
            false => std::path::absolute(dir),
        };
        let path = path.context(dir, "find the directory")?;
        let path: PathBuf = path.components().collect();
        let mounts = mountinfo::read().context(&path, "read the list of mounts")?;
        check(store, path, &mounts, Existing::Full)
    }
}

/// Returns a path as an absolute one without `..`. The part before the last `..` must exist.
fn without_parents(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let parts: Vec<Component> = path.components().collect();
    let last = parts.iter().rposition(|part| *part == Component::ParentDir);
    let Some((above, rest)) = last.and_then(|last| parts.split_at_checked(last + 1)) else {
        return Ok(path);
    };
    let above: PathBuf = above.iter().collect();
    Ok(fs::canonicalize(above)?.join(rest.iter().collect::<PathBuf>()))
}

/// What may exist at a prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// Nothing, or an empty directory.
    Empty,
    /// Any directory, which must exist.
    Full,
}

fn check(
    store: &StoreLayout,
    path: PathBuf,
    mounts: &[MountEntry],
    existing: Existing,
) -> Result<Prefix> {
    let refuse = |why: String| {
        Err(EnvironmentError::BadPrefix {
            // Quoted, so that it stays on one line.
            path: PathBuf::from(quoted(&path)),
            why,
        })
    };
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().any(|byte| byte.is_ascii_control()) {
        return refuse("it contains a newline or another control character".to_owned());
    }
    if bytes.contains(&b':') {
        return refuse("it contains ':', which separates directories in PATH".to_owned());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return refuse("it contains '..'; use a path without it".to_owned());
    }
    if path.parent().is_none() {
        return refuse("it is the root of the file system".to_owned());
    }
    let shebang = "#!".len() + bytes.len() + INTERPRETER.len();
    if shebang > SHEBANG_LIMIT {
        let most = SHEBANG_LIMIT - "#!".len() - INTERPRETER.len();
        return refuse(format!(
            "it has {} bytes, but scripts only work with up to {most}; choose a shorter path \
             with --prefix",
            bytes.len()
        ));
    }
    let mut warnings = Vec::new();
    if shebang > SHEBANG_WARNING {
        warnings.push(format!(
            "the prefix is long ({} bytes): scripts with options in their first line may fail",
            bytes.len()
        ));
    }
    if bytes.contains(&b' ') {
        warnings.push("the prefix contains a space: scripts in it may fail to start".to_owned());
    }

    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && existing == Existing::Empty => {}
        Err(e) => return Err(e).context(&path, "stat the prefix"),
        Ok(metadata) if metadata.is_symlink() => {
            return refuse("it is a symbolic link; use its target".to_owned());
        }
        Ok(metadata) if !metadata.is_dir() => {
            return refuse("it exists and is not a directory".to_owned());
        }
        Ok(_) if existing == Existing::Full => {}
        Ok(_) => {
            let mut entries = fs::read_dir(&path).context(&path, "list the prefix")?;
            if entries.next().is_some() {
                return refuse(
                    "the directory is not empty; envfs import --in-place makes it an environment at \
                     its path, or choose another path with --prefix"
                        .to_owned(),
                );
            }
        }
    }

    if let Some(parent) = path.parent() {
        trust::refuse_replaceable(parent)?;
    }
    // Symbolic links above the prefix must not defeat the checks below.
    let real = real_path(&path).context(&path, "find the prefix")?;
    let homes = store.homes();
    let homes = real_path(&homes).context(&homes, "find the store")?;
    if real.starts_with(&homes) || homes.starts_with(&real) {
        return refuse(format!(
            "it overlaps {}, where envfs keeps its own files",
            homes.display()
        ));
    }
    // Other FUSE file systems are fine: they may contain home directories and mount points.
    if let Some(mount) = mount_of(mounts, &real).filter(|mount| mount.fs_type == "fuse.envfs") {
        return refuse(format!(
            "it is inside another environment, mounted at {}; choose a path outside it with \
             --prefix",
            mount.mount_point.display()
        ));
    }
    Ok(Prefix { path, warnings })
}

/// Resolves symbolic links in the part of the path that exists, and keeps the rest.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    for ancestor in path.ancestors() {
        match fs::canonicalize(ancestor) {
            Ok(real) => {
                let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
                // Joining "" adds a trailing slash, which comparisons ignore.
                return Ok(real.join(rest));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(path.to_owned())
}

/// Returns the mount that contains a path: the topmost of those with the longest mount point.
fn mount_of<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn store() -> (tempfile::TempDir, StoreLayout, EnvName) {
        let dir = tempfile::tempdir().unwrap();
        let layout = StoreLayout::new(dir.path().join("home"));
        fs::create_dir_all(layout.homes()).unwrap();
        (dir, layout, EnvName::new("a").unwrap())
    }

    fn why(result: Result<Prefix>) -> String {
        match result {
            Err(EnvironmentError::BadPrefix { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_default_prefix_is_in_the_store_and_a_requested_one_is_used() {
        let (dir, store, name) = store();
        let prefix = Prefix::choose(&store, &name, None).unwrap();
        assert_eq!(prefix.path, store.prefixes().join("a"));
        let wanted = dir.path().join("b//./c/");
        let prefix = Prefix::choose(&store, &name, Some(&wanted)).unwrap();
        assert_eq!(prefix.path.as_os_str(), dir.path().join("b/c").as_os_str());
        fs::create_dir_all(&prefix.path).unwrap();
        Prefix::choose(&store, &name, Some(&wanted)).unwrap();
    }

    #[test]
    fn an_occupied_prefix_is_refused() {
        let (dir, store, name) = store();
        let path = dir.path().join("full");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        let choose = |path: &Path| Prefix::choose(&store, &name, Some(path));
        assert!(why(choose(&path)).contains("not empty"));
        let file = path.join("file");
        assert!(why(choose(&file)).contains("not a directory"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(why(choose(&link)).contains("symbolic link"));
        choose(&link.join("below")).unwrap();
    }

    #[test]
    fn a_directory_in_place_is_named_as_the_user_knows_it() {
        let (dir, store, _) = store();
        let real = dir.path().join("real");
        fs::create_dir_all(real.join("env/bin")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let in_place = |path: &Path| Prefix::in_place(&store, path).unwrap().path;
        assert_eq!(in_place(&link.join("env/")), link.join("env"));
        // The mount replaces a directory, not a link to it.
        std::os::unix::fs::symlink("real/env", dir.path().join("short")).unwrap();
        let env = fs::canonicalize(real.join("env")).unwrap();
        assert_eq!(in_place(&dir.path().join("short")), env);
        assert_eq!(in_place(&link.join("env/../env")), env);
        Prefix::in_place(&store, &real.join("none")).unwrap_err();
        let file = real.join("file");
        fs::write(&file, "").unwrap();
        assert!(why(Prefix::in_place(&store, &file)).contains("not a directory"));
        assert!(why(Prefix::in_place(&store, store.root())).contains("own files"));
    }

    #[test]
    fn paths_that_scripts_and_shells_cannot_use_are_refused() {
        let (_dir, store, name) = store();
        let choose = |path: &str| Prefix::choose(&store, &name, Some(Path::new(path)));
        assert!(why(choose("/tmp/a\nb")).contains("newline"));
        assert!(!choose("/tmp/a\nb").unwrap_err().to_string().contains('\n'));
        assert!(why(choose("/tmp/a:b")).contains("PATH"));
        assert_eq!(
            choose("/usr/../usr/no/x").unwrap().path,
            Path::new("/usr/no/x")
        );
        assert!(why(choose("/")).contains("root"));
        let of_length = |length: usize| format!("/{}", "x".repeat(length - 1));
        assert!(choose(&of_length(63)).unwrap().warnings.is_empty());
        assert_eq!(choose(&of_length(64)).unwrap().warnings.len(), 1);
        assert_eq!(choose(&of_length(110)).unwrap().warnings.len(), 1);
        assert!(why(choose(&of_length(111))).contains("up to 110"));
        assert!(choose("/tmp/a b").unwrap().warnings[0].contains("space"));
    }

    #[test]
    fn a_prefix_inside_or_around_the_store_is_refused() {
        let (_dir, store, name) = store();
        for path in [store.homes().join("x/y"), store.homes()] {
            let refused = Prefix::choose(&store, &name, Some(&path));
            assert!(why(refused).contains("own files"));
        }
        let around = Prefix::choose(&store, &name, Some(store.root()));
        assert!(why(around).contains("not empty"));
    }

    #[test]
    fn a_prefix_inside_another_environment_is_refused() {
        let (dir, store, _) = store();
        let real = fs::canonicalize(dir.path()).unwrap();
        let mount = |at: &Path, kind: &str| MountEntry {
            id: 36,
            device: (98, 0),
            mount_point: at.to_owned(),
            fs_type: kind.to_owned(),
            source: "x".into(),
            checks_permissions: true,
            user_id: None,
            options: Vec::new(),
        };
        let at = real.join("mount");
        let try_with = |above: &[(&Path, &str)]| {
            let mut mounts = vec![mount(Path::new("/"), "ext4")];
            mounts.extend(above.iter().map(|(at, kind)| mount(at, kind)));
            check(&store, at.join("env"), &mounts, Existing::Empty)
        };
        let ours = (at.as_path(), "fuse.envfs");
        let refused = why(try_with(&[ours]));
        assert!(refused.contains("another environment"), "{refused}");
        try_with(&[(&at, "fuse.sshfs")]).unwrap();
        try_with(&[ours, (&at.join("env"), "tmpfs")]).unwrap();
        try_with(&[ours, (&at, "tmpfs")]).unwrap();
    }
}
