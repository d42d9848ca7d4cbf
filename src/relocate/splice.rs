//! Replacements of parts of a file.

use sha2::{Digest, Sha256};

/// A part of a file to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splice {
    /// Where the part begins.
    pub at: usize,
    /// Its length.
    pub len: usize,
    /// What replaces it.
    pub with: Vec<u8>,
}

/// Returns content with its parts replaced. The parts are in order and do not overlap; one that
/// does is left out.
pub fn apply(data: &[u8], splices: &[Splice]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut from = 0;
    for splice in splices {
        let Some(kept) = data.get(from..splice.at) else {
            continue;
        };
        out.extend_from_slice(kept);
        out.extend_from_slice(&splice.with);
        from = splice.at.saturating_add(splice.len);
    }
    out.extend_from_slice(data.get(from..).unwrap_or_default());
    out
}

/// Sorts parts, for [`apply`].
pub(super) fn sort(splices: &mut [Splice]) {
    splices.sort_by_key(|splice| splice.at);
}

/// What a file was and will be, for the files that record it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) before: [u8; 32],
    pub(super) after: [u8; 32],
    pub(super) size_before: usize,
    pub(super) size_after: usize,
}

impl Changed {
    pub(super) fn of(before: &[u8], after: &[u8]) -> Changed {
        Changed {
            before: sha256(before),
            after: sha256(after),
            size_before: before.len(),
            size_after: after.len(),
        }
    }
}

/// Returns the SHA-256 digest.
pub(super) fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// Returns bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns bytes in base64 for URLs without padding, as `RECORD` has them.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..=chunk.len() {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            out.push(char::from(DIGITS.get(index).copied().unwrap_or(b'A')));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_replaced_in_order() {
        let part = |at, len, with: &[u8]| Splice {
            at,
            len,
            with: with.to_vec(),
        };
        let parts = [part(0, 1, b"XX"), part(3, 2, b""), part(6, 0, b"!")];
        assert_eq!(apply(b"abcdef", &parts), b"XXbcf!");
        assert_eq!(apply(b"abc", &[]), b"abc");
    }

    #[test]
    fn digests_are_spelled_as_pip_and_conda_spell_them() {
        let digest = sha256(b"");
        let expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(&digest), expected);
        assert_eq!(
            base64(&digest),
            "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
        );
        assert_eq!((base64(b"a"), base64(b"ab")), ("YQ".into(), "YWI".into()));
    }
}
