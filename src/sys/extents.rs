//! How much of a file's space on disk it shares with other files (`FS_IOC_FIEMAP`).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Extents that are requested at once.
const EXTENTS: usize = 128;
/// The extent is the last one.
const LAST: u32 = 0x1;
/// Other files share the extent.
const SHARED: u32 = 0x2000;
/// Writes back dirty pages first: the extents of others are not known.
const SYNC: u32 = 0x1;

/// The kernel's `struct fiemap`, without the extents that follow it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// The kernel's `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    header: Header,
    extents: [Extent; EXTENTS],
}

mod ioctl {
    use super::Header;
    nix::ioctl_readwrite!(
        /// `FS_IOC_FIEMAP` of `linux/fs.h`.
        fiemap, b'f', 11, Header
    );
}

/// The space of a file on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Bytes of these that other files share. `None` if the file system does not tell.
    pub shared: Option<u64>,
}

impl Space {
    /// Determines the space of an open file.
    pub fn of(file: &File) -> io::Result<Space> {
        let allocated = file.metadata()?.blocks() * 512;
        Ok(match extents(file) {
            Ok((bytes, shared)) => Space {
                bytes,
                shared: Some(shared),
            },
            Err(error) => {
                tracing::debug!(%error, "the file system does not tell which extents are shared");
                Space {
                    bytes: allocated,
                    shared: None,
                }
            }
        })
    }
}

/// Returns the bytes of all extents of a file, and those of shared ones.
fn extents(file: &File) -> io::Result<(u64, u64)> {
    let (mut bytes, mut shared) = (0u64, 0u64);
    let mut start = 0;
    loop {
        let mut request = Request {
            header: Header {
                start,
                length: u64::MAX - start,
                flags: SYNC,
                mapped_extents: 0,
                extent_count: EXTENTS as u32,
                reserved: 0,
            },
            extents: [Extent::default(); EXTENTS],
        };
        let header = (&raw mut request).cast::<Header>();
        // SAFETY: the descriptor is borrowed for the whole call. `header` points to a `Request`,
        // which has the layout of `struct fiemap` with room for `extent_count` extents; the kernel
        // writes only there, and any bytes are valid in it.
        unsafe { ioctl::fiemap(file.as_raw_fd(), header) }?;
        let found = (request.header.mapped_extents as usize).min(EXTENTS);
        let Some(found) = request
            .extents
            .get(..found)
            .filter(|found| !found.is_empty())
        else {
            return Ok((bytes, shared));
        };
        for extent in found {
            bytes = bytes.saturating_add(extent.length);
            if extent.flags & SHARED != 0 {
                shared = shared.saturating_add(extent.length);
            }
            let end = extent.logical.saturating_add(extent.length);
            if extent.flags & LAST != 0 || end <= start {
                return Ok((bytes, shared));
            }
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shared_extents_are_counted_where_the_file_system_tells() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, vec![7u8; 1 << 20]).unwrap();
        let one = File::open(&a).unwrap();
        let before = Space::of(&one).unwrap();
        assert!(before.bytes >= 1 << 20, "{before:?}");
        assert!(before.shared.is_none_or(|shared| shared == 0), "{before:?}");
        let two = File::create(&b).unwrap();
        if crate::sys::reflink::clone_range(&one, 0, 0, &two, 0).is_ok() {
            let after = Space::of(&one).unwrap();
            assert_eq!(after.shared, Some(after.bytes), "{after:?}");
        }
    }
}
