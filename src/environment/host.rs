//! Who and where we are.

use std::fs;
use std::io;

/// Returns the name of the user this process acts as, or its number if it has no name.
pub fn user_name() -> String {
    let uid = nix::unistd::geteuid();
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        // No entry in the user database is usual in containers.
        _ => uid.to_string(),
    }
}

/// Returns the name of this host.
pub fn host_name() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_else(|_| "localhost".to_owned())
}

/// Returns what tells this start of this machine from every other; empty where the kernel does
/// not say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Returns when a process started, in clock ticks since boot: with its pid, this names it for
/// good. None when there is no such process.
pub fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything; the 22nd is wanted.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return None; // a zombie holds nothing any more
    }
    fields.nth(18)?.parse().ok()
}

/// Returns a new random UUID.
pub fn new_uuid() -> io::Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn this_process_has_a_name() {
        assert!(!user_name().is_empty());
        assert!(!host_name().is_empty());
        assert!(process_start(std::process::id()).unwrap() > 0);
        assert_eq!(process_start(u32::MAX), None);
        assert_ne!(new_uuid().unwrap(), new_uuid().unwrap());
        assert_eq!(boot_id(), boot_id());
    }
}
