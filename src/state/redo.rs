//! The redo log, which makes a change of rows safe before it is in SQLite.
//!
//! A transaction of SQLite costs tens of microseconds, most of them for locks and for whole pages
//! in its log; a program that unpacks or removes a tree waits for one with every call. So a change
//! is first one record appended to a separate file, and another thread applies many at once to
//! SQLite later. The same transaction stores the number of the last record; records after it are
//! applied when the environment is opened again.
//!
//! Invariants:
//! - A record is in the file before [`Redo::append`] returns: the death of this process loses none.
//! - A reader accepts every record that `append` accepts, up to the limit of the length field.
//! - Records are numbered without gaps. A reader stops at the first that is torn, or not the next:
//!   so after power loss there are all records up to some point, in the order they were made.
//! - The file begins anew only when the database has all of them and is durable with them.
//! - A process that appends holds the environment's lock, so there is one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::{LayerId, RowChange, valid};
use crate::sys::durable::{sync_file, sync_name};
use crate::sys::regular;

/// First bytes of the file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"envredo1";
/// A record is its length (4 bytes, little-endian), a hash of the rest, and the rest.
const HEADER: usize = 4 + HASH;
const HASH: usize = 8;
/// A limit that no log reaches, so that numbers cannot overflow.
const MAX_NUMBER: u64 = 1 << 62;
/// Bytes that are hashed in one step.
const CHUNK: u64 = 1 << 20;
/// Space that is allocated to the file even when it is empty, in bytes, so that files can be
/// removed on a full disk.
const RESERVE: u64 = 128 << 10;

/// One record: its number, the layer, and the changes.
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
    /// The offset of the next record.
    end: u64,
    /// The number of the next record.
    next: u64,
    /// Records that were not applied to the database.
    pending: Vec<u8>,
    scratch: Vec<u8>,
    /// Whether the file was removed, so that nothing can be appended.
    is_removed: bool,
}

impl Redo {
    /// Opens or creates the file, and returns its records after number `applied`.
    pub(super) fn open(path: &Path, applied: u64) -> io::Result<(Redo, Batch)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let file = regular::open_with(path, &options)?;
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let size = file.metadata()?.len();
        let mut magic = [0; MAGIC.len()];
        if size >= MAGIC.len() as u64 {
            file.read_exact_at(&mut magic, 0)?;
            if magic != *MAGIC {
                let what = "it is not a redo log of this version of envfs";
                return Err(invalid(what.to_owned()));
            }
        } else {
            // Durable before the first record, so that other bytes here are always an error.
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
        let mut at = MAGIC.len() as u64;
        while let Some(record) = read_record(&file, at, size)? {
            let Some((number, _)) = Records(&record).next() else {
                break;
            };
            if expected.is_some_and(|expected| expected != Some(number)) {
                break;
            }
            expected = Some(number.checked_add(1));
            at += record.len() as u64;
            if number > applied {
                // After a gap the records cannot be applied: some were lost.
                if left.last.checked_add(1) != Some(number) {
                    return Err(invalid(format!(
                        "record {} is missing",
                        left.last.saturating_add(1)
                    )));
                }
                check(&record).map_err(|what| invalid(format!("record {number}: {what}")))?;
                left.bytes.extend_from_slice(&record);
                left.last = number;
            }
        }
        let redo = Redo {
            file: Arc::new(file),
            end: MAGIC.len() as u64,
            next: left
                .last
                .checked_add(1)
                .filter(|next| *next < MAX_NUMBER)
                .ok_or_else(|| invalid("its last number is too high".to_owned()))?,
            pending: Vec::new(),
            scratch: Vec::new(),
            is_removed: false,
        };
        Ok((redo, left))
    }

    /// Removes the file. All its records must be applied durably, and no more can be appended.
    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.is_removed = true;
        std::fs::remove_file(path)
    }

    /// Empties the file. All its records must be applied durably.
    pub(super) fn reset(&mut self) -> io::Result<()> {
        // Records after the new end would be recognized by their lower numbers, but the file may
        // have grown large, and a database restored from an older copy would accept them.
        self.file.set_len(MAGIC.len() as u64)?;
        reserve(&self.file);
        self.end = MAGIC.len() as u64;
        Ok(())
    }

    /// Appends a record. After an error the file does not contain it.
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
        // A failure leaves a torn record after the end, which the next one overwrites.
        self.file.write_all_at(&buffer, self.end)?;
        self.end += buffer.len() as u64;
        self.next += 1;
        self.pending.extend_from_slice(&buffer);
        self.scratch = buffer;
        Ok(())
    }

    /// Returns the number of bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Returns the bytes of records that were not applied to the database.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns the number of the last record.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// Returns the file, to sync it without blocking appends.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Takes the records that were not applied to the database.
    pub(super) fn take(&mut self) -> Batch {
        Batch {
            bytes: std::mem::take(&mut self.pending),
            last: self.last(),
        }
    }

    /// Puts back records that could not be applied.
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

    /// Returns the number of the last record.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Returns the records, oldest first.
    pub(super) fn records(&self) -> impl Iterator<Item = Result<Record<'_>, postcard::Error>> {
        Records(&self.bytes).map(|(_, record)| postcard::from_bytes(&record[HEADER..]))
    }
}

/// Iterates over the complete records at the start of a buffer, with their numbers.
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

/// Reads the record at an offset; `None` if it is torn. The hash is checked before memory is
/// allocated for the record, since its length cannot be trusted.
fn read_record(file: &File, at: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; HEADER];
    if size.saturating_sub(at) < HEADER as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut header, at)?;
    let (length, hash) = header.split_at(4);
    let length = u64::from(u32::from_le_bytes(length.try_into().unwrap_or_default()));
    let start = at + HEADER as u64;
    if size - start < length {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK.min(length) as usize];
    let mut done = 0;
    while done < length {
        let count = (length - done).min(CHUNK) as usize;
        let part = chunk.get_mut(..count).unwrap_or_default();
        file.read_exact_at(part, start + done)?;
        hasher.update(part);
        done += count as u64;
    }
    if hasher.finalize().as_bytes().get(..HASH) != Some(hash) {
        return Ok(None);
    }
    let mut record = vec![0; HEADER + length as usize];
    file.read_exact_at(&mut record, at)?;
    Ok(Some(record))
}

/// Validates a record, which may not be written by envfs.
fn check(record: &[u8]) -> Result<(), String> {
    let body = record.get(HEADER..).unwrap_or_default();
    let (_, layer, changes) =
        postcard::from_bytes::<Record<'_>>(body).map_err(|e| e.to_string())?;
    valid::layer(LayerId(layer)).map_err(|what| format!("an impossible layer {what}"))?;
    let checked = changes.iter().try_for_each(valid::change);
    checked.map_err(|what| format!("an impossible {what}"))
}

fn reserve(file: &File) {
    use nix::fcntl::{FallocateFlags, fallocate};
    // The log works without the reserve.
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
