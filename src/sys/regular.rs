//! Opens files that must be regular files at exactly the given path.
//!
//! The files of a store are untrusted: another user, a backup or a cleaner may have replaced one by
//! a symbolic link, a FIFO, a device or a directory. A link would lead to an unrelated file, and
//! opening a FIFO blocks until its other end is opened. So these functions do not follow links, do
//! not block, and check the type of the file before it is used.

use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// The source of an [`io::Error`] for an object of another type than expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRegular {
    /// Name of the file, without its directory.
    pub name: String,
    /// The type that was found, for messages: `a FIFO`.
    pub found: &'static str,
    /// The expected type.
    pub expected: &'static str,
}

impl fmt::Display for NotRegular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {}, not a {}",
            self.name.escape_debug(),
            self.found,
            self.expected
        )
    }
}

impl std::error::Error for NotRegular {}

/// Opens a regular file for reading.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(path, OpenOptions::new().read(true))
}

/// Opens a regular file with `options`, which must not set custom flags or truncate.
///
/// Fails if the last component of the path is a symbolic link; links in the components before it
/// are followed. [`as_not_regular`] returns what was found instead of a regular file.
pub fn open_with(path: &Path, options: &OpenOptions) -> io::Result<File> {
    // A terminal must not become the controlling one, and a FIFO must not block. Rust adds
    // O_CLOEXEC.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match options.clone().custom_flags(flags).open(path) {
        Ok(file) => file,
        // A link, a FIFO without a reader, a socket and a directory each fail with another error.
        Err(error) => return Err(type_error(path).unwrap_or(error)),
    };
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        Ok(file)
    } else {
        Err(unexpected(path, kind, "regular file"))
    }
}

/// Opens a regular file for writing, and creates it with mode 0600 if it does not exist. Keeps the
/// content.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    open_with(path, &options)
}

/// Opens a directory; fails if the last component of the path is a symbolic link.
pub fn open_dir(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY | libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.map_err(|error| match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_dir() => unexpected(path, meta.file_type(), "directory"),
        _ => error,
    })
}

/// Returns whether a regular file exists at a path, without opening it; fails if it is something
/// else.
///
/// For files that another library opens by name. The result stays valid only if no other user may
/// write to the directory.
pub fn exists(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(true),
        Ok(meta) => Err(unexpected(path, meta.file_type(), "regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a regular file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the file is longer than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Reads a regular file, or one that a symbolic link of the caller leads to. Links of other users
/// are not followed, since they could lead to any file that the caller may read.
pub fn read_through_own_link(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() && meta.uid() == super::process::user_id() => {
            read(&std::fs::canonicalize(path)?, limit)
        }
        _ => read(path, limit),
    }
}

/// Returns the source of an error if it is [`NotRegular`].
pub fn as_not_regular(error: &io::Error) -> Option<&NotRegular> {
    error.get_ref()?.downcast_ref()
}

/// Returns the error for an object at a path that is not a regular file, which is why opening
/// failed.
fn type_error(path: &Path) -> Option<io::Error> {
    let kind = std::fs::symlink_metadata(path).ok()?.file_type();
    (!kind.is_file()).then(|| unexpected(path, kind, "regular file"))
}

fn unexpected(path: &Path, kind: FileType, expected: &'static str) -> io::Error {
    let found = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_file() {
        "a file"
    } else {
        "a device"
    };
    let name = path.file_name().unwrap_or(path.as_os_str());
    io::Error::other(NotRegular {
        name: name.to_string_lossy().into_owned(),
        found,
        expected,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    /// Options with which a file may be opened.
    fn ways() -> Vec<OpenOptions> {
        let mut ways = vec![OpenOptions::new(); 4];
        ways[0].read(true);
        ways[1].write(true);
        ways[2].append(true).create(true);
        ways[3].read(true).write(true).create(true).truncate(false);
        ways
    }

    #[test]
    fn objects_of_other_types_are_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("target"), "precious").unwrap();
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("dangling")).unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        for (name, found) in [
            ("link", "link is a symbolic link, not a regular file"),
            (
                "dangling",
                "dangling is a symbolic link, not a regular file",
            ),
            ("dir", "dir is a directory, not a regular file"),
            ("fifo", "fifo is a FIFO, not a regular file"),
            ("socket", "socket is a socket, not a regular file"),
        ] {
            for way in ways() {
                let error = open_with(&at(name), &way).unwrap_err();
                assert_eq!(error.to_string(), found, "{way:?}");
                assert!(as_not_regular(&error).is_some());
            }
            assert_eq!(exists(&at(name)).unwrap_err().to_string(), found);
        }
        std::os::unix::fs::symlink(at("dir"), at("link-to-dir")).unwrap();
        for (name, found) in [
            (
                "link-to-dir",
                "link-to-dir is a symbolic link, not a directory",
            ),
            ("target", "target is a file, not a directory"),
            ("fifo", "fifo is a FIFO, not a directory"),
        ] {
            assert_eq!(open_dir(&at(name)).unwrap_err().to_string(), found);
        }
        open_dir(&at("dir")).unwrap();
        let device = open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(device.to_string(), "null is a device, not a regular file");
        assert!(!at("nothing").exists());
        assert_eq!(read(&at("target"), 100).unwrap(), b"precious");
    }

    #[test]
    fn regular_files_are_opened_and_read_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(!exists(&path).unwrap());
        assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut file = open_with(&path, OpenOptions::new().append(true).create(true)).unwrap();
        file.write_all(b"12345").unwrap();
        assert!(exists(&path).unwrap());
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(read_through_own_link(&link, 5).unwrap(), b"12345");
        assert!(read(&link, 5).is_err());
        let long = read(&path, 4).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
        assert!(as_not_regular(&long).is_none());
    }
}
