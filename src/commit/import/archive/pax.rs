//! Parses pax extended headers: records of a length, a key and a value.

use std::collections::BTreeMap;

use super::error::{Error, Result};

/// Maximum number of regions of a file, which take 24 MiB of memory.
pub(super) const MAX_RUNS: usize = 1 << 20;

/// The records of an extended header.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Offsets and lengths of the regions of a sparse file in format 0.0, which repeats its keys.
    pub(super) runs: Vec<(u64, u64)>,
    offset: Option<u64>,
}

impl Pax {
    /// Adds the records of a header.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<()> {
        let malformed = || Error::Damaged("an extended header is malformed".to_owned());
        while !bytes.is_empty() {
            // Some writers include the padding in the size.
            if bytes.iter().all(|byte| *byte == 0) {
                break;
            }
            let space = bytes.iter().position(|byte| *byte == b' ');
            let space = space.ok_or_else(malformed)?;
            let len = bytes.get(..space).and_then(decimal).ok_or_else(malformed)?;
            let len = usize::try_from(len).map_err(|_| malformed())?;
            let record = bytes.get(space + 1..len).ok_or_else(malformed)?;
            bytes = bytes.get(len..).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or_else(malformed)?);
            self.take(key, value.get(1..).unwrap_or_default())?;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = || {
            let key = String::from_utf8_lossy(key);
            decimal(value).ok_or_else(|| Error::Damaged(format!("{key} is not a number")))
        };
        match key {
            b"GNU.sparse.offset" => self.offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let len = number()?;
                let missing =
                    || Error::Damaged("a region of a sparse file has no offset".to_owned());
                self.runs
                    .push((self.offset.take().ok_or_else(missing)?, len));
                if self.runs.len() > MAX_RUNS {
                    return Err(Error::Damaged(
                        "a sparse file has too many regions".to_owned(),
                    ));
                }
            }
            _ => {
                self.records.insert(key.to_vec(), value.to_vec());
            }
        }
        Ok(())
    }

    /// Returns a value. An empty one means that the field of the header applies.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.records.get(key.as_bytes())?;
        (!value.is_empty()).then_some(value)
    }

    /// Returns a value as a number.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = decimal(value);
        Ok(Some(number.ok_or_else(|| {
            Error::Damaged(format!("{key} is not a number"))
        })?))
    }

    /// Returns a value as a time in whole seconds, rounded down.
    pub(super) fn seconds(&self, key: &str) -> Result<Option<i64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wrong = || Error::Damaged(format!("{key} is not a time"));
        let text = std::str::from_utf8(value).map_err(|_| wrong())?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let seconds: i64 = whole.parse().map_err(|_| wrong())?;
        // -1.5 is rounded down to -2.
        let is_before = whole.starts_with('-') && fraction.bytes().any(|byte| byte != b'0');
        Ok(Some(seconds.saturating_sub(i64::from(is_before))))
    }

    /// Returns the extended attributes, as names and values.
    pub(super) fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        const KEY: &[u8] = b"SCHILY.xattr.";
        let from = self.records.range(KEY.to_vec()..);
        from.map_while(|(key, value)| Some((key.strip_prefix(KEY)?, value.as_slice())))
    }

    /// Returns these records with those of a global header as defaults.
    pub(super) fn over(self, global: &Pax) -> Pax {
        let mut records = global.records.clone();
        records.extend(self.records);
        Pax { records, ..self }
    }
}

/// Parses decimal digits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn valid_records_are_parsed_and_invalid_ones_rejected() {
        let mut pax = Pax::default();
        pax.read(b"12 path=a=b\n15 mtime=-1.50\n8 size=\n\0\0")
            .unwrap();
        assert_eq!(pax.get("path"), Some(&b"a=b"[..]));
        assert_eq!(pax.seconds("mtime").unwrap(), Some(-2));
        assert_eq!(pax.number("size").unwrap(), None);
        for bad in [
            &b"12 path=a"[..],
            b"x path=a\n",
            b"99999999999999999999 a=b\n",
            b"3 a=b\n",
            b"0 a=b\n",
            b"6 ab\n\n",
            b"26 GNU.sparse.numbytes=12\n",
        ] {
            assert!(Pax::default().read(bad).is_err(), "{bad:?}");
        }
    }
}
