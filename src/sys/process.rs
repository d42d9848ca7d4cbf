//! Who we are and who they are: processes, boots, users; and what a daemon does to be one.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::WaitStatus;
use nix::unistd::ForkResult;

/// Returns the effective user id.
pub fn user_id() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Returns the effective group id.
pub fn group_id() -> u32 {
    nix::unistd::getegid().as_raw()
}

/// Returns the groups that this process is in, besides its effective one.
pub fn groups() -> Vec<u32> {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    groups.into_iter().map(nix::unistd::Gid::as_raw).collect()
}

/// Returns true if a process, or a thread of one, has a group among its supplementary ones; false as well
/// if there is no such process.
pub fn is_in_group(pid: u32, gid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let mut groups = groups.unwrap_or_default().split_whitespace();
    groups.any(|group| group.parse() == Ok(gid))
}

/// Returns the name of this host, as `uname -n` has it.
pub fn host_name() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_else(|_| String::from("localhost"))
}

/// Returns the id of the running boot, another after each start of the machine; empty where the
/// kernel does not say.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Returns a new random UUID.
pub fn new_uuid() -> io::Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().to_owned())
}

/// Returns when a process started, in clock ticks since boot; with the process id and the boot
/// id this names one process for ever. `None` where there is no such process, or where it has
/// ended and was only not waited for yet.
pub fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The command's name in the second field may hold anything, also spaces and parentheses.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Returns whether the process that had this id and start time still runs.
pub fn is_running(pid: u32, started: u64) -> bool {
    start_time(pid) == Some(started)
}

/// Returns the short name of a process.
pub fn command_name(pid: u32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// Returns the program this process runs, also where the file was replaced meanwhile.
pub fn own_program() -> PathBuf {
    // The link leads to the very file even when its name was taken by another since.
    let link = PathBuf::from("/proc/self/exe");
    match std::fs::read_link(&link) {
        Ok(path) if path.exists() => path,
        _ => link,
    }
}

/// Goes on as a process that is nobody's child but init's: whoever started us may wait for all its
/// children, or become a program that does. Returns `None` there.
///
/// This process stays behind for who started it, and returns the status to end with when the other
/// has ended, by then with all its locks free. Who hears from the other that all is well kills this
/// one. To be called while no other thread runs.
pub fn leave_parent() -> io::Result<Option<i32>> {
    // SAFETY: there is only this thread, so nothing is left half done in the child.
    let child = match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => return Ok(None),
        ForkResult::Parent { child } => child,
    };
    loop {
        match nix::sys::wait::waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(end_by(signal))),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends by a signal, as another process did; returns the status that says so where that fails.
fn end_by(signal: Signal) -> i32 {
    // One of the two has left a core already.
    let ended = setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| {
        let usual = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        if signal != Signal::SIGKILL {
            // SAFETY: no handler is installed.
            unsafe { sigaction(signal, &usual) }?;
        }
        nix::sys::signal::raise(signal)
    });
    if let Err(error) = ended {
        tracing::debug!(%signal, %error, "cannot end by it");
    }
    128 + signal as i32
}

/// Closes every descriptor but standard input, output and error: what else a command inherits from its
/// caller (a lock, the end of a pipe) must not stay open for as long as a daemon runs. To be called
/// before this process opens anything.
pub fn close_inherited_descriptors() -> io::Result<()> {
    let first: nix::libc::c_uint = 3;
    // SAFETY: nothing in this process owns one of these descriptors yet.
    let closed = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            first,
            nix::libc::c_uint::MAX,
            0 as nix::libc::c_uint,
        )
    };
    if closed == 0 {
        return Ok(());
    }
    // Kernels before 5.9, and some sandboxes, lack the call. The listing's own descriptor is in the list.
    let names: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in names.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: as above. One that is closed already fails with EBADF, which changes nothing.
        unsafe { nix::libc::close(descriptor) };
    }
    Ok(())
}

/// Returns whether a process is stopped, by a signal or by a debugger.
pub fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let end = stat.iter().rposition(|&byte| byte == b')').unwrap_or(0);
    matches!(stat.get(end + 2), Some(b'T' | b't'))
}

/// Returns what a process has done so far, as a number that grows while it works: processor time, and
/// bytes read and written where they may be seen. `None` where there is no such process.
pub fn work_done(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // The state is field 3 and comes first here; times in user and system mode are fields 14 and 15.
    let times = rest.split_ascii_whitespace().skip(11).take(2);
    let time: u64 = times.filter_map(|field| field.parse::<u64>().ok()).sum();
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let bytes = io
        .lines()
        .filter(|line| line.starts_with("rchar") || line.starts_with("wchar"))
        .filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok());
    Some(bytes.fold(time, u64::wrapping_add))
}

/// Returns a child of a process, where the kernel tells them.
pub fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

/// Leaves the session and the process group of whoever started us, goes to `/` so that no
/// directory is kept busy, takes no permission bits away from files of the mount's users, and lifts the
/// limits of the caller's shell. Returns what is to be said about limits that cannot be lifted.
pub fn become_daemon() -> io::Result<Vec<String>> {
    match nix::unistd::setsid() {
        // Already the leader of a group: nobody's Ctrl-C reaches it either.
        Ok(_) | Err(nix::errno::Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    std::env::set_current_dir("/")?;
    clear_umask();
    lift_limits()
}

/// Fewer open files than this do not suffice for a mount: it keeps about 30 open by itself, and the control
/// socket needs some for every command.
const FEWEST_FILES: u64 = 64;

/// Raises the limits of this process as far as they can be. Limits that a user has set are for what they
/// run, where the kernel keeps them; here they would hold for every user of the mount. Limits of processor
/// time and memory would end the daemon; root can lift them altogether. Past a limit of file sizes a
/// write fails, instead of ending us.
///
/// Returns warnings about those that stay. Fails where too few files may be open.
fn lift_limits() -> io::Result<Vec<String>> {
    let mut warnings = Vec::new();
    for (resource, option, unit, effect) in LIMITS {
        let (_, hard) = getrlimit(resource)?;
        let ends_us = matches!(
            resource,
            Resource::RLIMIT_CPU | Resource::RLIMIT_AS | Resource::RLIMIT_DATA
        );
        if ends_us && setrlimit(resource, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
            continue;
        }
        if let Err(error) = setrlimit(resource, hard, hard) {
            tracing::warn!(?resource, %error, "cannot raise a limit");
        }
        if let Some(effect) = effect
            && hard != RLIM_INFINITY
        {
            warnings.push(format!(
                "the limit of {unit} (ulimit {option}: {hard}) also holds for this mount and cannot be \
                 lifted: {effect}"
            ));
        }
    }
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if files < FEWEST_FILES {
        return Err(io::Error::other(format!(
            "the limit of open files (ulimit -H -n) is {files}, and a mount needs {FEWEST_FILES}"
        )));
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed, and none was.
    unsafe { sigaction(Signal::SIGXFSZ, &ignore) }?;
    Ok(warnings)
}

/// Limits that are lifted: the option of `ulimit`, what is counted, and what happens at a hard limit, where
/// users of the mount would not expect it.
const LIMITS: [(Resource, &str, &str, Option<&str>); 7] = [
    (
        Resource::RLIMIT_CPU,
        "-H -t",
        "processor time in seconds",
        Some("the kernel ends the mount when it is used up; mount from a shell without it"),
    ),
    (
        Resource::RLIMIT_AS,
        "-H -v",
        "address space in bytes",
        Some("the mount ends when it needs more memory; mount from a shell without it"),
    ),
    (
        Resource::RLIMIT_DATA,
        "-H -d",
        "data memory in bytes",
        Some("the mount ends when it needs more memory; mount from a shell without it"),
    ),
    (
        Resource::RLIMIT_FSIZE,
        "-H -f",
        "the size of a file in bytes",
        Some("no file in it can become larger"),
    ),
    (Resource::RLIMIT_NOFILE, "-H -n", "open files", None),
    (Resource::RLIMIT_NPROC, "-H -u", "processes", None),
    (Resource::RLIMIT_STACK, "-H -s", "the stack in bytes", None),
];

/// Sets the umask to 0: modes come with each request and are meant as they are.
pub fn clear_umask() {
    umask(Mode::empty());
}

/// Puts another open file in the place of standard output.
pub fn replace_stdout(file: impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stdout(file)?)
}

/// Puts another open file in the place of standard error.
pub fn replace_stderr(file: impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stderr(file)?)
}

/// The signals that ask a daemon to end.
#[derive(Debug, Clone, Copy)]
pub struct EndSignals(SigSet);

impl EndSignals {
    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and in all that it starts from now on.
    pub fn block() -> io::Result<EndSignals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.add(Signal::SIGHUP);
        set.thread_block()?;
        Ok(EndSignals(set))
    }

    /// Waits for one of them and returns its name; SIGHUP (a terminal went away) is passed over.
    pub fn wait(&self) -> io::Result<&'static str> {
        loop {
            match self.0.wait()? {
                Signal::SIGHUP => continue,
                signal => return Ok(signal.as_str()),
            }
        }
    }

    /// Lets the signals through again, for a program that is about to be another.
    pub fn unblock(&self) -> io::Result<()> {
        Ok(self.0.thread_unblock()?)
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on the first Ctrl-C is only noted, for [`was_interrupted`]; the second ends us.
pub fn note_interrupts() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(note_interrupt),
        SaFlags::SA_RESETHAND | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing but store to an atomic, which is allowed in a handler.
    unsafe { sigaction(Signal::SIGINT, &action) }?;
    Ok(())
}

extern "C" fn pass_over(_signal: nix::libc::c_int) {}

/// From now on Ctrl-C does not end us, but does end what we start and wait for, as in a shell: a
/// handler, unlike a signal that is ignored, is not passed on.
pub fn outlive_interrupts() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(pass_over),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    let before = unsafe { sigaction(Signal::SIGINT, &action) }?;
    if matches!(before.handler(), SigHandler::SigIgn) {
        // Whoever started us wants it to be ignored, also by what we start.
        // SAFETY: no handler is installed.
        unsafe { sigaction(Signal::SIGINT, &before) }?;
    }
    Ok(())
}

/// Returns whether Ctrl-C was pressed since [`note_interrupts`].
pub fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Keeps the allocator of a process that runs for days from holding far more than is in use: few
/// arenas however many threads and processors, and large pieces given back when they are freed.
/// To be called before threads run; only glibc has it.
pub fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (nix::libc::M_ARENA_MAX, 2),
        // Its usual value, which setting it keeps from growing.
        (nix::libc::M_MMAP_THRESHOLD, 128 << 10),
    ] {
        // SAFETY: sets a number of the allocator, under its own lock.
        if unsafe { nix::libc::mallopt(parameter, value) } == 0 {
            tracing::debug!(parameter, "the allocator refused a limit");
        }
    }
}

/// Sends SIGTERM to a process.
pub fn terminate(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        Signal::SIGTERM,
    )?)
}

/// Returns the user at the other end of a Unix socket.
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    let credentials =
        nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(credentials.uid())
}

/// Returns the process at the other end of a Unix socket: the one that listens there. `None` where it is in
/// a process namespace that cannot be seen from here.
pub fn peer_process(socket: impl AsFd) -> Option<u32> {
    let credentials =
        nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    u32::try_from(credentials.pid()).ok().filter(|pid| *pid > 0)
}

/// Returns the first executable file of this name in the system's directories, then in `PATH`.
///
/// In this order because an environment's own directories come first in a user's `PATH`, and a
/// daemon should not look for its tools in what it serves.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    system
        .into_iter()
        .chain(std::env::split_paths(&path).filter(|dir| dir.is_absolute()))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// Becomes another program, at exactly this path, with these words (its name is the first) and
/// variables; returns only on failure.
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
        // Rust ignores this signal for itself only.
        let usual = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler is installed.
        let before = unsafe { sigaction(Signal::SIGPIPE, &usual) }?;
        let failed = nix::unistd::execve(&file, &words, &variables);
        // SAFETY: what was there before.
        unsafe { sigaction(Signal::SIGPIPE, &before) }?;
        failed
    };
    match done() {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

/// Returns whether the path leads to a file that this user may execute.
pub fn is_executable(file: &std::path::Path) -> bool {
    file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// Returns the parent of this process, if it has one.
pub fn parent_id() -> Option<u32> {
    u32::try_from(nix::unistd::getppid().as_raw())
        .ok()
        .filter(|&pid| pid > 0)
}

/// Returns the name a user is known by, or his number.
pub fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// Returns the name of a group, or its number where it has none.
pub fn group_name(gid: u32) -> String {
    match nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

/// Returns whether nobody but root and the caller is in a group: that of root, or one that has the name
/// of the caller and no other member.
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

/// Returns whether a user id stands for root of the host, and all others that are not mapped here: in a
/// user namespace they cannot be told apart.
pub fn is_root_elsewhere(uid: u32) -> bool {
    static UNMAPPED: std::sync::LazyLock<Option<u32>> = std::sync::LazyLock::new(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
        let first: Vec<&str> = map.lines().next()?.split_ascii_whitespace().collect();
        // All ids are mapped: this is no user namespace.
        if first == ["0", "0", "4294967295"] {
            return None;
        }
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?;
        overflow.trim().parse().ok()
    });
    *UNMAPPED == Some(uid)
}

/// Returns the user id that the caller has where its user namespace was made; in none, or where it is
/// not known, the same as [`user_id`].
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

/// Becomes another user for good, with the groups of that user; `gid` is the group where the user is in
/// no list. Only root may. To be called while there is one thread.
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

/// Returns an error text fit for people: `strerror` without the number behind it.
pub fn error_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}

/// The words of a command line of another process, empty where it may not be read.
pub fn command_line(pid: u32) -> Vec<OsString> {
    use std::os::unix::ffi::OsStringExt;
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_named_by_its_start() {
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
    fn a_command_name_with_parentheses_does_not_mislead() {
        let mut line = b"7 (a) b (c)) S".to_vec();
        for field in 4..=30 {
            line.extend_from_slice(format!(" {field}").as_bytes());
        }
        assert_eq!(parse_start_time(&line), Some(22));
        let state = line.iter().position(|&byte| byte == b'S').unwrap();
        line[state] = b'Z';
        assert_eq!(parse_start_time(&line), None, "a zombie holds nothing");
    }

    #[test]
    fn programs_are_found_also_without_a_path() {
        assert!(find_program("sh").is_some());
        assert!(find_program("surely-no-such-program").is_none());
    }
}
