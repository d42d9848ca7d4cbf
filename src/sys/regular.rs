//! Opening files that must be regular files at exactly the path that is given.
//!
//! The files of a store are data: another user, a backup or a cleaner may have put a symbolic link, a
//! FIFO, a device or a directory in the place of one. A link would lead to a file that was never meant,
//! and opening a FIFO waits for its other end. So nothing is followed, nothing waits, and what was opened
//! is checked before it is used.

use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// The cause of an [`io::Error`] where something else lies in the place of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRegular {
    /// Name of the file, without its directory.
    pub name: String,
    /// What is there, for messages: `a FIFO`.
    pub found: &'static str,
    /// What should be there.
    pub wanted: &'static str,
}

impl fmt::Display for NotRegular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {}, not a {}",
            self.name.escape_debug(),
            self.found,
            self.wanted
        )
    }
}

impl std::error::Error for NotRegular {}

/// Opens a regular file for reading.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(path, OpenOptions::new().read(true))
}

/// Opens a regular file as `options` say; they must set no flags of their own and must not truncate.
///
/// The last component of the path is not followed if it is a symbolic link; the directories before it
/// are. An error that [`is_not_regular`] recognizes says what was found instead.
pub fn open_with(path: &Path, options: &OpenOptions) -> io::Result<File> {
    // Without a controlling terminal and without waiting, whatever it is. Rust adds O_CLOEXEC.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match options.clone().custom_flags(flags).open(path) {
        Ok(file) => file,
        // A link, a FIFO without a reader, a socket, a directory: each has its own error.
        Err(error) => return Err(refusal(path).unwrap_or(error)),
    };
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        Ok(file)
    } else {
        Err(not_regular(path, kind))
    }
}

/// Opens a directory, and not one that a symbolic link in its place leads to.
pub fn open_dir(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY | libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.map_err(|error| match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_dir() => not(path, meta.file_type(), "directory"),
        _ => error,
    })
}

/// Checks without opening it that a path is a regular file; `Ok(false)` where nothing is there.
///
/// For files that another library opens by name. The check holds only as long as nobody else may write
/// to the directory.
pub fn exists(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(true),
        Ok(meta) => Err(not_regular(path, meta.file_type())),
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
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Reads a regular file that the user may have replaced by a link to where it is kept. Links of other
/// users are not followed: they could lead anybody who reads through them anywhere.
pub fn read_own(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() && meta.uid() == super::process::user_id() => {
            read(&std::fs::canonicalize(path)?, limit)
        }
        _ => read(path, limit),
    }
}

/// Returns what was found where an error says that it is not a regular file.
pub fn is_not_regular(error: &io::Error) -> Option<&NotRegular> {
    error.get_ref()?.downcast_ref()
}

/// Returns the error for what lies at a path, if that is why it could not be opened.
fn refusal(path: &Path) -> Option<io::Error> {
    let kind = std::fs::symlink_metadata(path).ok()?.file_type();
    (!kind.is_file()).then(|| not_regular(path, kind))
}

fn not_regular(path: &Path, kind: FileType) -> io::Error {
    not(path, kind, "regular file")
}

fn not(path: &Path, kind: FileType, wanted: &'static str) -> io::Error {
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
        wanted,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    /// How a file may be opened.
    fn ways() -> Vec<OpenOptions> {
        let mut ways = vec![OpenOptions::new(); 4];
        ways[0].read(true);
        ways[1].write(true);
        ways[2].append(true).create(true);
        ways[3].read(true).write(true).create(true).truncate(false);
        ways
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_and_named() {
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
                assert!(is_not_regular(&error).is_some());
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
    fn a_regular_file_is_opened_and_read_up_to_a_limit() {
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
        assert_eq!(read_own(&link, 5).unwrap(), b"12345");
        assert!(read(&link, 5).is_err());
        let long = read(&path, 4).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
        assert!(is_not_regular(&long).is_none());
    }
}
