//! Parses the maps of sparse files in all formats of GNU tar and star.

use super::error::{Error, Result};
use super::header::{BLOCK, Dialect, Header, number};
use super::pax::{MAX_RUNS, Pax, decimal};

/// A region of a file that the archive contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Position in the file.
    pub(super) at: u64,
    pub(super) len: u64,
    /// Position in the data of the entry.
    pub(super) stored: u64,
}

/// The regions of a file, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) size: u64,
    pub(super) runs: Vec<Run>,
}

impl Map {
    /// Returns the map of a file without holes.
    pub(super) fn dense(size: u64) -> Map {
        let run = Run {
            at: 0,
            len: size,
            stored: 0,
        };
        Map {
            size,
            runs: vec![run],
        }
    }

    /// Creates a map. Checks that regions are in order, inside the file, and as long as the data.
    fn new(size: u64, parts: Vec<(u64, u64)>, stored: u64) -> Result<Map> {
        let wrong = |why: &str| Error::Damaged(format!("a sparse file {why}"));
        let (mut end, mut at_data) = (0u64, 0u64);
        let mut runs = Vec::with_capacity(parts.len());
        for (at, len) in parts {
            // An empty region marks the end of the file.
            if len == 0 {
                continue;
            }
            if at < end {
                return Err(wrong("has overlapping regions"));
            }
            end = at
                .checked_add(len)
                .filter(|end| *end <= size)
                .ok_or_else(|| wrong("has a region beyond its end"))?;
            runs.push(Run {
                at,
                len,
                stored: at_data,
            });
            // No overflow: it is at most the end.
            at_data += len;
        }
        if at_data != stored {
            return Err(wrong("has regions that do not match its data"));
        }
        Ok(Map { size, runs })
    }
}

/// Reads blocks of an entry's data.
pub(super) type NextBlock<'a> = &'a mut dyn FnMut() -> Result<[u8; BLOCK]>;

/// Reads the map in a header of type S and the blocks after it. `stored` is the size in the header.
pub(super) fn of_header(header: &Header, stored: u64, next: NextBlock<'_>) -> Result<Map> {
    let (at, extended, size) = match header.dialect() {
        Dialect::Star => (356, 355, 452),
        _ => (386, 482, 483),
    };
    let size = positive(header.slice(size, 12))?;
    let mut parts = Vec::new();
    let mut more = take_parts(header.slice(at, 4 * 24), &mut parts)?
        && header
            .slice(extended, 1)
            .first()
            .is_some_and(|byte| *byte != 0);
    while more {
        let block = next()?;
        let (table, rest) = block.split_at(21 * 24);
        more = take_parts(table, &mut parts)? && rest.first().is_some_and(|byte| *byte != 0);
    }
    Map::new(size, parts, stored)
}

/// Adds the regions of a table. Returns false if it ends with an empty slot.
fn take_parts(table: &[u8], parts: &mut Vec<(u64, u64)>) -> Result<bool> {
    for slot in table.chunks_exact(24) {
        let (at, len) = slot.split_at(12);
        if len.first().is_none_or(|byte| *byte == 0) {
            return Ok(false);
        }
        parts.push((positive(at)?, positive(len)?));
        if parts.len() > MAX_RUNS {
            return Err(Error::Damaged(
                "a sparse file has too many regions".to_owned(),
            ));
        }
    }
    Ok(true)
}

fn positive(field: &[u8]) -> Result<u64> {
    let value = number(field).and_then(|value| u64::try_from(value).ok());
    value.ok_or_else(|| Error::Damaged("the map of a sparse file is not of numbers".to_owned()))
}

/// Reads the map that extended headers describe; `None` if the file is not sparse. In the newest
/// format the map precedes the data: `stored` is then reduced by its blocks.
pub(super) fn of_pax(pax: &Pax, stored: &mut u64, next: NextBlock<'_>) -> Result<Option<Map>> {
    if let Some(major) = pax.number("GNU.sparse.major")? {
        let minor = pax.number("GNU.sparse.minor")?.unwrap_or(0);
        if (major, minor) == (1, 0) {
            let size = pax.number("GNU.sparse.realsize")?;
            let size = size.ok_or_else(|| missing("GNU.sparse.realsize"))?;
            let parts = parts_before_data(stored, next)?;
            return Map::new(size, parts, *stored).map(Some);
        }
        if major != 0 {
            let why = format!("version {major}.{minor} of sparse files is not supported");
            return Err(Error::Refused(why));
        }
    }
    let Some(size) = pax.number("GNU.sparse.size")? else {
        return Ok(None);
    };
    let parts = match pax.get("GNU.sparse.map") {
        Some(map) => {
            let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(decimal).collect();
            let numbers = numbers.filter(|all| all.len() % 2 == 0 && all.len() <= 2 * MAX_RUNS);
            let numbers = numbers.ok_or_else(|| missing("valid GNU.sparse.map"))?;
            let pairs = numbers.as_chunks::<2>().0.iter();
            pairs.map(|[at, len]| (*at, *len)).collect()
        }
        None => pax.runs.clone(),
    };
    Map::new(size, parts, *stored).map(Some)
}

fn missing(what: &str) -> Error {
    Error::Damaged(format!("a sparse file has no {what}"))
}

/// Reads the map before the data, one number a line.
fn parts_before_data(stored: &mut u64, next: NextBlock<'_>) -> Result<Vec<(u64, u64)>> {
    let malformed = || Error::Damaged("the map of a sparse file is malformed".to_owned());
    let mut block = [0; BLOCK];
    let mut at = BLOCK;
    let mut line = || -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK {
                *stored = stored.checked_sub(BLOCK as u64).ok_or_else(malformed)?;
                block = next()?;
                at = 0;
            }
            let byte = block.get(at).copied().unwrap_or_default();
            at += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or_else(malformed);
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(malformed());
            }
        }
    };
    let count = line()?;
    if count > MAX_RUNS as u64 {
        return Err(Error::Damaged(
            "a sparse file has too many regions".to_owned(),
        ));
    }
    let mut parts = Vec::new();
    for _ in 0..count {
        parts.push((line()?, line()?));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn invalid_maps_are_rejected() {
        let map = |size, parts: &[(u64, u64)], stored| Map::new(size, parts.to_vec(), stored);
        let good = map(100, &[(10, 5), (20, 5), (100, 0)], 10).unwrap();
        assert_eq!(good.runs.len(), 2);
        assert_eq!(good.runs.last().unwrap().stored, 5);
        assert!(map(100, &[(10, 5), (12, 5)], 10).is_err());
        assert!(map(100, &[(98, 5)], 5).is_err());
        assert!(map(100, &[(u64::MAX, 5)], 5).is_err());
        assert!(map(100, &[(10, 5)], 6).is_err());
        assert!(map(100, &[(10, 5)], 4).is_err());
        let (mut stored, mut blocks) = (1024, 0);
        let mut next = || {
            blocks += 1;
            let mut block = [b'\n'; BLOCK];
            block[0] = b'1';
            Ok(block)
        };
        assert!(parts_before_data(&mut stored, &mut next).is_err());
        // A number without a line end.
        let mut next = || Ok([b'1'; BLOCK]);
        assert!(parts_before_data(&mut 1024, &mut next).is_err());
    }
}
