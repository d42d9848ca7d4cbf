//! Detects network file systems, on which a lock must also be a lease, and full file systems.

use std::io;
use std::path::Path;

/// `f_type` numbers of file systems that several hosts may share, including those whose locks may
/// not reach all hosts.
const NETWORK: &[(u32, &str)] = &[
    (0x0000_6969, "nfs"),
    (0x0000_517b, "smb"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x6573_5546, "fuse"),
    (0x1983_0326, "beegfs"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "afs"),
    (0x7375_7245, "coda"),
    (0x0000_564c, "ncp"),
    (0x0102_1997, "9p"),
    (0x7461_636f, "ocfs2"),
    (0x0116_1970, "gfs2"),
    (0x2003_0528, "orangefs"),
    (0xaad7_aaea, "panfs"),
    (0xa501_fcf5, "vxfs"),
];

/// Returns the name of the network (or FUSE) file system that holds `path`, or `None` if it is
/// local.
pub fn network_file_system(path: &Path) -> io::Result<Option<&'static str>> {
    let stat = nix::sys::statfs::statfs(path).map_err(io::Error::from)?;
    Ok(network_name(stat.filesystem_type().0 as u32))
}

/// `f_type` numbers of file systems in memory: tmpfs and ramfs.
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Returns whether the file system that holds `path` is in memory.
pub fn is_in_memory(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|stat| IN_MEMORY.contains(&(stat.filesystem_type().0 as u32)))
}

/// Free space below which a file system counts as full: SQLite may need more for a transaction.
const MIN_FREE_BYTES: u64 = 64 << 10;

/// Returns whether the file system that holds `path` has (nearly) no free blocks or no free inodes.
/// Ignores quotas.
pub fn is_full(path: &Path) -> bool {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else {
        return false;
    };
    let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
    // Some file systems do not count inodes.
    bytes < MIN_FREE_BYTES || (stat.files() > 0 && stat.files_available() == 0)
}

/// Returns the free space of the file system that holds `path`; 0 if it cannot be determined.
pub fn free_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |stat| {
        stat.blocks_available().saturating_mul(stat.fragment_size())
    })
}

fn network_name(f_type: u32) -> Option<&'static str> {
    NETWORK
        .iter()
        .find(|(number, _)| *number == f_type)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn network_file_systems_are_recognized() {
        assert_eq!(network_name(0x6969), Some("nfs"));
        assert_eq!(network_name(0x0bd0_0bd0), Some("lustre"));
        assert_eq!(network_name(0xef53), None);
        assert_eq!(network_name(0x9123_683e), None);
        assert!(network_file_system(Path::new("/proc")).unwrap().is_none());
    }

    #[test]
    fn file_systems_in_memory_are_recognized() {
        assert!(is_in_memory(Path::new("/dev/shm")));
        assert!(!is_in_memory(Path::new("/proc")));
        assert!(!is_in_memory(Path::new("/no/such/place")));
    }

    #[test]
    fn a_file_system_without_room_is_full() {
        assert!(is_full(Path::new("/proc")));
        assert!(!is_full(&std::env::temp_dir()));
        assert!(!is_full(Path::new("/no/such/place")));
    }
}
