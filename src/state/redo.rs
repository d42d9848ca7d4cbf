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

use super::{LayerId, RowChange, valid};
use crate::sys::durable::{sync_file, sync_name};
use crate::sys::regular;

/// First bytes of the file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"envredo1";
/// A record is its length (4 bytes, little-endian), a hash of the rest, and the rest.
const HEADER: usize = 4 + HASH;
const HASH: usize = 8;
/// No log has had so many records: the numbers cannot run out.
const MAX_NUMBER: u64 = 1 << 62;
/// Bytes that are hashed at once.
const CHUNK: u64 = 1 << 20;
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
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let size = file.metadata()?.len();
        let mut magic = [0; MAGIC.len()];
        if size >= MAGIC.len() as u64 {
            file.read_exact_at(&mut magic, 0)?;
            if magic != *MAGIC {
                let what = "it is no redo log of this version of envfs";
                return Err(invalid(what.to_owned()));
            }
        } else {
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
                // A gap would mean that records were lost: what follows cannot be applied.
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

    /// Removes the file: the database has all its records, durably, and there will be no more.
    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.is_removed = true;
        std::fs::remove_file(path)
    }

    /// Empties the file. The database has all its records, durably.
    pub(super) fn reset(&mut self) -> io::Result<()> {
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

/// Reads the whole record at an offset; `None` where it is torn. Its hash is compared before room is made
/// for it, since its length alone may say anything.
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

/// Checks what a record says: it may be of somebody else's making.
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
