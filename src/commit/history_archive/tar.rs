//! The headers of the tar archive. Each name and size has one form, and the members of an archive
//! have a fixed order. A reader compares each header with the bytes it expects; it needs no parser.

/// Bytes of a header, and the unit to which content is padded.
pub(super) const BLOCK: u64 = 512;
/// The two empty blocks at the end.
pub(super) const END: u64 = 2 * BLOCK;

/// Returns the header of a regular file. The name has at most 100 bytes.
pub(super) fn header(name: &str, size: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = block.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    match size < 1 << 33 {
        true => put(124, format!("{size:011o}\0").as_bytes()),
        // The binary form, for 8 GiB and more, which all current programs read.
        false => {
            put(124, &[0x80, 0, 0, 0]);
            put(128, &size.to_be_bytes());
        }
    }
    put(136, b"00000000000\0");
    // A regular file, POSIX. The checksum is that of a header with spaces in its place.
    put(148, b"        0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = block.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    block
}

/// Returns the size in a header that [`header`] made for this name.
pub(super) fn size_in(block: &[u8; BLOCK as usize], name: &str) -> Option<u64> {
    let field: [u8; 12] = block.get(124..136)?.try_into().ok()?;
    let size = match field {
        [0x80, 0, 0, 0, rest @ ..] => u64::from_be_bytes(rest),
        [digits @ .., 0] => u64::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?,
        _ => return None,
    };
    (header(name, size) == *block).then_some(size)
}

/// Returns whether a block may be the header of a file with this name.
pub(super) fn is_named(block: &[u8], name: &str) -> bool {
    let field = block.get(..name.len() + 1);
    let is_name = field.is_some_and(|field| field.starts_with(name.as_bytes()));
    is_name
        && field.is_some_and(|field| field.ends_with(&[0]))
        && block.get(257..262) == Some(b"ustar")
}

/// Returns the bytes that a member takes in the archive, with its header and padding.
pub(super) fn member(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(BLOCK)?.checked_add(BLOCK)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_one_form_and_other_programs_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let mut archive = header("envfs-history.json", 5).to_vec();
        archive.extend(b"12345");
        archive.resize(1024 + END as usize, 0);
        std::fs::write(&path, archive).unwrap();
        let listed = std::process::Command::new("tar")
            .arg("-tvf")
            .arg(&path)
            .output();
        // Without tar there is nothing to compare with.
        if let Ok(listed) = listed {
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(
                text.contains("-rw-r--r--") && text.contains("envfs-history.json"),
                "{text}"
            );
        }
        for size in [0, 5, (1 << 33) - 1, 1 << 33, u64::MAX] {
            let block = header("a/b", size);
            assert_eq!(size_in(&block, "a/b"), Some(size));
            assert_eq!(size_in(&block, "a/c"), None);
            assert!(is_named(&block, "a/b") && !is_named(&block, "a/"));
            for at in 0..512 {
                let mut other = block;
                other[at] ^= 1;
                assert!(size_in(&other, "a/b") != Some(size), "byte {at}");
            }
        }
    }
}
