//! `~/.conda/environments.txt`, in which conda keeps the prefixes of environments that it did not
//! put into its own directories. `conda env list` and development tools read it.
//!
//! A mounted conda environment is listed there, and a removed one is not. While an environment is
//! unmounted its prefix is empty, and conda removes it from the list when it looks.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::shell::condarc;
use crate::shell::plan::Variables;

/// Adds a prefix if it is a conda environment and the user has conda.
pub(super) fn add(prefix: &Path) {
    if prefix.join("conda-meta/history").is_file()
        && let Some(file) = file()
    {
        report(add_to(&file, prefix), &file);
    }
}

/// Removes a prefix.
pub(super) fn remove(prefix: &Path) {
    if let Some(file) = file() {
        report(remove_from(&file, prefix), &file);
    }
}

/// Returns whether a prefix is listed.
pub(super) fn has(prefix: &Path) -> bool {
    let text = file().and_then(|file| read(&file).ok()).unwrap_or_default();
    let mut lines = text.split(|&byte| byte == b'\n');
    lines.any(|line| is_prefix(line, prefix))
}

/// Returns the file, unless the user has no conda or told it not to list environments.
fn file() -> Option<PathBuf> {
    let variables: Variables = std::env::vars_os().collect();
    let home = std::env::var_os("HOME").filter(|home: &OsString| !home.is_empty())?;
    let dir = PathBuf::from(home).join(".conda");
    if !dir.is_dir() || condarc::setting("register_envs", &variables, Path::new("")) == Some(false)
    {
        return None;
    }
    Some(dir.join("environments.txt"))
}

/// The list is a convenience, so that an error is only logged.
fn report(result: io::Result<()>, file: &Path) {
    if let Err(error) = result {
        tracing::warn!(%error, file = %file.display(), "cannot update conda's list of environments");
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

fn is_prefix(line: &[u8], prefix: &Path) -> bool {
    line.trim_ascii() == prefix.as_os_str().as_bytes()
}

fn add_to(file: &Path, prefix: &Path) -> io::Result<()> {
    let path = prefix.as_os_str().as_bytes();
    let text = read(file)?;
    let mut lines = text.split(|&byte| byte == b'\n');
    // A path with a newline cannot be listed.
    if path.contains(&b'\n') || lines.any(|line| is_prefix(line, prefix)) {
        return Ok(());
    }
    let mut line = Vec::new();
    if text.last().is_some_and(|&byte| byte != b'\n') {
        line.push(b'\n');
    }
    line.extend_from_slice(path);
    line.push(b'\n');
    let mut list = OpenOptions::new().append(true).create(true).open(file)?;
    list.write_all(&line)
}

fn remove_from(file: &Path, prefix: &Path) -> io::Result<()> {
    let text = read(file)?;
    let kept: Vec<&[u8]> = text
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| !is_prefix(line, prefix))
        .collect();
    let kept = kept.concat();
    if kept == text {
        return Ok(());
    }
    // The file may be a symbolic link, which stays.
    let file = fs::canonicalize(file)?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::NamedTempFile::new_in(dir)?;
    new.write_all(&kept)?;
    new.as_file()
        .set_permissions(File::open(&file)?.metadata()?.permissions())?;
    new.persist(&file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn other_lines_of_the_list_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("real");
        let link = dir.path().join("environments.txt");
        fs::write(&list, "/one\n/two\r\n/three").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let text = || fs::read_to_string(&list).unwrap();
        add_to(&link, Path::new("/two")).unwrap();
        assert_eq!(text(), "/one\n/two\r\n/three");
        add_to(&link, Path::new("/four")).unwrap();
        add_to(&link, Path::new("/fi\nve")).unwrap();
        assert_eq!(text(), "/one\n/two\r\n/three\n/four\n");
        remove_from(&link, Path::new("/two")).unwrap();
        remove_from(&link, Path::new("/on")).unwrap();
        assert_eq!(text(), "/one\n/three\n/four\n");
        assert!(link.is_symlink());
        remove_from(&dir.path().join("none"), Path::new("/one")).unwrap();
        add_to(&dir.path().join("new"), Path::new("/one")).unwrap();
        assert_eq!(fs::read(dir.path().join("new")).unwrap(), b"/one\n");
    }
}
