//! Completes an image: waits for the data, then writes the tables and the superblock.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::{Durability, Feed};
use crate::squashfs::compress::compressor;
use crate::squashfs::format::{PADDING, SUPERBLOCK_SIZE};
use crate::squashfs::writer::WriteStats;
use crate::squashfs::writer::assembler::Assembled;
use crate::squashfs::writer::error::{Result, WriteError};
use crate::squashfs::writer::nodes::NodeId;
use crate::squashfs::writer::old_tables::{OldTables, Part};
use crate::squashfs::writer::output::copy_range;
use crate::squashfs::writer::pipeline::Piece;
use crate::squashfs::writer::tables;

impl Feed {
    /// Waits for all data, then writes the tables, and the superblock last. `old_tables` are
    /// continued.
    pub(in crate::squashfs::writer) fn finish(
        mut self,
        root: NodeId,
        durability: Durability,
        old_tables: Option<&OldTables>,
    ) -> Result<WriteStats> {
        self.shared.check()?;
        self.flush_batch()?;
        self.piece(Piece::End)?;
        // While the last blocks are being compressed.
        let order = self.tree.seal(root)?;
        let mut data = self.join()?.ok_or(WriteError::Failed)?;
        if let Some(tables) = old_tables {
            tables.count(&mut data.stats)?;
        }
        let data_time = self.began.elapsed();
        let began_tables = Instant::now();
        let mut codec = compressor(&self.compression, self.superblock.block_size)?;
        let tables = tables::build(
            &self.tree,
            root,
            &order,
            &data,
            self.superblock.clone(),
            old_tables,
            &mut codec,
        )?;
        self.shared.check()?;
        let tables_carried = self.write_tables(&tables.parts, data.end)?;
        let superblock = tables.superblock;
        let image_size = superblock.bytes_used.next_multiple_of(PADDING);
        self.file
            .set_len(image_size)
            .map_err(WriteError::io("padding the image"))?;
        let sync = durability == Durability::Synced;
        if sync {
            // Once the superblock is on disk, everything it names must be there too.
            self.file
                .sync_data()
                .map_err(WriteError::io("syncing the image"))?;
        }
        self.file
            .write_all_at(&superblock.to_bytes(), 0)
            .map_err(WriteError::io("writing the superblock"))?;
        if sync {
            self.file
                .sync_all()
                .map_err(WriteError::io("syncing the image"))?;
        }
        self.unfinished = false;
        Ok(WriteStats {
            bytes_written: data.stats.data_written + image_size - data.end - tables_carried
                + SUPERBLOCK_SIZE as u64,
            tables_carried,
            tables_appended: tables.appended,
            image_size,
            inodes: u64::from(superblock.inodes),
            data_time,
            table_time: began_tables.elapsed(),
            data: data.stats,
        })
    }

    /// Writes the tables from a position on. Returns the number of bytes copied from the old image.
    fn write_tables(&self, parts: &[Part], mut at: u64) -> Result<u64> {
        let mut carried = 0;
        for part in parts {
            match part {
                Part::Bytes(bytes) => self
                    .file
                    .write_all_at(bytes, at)
                    .map_err(WriteError::io("writing the tables"))?,
                Part::Old {
                    image,
                    at: from,
                    len,
                } => {
                    copy_range(image.as_file(), *from, &self.file, at, *len, &mut || {
                        self.shared.check()
                    })?;
                    carried += *len;
                }
            }
            at += part.len();
        }
        Ok(carried)
    }

    /// Waits for all threads.
    pub(super) fn join(&mut self) -> Result<Option<Assembled>> {
        self.reads = None;
        self.blocks = None;
        let mut assembled = None;
        if let Some(assembler) = self.assembler.take() {
            // A panic has been recorded by its sentinel.
            assembled = assembler.join().ok().flatten();
        }
        for thread in self.workers.drain(..).chain(self.carrier.take()) {
            drop(thread.join());
        }
        self.shared.check()?;
        Ok(assembled)
    }
}
