//! Extended attributes: equal lists are stored once, and so are equal long values.

use std::collections::HashMap;

use super::error::{Result, WriteError};
use super::metadata::{Codec, MetadataWriter};
use crate::squashfs::format::{
    InodeRef, NO_XATTR, XattrId, XattrPrefix, XattrTableHeader, encode_xattr_inline,
    encode_xattr_out_of_line,
};

/// Values longer than the reference that would replace them are shared.
const SHARE_ABOVE: usize = 8;
/// Most bytes of one value (the kernel's `XATTR_SIZE_MAX`).
const MAX_VALUE: usize = 65_536;
/// Most bytes of one name (the kernel's `XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;

type List = Vec<(Vec<u8>, Vec<u8>)>;

/// The distinct lists of xattrs of a tree, by the index that inodes use.
#[derive(Debug, Default)]
pub(super) struct XattrLists {
    lists: Vec<List>,
    index: HashMap<List, u32>,
    /// True if the table is that of the old image, so that only registered lists can be used.
    is_closed: bool,
}

impl XattrLists {
    /// Returns the lists of an old image, none of them [registered](Self::register) yet.
    pub(super) fn of_old_image() -> Self {
        XattrLists {
            is_closed: true,
            ..XattrLists::default()
        }
    }

    /// Registers the index of a list in the old image.
    pub(super) fn register(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)], index: u32) {
        let mut list = xattrs.to_vec();
        list.sort_unstable();
        self.index.insert(list, index);
    }

    /// Adds a list and returns its index; `NO_XATTR` for an empty list.
    pub(super) fn add(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<u32> {
        if xattrs.is_empty() {
            return Ok(NO_XATTR);
        }
        let mut list = xattrs.to_vec();
        list.sort_unstable();
        for (i, (name, value)) in list.iter().enumerate() {
            let shown = || String::from_utf8_lossy(name).into_owned();
            let bare = XattrPrefix::split(name).map_or(&[][..], |(_, bare)| bare);
            if bare.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
                return Err(WriteError::tree(
                    "an xattr that SquashFS cannot store",
                    shown(),
                ));
            }
            if value.len() > MAX_VALUE {
                return Err(WriteError::tree(
                    "an xattr value longer than 64 KiB",
                    shown(),
                ));
            }
            if i > 0 && list[i - 1].0 == *name {
                return Err(WriteError::tree("an xattr twice on one node", shown()));
            }
        }
        if let Some(index) = self.index.get(&list) {
            return Ok(*index);
        }
        if self.is_closed {
            return Err(WriteError::Amend(
                "a list of extended attributes is new".into(),
            ));
        }
        let index = u32::try_from(self.lists.len())
            .ok()
            .filter(|index| *index != NO_XATTR)
            .ok_or_else(|| WriteError::tree("xattrs", "too many different lists"))?;
        self.lists.push(list.clone());
        self.index.insert(list, index);
        Ok(index)
    }

    /// The whole xattr area for position `at`, and where in the image its header lies. `None` if
    /// no node has xattrs.
    pub(super) fn encode(&self, at: u64, codec: &mut Codec) -> Result<Option<(Vec<u8>, u64)>> {
        if self.lists.is_empty() {
            return Ok(None);
        }
        let mut values: HashMap<&[u8], InodeRef> = HashMap::new();
        let mut ids = Vec::with_capacity(self.lists.len());
        let mut lists = MetadataWriter::default();
        let mut bytes = Vec::new();
        for list in &self.lists {
            let start = lists.position();
            let mut size = 0u64;
            for (full, value) in list {
                let Some((prefix, name)) = XattrPrefix::split(full) else {
                    continue;
                };
                size += (full.len() + 1 + value.len()) as u64;
                bytes.clear();
                if let Some(place) = values.get(value.as_slice()) {
                    encode_xattr_out_of_line(prefix, name, *place, &mut bytes);
                    lists.write(&bytes, codec)?;
                    continue;
                }
                encode_xattr_inline(prefix, name, value, &mut bytes);
                // The reference is to the value with its u32 length.
                let (key, stored) = bytes.split_at(bytes.len() - value.len() - 4);
                lists.write(key, codec)?;
                if value.len() > SHARE_ABOVE {
                    values.insert(value, lists.position());
                }
                lists.write(stored, codec)?;
            }
            let size = u32::try_from(size)
                .map_err(|_| WriteError::tree("xattrs", "more than 4 GiB on one node"))?;
            ids.push(XattrId {
                list: start,
                count: list.len() as u32,
                size,
            });
        }
        let mut out = lists.finish(codec)?;
        let header = XattrTableHeader {
            lists: at,
            count: ids.len() as u32,
        };
        let mut table = MetadataWriter::default();
        for id in ids {
            table.write(&id.to_bytes(), codec)?;
        }
        let (table, header_at) =
            table.finish_lookup(at + out.len() as u64, &header.to_bytes(), codec)?;
        out.extend_from_slice(&table);
        Ok(Some((out, header_at)))
    }
}
