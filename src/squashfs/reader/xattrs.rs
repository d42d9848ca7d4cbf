//! Extended attributes.

use super::{Image, cursor::Cursor};
use crate::squashfs::{
    Error, Result,
    format::{Inode, InodeRef, MAX_NAME, Source, XattrId, XattrKey},
};

const WHAT: &str = "xattr";
/// The limits of the kernel for one value and for the names of a list.
const MAX_VALUE: u32 = 64 << 10;
const MAX_NAMES: usize = 64 << 10;
/// Most bytes of values in one list. Values out of line may repeat, so a small image could
/// otherwise require any amount of memory.
const MAX_VALUES: usize = 8 << 20;

impl Image {
    /// Reads the extended attributes of an inode: full names (`user.comment`) and values.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let Some(index) = inode.xattr else {
            return Ok(Vec::new());
        };
        let Some(table) = self.xattr_table() else {
            // Images built without xattrs may still have the indexes.
            return Ok(Vec::new());
        };
        let raw: [u8; 16] = self.table_entry("xattr table", Some(&table.ids), u64::from(index))?;
        let id = XattrId::parse(&raw)?;
        let at = id.list.0;
        let mut out = Vec::new();
        let (mut names, mut values) = (0, 0);
        if id.count == 0 {
            return Ok(out);
        }
        let mut cursor = Cursor::new(self.blocks(), WHAT, table.lists.clone(), id.list)?;
        for _ in 0..id.count {
            let key = XattrKey::read(&mut cursor, at)?;
            let name = key.full_name();
            names += name.len() + 1;
            if name.len() > MAX_NAME || names > MAX_NAMES {
                return Err(Error::corrupt(
                    WHAT,
                    at,
                    "names longer than the kernel's limit",
                ));
            }
            let value = if key.out_of_line {
                let len = cursor.u32()?;
                if len != 8 {
                    return Err(Error::corrupt(
                        WHAT,
                        at,
                        format!("a reference of {len} bytes"),
                    ));
                }
                let place = InodeRef(cursor.u64()?);
                let mut there = Cursor::new(self.blocks(), WHAT, table.lists.clone(), place)?;
                read_value(&mut there, at)?
            } else {
                read_value(&mut cursor, at)?
            };
            values += value.len();
            if values > MAX_VALUES {
                return Err(Error::Unsupported(format!(
                    "more than {MAX_VALUES} bytes of xattrs"
                )));
            }
            out.push((name, value));
        }
        Ok(out)
    }
}

fn read_value(source: &mut impl Source, at: u64) -> Result<Vec<u8>> {
    let len = source.u32()?;
    if len > MAX_VALUE {
        return Err(Error::corrupt(WHAT, at, format!("a value of {len} bytes")));
    }
    source.bytes(len as usize)
}
