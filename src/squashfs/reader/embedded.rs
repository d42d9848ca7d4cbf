//! Images inside other files: behind a program (AppImage, type 2) or in a SIF container
//! (Apptainer).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::squashfs::{Error, Result};

/// First bytes of a SquashFS image.
const MAGIC: &[u8] = b"hsqs";
const ELF: &[u8] = b"\x7fELF";
const SIF: &[u8] = b"SIF_MAGIC";

/// Returns whether a file that begins with these bytes may have an image inside: an AppImage or a
/// SIF container.
pub fn may_embed(head: &[u8]) -> bool {
    head.starts_with(ELF) || head.get(32..41) == Some(SIF)
}

/// Finds where the image in a file begins: at its start, behind the program of an AppImage, or at
/// an offset in the descriptors of a SIF container. Returns 0 if no image is found, so that the
/// error is about the file itself.
pub(super) fn find(file: &File) -> Result<u64> {
    let mut head = [0; 128];
    let read = read_up_to(file, &mut head, 0).map_err(Error::io("reading the superblock"))?;
    let head = head.get(..read).unwrap_or_default();
    let found = if head.starts_with(ELF) {
        after_elf(head)
    } else if head.get(32..41) == Some(SIF) {
        in_sif(file, head)?
    } else {
        None
    };
    let is_image = |at: &u64| {
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, *at).is_ok() && magic == MAGIC
    };
    Ok(found.filter(is_image).unwrap_or(0))
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at.saturating_add(filled as u64))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Returns the end of a program: the end of its section headers, which come last. AppImage's own
/// tools rely on it too.
fn after_elf(head: &[u8]) -> Option<u64> {
    let is_64 = match head.get(4)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    let is_big = match head.get(5)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(match is_big {
            true => bytes.iter().fold(0, add),
            false => bytes.iter().rev().fold(0, add),
        })
    };
    let (offset, size, count) = match is_64 {
        true => (number(40, 8)?, number(58, 2)?, number(60, 2)?),
        false => (number(32, 4)?, number(46, 2)?, number(48, 2)?),
    };
    offset.checked_add(size.checked_mul(count)?)
}

/// Bytes of a SIF descriptor, and the number of descriptors that are read.
const DESCRIPTOR: u64 = 585;
const MAX_DESCRIPTORS: u64 = 4096;

/// Finds the primary system partition of a container, or else its first SquashFS partition.
fn in_sif(file: &File, head: &[u8]) -> Result<Option<u64>> {
    let number = |bytes: &[u8], at: usize| -> Option<u64> {
        let bytes = bytes.get(at..)?.first_chunk::<8>()?;
        u64::try_from(i64::from_le_bytes(*bytes)).ok()
    };
    let int = |bytes: &[u8], at: usize| -> Option<i32> {
        Some(i32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
    };
    let (Some(count), Some(table)) = (number(head, 88), number(head, 96)) else {
        return Ok(None);
    };
    let mut first = None;
    for index in 0..count.min(MAX_DESCRIPTORS) {
        let mut raw = [0; DESCRIPTOR as usize];
        let at = table.saturating_add(index * DESCRIPTOR);
        let read = read_up_to(file, &mut raw, at).map_err(Error::io("reading a container"))?;
        if read < raw.len() {
            break;
        }
        // A partition in use, whose file system is SquashFS.
        let is_partition = int(&raw, 0) == Some(0x4004) && raw.get(4) == Some(&1);
        if !is_partition || int(&raw, 201) != Some(1) {
            continue;
        }
        let offset = number(&raw, 17);
        if int(&raw, 205) == Some(2) {
            return Ok(offset);
        }
        first = first.or(offset);
    }
    Ok(first)
}
