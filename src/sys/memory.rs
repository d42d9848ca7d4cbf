//! How much memory this process may use without taking it from others.

use std::fs;

/// The memory of the host, or of the control group of this process if that is less, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What is free, or used for caches that the kernel can drop.
    pub available: u64,
}

impl Memory {
    /// Reads the current state; `None` if the system does not tell.
    pub fn now() -> Option<Memory> {
        let host = Memory::of_host(&fs::read_to_string("/proc/meminfo").ok()?)?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        // Version 2: "0::/PATH". With version 1 only the host counts.
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        Some(path.map_or(host, |path| host.within_group(path)))
    }

    fn of_host(meminfo: &str) -> Option<Memory> {
        let value = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            kib.checked_mul(1024)
        };
        Some(Memory {
            total: value("MemTotal:")?,
            available: value("MemAvailable:")?,
        })
    }

    /// Applies the limits of a control group and of those above it.
    fn within_group(mut self, path: &str) -> Memory {
        let mut path = path;
        loop {
            let read = |file: &str| {
                let file = format!("/sys/fs/cgroup/{path}/{file}");
                fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
            };
            // "max" is no number: there is no limit.
            if let Some(limit) = read("memory.max") {
                let used = read("memory.current").unwrap_or(0);
                self.total = self.total.min(limit);
                self.available = self.available.min(limit.saturating_sub(used));
            }
            match path.rsplit_once('/') {
                Some((above, _)) => path = above,
                None => return self,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_memory_of_the_host_is_read() {
        let text = "MemTotal:       16318480 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n";
        let memory = Memory::of_host(text).unwrap();
        assert_eq!(memory.total, 16_318_480 << 10);
        assert_eq!(memory.available, 8_000_000 << 10);
        assert_eq!(Memory::of_host("MemTotal: much"), None);
        let now = Memory::now().unwrap();
        assert!(now.available <= now.total && now.total > 0);
    }
}
