//! Checks that an environment can be mounted at a path.

use std::fs;
use std::path::Path;

use super::failure::{Failure, Kind};
use crate::sys::{mount, mountinfo};

/// Checks that an environment can be mounted at a prefix, and creates the directory.
///
/// Fails if the directory is not empty, as the mount would hide its contents.
pub(crate) fn prepare_prefix(prefix: &Path) -> Result<(), Failure> {
    let shown = prefix.display();
    if !prefix.is_absolute() {
        return Err(Failure::new(
            Kind::Usage,
            format!("the prefix {shown} is not absolute"),
        ));
    }
    // Check this before any access to the directory: a file system mounted there may not respond.
    let at = mountinfo::at(prefix)
        .map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(mount) = at {
        return Err(Failure::new(
            Kind::Conflict,
            format!(
                "another file system is mounted at {shown}: {} ({})",
                mount.source.to_string_lossy(),
                mount.fs_type
            ),
        )
        .hint(format!(
            "unmount it (fusermount3 -u {shown}), then try again"
        )));
    }
    match fs::create_dir_all(prefix) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new(
                Kind::Conflict,
                format!("cannot mount the environment: {shown} is not a directory"),
            )
            .hint("move it away, then try again"));
        }
        Err(error) => {
            return Err(Failure::of_named(
                format!("cannot create the prefix {shown}"),
                &error,
            ));
        }
    }
    let mut entries = fs::read_dir(prefix)
        .map_err(|error| Failure::io(format!("cannot read {shown}"), &error))?;
    if entries.next().is_some() {
        return Err(Failure::new(
            Kind::Conflict,
            format!("cannot mount the environment: {shown} is not empty"),
        )
        .hint("move its contents away, then try again"));
    }
    Ok(())
}

/// Checks that an environment can be mounted at a prefix by a trial mount, the only check that
/// covers all causes of failure. Removes everything that it creates.
///
/// If nothing can be mounted anywhere, the check succeeds: an environment may be created on one
/// machine for use on another.
pub(crate) fn try_prefix(prefix: &Path) -> Result<(), Failure> {
    let is_missing = |dir: &&Path| {
        fs::symlink_metadata(dir).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    let missing: Vec<&Path> = prefix.ancestors().take_while(is_missing).collect();
    let tried = prepare_prefix(prefix).and_then(|()| match mount::test_mount_at(prefix) {
        Err(error) if !error.is_fuse_unavailable() && mount::test_mount().is_ok() => {
            Err(Failure::from(error))
        }
        _ => Ok(()),
    });
    let tried = tried.map_err(|failure| failure.hint("choose another path with --prefix"));
    for dir in missing {
        if let Err(error) = fs::remove_dir(dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::info!(%error, path = %dir.display(), "cannot remove a prefix after a trial mount");
            break;
        }
    }
    tried
}

/// Checks that a file system can be mounted at a path now. Nothing is at the path, before and
/// after.
pub(crate) fn require_mount(path: &Path) -> Result<(), Failure> {
    fs::create_dir(path)
        .map_err(|error| Failure::io(format!("cannot make {}", path.display()), &error))?;
    // The path as it is in the mount table.
    let tested = fs::canonicalize(path)
        .map_err(|error| Failure::io(format!("cannot find {}", path.display()), &error))
        .and_then(|real| Ok(mount::test_mount_at(&real)?));
    fs::remove_dir(path)
        .map_err(|error| Failure::io(format!("cannot remove {}", path.display()), &error))?;
    tested
}
