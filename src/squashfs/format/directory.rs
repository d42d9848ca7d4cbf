//! Directory listings: runs of a header and up to 256 entries.

use super::{InodeKind, MAX_NAME, Source};
use crate::squashfs::{Error, Result};

/// Bytes of a [`DirectoryHeader`].
pub const DIRECTORY_HEADER_SIZE: usize = 12;
/// Bytes of an entry before its name.
pub const DIRECTORY_ENTRY_SIZE: usize = 8;
/// Most entries after one header.
pub const MAX_ENTRIES_PER_HEADER: u32 = 256;

/// The fields that a run of entries shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryHeader {
    /// Entries in the run, 1..=256 (stored minus one).
    pub count: u32,
    /// Metadata block of their inodes, relative to the inode table.
    pub inode_block: u32,
    /// Inode number that the entries' deltas are added to.
    pub base_number: u32,
}

impl DirectoryHeader {
    /// Reads a header. `at` names the directory in errors.
    pub fn read(source: &mut impl Source, at: u64) -> Result<Self> {
        let stored = source.u32()?;
        if stored >= MAX_ENTRIES_PER_HEADER {
            return Err(Error::corrupt(
                "directory",
                at,
                format!("a run of {stored} + 1 entries"),
            ));
        }
        Ok(DirectoryHeader {
            count: stored + 1,
            inode_block: source.u32()?,
            base_number: source.u32()?,
        })
    }
    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for word in [
            self.count.saturating_sub(1),
            self.inode_block,
            self.base_number,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
}

/// One entry. Its name follows it in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Offset of the inode in its decompressed metadata block.
    pub offset: u16,
    /// Inode number, relative to the header's.
    pub delta: i16,
    /// Kind of the inode.
    pub kind: InodeKind,
    /// Bytes of the name, 1..=255 (stored minus one).
    pub name_len: u16,
}

impl DirectoryEntry {
    /// Reads an entry and appends its name to `names`. `at` names the directory in errors.
    pub fn read(source: &mut impl Source, at: u64, names: &mut Vec<u8>) -> Result<Self> {
        let offset = source.u16()?;
        let delta = source.i16()?;
        let kind = source.u16()?;
        let stored_len = source.u16()?;
        let kind = InodeKind::from_basic(kind)
            .ok_or_else(|| Error::corrupt("directory", at, format!("an entry of type {kind}")))?;
        let len = usize::from(stored_len) + 1;
        if len > MAX_NAME {
            return Err(Error::corrupt(
                "directory",
                at,
                format!("a name of {len} bytes"),
            ));
        }
        let from = names.len();
        names.resize(from + len, 0);
        source.read_exact(&mut names[from..])?;
        check_name(&names[from..]).map_err(|why| Error::corrupt("directory", at, why))?;
        Ok(DirectoryEntry {
            offset,
            delta,
            kind,
            name_len: len as u16,
        })
    }
    /// Appends an entry and its name (1..=255 bytes; `name_len` is ignored).
    pub fn encode(&self, name: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.delta.to_le_bytes());
        out.extend_from_slice(&(self.kind as u16).to_le_bytes());
        out.extend_from_slice(&(name.len().saturating_sub(1) as u16).to_le_bytes());
        out.extend_from_slice(name);
    }
}

/// Checks that a name is valid in a directory, and returns the reason if not. With a slash or ".."
/// in a name, a hostile image could write outside the directory that it is unpacked to.
pub fn check_name(name: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("an empty name")
    } else if name.len() > MAX_NAME {
        Err("a name longer than 255 bytes")
    } else if name == b"." || name == b".." {
        Err("an entry named \".\" or \"..\"")
    } else if name.contains(&b'/') {
        Err("a name with a slash")
    } else if name.contains(&0) {
        Err("a name with a NUL")
    } else {
        Ok(())
    }
}

/// An entry of the index in an extended directory inode: the header at `position` bytes in the
/// listing is followed by `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryIndexEntry {
    /// Bytes of listing before the header.
    pub position: u32,
    /// Metadata block of the header, relative to the directory table.
    pub block: u32,
    /// First name after the header.
    pub name: Vec<u8>,
}

impl DirectoryIndexEntry {
    /// Reads an index entry. `at` names the directory in errors.
    pub fn read(source: &mut impl Source, at: u64) -> Result<Self> {
        let position = source.u32()?;
        let block = source.u32()?;
        let len = source.u32()?;
        // The kernel's limit: one more byte than a name may have.
        if len > MAX_NAME as u32 {
            return Err(Error::corrupt(
                "directory index",
                at,
                format!("a name of {len} + 1 bytes"),
            ));
        }
        Ok(DirectoryIndexEntry {
            position,
            block,
            name: source.bytes(len as usize + 1)?,
        })
    }
    /// Appends the index entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for word in [
            self.position,
            self.block,
            self.name.len().saturating_sub(1) as u32,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::squashfs::format::SliceSource;

    #[test]
    fn round_trips() {
        let header = DirectoryHeader {
            count: 256,
            inode_block: 7,
            base_number: u32::MAX,
        };
        let entry = DirectoryEntry {
            offset: 8191,
            delta: -5,
            kind: InodeKind::Socket,
            name_len: 4,
        };
        let index = DirectoryIndexEntry {
            position: 8000,
            block: 3,
            name: b"first".to_vec(),
        };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        entry.encode(b"name", &mut bytes);
        index.encode(&mut bytes);
        assert_eq!(
            bytes.len(),
            DIRECTORY_HEADER_SIZE + DIRECTORY_ENTRY_SIZE + 4 + 12 + index.name.len()
        );
        let mut source = SliceSource::new(&bytes, "test");
        let mut names = b"before".to_vec();
        assert_eq!(DirectoryHeader::read(&mut source, 0).unwrap(), header);
        assert_eq!(
            DirectoryEntry::read(&mut source, 0, &mut names).unwrap(),
            entry
        );
        assert_eq!(names, b"beforename");
        assert_eq!(DirectoryIndexEntry::read(&mut source, 0).unwrap(), index);
        assert_eq!(source.remaining(), 0);
    }

    #[test]
    fn invalid_entries_are_refused() {
        let mut raw = Vec::new();
        DirectoryHeader {
            count: 257,
            inode_block: 0,
            base_number: 1,
        }
        .encode(&mut raw);
        assert!(DirectoryHeader::read(&mut SliceSource::new(&raw, "test"), 0).is_err());
        for kind in [0u8, 8, 14] {
            let raw = [0, 0, 0, 0, kind, 0, 0, 0, b'a'];
            let mut source = SliceSource::new(&raw, "test");
            assert!(DirectoryEntry::read(&mut source, 0, &mut Vec::new()).is_err());
        }
        let raw = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, b'x'];
        assert!(DirectoryIndexEntry::read(&mut SliceSource::new(&raw, "test"), 0).is_err());
    }
}
