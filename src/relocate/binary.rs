//! Replaces prefixes in binary files, string by string, as conda does.
//!
//! A string extends from a prefix to the next NUL. The new string is padded with NULs, so that
//! nothing after it moves. conda-build reserves space by compiling programs with a long
//! placeholder; what the current prefix leaves of it are NULs after the string.

use super::search::{Pattern, find};
use super::splice::Splice;

/// The most bytes by which a string is too long for its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) usize);

/// Returns the replacements, which keep the size. Fails if one string does not fit.
pub(super) fn replace(data: &[u8], patterns: &[Pattern]) -> Result<Vec<Splice>, TooLong> {
    let mut splices: Vec<Splice> = Vec::new();
    let mut worst = None;
    let hits = find(data, patterns);
    let mut hits = hits.iter().peekable();
    while let Some(first) = hits.next() {
        let unit = first.pattern.encoding.unit();
        let start = first.at;
        let end = string_end(data, first.end(), unit);
        let mut with = first.pattern.new.clone();
        let mut slack = first.pattern.slack;
        let mut from = first.end();
        while let Some(next) = hits.next_if(|hit| hit.at < end) {
            with.extend_from_slice(data.get(from..next.at).unwrap_or_default());
            with.extend_from_slice(&next.pattern.new);
            slack += next.pattern.slack;
            from = next.end();
        }
        with.extend_from_slice(data.get(from..end).unwrap_or_default());
        let room = end - start + free(data, end, slack, unit);
        match with.len().checked_sub(room) {
            Some(excess) if excess > 0 => worst = worst.max(Some(excess)),
            _ => {
                with.resize(room, 0);
                splices.push(Splice {
                    at: start,
                    len: room,
                    with,
                });
            }
        }
    }
    match worst {
        Some(excess) => Err(TooLong(excess)),
        None => Ok(splices),
    }
}

/// Returns where the string ends: at a NUL, or at the end of the data.
fn string_end(data: &[u8], from: usize, unit: usize) -> usize {
    let rest = data.get(from..).unwrap_or_default();
    let nul = rest
        .chunks_exact(unit)
        .position(|chunk| chunk.iter().all(|&byte| byte == 0));
    match nul {
        Some(at) => from + at * unit,
        None => data.len(),
    }
}

/// Returns `slack` if so many NULs follow, besides the one that ends the string; otherwise 0, since
/// the space belongs to something else.
fn free(data: &[u8], end: usize, slack: usize, unit: usize) -> usize {
    let is_zero = |part: &[u8]| part.iter().all(|&byte| byte == 0);
    let after = data.get(end..end.saturating_add(slack).saturating_add(unit));
    match after {
        Some(after) if is_zero(after) => slack,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::search::{Bounds, Encoding};
    use super::super::splice::apply;
    use super::*;

    const PLACEHOLDER: &[u8] = b"/opt/placehold_placehold_placehold";

    fn replaced(data: &[u8], old: &[u8], new: &[u8], slack: usize) -> Result<Vec<u8>, TooLong> {
        let pattern = Pattern::new(old, new, Encoding::Utf8, Bounds::Any, slack).unwrap();
        let splices = replace(data, &[pattern])?;
        let new = apply(data, &splices);
        assert_eq!(new.len(), data.len());
        Ok(new)
    }

    fn installed(data: &[u8], prefix: &[u8]) -> Vec<u8> {
        replaced(data, PLACEHOLDER, prefix, 0).unwrap()
    }

    fn moved(data: &[u8], old: &[u8], new: &[u8]) -> Result<Vec<u8>, TooLong> {
        replaced(data, old, new, PLACEHOLDER.len() - old.len())
    }

    fn package() -> Vec<u8> {
        let mut data = b"\x7fELF\0".to_vec();
        for tail in [&b"/lib\0next\0"[..], b":", b"/bin\0\0\x01"] {
            data.extend_from_slice(PLACEHOLDER);
            data.extend_from_slice(tail);
        }
        data
    }

    #[test]
    fn moving_gives_what_installing_there_gives() {
        let data = package();
        let (a, b, longest) = (b"/a".as_slice(), b"/b/longer".as_slice(), PLACEHOLDER);
        for (from, to) in [(a, b), (b, a), (a, longest), (longest, a), (b, longest)] {
            let there = installed(&data, from);
            assert_eq!(moved(&there, from, to).unwrap(), installed(&data, to));
        }
        // The string with two prefixes keeps their text together.
        let there = installed(&data, b"/a");
        let text = b"/a:/a/bin\0";
        assert!(there.windows(text.len()).any(|part| part == text));
    }

    #[test]
    fn a_string_that_does_not_fit_fails_the_file() {
        let there = installed(&package(), b"/a");
        let long = [PLACEHOLDER, b"1234"].concat();
        assert_eq!(moved(&there, b"/a", &long), Err(TooLong(8)));
        // Without a placeholder there is no space after the string.
        assert_eq!(
            replaced(b"/a/lib\0\0\0\0\0", b"/a", b"/ab", 0),
            Err(TooLong(1))
        );
        assert_eq!(
            replaced(b"/ab/lib\0x", b"/ab", b"/a", 0).unwrap(),
            b"/a/lib\0\0x"
        );
        // Something else uses the space.
        let mut used = there.clone();
        let end = used.windows(5).position(|part| part == b"/lib\0").unwrap() + 10;
        used[end] = b'x';
        assert!(moved(&used, b"/a", b"/abcdef").is_err());
    }

    #[test]
    fn strings_of_wide_characters_end_at_wide_nuls() {
        let encoded = |text: &[u8]| Encoding::Utf16Le.encode(text).unwrap();
        let data = [&encoded(b"/old/x")[..], b"\0\0", &encoded(b"yz")].concat();
        let pattern = Pattern::new(b"/old", b"/n", Encoding::Utf16Le, Bounds::Any, 0).unwrap();
        let new = apply(&data, &replace(&data, &[pattern]).unwrap());
        let expected = [&encoded(b"/n/x")[..], b"\0\0\0\0\0\0", &encoded(b"yz")].concat();
        assert_eq!(new, expected);
    }
}
