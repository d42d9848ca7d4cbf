//! Extended attributes. An inode has an index into a table of [`XattrId`]s; each has the position
//! of a list of (key, value) pairs.

use super::{SliceSource, Source, metadata::InodeRef};
use crate::squashfs::{Error, Result};

/// Bytes of an [`XattrId`].
pub const XATTR_ID_SIZE: usize = 16;
/// Bytes of an [`XattrTableHeader`].
pub const XATTR_TABLE_HEADER_SIZE: usize = 16;
const OUT_OF_LINE: u16 = 0x100;

/// The namespaces of the format. Any other (`system.posix_acl_*`) cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum XattrPrefix {
    /// `user.`
    User = 0,
    /// `trusted.`
    Trusted = 1,
    /// `security.`
    Security = 2,
}

impl XattrPrefix {
    const ALL: [XattrPrefix; 3] = [
        XattrPrefix::User,
        XattrPrefix::Trusted,
        XattrPrefix::Security,
    ];

    /// Returns the prefix with its dot.
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            XattrPrefix::User => b"user.",
            XattrPrefix::Trusted => b"trusted.",
            XattrPrefix::Security => b"security.",
        }
    }
    /// Splits a full name. `None` if the format cannot store it.
    pub fn split(name: &[u8]) -> Option<(Self, &[u8])> {
        Self::ALL
            .into_iter()
            .find_map(|prefix| Some((prefix, name.strip_prefix(prefix.as_bytes())?)))
    }
    fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|prefix| *prefix as u16 == raw)
    }
}

/// The header that the superblock's xattr position points at. The index of the id table follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrTableHeader {
    /// Position of the metadata blocks with the lists.
    pub lists: u64,
    /// Entries in the id table.
    pub count: u32,
}

impl XattrTableHeader {
    /// Reads the header.
    pub fn parse(raw: &[u8; XATTR_TABLE_HEADER_SIZE]) -> Result<Self> {
        let mut source = SliceSource::new(raw, "xattr table");
        Ok(XattrTableHeader {
            lists: source.u64()?,
            count: source.u32()?,
        })
    }
    /// Encodes the header.
    pub fn to_bytes(self) -> [u8; XATTR_TABLE_HEADER_SIZE] {
        let mut out = [0; XATTR_TABLE_HEADER_SIZE];
        out[..8].copy_from_slice(&self.lists.to_le_bytes());
        out[8..12].copy_from_slice(&self.count.to_le_bytes());
        out
    }
}

/// The position and size of a list of xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrId {
    /// Position of the list in the metadata blocks of lists.
    pub list: InodeRef,
    /// Pairs in the list.
    pub count: u32,
    /// Bytes that listxattr and getxattr return for the list: full names with their NULs, and
    /// values.
    pub size: u32,
}

impl XattrId {
    /// Reads an entry.
    pub fn parse(raw: &[u8; XATTR_ID_SIZE]) -> Result<Self> {
        let mut source = SliceSource::new(raw, "xattr id");
        Ok(XattrId {
            list: InodeRef(source.u64()?),
            count: source.u32()?,
            size: source.u32()?,
        })
    }
    /// Encodes the entry.
    pub fn to_bytes(self) -> [u8; XATTR_ID_SIZE] {
        let mut out = [0; XATTR_ID_SIZE];
        out[..8].copy_from_slice(&self.list.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..].copy_from_slice(&self.size.to_le_bytes());
        out
    }
}

/// A key of a list. If the value is out of line, an 8 byte reference takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XattrKey {
    /// The namespace.
    pub prefix: XattrPrefix,
    /// True if the value is a reference to an equal value that was stored before.
    pub out_of_line: bool,
    /// The name without its prefix.
    pub name: Vec<u8>,
}

impl XattrKey {
    /// Reads a key; the value (u32 length, bytes) follows. `at` names the list in errors.
    pub fn read(source: &mut impl Source, at: u64) -> Result<Self> {
        let kind = source.u16()?;
        let len = source.u16()?;
        let prefix = XattrPrefix::from_raw(kind & !OUT_OF_LINE)
            .ok_or_else(|| Error::corrupt("xattr", at, format!("a key of type {kind:#x}")))?;
        let name = source.bytes(usize::from(len))?;
        if name.is_empty() || name.contains(&0) {
            return Err(Error::corrupt(
                "xattr",
                at,
                "an empty name, or one with a NUL",
            ));
        }
        Ok(XattrKey {
            prefix,
            out_of_line: kind & OUT_OF_LINE != 0,
            name,
        })
    }
    /// Returns the name with its prefix.
    pub fn full_name(&self) -> Vec<u8> {
        [self.prefix.as_bytes(), &self.name].concat()
    }
}

fn encode_key(prefix: XattrPrefix, flag: u16, name: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(prefix as u16 | flag).to_le_bytes());
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(name);
}

/// Appends a key (name without prefix, at most 65535 bytes) and its value.
pub fn encode_xattr_inline(prefix: XattrPrefix, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    encode_key(prefix, 0, name, out);
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

/// Appends a key whose value (u32 length, bytes) was stored at `value` before.
pub fn encode_xattr_out_of_line(
    prefix: XattrPrefix,
    name: &[u8],
    value: InodeRef,
    out: &mut Vec<u8>,
) {
    encode_key(prefix, OUT_OF_LINE, name, out);
    out.extend_from_slice(&8u32.to_le_bytes());
    out.extend_from_slice(&value.0.to_le_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_round_trip() {
        let mut bytes = Vec::new();
        encode_xattr_inline(XattrPrefix::Security, b"selinux", b"value", &mut bytes);
        encode_xattr_out_of_line(XattrPrefix::User, b"k", InodeRef(0x1_0002), &mut bytes);
        let mut source = SliceSource::new(&bytes, "test");
        let first = XattrKey::read(&mut source, 0).unwrap();
        assert_eq!(
            (first.full_name().as_slice(), first.out_of_line),
            (b"security.selinux".as_slice(), false)
        );
        let len = source.u32().unwrap() as usize;
        assert_eq!(source.bytes(len).unwrap(), b"value");
        let second = XattrKey::read(&mut source, 0).unwrap();
        assert_eq!(
            (second.full_name().as_slice(), second.out_of_line),
            (b"user.k".as_slice(), true)
        );
        assert_eq!(
            (source.u32().unwrap(), source.u64().unwrap()),
            (8, 0x1_0002)
        );
        assert_eq!(source.remaining(), 0);
    }

    #[test]
    fn tables_round_trip() {
        let header = XattrTableHeader {
            lists: 1 << 33,
            count: 9,
        };
        assert_eq!(XattrTableHeader::parse(&header.to_bytes()).unwrap(), header);
        let id = XattrId {
            list: InodeRef::new(5, 6),
            count: 2,
            size: 99,
        };
        assert_eq!(XattrId::parse(&id.to_bytes()).unwrap(), id);
    }

    #[test]
    fn names_are_split() {
        assert_eq!(
            XattrPrefix::split(b"user.a.b"),
            Some((XattrPrefix::User, b"a.b".as_slice()))
        );
        assert_eq!(XattrPrefix::split(b"system.posix_acl_access"), None);
        assert_eq!(XattrPrefix::split(b"user"), None);
        let raw = [3, 0, 1, 0, b'a'];
        assert!(XattrKey::read(&mut SliceSource::new(&raw, "test"), 0).is_err());
    }
}
