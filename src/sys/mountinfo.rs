//! Reads the mount table, `/proc/self/mountinfo`, and finds the mounts of envfs in it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::{probe, process};

/// The prefix of the source of mounts of envfs; the id of the environment follows.
pub const SOURCE_PREFIX: &str = "envfs:";

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The id that the kernel gave to this mount.
    pub id: u64,
    /// Major and minor device number.
    pub device: (u32, u32),
    /// The mount point.
    pub mount_point: PathBuf,
    /// File system type, `fuse.envfs` for mounts of envfs.
    pub fs_type: String,
    /// Source, `envfs:ID` for mounts of envfs.
    pub source: OsString,
    /// Options of the mount and of its file system.
    pub options: Vec<String>,
    /// Whether the kernel checks permissions of a FUSE mount; false with `fakeroot`.
    pub checks_permissions: bool,
    /// The user who mounted it, for FUSE. Set by the kernel, unlike the source, which any user may
    /// choose.
    pub user_id: Option<u32>,
}

impl MountEntry {
    /// Returns the id of the mounted environment, if this is a mount of envfs.
    ///
    /// The type is not enough (it is plain `fuse` if mounted in some ways), and any user may mount
    /// FUSE with any source, so only mounts of the caller and of root are trusted.
    pub fn environment_id(&self) -> Option<&str> {
        self.trusted_source()?.strip_prefix(SOURCE_PREFIX)
    }

    /// Returns the source of a FUSE mount that the caller or root mounted.
    pub fn trusted_source(&self) -> Option<&str> {
        let is_trusted = self.fs_type.starts_with("fuse") && self.is_trusted();
        is_trusted.then(|| self.source.to_str()).flatten()
    }

    /// Returns whether the caller or root mounted it. In a user namespace the caller has two ids:
    /// mounts from outside have the outer one.
    fn is_trusted(&self) -> bool {
        self.user_id.is_some_and(|owner| {
            owner == 0 || owner == process::user_id() || owner == process::outer_user_id()
        })
    }

    /// Returns whether the daemon of this mount has ended.
    pub fn is_dead(&self) -> bool {
        self.health() == Health::Dead
    }

    /// Queries the daemon of this mount; see [`health`].
    pub fn health(&self) -> Health {
        health(&self.mount_point)
    }
}

/// The state of the daemon of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The daemon responds, or the path is not on a FUSE mount.
    Healthy,
    /// The daemon has ended.
    Dead,
    /// The daemon did not respond in time: it is stopped or hangs.
    Unresponsive,
}

/// How long a daemon may take to respond.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Queries the daemon of the mount that a path is on, and waits at most a few seconds.
///
/// Uses `statfs`, which always reaches the daemon; the kernel may answer `stat` from its cache long
/// after the daemon has died.
pub fn health(path: &Path) -> Health {
    match probe::statfs(path, PROBE_TIMEOUT) {
        None => Health::Unresponsive,
        Some(Err(Errno::ENOTCONN | Errno::ECONNABORTED)) => Health::Dead,
        Some(_) => Health::Healthy,
    }
}

/// Returns whether a path is on a FUSE mount whose daemon has ended.
pub fn is_dead(path: &Path) -> bool {
    health(path) == Health::Dead
}

/// Returns the mount table of this process's mount namespace, in order of mounting.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Returns the mount table of another process, which may be in another mount namespace.
pub fn of_process(pid: u32) -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?))
}

/// Returns the mounts of one environment, in order of mounting (the last is on top).
pub fn of_environment(id: &str) -> io::Result<Vec<MountEntry>> {
    let mut mounts = read()?;
    mounts.retain(|mount| mount.environment_id() == Some(id));
    Ok(mounts)
}

/// Returns the topmost mount at exactly this path.
pub fn at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?
        .into_iter()
        .rev()
        .find(|mount| mount.mount_point == path))
}

/// Returns the mount that covers our mount with this source at this path, or `None` if ours is the
/// topmost or does not exist. The path may contain links, unlike those in the table.
///
/// Callers check this first since unmounting a path removes the topmost mount.
pub fn covering(path: &Path, source: &str) -> io::Result<Option<MountEntry>> {
    Ok(find_covering(read()?, path, source))
}

/// Returns our mount with this source at this path, or `None` if it does not exist. The path may
/// contain links, unlike those in the table.
pub fn own(path: &Path, source: &str) -> io::Result<Option<MountEntry>> {
    let mounts = read()?;
    Ok(find_own(&mounts, path, source).cloned())
}

/// Prefers the mount at `path`, since one source may be mounted at several places.
fn find_own<'a>(mounts: &'a [MountEntry], path: &Path, source: &str) -> Option<&'a MountEntry> {
    let is_ours = |mount: &&MountEntry| {
        mount.fs_type.starts_with("fuse") && mount.source == source && mount.is_trusted()
    };
    let ours = mounts.iter().rev().filter(is_ours);
    ours.clone()
        .find(|mount| mount.mount_point == path)
        .or_else(|| ours.clone().next())
}

fn find_covering(mounts: Vec<MountEntry>, path: &Path, source: &str) -> Option<MountEntry> {
    let own = find_own(&mounts, path, source)?;
    let top = mounts
        .iter()
        .rev()
        .find(|mount| mount.mount_point == own.mount_point)?;
    (top.id != own.id).then(|| top.clone())
}

/// Parses a mount table; invalid lines are skipped.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let _parent = fields.next()?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let _root = fields.next()?;
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let of_mount = fields.next()?.split(|&byte| byte == b',');
    // Any number of optional fields, up to a single dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    let of_file_system = fields.next()?.split(|&byte| byte == b',');
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    // A mount may be read-only while its file system is not, so `rw` of the file system says
    // nothing.
    let is_meaningful = |word: &&[u8]| *word != b"rw";
    let options: Vec<String> = of_mount
        .chain(of_file_system.filter(is_meaningful))
        .map(text)
        .collect();
    let user_id = options
        .iter()
        .find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    Some(MountEntry {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        mount_point,
        fs_type,
        source,
        checks_permissions: options.iter().any(|option| option == "default_permissions"),
        user_id,
        options,
    })
}

/// Decodes the kernel's octal escapes of space, tab, newline, backslash and `#`.
fn unescape(text: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| {
                let text = std::str::from_utf8(digits).ok()?;
                u8::from_str_radix(text, 8).ok()
            });
        match octal {
            Some(value) => {
                out.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Returns the source of the mounts of an environment.
pub fn source(id: &str) -> String {
    format!("{SOURCE_PREFIX}{id}")
}

/// Returns whether a path is a mount point or below it.
pub fn is_under(path: &OsStr, mount_point: &Path) -> bool {
    let (path, root) = (path.as_bytes(), mount_point.as_os_str().as_bytes());
    path.strip_prefix(root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || root == b"/")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_with_escapes_and_optional_fields_are_read() {
        let text = b"22 1 0:21 / /proc rw,nosuid shared:5 master:1 - proc proc rw\n\
            98 30 0:57 / /home/a\\040b/\\134x rw,nosuid,nodev - fuse.envfs envfs:1b2c rw,user_id=0\n\
            nonsense\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].environment_id(), None);
        assert_eq!(mounts[1].mount_point, Path::new("/home/a b/\\x"));
        assert_eq!(mounts[1].environment_id(), Some("1b2c"));
        assert_eq!(mounts[1].device, (0, 57));
        assert_eq!((mounts[0].user_id, mounts[1].user_id), (None, Some(0)));
    }

    #[test]
    fn a_source_alone_does_not_make_a_mount_ours() {
        let mounts = parse(b"98 30 0:57 / /x rw - tmpfs envfs:1 rw\n");
        assert_eq!(mounts[0].environment_id(), None);
    }

    #[test]
    fn mounts_of_other_users_are_not_trusted() {
        let me = process::user_id();
        for (owner, is_trusted) in [(0, true), (me, true), (me + 4711, false)] {
            let line =
                format!("98 30 0:57 / /x rw - fuse.envfs envfs:1 rw,user_id={owner},group_id=0\n");
            let mounts = parse(line.as_bytes());
            assert_eq!(mounts[0].environment_id().is_some(), is_trusted, "{owner}");
            let found = find_covering(mounts, Path::new("/x"), "envfs:1");
            assert_eq!(found, None);
        }
        let unknown = parse(b"98 30 0:57 / /x rw - fuse.envfs envfs:1 rw\n");
        assert_eq!(unknown[0].environment_id(), None);
    }

    #[test]
    fn the_mount_that_covers_another_is_found() {
        let line = |id: u32, at: &str, kind: &str, source: &str| {
            format!("{id} 30 0:57 / {at} rw - {kind} {source} rw,user_id=0\n")
        };
        let ours = line(7, "/real/x", "fuse.envfs", "envfs:1") + &line(8, "/y", "fuse", "envfs:2");
        let covering = |text: &str, path: &str| {
            find_covering(parse(text.as_bytes()), Path::new(path), "envfs:1").map(|top| top.id)
        };
        assert_eq!(covering(&ours, "/real/x"), None);
        let covered = ours.clone() + &line(9, "/real/x", "tmpfs", "none");
        assert_eq!(covering(&covered, "/real/x"), Some(9));
        assert_eq!(covering(&covered, "/link/x"), Some(9));
        let twice = covered + &line(10, "/z", "fuse.envfs", "envfs:1");
        assert_eq!(covering(&twice, "/real/x"), Some(9));
        assert_eq!(covering(&twice, "/z"), None);
        assert_eq!(covering("", "/real/x"), None);
    }

    #[test]
    fn a_sibling_with_the_same_beginning_is_not_under_a_mount() {
        assert!(is_under(OsStr::new("/a/b"), Path::new("/a/b")));
        assert!(is_under(OsStr::new("/a/b/c"), Path::new("/a/b")));
        assert!(!is_under(OsStr::new("/a/bc"), Path::new("/a/b")));
    }

    #[test]
    fn the_table_of_this_machine_has_a_root() {
        assert!(
            read()
                .unwrap()
                .iter()
                .any(|mount| mount.mount_point == Path::new("/"))
        );
    }
}
