//! A process on a host, as the notes in a home name it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys::process::{self, ProcessHandle};

/// A process on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProcess {
    /// The name of the host.
    pub host: String,
    /// The host's boot ID, which changes at each boot.
    pub boot_id: String,
    /// The process ID.
    pub pid: u32,
    /// The start time of the process, in clock ticks since boot.
    pub pid_start: u64,
}

impl HostProcess {
    /// Returns this process.
    pub fn current() -> HostProcess {
        let pid = std::process::id();
        HostProcess {
            host: process::host_name(),
            boot_id: process::boot_id(),
            pid,
            pid_start: process::start_time(pid).unwrap_or(0),
        }
    }

    /// Returns whether it is a process on this host.
    pub fn is_local(&self) -> bool {
        self.host == process::host_name()
    }

    /// Returns whether the process is known to have ended. Always false for another host.
    pub fn is_dead(&self) -> bool {
        self.is_local() && (self.boot_id != process::boot_id() || !self.is_running())
    }

    /// Returns whether a process of this host and this PID namespace is running.
    pub fn is_running(&self) -> bool {
        process::is_running(self.pid, self.pid_start)
    }

    /// Returns a handle of a process of this host and this PID namespace; `None` if it has ended.
    pub fn open(&self) -> Option<ProcessHandle> {
        let handle = ProcessHandle::open(self.pid).ok()?;
        // Checked afterwards: the handle may be of a later process with the same id.
        self.is_running().then_some(handle)
    }
}

impl fmt::Display for HostProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}
