//! Finds the processes that keep a mount or a directory busy.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mount::private;
use super::mountinfo::{MountEntry, is_under};
use super::text::{Text, quoted};
use super::{mountinfo, process};

/// How a process uses a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Its working directory is in the mount.
    WorkingDirectory,
    /// Its root directory is in the mount.
    Root,
    /// It runs a program from the mount.
    Program,
    /// It has a file or directory of the mount open.
    OpenFile,
    /// It has mapped a file of the mount (typically a library).
    Mapping,
    /// It is in the namespace of a private mount.
    Namespace,
}

impl Use {
    /// Returns a description that follows the name of a process in a message.
    pub fn describe(self) -> &'static str {
        match self {
            Use::WorkingDirectory => "has its working directory in it",
            Use::Root => "has its root directory in it",
            Use::Program => "runs a program from it",
            Use::OpenFile => "has a file in it open",
            Use::Mapping => "has mapped a file in it",
            Use::Namespace => "is in the private session",
        }
    }
}

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of the command.
    pub command: String,
    /// How it uses the mount; the first use that was found.
    #[serde(rename = "use")]
    pub how: Use,
    /// The path of the file or directory that it uses, if known.
    pub path: Text,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} (pid {}) {}",
            quoted(&self.command),
            self.pid,
            self.how.describe()
        )?;
        if !self.path.0.is_empty() {
            write!(f, ": {}", quoted(&self.path.0))?;
        }
        Ok(())
    }
}

/// Returns the processes that use a mount, except this one and those that it may not inspect:
/// processes of other users are visible to root only.
///
/// Links are read but not followed, so no request reaches the daemon, and dead mounts work too.
pub fn of_mount(mount: &MountEntry) -> Vec<Holder> {
    find(|pid| of_process(pid, &mount.mount_point, Some(mount.device)))
}

/// Returns the processes that use a directory or anything in it, with the same exceptions. `dir`
/// contains no symbolic links.
pub fn of_directory(dir: &Path) -> Vec<Holder> {
    find(|pid| of_process(pid, dir, None))
}

/// Returns the processes in the mount namespace of a private mount.
pub fn in_namespace(namespace: u64) -> Vec<Holder> {
    let members = private::members(namespace).into_iter();
    let holder = |pid| {
        Some(Holder {
            pid,
            command: process::command_name(pid)?,
            how: Use::Namespace,
            path: Text::from(""),
        })
    };
    members.filter_map(holder).collect()
}

/// Returns the processes in the private mounts that a daemon serves, except this one.
pub fn in_private_mounts_of(daemon: u32) -> Vec<Holder> {
    let namespaces = private::kept_by(daemon).into_iter();
    let mut holders: Vec<Holder> = namespaces.flat_map(in_namespace).collect();
    holders.retain(|holder| holder.pid != std::process::id());
    holders.sort_by_key(|holder| holder.pid);
    holders
}

fn find(of_process: impl Fn(u32) -> Option<Holder>) -> Vec<Holder> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id();
    let mut holders: Vec<Holder> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != own)
        .filter_map(of_process)
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders
}

/// A mount namespace with a copy of a mount, identified by one of its processes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NamespaceCopy {
    /// Process id.
    pub pid: u32,
    /// Name of the command.
    pub command: String,
}

impl std::fmt::Display for NamespaceCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", quoted(&self.command), self.pid)
    }
}

/// Returns the other mount namespaces that have a copy of a mount, and the processes in them that
/// use it. Namespaces of other users' processes are visible to root only.
pub fn in_other_namespaces(mount: &MountEntry) -> (Vec<NamespaceCopy>, Vec<Holder>) {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace("self");
    let mut members: HashMap<PathBuf, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry
            .file_name()
            .to_str()
            .filter(|name| name.parse::<u32>().is_ok())
            && let Some(other) = namespace(pid).filter(|other| Some(other) != own.as_ref())
        {
            members.entry(other).or_default().extend(pid.parse::<u32>());
        }
    }
    let (mut copies, mut users) = (Vec::new(), Vec::new());
    for mut pids in members.into_values() {
        pids.sort_unstable();
        // Processes of one namespace may have different roots, and thus different mount tables.
        let table = pids.iter().find_map(|pid| {
            let table = mountinfo::of_process(*pid).ok()?;
            let is_copy = |entry: &MountEntry| entry.device == mount.device;
            table.iter().any(is_copy).then_some((*pid, table))
        });
        let Some((pid, mut table)) = table else {
            continue;
        };
        copies.push(NamespaceCopy {
            pid,
            command: process::command_name(pid).unwrap_or_default(),
        });
        // What is at the path of a copy that another mount covers is in that mount.
        let covering: HashMap<PathBuf, (u32, u32)> = table
            .iter()
            .map(|entry| (entry.mount_point.clone(), entry.device))
            .collect();
        table.retain(|entry| {
            entry.device == mount.device && covering.get(&entry.mount_point) == Some(&entry.device)
        });
        let used = |pid: &u32| {
            let of = |entry: &MountEntry| of_process(*pid, &entry.mount_point, Some(entry.device));
            table.iter().find_map(of)
        };
        users.extend(pids.iter().filter_map(used));
    }
    copies.sort_by_key(|copy| copy.pid);
    users.sort_by_key(|user: &Holder| user.pid);
    (copies, users)
}

/// Returns how a process uses a directory. A mapping is found by the device if there is one, else
/// by its path.
fn of_process(pid: u32, dir: &Path, device: Option<(u32, u32)>) -> Option<Holder> {
    let base = Path::new("/proc").join(pid.to_string());
    let found = |how, path: &OsStr| {
        Some(Holder {
            pid,
            command: process::command_name(pid)?,
            how,
            path: Text::from(path),
        })
    };
    for (link, how) in [
        ("cwd", Use::WorkingDirectory),
        ("root", Use::Root),
        ("exe", Use::Program),
    ] {
        if let Ok(target) = fs::read_link(base.join(link))
            && is_under(target.as_os_str(), dir)
        {
            return found(how, target.as_os_str());
        }
    }
    if let Ok(entries) = fs::read_dir(base.join("fd")) {
        for entry in entries.flatten() {
            if let Ok(target) = fs::read_link(entry.path())
                && is_under(target.as_os_str(), dir)
            {
                return found(Use::OpenFile, target.as_os_str());
            }
        }
    }
    let maps = fs::read(base.join("maps")).ok()?;
    let path = match device {
        Some(device) => mapping_of_device(&maps, device)?,
        None => mapping_below(&maps, dir)?,
    };
    found(Use::Mapping, OsStr::from_bytes(path))
}

/// Returns the path of the first mapping of a file on this device.
fn mapping_of_device(maps: &[u8], device: (u32, u32)) -> Option<&[u8]> {
    maps.split(|&byte| byte == b'\n').find_map(|line| {
        // address perms offset dev inode path
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let dev = std::str::from_utf8(fields.nth(3)?).ok()?;
        let (major, minor) = dev.split_once(':')?;
        let this = (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        );
        if this != device {
            return None;
        }
        let _inode = fields.next()?;
        Some(fields.next().unwrap_or_default().trim_ascii_start())
    })
}

/// Returns the path of the first mapping of a file in a directory.
fn mapping_below<'a>(maps: &'a [u8], dir: &Path) -> Option<&'a [u8]> {
    maps.split(|&byte| byte == b'\n').find_map(|line| {
        // address perms offset dev inode path
        let path = line.splitn(6, |&byte| byte == b' ').nth(5)?;
        let path = path.trim_ascii_start();
        is_under(OsStr::from_bytes(path), dir).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mappings_are_found_by_device() {
        let maps = b"7f00-7f01 r-xp 00000000 08:01 42                   /lib/x.so\n\
            7f02-7f03 r-xp 00000000 00:39 43                   /envs/a b/lib/y.so\n\
            7f04-7f05 rw-p 00000000 00:00 0\n";
        assert_eq!(
            mapping_of_device(maps, (0, 0x39)).unwrap(),
            b"/envs/a b/lib/y.so"
        );
        assert_eq!(mapping_of_device(maps, (1, 2)), None);
        let below = |dir: &str| mapping_below(maps, Path::new(dir));
        assert_eq!(below("/envs/a b").unwrap(), b"/envs/a b/lib/y.so");
        assert_eq!((below("/envs/a"), below("/other")), (None, None));
    }

    #[test]
    fn a_process_is_found_by_its_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        let mount = MountEntry {
            id: 0,
            device: (u32::MAX, 0),
            mount_point: dir.path().to_path_buf(),
            fs_type: String::from("fuse.envfs"),
            source: "envfs:x".into(),
            checks_permissions: true,
            user_id: None,
            options: Vec::new(),
        };
        let holders = of_mount(&mount);
        let of_directory = of_directory(dir.path());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            holders.iter().any(|holder| holder.pid == child.id()),
            "{holders:?}"
        );
        assert_eq!(of_directory, holders);
    }
}
