//! Sets up this process as a daemon: forks, closes descriptors, raises limits.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::WaitStatus;
use nix::unistd::ForkResult;

/// Forks and continues in the child, where it returns `None`.
///
/// The parent waits for the child and returns the status to exit with, by when all locks of the
/// child are free. The caller that started the parent kills it once the child has reported success,
/// so that the child becomes a child of init. Otherwise a program that waits for all its children
/// would wait for the daemon. Must be called while there is only one thread.
pub fn continue_in_child() -> io::Result<Option<i32>> {
    // SAFETY: there is only this thread, so no lock is held in the child.
    let child = match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => return Ok(None),
        ForkResult::Parent { child } => child,
    };
    loop {
        match nix::sys::wait::waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(die_by(signal))),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends this process by a signal, as the child ended. If that fails, returns the exit status that
/// shells use for the signal.
fn die_by(signal: Signal) -> i32 {
    // The child may have dumped a core already.
    let ended = setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        if signal != Signal::SIGKILL {
            // SAFETY: no handler is installed.
            unsafe { sigaction(signal, &default) }?;
        }
        nix::sys::signal::raise(signal)
    });
    if let Err(error) = ended {
        tracing::debug!(%signal, %error, "cannot end by the signal");
    }
    128 + signal as i32
}

/// Closes all descriptors except standard input, output and error. Others that a command inherits
/// (a lock, the end of a pipe) must not stay open while a daemon runs. Must be called before this
/// process opens anything.
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
    // Kernels before 5.9, and some sandboxes, lack the call. The list includes the descriptor of
    // the directory that is read here.
    let names: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in names.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: as above. Closing a closed descriptor fails with EBADF and has no effect.
        unsafe { nix::libc::close(descriptor) };
    }
    Ok(())
}

/// Makes this process a daemon: starts a new session, changes to `/` so that no directory is kept
/// busy, clears the umask, and raises resource limits. Returns warnings about limits that cannot be
/// raised.
pub fn become_daemon() -> io::Result<Vec<String>> {
    match nix::unistd::setsid() {
        // Already the leader of a process group, which receives no Ctrl-C of the caller either.
        Ok(_) | Err(nix::errno::Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    std::env::set_current_dir("/")?;
    clear_umask();
    lift_limits()
}

/// Minimum limit of open files: a mount keeps about 30 open, and the control socket needs some for
/// each command.
const MIN_OPEN_FILES: u64 = 64;

/// Raises the resource limits of this process as far as possible. Limits that users set are meant
/// for the programs that they run, for which the kernel enforces them; here they would apply to all
/// users of the mount. Limits of processor time and memory would end the daemon; root can remove
/// them. Beyond a limit of file sizes a write fails instead of ending the daemon.
///
/// Returns warnings about the remaining limits. Fails if the limit of open files is too low.
fn lift_limits() -> io::Result<Vec<String>> {
    let mut warnings = Vec::new();
    for (resource, option, unit, effect) in LIMITS {
        let (_, hard) = getrlimit(resource)?;
        let ends_daemon = matches!(
            resource,
            Resource::RLIMIT_CPU | Resource::RLIMIT_AS | Resource::RLIMIT_DATA
        );
        if ends_daemon && setrlimit(resource, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
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
    if files < MIN_OPEN_FILES {
        return Err(io::Error::other(format!(
            "the limit of open files (ulimit -H -n) is {files}, and a mount needs {MIN_OPEN_FILES}"
        )));
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    unsafe { sigaction(Signal::SIGXFSZ, &ignore) }?;
    Ok(warnings)
}

/// The limits that are raised: the option of `ulimit`, what is limited, and, if it would surprise
/// users of the mount, what happens at a hard limit.
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

/// Sets the umask to 0: requests contain the mode to use.
pub fn clear_umask() {
    umask(Mode::empty());
}

/// Replaces standard input by an open file.
pub fn replace_stdin(file: impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stdin(file)?)
}

/// Replaces standard output by an open file.
pub fn replace_stdout(file: impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stdout(file)?)
}

/// Replaces standard error by an open file.
pub fn replace_stderr(file: impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stderr(file)?)
}

/// Limits the memory that the allocator retains in a process that runs for days: few arenas,
/// however many threads and processors, and large blocks are returned to the system when freed.
/// Must be called before threads are started; has an effect with glibc only.
pub fn limit_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (nix::libc::M_ARENA_MAX, 2),
        // The default value; setting it keeps the allocator from raising it.
        (nix::libc::M_MMAP_THRESHOLD, 128 << 10),
    ] {
        // SAFETY: sets a parameter of the allocator, under its lock.
        if unsafe { nix::libc::mallopt(parameter, value) } == 0 {
            tracing::debug!(parameter, "the allocator refused a limit");
        }
    }
}

/// Removes the pages of the program's code and constants from this process; it gets those back that
/// it uses again. Starting needs most of them, serving few. They stay in the page cache, from which
/// the kernel can now drop them more easily.
pub fn release_program() {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else {
        return;
    };
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in maps
        .lines()
        .filter_map(|line| unchanged_part(line, &program))
    {
        let start = std::ptr::without_provenance_mut(start);
        // SAFETY: the mapping is of this program's file and was never writable, so no page of it
        // differs from the file, from which the kernel maps them again when they are used.
        let done = unsafe { nix::libc::madvise(start, length, nix::libc::MADV_DONTNEED) };
        if done != 0 {
            let error = io::Error::last_os_error();
            tracing::debug!(%error, "cannot release pages of the program");
        }
    }
}

/// Returns address and length of a mapping, given by its line in `/proc/PID/maps`, if it is one of
/// the two parts of a program that have no relocations: the code, and what is before it.
fn unchanged_part(line: &str, program: &Path) -> Option<(usize, usize)> {
    // address perms offset dev inode path
    let mut fields = line.splitn(6, ' ');
    let (range, access, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?.trim_start();
    let is_first = offset.bytes().all(|digit| digit == b'0');
    if Path::new(path) != program || !(access == "r-xp" || access == "r--p" && is_first) {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_parts_without_relocations_are_released() {
        let of = |line: &str| unchanged_part(line, Path::new("/a b/envfs"));
        let file = "00:01 7                          /a b/envfs";
        for (line, expected) in [
            ("1000-4000 r-xp 002a3000", Some((0x1000, 0x3000))),
            ("1000-3000 r--p 00000000", Some((0x1000, 0x2000))),
            ("1000-3000 r--p 00f44000", None),
            ("1000-3000 rw-p 00000000", None),
        ] {
            assert_eq!(of(&format!("{line} {file}")), expected, "{line}");
        }
        assert_eq!(of("1000-4000 r-xp 00000000 00:01 7   /lib/libc.so.6"), None);
        assert_eq!(of("1000-4000 rw-p 00000000 00:00 0"), None);
        // The program still works.
        release_program();
        assert!(of("").is_none());
    }
}
