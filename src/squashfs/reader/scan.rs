//! One pass over the inode table, for images without an export table.

use std::sync::PoisonError;

use super::{Image, cursor::Cursor};
use crate::squashfs::{
    Error, Result,
    format::{Inode, InodeRef},
};

impl Image {
    /// Returns the reference of the inode with number `slot` + 1.
    pub(super) fn scanned_ref(&self, slot: u32) -> Result<InodeRef> {
        let refs = match self.0.scanned.get() {
            Some(refs) => refs,
            None => {
                let _one_at_a_time = self
                    .0
                    .scanning
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                match self.0.scanned.get() {
                    Some(refs) => refs,
                    None => {
                        let refs = self.scan_inodes()?;
                        self.0.scanned.get_or_init(|| refs)
                    }
                }
            }
        };
        refs.get(slot as usize)
            .copied()
            .filter(|found| *found != NOWHERE)
            .map(InodeRef)
            .ok_or_else(|| {
                Error::corrupt("inode table", 0, format!("no inode number {}", slot + 1))
            })
    }

    /// Returns references by number - 1. Memory grows with the inodes found, not with the declared
    /// count.
    fn scan_inodes(&self) -> Result<Vec<u64>> {
        let context = self.inode_context();
        let mut cursor = Cursor::scan(self.blocks(), "inode table", self.inode_table())?;
        let (mut numbers, mut refs) = (Vec::new(), Vec::new());
        while cursor.advance()? {
            let place = cursor.place();
            let inode = Inode::read(&mut cursor, place.0, &context)?;
            if refs.len() >= context.inodes as usize {
                let detail = format!("more inodes than the declared {}", context.inodes);
                return Err(Error::corrupt("inode table", place.0, detail));
            }
            numbers.push(inode.number);
            refs.push(place.0);
        }
        let highest = numbers.iter().copied().max().unwrap_or(0) as usize;
        // mksquashfs writes dense numbers. Some gaps are allowed, but not any number of them.
        if highest > refs.len().saturating_mul(4) {
            let detail = format!("{} inodes numbered up to {highest}", refs.len());
            return Err(Error::corrupt("inode table", 0, detail));
        }
        let mut by_number = vec![NOWHERE; highest];
        for (number, place) in numbers.into_iter().zip(refs) {
            if let Some(slot) = by_number.get_mut(number as usize - 1) {
                *slot = place;
            }
        }
        Ok(by_number)
    }
}

/// Not the reference of any inode: tables are shorter.
const NOWHERE: u64 = u64::MAX;
