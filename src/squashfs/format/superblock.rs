//! The superblock: the first 96 bytes of an image.

use super::{
    ABSENT, FRAGMENT_ENTRY_SIZE, LookupTable, MAGIC, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, SliceSource,
    Source, XATTR_TABLE_HEADER_SIZE, metadata::InodeRef,
};
use crate::squashfs::{CompressorId, Error, Result};

/// Bytes of a superblock.
pub const SUPERBLOCK_SIZE: usize = 96;

/// Superblock flags. The kernel acts only on [`Flags::COMPRESSOR_OPTIONS`]; the others record how
/// the image was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// Inode and directory tables are stored uncompressed.
    pub const UNCOMPRESSED_INODES: u16 = 0x1;
    /// Data blocks are stored uncompressed.
    pub const UNCOMPRESSED_DATA: u16 = 0x2;
    /// Fragment blocks are stored uncompressed.
    pub const UNCOMPRESSED_FRAGMENTS: u16 = 0x8;
    /// Tails were not packed into fragments.
    pub const NO_FRAGMENTS: u16 = 0x10;
    /// Tails of large files, too, were packed into fragments.
    pub const ALWAYS_FRAGMENTS: u16 = 0x20;
    /// Equal files were stored once.
    pub const DUPLICATES: u16 = 0x40;
    /// There is an export table.
    pub const EXPORTABLE: u16 = 0x80;
    /// Xattrs are stored uncompressed.
    pub const UNCOMPRESSED_XATTRS: u16 = 0x100;
    /// Xattrs were left out.
    pub const NO_XATTRS: u16 = 0x200;
    /// A block of compressor options follows the superblock.
    pub const COMPRESSOR_OPTIONS: u16 = 0x400;
    /// Ids are stored uncompressed.
    pub const UNCOMPRESSED_IDS: u16 = 0x800;

    /// Returns true if all of `bits` are set.
    pub fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
}

/// The superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Inodes in the image; they are numbered 1..=inodes.
    pub inodes: u32,
    /// Creation time in seconds since 1970.
    pub mkfs_time: u32,
    /// Bytes in a full data block: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Entries in the fragment table.
    pub fragments: u32,
    /// The one codec of all blocks.
    pub compressor: CompressorId,
    /// How the image was built.
    pub flags: Flags,
    /// Entries in the id table.
    pub ids: u16,
    /// The root directory.
    pub root: InodeRef,
    /// Bytes of the image, without padding.
    pub bytes_used: u64,
    /// Position of the id table's index.
    pub id_table: u64,
    /// Position of the xattr table's header, or [`ABSENT`].
    pub xattr_table: u64,
    /// Position of the inode table.
    pub inode_table: u64,
    /// Position of the directory table.
    pub directory_table: u64,
    /// Position of the fragment table's index, or [`ABSENT`].
    pub fragment_table: u64,
    /// Position of the export table's index, or [`ABSENT`].
    pub export_table: u64,
}

impl Superblock {
    /// Reads a superblock and checks each field by itself.
    pub fn parse(raw: &[u8; SUPERBLOCK_SIZE]) -> Result<Self> {
        let mut source = SliceSource::new(raw, "superblock");
        if source.u32()? != MAGIC {
            return Err(Error::NotSquashfs("the first four bytes are not \"hsqs\""));
        }
        let inodes = source.u32()?;
        let mkfs_time = source.u32()?;
        let block_size = source.u32()?;
        let fragments = source.u32()?;
        let compressor = source.u16()?;
        let block_log = source.u16()?;
        let flags = Flags(source.u16()?);
        let ids = source.u16()?;
        let version = (source.u16()?, source.u16()?);
        if version != (4, 0) {
            return Err(Error::Unsupported(format!(
                "SquashFS version {}.{}",
                version.0, version.1
            )));
        }
        let compressor = CompressorId::from_raw(compressor)
            .ok_or_else(|| Error::Unsupported(format!("compressor number {compressor}")))?;
        let root = InodeRef(source.u64()?);
        let superblock = Superblock {
            inodes,
            mkfs_time,
            block_size,
            fragments,
            compressor,
            flags,
            ids,
            root,
            bytes_used: source.u64()?,
            id_table: source.u64()?,
            xattr_table: source.u64()?,
            inode_table: source.u64()?,
            directory_table: source.u64()?,
            fragment_table: source.u64()?,
            export_table: source.u64()?,
        };
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
        {
            return Err(Error::corrupt(
                "superblock",
                12,
                format!("block size {block_size}"),
            ));
        }
        if u32::from(block_log) != block_size.trailing_zeros() {
            return Err(Error::corrupt(
                "superblock",
                22,
                format!("block log {block_log} for block size {block_size}"),
            ));
        }
        if inodes == 0 || ids == 0 {
            return Err(Error::corrupt(
                "superblock",
                4,
                format!("{inodes} inodes, {ids} ids"),
            ));
        }
        Ok(superblock)
    }

    /// Checks that the tables lie inside a file of `file_len` bytes, in the order the format
    /// prescribes, with room for as many entries as the counts say.
    pub fn validate(&self, file_len: u64) -> Result<()> {
        let bad = |at: u64, detail: String| Err(Error::corrupt("superblock", at, detail));
        if self.bytes_used > file_len {
            return bad(
                40,
                format!(
                    "{} bytes used, the file has {file_len}: truncated?",
                    self.bytes_used
                ),
            );
        }
        if self.inode_table < SUPERBLOCK_SIZE as u64 || self.inode_table >= self.directory_table {
            return bad(
                64,
                format!(
                    "inode table {:#x}, directory table {:#x}",
                    self.inode_table, self.directory_table
                ),
            );
        }
        // What follows the directory table, in the order it must have. Each position is that of
        // an index (or header) whose metadata blocks lie before it.
        let mut previous = self.directory_table;
        for (at, name, position, wanted, index) in [
            (
                80,
                "fragment table",
                self.fragments_at(),
                u64::from(self.fragments),
                16,
            ),
            (
                88,
                "export table",
                self.export_at(),
                u64::from(self.inodes),
                8,
            ),
            (48, "id table", Some(self.id_table), u64::from(self.ids), 4),
            (56, "xattr table", self.xattrs_at(), 0, 0),
        ] {
            let Some(position) = position else { continue };
            if position < previous || position >= self.bytes_used {
                return bad(
                    at,
                    format!(
                        "{name} at {position:#x}, after {previous:#x}, image of {:#x}",
                        self.bytes_used
                    ),
                );
            }
            let needed = match index {
                0 => XATTR_TABLE_HEADER_SIZE as u64,
                size => LookupTable::block_count(wanted, size).saturating_mul(8),
            };
            if self.bytes_used - position < needed {
                return bad(
                    at,
                    format!("{name} at {position:#x}: no room for {wanted} entries"),
                );
            }
            previous = position;
        }
        Ok(())
    }

    /// Returns the position of the fragment table's index, if there are fragments.
    pub fn fragments_at(&self) -> Option<u64> {
        (self.fragments > 0 && self.fragment_table != ABSENT).then_some(self.fragment_table)
    }
    /// Returns the position of the export table's index, if there is one.
    pub fn export_at(&self) -> Option<u64> {
        (self.export_table != ABSENT).then_some(self.export_table)
    }
    /// Returns the position of the xattr table's header, if there is one.
    pub fn xattrs_at(&self) -> Option<u64> {
        (self.xattr_table != ABSENT).then_some(self.xattr_table)
    }
    /// Returns an upper bound of the directory table's end: the start of the next table.
    pub fn directory_end(&self) -> u64 {
        self.fragments_at()
            .or(self.export_at())
            .unwrap_or(self.id_table)
    }

    /// Encodes the superblock.
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut out = Vec::with_capacity(SUPERBLOCK_SIZE);
        for word in [
            MAGIC,
            self.inodes,
            self.mkfs_time,
            self.block_size,
            self.fragments,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let log = self.block_size.trailing_zeros() as u16;
        for word in [self.compressor as u16, log, self.flags.0, self.ids, 4, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [
            self.root.0,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let mut bytes = [0; SUPERBLOCK_SIZE];
        bytes.copy_from_slice(&out);
        bytes
    }
}

const _: () = assert!(FRAGMENT_ENTRY_SIZE == 16);

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            inodes: 3,
            mkfs_time: 1_700_000_000,
            block_size: 131_072,
            fragments: 1,
            compressor: CompressorId::Zstd,
            flags: Flags(Flags::EXPORTABLE),
            ids: 1,
            root: InodeRef::new(0, 64),
            bytes_used: 1000,
            id_table: 900,
            xattr_table: 950,
            inode_table: 500,
            directory_table: 600,
            fragment_table: 700,
            export_table: 800,
        }
    }

    #[test]
    fn round_trips() {
        let sample = sample();
        let parsed = Superblock::parse(&sample.to_bytes()).unwrap();
        assert_eq!(parsed, sample);
        parsed.validate(1000).unwrap();
        parsed.validate(4096).unwrap();
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(sample().validate(999).is_err());
        for change in [
            |s: &mut Superblock| s.inode_table = 600,
            |s: &mut Superblock| s.inode_table = 95,
            |s: &mut Superblock| s.directory_table = 701,
            |s: &mut Superblock| s.export_table = 901,
            |s: &mut Superblock| s.xattr_table = 1000,
            |s: &mut Superblock| s.xattr_table = 990,
            |s: &mut Superblock| s.inodes = u32::MAX,
            |s: &mut Superblock| s.id_table = ABSENT,
        ] {
            let mut bad = sample();
            change(&mut bad);
            assert!(bad.validate(1000).is_err(), "{bad:?}");
        }
        for at in [0, 12, 22, 28, 30] {
            let mut raw = sample().to_bytes();
            raw[at] ^= 0x03;
            assert!(Superblock::parse(&raw).is_err(), "byte {at}");
        }
    }
}
