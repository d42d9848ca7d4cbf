//! Reads `/proc/self/mountinfo`: what is mounted here, and which of it is ours.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::{probe, process};

/// What comes before the environment's id in the source of our mounts.
pub const SOURCE_PREFIX: &str = "envfs:";

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The kernel's number of this mount.
    pub id: u64,
    /// Device number as `major:minor`, as it stands in `/proc/PID/maps` without zeros in front.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// File system type, `fuse.envfs` for ours.
    pub fs_type: String,
    /// Source; `envfs:ID` for ours.
    pub source: OsString,
    /// Options of the mount and of its file system.
    pub options: Vec<String>,
    /// Whether the kernel checks permissions, for FUSE; not so with `fakeroot`.
    pub checks_permissions: bool,
    /// Whose mount it is, for FUSE: the kernel says so, unlike the source, which anybody may choose.
    pub user_id: Option<u32>,
}

impl MountEntry {
    /// Returns the id of the environment that this mount shows, if it is one of ours.
    ///
    /// The type alone says nothing (it is plain `fuse` on some paths), and every user may mount FUSE
    /// with any source: so only a mount of the caller, or of root, is believed.
    pub fn environment_id(&self) -> Option<&str> {
        if !self.fs_type.starts_with("fuse") || !self.is_trusted() {
            return None;
        }
        self.source.to_str()?.strip_prefix(SOURCE_PREFIX)
    }

    /// Returns whether the caller mounted it, or root. In a user namespace the caller has two ids: mounts
    /// that were made outside have the outer one.
    fn is_trusted(&self) -> bool {
        self.user_id.is_some_and(|owner| {
            owner == 0 || owner == process::user_id() || owner == process::outer_user_id()
        })
    }

    /// Returns whether the daemon behind this mount is gone.
    pub fn is_dead(&self) -> bool {
        self.health() == Health::Dead
    }

    /// Asks the daemon behind this mount.
    pub fn health(&self) -> Health {
        health(&self.mount_point)
    }
}

/// Whether the daemon behind a mount answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It does, or the path leads to no mount.
    Healthy,
    /// The daemon is gone.
    Dead,
    /// It is there, but did not answer in time: it is stopped or hangs.
    Unresponsive,
}

/// How long a daemon may take to answer a probe.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// Asks the daemon of the mount to which a path leads, and waits a few seconds at most.
///
/// Asks with `statfs`, which always goes to the daemon; `stat` may be answered from the kernel's
/// cache long after the daemon died.
pub fn health(path: &Path) -> Health {
    match probe::statfs(path, PROBE_PATIENCE) {
        None => Health::Unresponsive,
        Some(Err(Errno::ENOTCONN | Errno::ECONNABORTED)) => Health::Dead,
        Some(_) => Health::Healthy,
    }
}

/// Returns whether the path leads to a FUSE mount whose daemon is gone.
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

/// Returns our mounts of one environment, in order of mounting (the last is on top).
pub fn of_environment(id: &str) -> io::Result<Vec<MountEntry>> {
    let mut mounts = read()?;
    mounts.retain(|mount| mount.environment_id() == Some(id));
    Ok(mounts)
}

/// Returns the mount that is visible at exactly this path, if there is one.
pub fn at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?
        .into_iter()
        .rev()
        .find(|mount| mount.mount_point == path))
}

/// Returns what lies on top of our mount with this source at this path (as it was given: the table
/// has it without links), or `None` if it is on top itself, or is not mounted any more.
///
/// Unmounting a path takes away whatever is on top there.
pub fn covering(path: &Path, source: &str) -> io::Result<Option<MountEntry>> {
    Ok(find_covering(read()?, path, source))
}

/// Returns our mount with this source at this path (as it was given: the table has it without links), or
/// `None` if it is not mounted any more.
pub fn own(path: &Path, source: &str) -> io::Result<Option<MountEntry>> {
    let mounts = read()?;
    Ok(find_own(&mounts, path, source).cloned())
}

/// One source may be mounted at several places, so the path decides where it is in the table.
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

/// Parses the text of a mount table; lines that make no sense are left out.
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
    // A mount may be read-only where its file system is not, and is so too where that is.
    let is_told_twice = |word: &&[u8]| *word != b"rw";
    let options: Vec<String> = of_mount
        .chain(of_file_system.filter(is_told_twice))
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

/// Undoes the kernel's octal escapes of space, tab, newline, backslash and `#`.
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

/// Returns the source under which an environment is mounted.
pub fn source(id: &str) -> String {
    format!("{SOURCE_PREFIX}{id}")
}

/// Returns whether the path is the place of a mount or lies below it.
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
    fn a_mount_of_another_user_is_not_believed() {
        let me = process::user_id();
        for (owner, is_believed) in [(0, true), (me, true), (me + 4711, false)] {
            let line =
                format!("98 30 0:57 / /x rw - fuse.envfs envfs:1 rw,user_id={owner},group_id=0\n");
            let mounts = parse(line.as_bytes());
            assert_eq!(mounts[0].environment_id().is_some(), is_believed, "{owner}");
            let found = find_covering(mounts, Path::new("/x"), "envfs:1");
            assert_eq!(found, None);
        }
        let unknown = parse(b"98 30 0:57 / /x rw - fuse.envfs envfs:1 rw\n");
        assert_eq!(unknown[0].environment_id(), None);
    }

    #[test]
    fn what_lies_on_top_of_a_mount_is_found() {
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
