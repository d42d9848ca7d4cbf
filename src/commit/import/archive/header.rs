//! Parses the 512-byte headers of tar archives: v7, ustar (POSIX), GNU and star.

use super::error::{Error, Result};

/// The unit of an archive, in bytes. Data is padded to a multiple of it.
pub(super) const BLOCK: usize = 512;

/// A number in a header: its offset, its length, and its name in messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field(usize, usize, &'static str);

pub(super) const MODE: Field = Field(100, 8, "mode");
pub(super) const UID: Field = Field(108, 8, "user");
pub(super) const GID: Field = Field(116, 8, "group");
pub(super) const SIZE: Field = Field(124, 12, "size");
pub(super) const MTIME: Field = Field(136, 12, "time");
pub(super) const MAJOR: Field = Field(329, 8, "major device number");
pub(super) const MINOR: Field = Field(337, 8, "minor device number");
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// The format of a header, by its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Gnu,
    /// Like ustar, with different fields at the end.
    Star,
}

/// A header with a valid checksum.
#[derive(Clone)]
pub(super) struct Header([u8; BLOCK]);

impl Header {
    /// Parses a block. Returns `None` if the checksum is wrong.
    pub(super) fn new(block: [u8; BLOCK]) -> Option<Header> {
        let stored = block.get(CHECKSUM).and_then(number)?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = match CHECKSUM.contains(&at) {
                true => b' ',
                false => *byte,
            };
            unsigned += i64::from(byte);
            // Some old programs computed the sum of signed bytes.
            signed += i64::from(byte as i8);
        }
        (stored == unsigned || stored == signed).then_some(Header(block))
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.slice(257, 8) {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar") => match self.slice(508, 4) {
                b"tar\0" => Dialect::Star,
                _ => Dialect::Ustar,
            },
            _ => Dialect::V7,
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0.get(156).copied().unwrap_or(0)
    }

    /// Returns the path: the name, with the prefix field before it.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(self.slice(0, 100));
        let prefix = match self.dialect() {
            Dialect::Ustar => until_nul(self.slice(345, 155)),
            Dialect::Star => until_nul(self.slice(345, 131)),
            Dialect::Gnu | Dialect::V7 => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    pub(super) fn link(&self) -> &[u8] {
        until_nul(self.slice(157, 100))
    }

    pub(super) fn number(&self, field: Field) -> Result<i64> {
        number(self.slice(field.0, field.1)).ok_or_else(|| {
            let path = String::from_utf8_lossy(&self.path()).into_owned();
            Error::Damaged(format!("the {} of {path} is not a number", field.2))
        })
    }

    pub(super) fn slice(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }
}

/// Parses a number: octal digits, or a binary number marked by its first bit. An empty field is
/// zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, big-endian; the second bit is the sign.
        let sign: i64 = if first & 0x40 != 0 { -1 } else { 0 };
        let mut value = (sign << 6) | i64::from(first & 0x3f);
        for byte in field.get(1..)? {
            if !(i64::MIN >> 8..=i64::MAX >> 8).contains(&value) {
                return None;
            }
            value = (value << 8) | i64::from(*byte);
        }
        return Some(value);
    }
    let blank = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
    let start = field.iter().position(|byte| !blank(byte));
    let digits = field.get(start.unwrap_or(field.len())..)?;
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    let mut value: i64 = 0;
    for byte in digits.get(..end)? {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(i64::from(digit))?;
    }
    Some(value)
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    field.get(..end.unwrap_or(field.len())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let binary = |bytes: &[u8]| number(bytes);
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777777 "), Some((1 << 33) - 1));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(
            binary(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
            Some(1 << 32)
        );
        assert_eq!(binary(&[0xff; 12]), Some(-1));
        let mut minimum = [0xff; 12];
        minimum[4..].copy_from_slice(&i64::MIN.to_be_bytes());
        assert_eq!(binary(&minimum), Some(i64::MIN));
        // Too large, and not a number.
        assert_eq!(binary(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(binary(&[0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(b"999"), None);
    }
}
