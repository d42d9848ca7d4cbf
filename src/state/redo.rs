//! The redo log: what makes a change of rows safe before SQLite has it.
//!
//! A transaction of SQLite costs tens of microseconds, most of them for locks and for whole pages
//! in its log; a program that unpacks or removes a tree waits for one with every call. So a change
//! is first one record appended to a file of its own, and SQLite gets many at once, later, from
//! another thread. The database says up to which record it has them, in the same transaction; what
//! comes after it in the file is applied when the environment is opened again.
//!
//! What must hold:
//! - A record is in the file before [`Redo::append`] returns: the death of this process loses none.
//! - Whatever `append` takes a reader takes: a change of any length, up to what the length can say.
//! - Records are numbered without gaps. A reader stops at the first that is torn, or not the next:
//!   so after power loss there are all records up to some point, in the order they were made.
//! - The file begins anew only when the database has all of them and is durable with them.
//! - Whoever appends holds the environment's lock, so there is one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::{LayerId, RowChange};
use crate::sys::durable::{sync_file, sync_name};
use crate::sys::regular;

/// First bytes of the file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"envredo1";
/// A record is its length (4 bytes, little-endian), a hash of the rest, and the rest.
const HEADER: usize = 4 + HASH;
const HASH: usize = 8;
/// Space that the file has at least, in bytes, empty or not: on a full disk something can still be
/// removed.
const RESERVE: u64 = 128 << 10;

/// What one record says.
pub(super) type Record<'a> = (u64, i64, Vec<RowChange<'a>>);

/// Records, oldest first, and the number of the last.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    last: u64,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Redo {
    file: Arc<File>,
    /// Where the next record goes.
    end: u64,
    /// Its number.
    next: u64,
    /// Records that the database does not have.
    pending: Vec<u8>,
    scratch: Vec<u8>,
    /// Whether the file is gone, so that nothing may be appended.
    is_removed: bool,
}

impl Redo {
    /// Opens or makes the file, and returns the records in it that come after number `applied`.
    pub(super) fn open(path: &Path, applied: u64) -> io::Result<(Redo, Batch)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let file = regular::open_with(path, &options)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, 0)?;
        if bytes.len() >= MAGIC.len() && !bytes.starts_with(MAGIC) {
            let what = "it is no redo log of this version of envfs";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if bytes.len() < MAGIC.len() {
            // Durable before the first record is: who finds other bytes here must not guess.
            file.write_all_at(MAGIC, 0)?;
            sync_file(&file)?;
            sync_name(path)?;
        }
        reserve(&file);
        let mut left = Batch {
            bytes: Vec::new(),
            last: applied,
        };
        let mut expected = None;
        for (number, record) in Records(bytes.get(MAGIC.len()..).unwrap_or_default()) {
            if expected.is_some_and(|expected| number != expected) {
                break;
            }
            expected = Some(number + 1);
            if number > applied {
                // A gap would mean that records were lost: what follows cannot be applied.
                if number != left.last + 1 {
                    let what = format!("record {} is missing", left.last + 1);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                left.bytes.extend_from_slice(record);
                left.last = number;
            }
        }
        let redo = Redo {
            file: Arc::new(file),
            end: MAGIC.len() as u64,
            next: left.last + 1,
            pending: Vec::new(),
            scratch: Vec::new(),
            is_removed: false,
        };
        Ok((redo, left))
    }

    /// Removes the file: the database has all its records, durably, and there will be no more.
    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.is_removed = true;
        std::fs::remove_file(path)
    }

    /// Empties the file. The database has all its records, durably.
    pub(super) fn begin_anew(&mut self) -> io::Result<()> {
        // Records that are left behind the new end have lower numbers, and are known by them.
        // They go all the same: the file may have grown large, and an older database that is put back
        // would take them for its own.
        self.file.set_len(MAGIC.len() as u64)?;
        reserve(&self.file);
        self.end = MAGIC.len() as u64;
        Ok(())
    }

    /// Appends a record. After an error it is not in the file.
    pub(super) fn append(&mut self, layer: LayerId, changes: &[RowChange<'_>]) -> io::Result<()> {
        if self.is_removed {
            return Err(io::Error::other("the environment has been closed"));
        }
        self.scratch.clear();
        self.scratch.resize(HEADER, 0);
        let record = (self.next, layer.0, changes);
        let mut buffer = postcard::to_extend(&record, std::mem::take(&mut self.scratch))
            .map_err(io::Error::other)?;
        let (header, body) = buffer.split_at_mut(HEADER);
        let len = u32::try_from(body.len()).map_err(|_| {
            let what = "a change of more than 4 GiB";
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let (length, hash) = header.split_at_mut(4);
        length.copy_from_slice(&len.to_le_bytes());
        hash.copy_from_slice(&hash_of(body));
        // What a failure leaves behind the end is torn, and overwritten by the next.
        self.file.write_all_at(&buffer, self.end)?;
        self.end += buffer.len() as u64;
        self.next += 1;
        self.pending.extend_from_slice(&buffer);
        self.scratch = buffer;
        Ok(())
    }

    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Bytes of records that the database does not have.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Number of the last record.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// The file, to sync it without holding up who appends.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Takes the records that the database does not have, to give them to it.
    pub(super) fn take(&mut self) -> Batch {
        Batch {
            bytes: std::mem::take(&mut self.pending),
            last: self.last(),
        }
    }

    /// Puts records back that the database could not take.
    pub(super) fn put_back(&mut self, mut batch: Batch) {
        batch.bytes.append(&mut self.pending);
        self.pending = batch.bytes;
    }
}

impl Batch {
    /// Returns true if there is no record.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Number of the last record.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The records, oldest first.
    pub(super) fn records(&self) -> impl Iterator<Item = Result<Record<'_>, postcard::Error>> {
        Records(&self.bytes).map(|(_, record)| postcard::from_bytes(&record[HEADER..]))
    }
}

/// The whole records at the start of some bytes, with their numbers.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (hash, rest) = rest.split_first_chunk::<HASH>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let body = rest.get(..length)?;
        if hash_of(body) != *hash {
            return None;
        }
        let (number, _) = postcard::take_from_bytes::<u64>(body).ok()?;
        let (record, rest) = self.0.split_at(HEADER + length);
        self.0 = rest;
        Some((number, record))
    }
}

fn reserve(file: &File) {
    use nix::fcntl::{FallocateFlags, fallocate};
    // As much as there is will have to do.
    if let Err(e) = fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, RESERVE as i64) {
        tracing::debug!("reserving space for the redo log: {e}");
    }
}

fn hash_of(body: &[u8]) -> [u8; HASH] {
    let hash = blake3::hash(body);
    let mut short = [0; HASH];
    short.copy_from_slice(&hash.as_bytes()[..HASH]);
    short
}
