//! The number of a decompressor, then a compressed block.

use envfs::squashfs::compress::{CompressorId, decompressor};

/// Runs the target.
pub fn run(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let codecs = [
        CompressorId::Gzip,
        CompressorId::Xz,
        CompressorId::Lz4,
        CompressorId::Zstd,
        CompressorId::Lzo,
        CompressorId::Lzma,
    ];
    let mut codec = decompressor(codecs[usize::from(first) % codecs.len()]).unwrap();
    for room in [0, 100, 8192, 131_072] {
        let mut out = vec![0; room];
        if let Ok(len) = codec.decompress(rest, &mut out) {
            assert!(len <= room);
        }
    }
}
