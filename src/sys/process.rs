//! Identifies processes, boots, users and groups, and executes programs.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Returns the effective user id.
pub fn user_id() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Returns the effective group id.
pub fn group_id() -> u32 {
    nix::unistd::getegid().as_raw()
}

/// Returns the supplementary groups of this process.
pub fn groups() -> Vec<u32> {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    groups.into_iter().map(nix::unistd::Gid::as_raw).collect()
}

/// Returns whether a process or thread has a supplementary group; false if it does not exist.
pub fn is_in_group(pid: u32, gid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let mut groups = groups.unwrap_or_default().split_whitespace();
    groups.any(|group| group.parse() == Ok(gid))
}

/// Returns how often this thread was made to give up its processor; 0 if that is not known.
pub fn involuntary_switches() -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

/// Returns whether this process has `CAP_SYS_ADMIN` in its user namespace, and so may mount.
pub fn may_administer() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|set| set & SYS_ADMIN != 0)
}

/// The users and groups that exist in the user namespace of this process.
#[derive(Debug, Clone)]
pub struct IdMaps {
    users: String,
    groups: String,
}

impl IdMaps {
    /// Reads them. If that fails, all exist.
    pub fn read() -> IdMaps {
        let read = |name| std::fs::read_to_string(format!("/proc/self/{name}"));
        let all = |_| format!("0 0 {}", u32::MAX);
        IdMaps {
            users: read("uid_map").unwrap_or_else(all),
            groups: read("gid_map").unwrap_or_else(all),
        }
    }

    /// Returns whether a user exists.
    pub fn has_user(&self, id: u32) -> bool {
        is_mapped(&self.users, id)
    }

    /// Returns whether a group exists.
    pub fn has_group(&self, id: u32) -> bool {
        is_mapped(&self.groups, id)
    }
}

/// Returns whether an id is in a map of the kernel: lines of the first id inside, the first one
/// outside, and their number.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), _, Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        id >= first && id - first < count
    })
}

/// Returns the name of this host, as `uname -n` prints it.
pub fn host_name() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_else(|_| String::from("localhost"))
}

/// Returns the id of the current boot, or an empty string if it is not available. Each boot of the
/// machine has another id.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Returns the number of this process's PID namespace, if it is known.
pub fn pid_namespace() -> Option<u64> {
    let link = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let number = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?;
    number.parse().ok()
}

/// Returns a new random UUID.
pub fn new_uuid() -> io::Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().to_owned())
}

/// Returns when a process started, in clock ticks since boot. Together with the process id and the
/// boot id, this identifies a process uniquely. Returns `None` if the process does not exist or is
/// a zombie.
pub fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses `/proc/PID/stat`. The command name in its second field may contain spaces and
/// parentheses.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Returns whether the process with this id and start time is still running.
pub fn is_running(pid: u32, started: u64) -> bool {
    start_time(pid) == Some(started)
}

/// A process that stays the same one even if its number is used again.
#[derive(Debug)]
pub struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// Fails if there is no such process, or if it is not visible in this process namespace.
    pub fn open(pid: u32) -> io::Result<ProcessHandle> {
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: the call takes two numbers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = Errno::result(fd)?;
        // SAFETY: the descriptor is new, so nothing else owns it.
        Ok(ProcessHandle(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Asks the process to end, with SIGTERM.
    pub fn terminate(&self) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the call takes numbers, an open descriptor and no pointer.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGTERM,
                none,
                0,
            )
        };
        Errno::result(sent)?;
        Ok(())
    }

    /// Waits until the process has ended and all its files are closed; false after `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], left) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for ProcessHandle {
    /// The descriptor becomes readable when the process ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process that sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// The process.
    pub pid: u32,
    /// When it started, as [`start_time`].
    pub started: u64,
    /// Its command line.
    pub arguments: Vec<String>,
}

/// Returns the process of a thread; `None` if it has ended or is not visible here.
pub fn requester(thread: u32) -> Option<Requester> {
    let pid = status_number(thread, "Tgid:")?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let line = line.trim_end_matches(['\0', ' ']);
    // A program that has set its title has one word with spaces.
    let separator = match line.contains('\0') {
        true => '\0',
        false => ' ',
    };
    Some(Requester {
        pid,
        started: start_time(pid)?,
        arguments: line.split(separator).map(str::to_owned).collect(),
    })
}

/// Returns whether a process has mapped a file whose name begins with one of these.
pub fn has_mapped(pid: u32, beginnings: &[&str]) -> bool {
    let Ok(maps) = std::fs::read(format!("/proc/{pid}/maps")) else {
        return false;
    };
    let mut names = maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let slash = line.iter().rposition(|byte| *byte == b'/')?;
        line.get(slash + 1..)
    });
    names.any(|name| {
        let mut known = beginnings.iter();
        known.any(|beginning| name.starts_with(beginning.as_bytes()))
    })
}

/// Returns the parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    status_number(pid, "PPid:").filter(|pid| *pid > 0)
}

fn status_number(pid: u32, key: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().parse().ok()
}

/// Returns the command name of a process.
pub fn command_name(pid: u32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// Returns the path of the program that this process runs, even if the file was replaced meanwhile.
pub fn own_program() -> PathBuf {
    // The link leads to the same file even if its name has been reused.
    let link = PathBuf::from("/proc/self/exe");
    match std::fs::read_link(&link) {
        Ok(path) if path.exists() => path,
        _ => link,
    }
}

/// Returns whether a process is stopped, by a signal or by a debugger.
pub fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let end = stat.iter().rposition(|&byte| byte == b')').unwrap_or(0);
    matches!(stat.get(end + 2), Some(b'T' | b't'))
}

/// Returns a number that grows while a process works: its processor time, and bytes read and
/// written if they are readable. Returns `None` if the process does not exist.
pub fn work_done(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // `rest` begins with field 3, the state; user and system time are fields 14 and 15.
    let times = rest.split_ascii_whitespace().skip(11).take(2);
    let time: u64 = times.filter_map(|field| field.parse::<u64>().ok()).sum();
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let bytes = io
        .lines()
        .filter(|line| line.starts_with("rchar") || line.starts_with("wchar"))
        .filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok());
    Some(bytes.fold(time, u64::wrapping_add))
}

/// Returns the first child of a process, if the kernel lists children.
pub fn first_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

/// Returns the user at the other end of a Unix socket.
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    let credentials =
        nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(credentials.uid())
}

/// Returns the process at the other end of a Unix socket, which listens there; `None` if it is in a
/// PID namespace that is not visible here.
pub fn peer_process(socket: impl AsFd) -> Option<u32> {
    let credentials =
        nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    u32::try_from(credentials.pid()).ok().filter(|pid| *pid > 0)
}

/// Returns the first executable file with this name in the system directories or in `PATH`.
///
/// System directories come first, since the directories of an active environment are first in
/// `PATH`, and a daemon should not run programs from the mount that it serves.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    system
        .into_iter()
        .chain(std::env::split_paths(&path).filter(|dir| dir.is_absolute()))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// Executes the program at this path in this process, with these arguments (the first is its name)
/// and environment variables. Returns only on failure.
pub fn execute(
    file: &std::path::Path,
    words: &[OsString],
    variables: &BTreeMap<OsString, OsString>,
) -> io::Error {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let done = || -> nix::Result<Infallible> {
        let file = text(file.as_os_str().as_bytes())?;
        let words: Vec<CString> = words
            .iter()
            .map(|word| text(word.as_bytes()))
            .collect::<nix::Result<_>>()?;
        let variables: Vec<CString> = variables
            .iter()
            .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<nix::Result<_>>()?;
        // The Rust runtime ignores SIGPIPE, which must not be inherited.
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler is installed.
        let before = unsafe { sigaction(Signal::SIGPIPE, &default) }?;
        let failed = nix::unistd::execve(&file, &words, &variables);
        // SAFETY: restores the previous action.
        unsafe { sigaction(Signal::SIGPIPE, &before) }?;
        failed
    };
    match done() {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

/// Returns whether this user may execute a file.
pub fn is_executable(file: &std::path::Path) -> bool {
    file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// Returns the process id of the parent, if it has one in this PID namespace.
pub fn parent_id() -> Option<u32> {
    u32::try_from(nix::unistd::getppid().as_raw())
        .ok()
        .filter(|&pid| pid > 0)
}

/// Returns the name of a user, or the user id if it has no name.
pub fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// Returns the name of a group, or the group id if it has no name.
pub fn group_name(gid: u32) -> String {
    match nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

/// Returns whether only root and the caller are members of a group: the group of root, or one with
/// the name of the caller and no other member.
pub fn is_private_group(gid: u32) -> bool {
    if gid == 0 {
        return true;
    }
    let me = user_name(user_id());
    match nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name == me && group.mem.iter().all(|member| *member == me),
        _ => false,
    }
}

/// Returns whether a user id is the one that a user namespace shows for all unmapped users, which
/// include root of the host and cannot be distinguished.
pub fn is_overflow_user(uid: u32) -> bool {
    static UNMAPPED: std::sync::LazyLock<Option<u32>> = std::sync::LazyLock::new(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
        let first: Vec<&str> = map.lines().next()?.split_ascii_whitespace().collect();
        // All ids are mapped: this is the initial user namespace.
        if first == ["0", "0", "4294967295"] {
            return None;
        }
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?;
        overflow.trim().parse().ok()
    });
    *UNMAPPED == Some(uid)
}

/// Returns the caller's user id in the parent of its user namespace. Returns [`user_id`] in the
/// initial namespace, or if the id is not known.
pub fn outer_user_id() -> u32 {
    let me = u64::from(user_id());
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outer = map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (inside, outside, count) = (
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        );
        let offset = me.checked_sub(inside).filter(|offset| *offset < count)?;
        u32::try_from(outside.checked_add(offset)?).ok()
    });
    outer.unwrap_or(user_id())
}

/// Changes to another user permanently, with the groups of that user. `gid` is the group of a user
/// without an entry in the user database. Only root may do this. Must be called while there is only
/// one thread.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    use nix::unistd::{Gid, Uid, User, initgroups, setgroups, setresgid, setresuid};
    let to = Uid::from_raw(uid);
    let group = match User::from_uid(to) {
        Ok(Some(user)) => {
            let name = std::ffi::CString::new(user.name).map_err(io::Error::other)?;
            initgroups(&name, user.gid)?;
            user.gid
        }
        _ => {
            let group = Gid::from_raw(gid);
            setgroups(&[group])?;
            group
        }
    };
    setresgid(group, group, group)?;
    setresuid(to, to, to)?;
    Ok(())
}

/// Returns the text of an error for people: the text of `strerror`, without the error number.
pub fn error_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}

/// Returns the arguments of another process; empty if they are not readable.
pub fn command_line(pid: u32) -> Vec<OsString> {
    use std::os::unix::ffi::OsStringExt;
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

/// Returns whether a process, other than this one, was started with this value of a variable.
/// Variables of other users' processes are visible to root only.
pub fn any_with_variable(name: &str, value: &OsStr) -> bool {
    let wanted = [name.as_bytes(), b"=", value.as_bytes()].concat();
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.any(|pid| {
        let text = match pid == own {
            true => Vec::new(),
            false => std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(),
        };
        text.split(|&byte| byte == 0).any(|one| one == wanted)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_identified_by_its_start_time() {
        let pid = std::process::id();
        let started = start_time(pid).unwrap();
        assert!(is_running(pid, started));
        assert!(!is_running(pid, started + 1));
        assert_eq!(start_time(u32::MAX), None);
        assert!(!is_stopped(pid) && !is_stopped(u32::MAX));
        assert!(work_done(pid).is_some() && work_done(u32::MAX).is_none());
        assert_eq!(boot_id(), boot_id());
        assert_ne!(new_uuid().unwrap(), new_uuid().unwrap());
    }

    #[test]
    fn a_command_name_may_contain_parentheses() {
        let mut line = b"7 (a) b (c)) S".to_vec();
        for field in 4..=30 {
            line.extend_from_slice(format!(" {field}").as_bytes());
        }
        assert_eq!(parse_start_time(&line), Some(22));
        let state = line.iter().position(|&byte| byte == b'S').unwrap();
        line[state] = b'Z';
        assert_eq!(parse_start_time(&line), None, "a zombie has no start time");
    }

    #[test]
    fn programs_are_found_in_the_system_directories() {
        assert!(find_program("sh").is_some());
        assert!(find_program("surely-no-such-program").is_none());
    }
}
