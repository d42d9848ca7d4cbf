//! Where an image can be cut so that images which continue it have the parts before the cuts in
//! common with it.

use std::ops::Range;

use super::Image;

/// The parts of an image that a commit carries over, each from its beginning. Ordered by position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sections {
    /// Data and fragment blocks. They stay at the same positions.
    pub data: Range<u64>,
    /// The inode table, up to the last block that is taken over as stored.
    pub inodes: Range<u64>,
    /// The directory table, likewise.
    pub listings: Range<u64>,
}

impl Image {
    /// Returns the sections of the image. `None` if it does not have them in the usual order or its
    /// tables cannot be continued, so that nothing can be said about its parts.
    pub fn sections(&self) -> Option<Sections> {
        let (inodes, listings) = (self.stored_inodes().ok()?, self.stored_listings().ok()?);
        let sections = Sections {
            data: self.data_area(),
            inodes: inodes.at..inodes.at.checked_add(inodes.full)?,
            listings: listings.at..listings.at.checked_add(listings.full)?,
        };
        let bounds = [
            sections.data.start,
            sections.data.end,
            sections.inodes.start,
            sections.inodes.end,
            sections.listings.start,
            sections.listings.end,
            self.superblock().bytes_used,
        ];
        (self.offset() == 0 && bounds.is_sorted()).then_some(sections)
    }
}
