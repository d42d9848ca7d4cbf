//! Replies to requests for extended attributes.

use fuser::{Errno, ReplyXattr};

/// Returns the attribute names, each ended by a NUL, without those that only root may see.
pub(super) fn without_trusted(names: &[u8]) -> Vec<u8> {
    let visible = names
        .split_inclusive(|&byte| byte == 0)
        .filter(|name| !name.starts_with(b"trusted."));
    visible.flatten().copied().collect()
}

/// Replies to a request that may query only the size of the value.
pub(super) fn answer_sized(bytes: &[u8], size: u32, reply: ReplyXattr) {
    if size == 0 {
        reply.size(bytes.len() as u32);
    } else if bytes.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(bytes);
    }
}
