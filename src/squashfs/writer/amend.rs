//! [`ImageAmender`]: writes only what differs from an old image.

use std::path::Path;

use super::carry::{Carry, OldData};
use super::error::Result;
use super::feed::Durability;
use super::nodes::NodeId;
use super::old_tables::OldTables;
use super::push::ImageWriter;
use super::{AmendOptions, WriteStats};
use crate::squashfs::format::{InodeKind, InodeRef};
use crate::squashfs::reader::{FileLayout, Image};

/// Builds an image from an old one whose data, inodes and listings stay where they are.
///
/// Only new and changed nodes are pushed, through [`writer`](Self::writer), with all directories on
/// the way to them. Everything else is [kept](Self::keep). Nodes of the old image keep their
/// numbers; the numbers of new nodes follow the highest old one.
#[derive(Debug)]
pub struct ImageAmender {
    writer: ImageWriter,
    tables: OldTables,
}

impl ImageAmender {
    /// Starts a new image in a file that is created or emptied.
    ///
    /// Fails with [`WriteError::Amend`](super::WriteError::Amend) if the tables of the old image
    /// cannot be amended.
    pub fn create(path: &Path, old: &Image, options: AmendOptions) -> Result<Self> {
        let old = OldData::new(old, Carry::Amend)?;
        let tables = OldTables::new(old.clone())?;
        let writer = ImageWriter::build_on(path, old, tables.tree(), options)?;
        Ok(ImageAmender { writer, tables })
    }

    /// The writer that takes new and changed nodes, and names.
    pub fn writer(&mut self) -> &mut ImageWriter {
        &mut self.writer
    }

    /// Adds an unchanged inode of the old image, given its number and position. Like every node, it
    /// must be linked. The contents of a directory stay with it.
    pub fn keep(&mut self, kind: InodeKind, number: u32, at: InodeRef) -> Result<NodeId> {
        self.writer.feed.tree.keep(kind, number, at)
    }

    /// Registers the index of a list of xattrs in the old image. Pushed nodes can have only lists
    /// that are registered.
    pub fn register_xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)], index: u32) {
        self.writer.feed.tree.xattrs.register(xattrs, index);
    }

    /// Counts the data of a file of the old image as dead: the new image has neither the file nor
    /// its content.
    pub fn mark_dead(&mut self, layout: &FileLayout) -> Result<()> {
        let body = self.writer.feed.checked(layout)?;
        self.tables.mark_dead(&body);
        Ok(())
    }

    /// Completes the image with `root` as its root directory, like [`ImageWriter::finish`].
    pub fn finish(self, root: NodeId) -> Result<WriteStats> {
        let tables = Some(&self.tables);
        self.writer.feed.finish(root, Durability::Unsynced, tables)
    }
}
