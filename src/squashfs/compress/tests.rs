use super::*;

const ALL: [&str; 4] = ["gzip:9", "xz:6", "zstd:3", "lz4"];

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn round_trip() {
    for name in ALL {
        let compression: Compression = name.parse().unwrap();
        let mut compressor = compressor(&compression, 131_072).unwrap().unwrap();
        let mut decompressor = decompressor(compression.id()).unwrap();
        let mut stored = Vec::new();
        for len in [1, 2, 3, 100, 4096, 8192, 131_072] {
            let text: Vec<u8> = b"def f(x): return x + 1\n"
                .iter()
                .copied()
                .cycle()
                .take(len)
                .collect();
            if !compressor.compress(&text, &mut stored).unwrap() {
                assert!(len < 64, "{name}: {len} bytes of text were not compressed");
                continue;
            }
            assert!(stored.len() < len);
            let mut out = vec![0; 131_072];
            let found = decompressor.decompress(&stored, &mut out).unwrap();
            assert_eq!(&out[..found], text, "{name}: {len}");
            if len > 1 {
                let short = decompressor.decompress(&stored, &mut out[..len - 1]);
                assert!(
                    short.is_err(),
                    "{name}: {len} bytes in a buffer of one less"
                );
            }
            let found = decompressor.decompress(&stored, &mut out[..len]).unwrap();
            assert_eq!(found, len, "{name}: after a failure, into an exact buffer");
        }
    }
}

#[test]
fn noise_is_not_compressed() {
    for name in ALL {
        let mut compressor = compressor(&name.parse().unwrap(), 131_072)
            .unwrap()
            .unwrap();
        let mut out = Vec::new();
        for len in [1, 17, 8192, 131_072] {
            assert!(
                !compressor.compress(&noise(len), &mut out).unwrap(),
                "{name}: {len}"
            );
        }
        assert!(
            compressor.compress(&[7; 5000], &mut out).unwrap(),
            "{name}: usable afterwards"
        );
    }
}

#[test]
fn damaged_blocks_are_errors_or_bounded() {
    for name in ALL {
        let compression: Compression = name.parse().unwrap();
        let mut stored = Vec::new();
        let text: Vec<u8> = (0..4000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        assert!(
            compressor(&compression, 131_072)
                .unwrap()
                .unwrap()
                .compress(&text, &mut stored)
                .unwrap()
        );
        let mut decompressor = decompressor(compression.id()).unwrap();
        let mut out = vec![0; 16_384];
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            bad[at] ^= 0x55;
            if let Ok(len) = decompressor.decompress(&bad, &mut out) {
                assert!(len <= out.len());
            }
            assert!(
                decompressor
                    .decompress(&stored[..at], &mut out)
                    .map_or(true, |n| n < text.len()),
                "{name}: cut at {at}"
            );
        }
        assert_eq!(
            decompressor.decompress(&stored, &mut out).unwrap(),
            text.len()
        );
    }
}

#[test]
fn names() {
    for name in ["none", "lz4", "gzip:1", "gzip:12", "xz:0", "zstd:22"] {
        assert_eq!(name.parse::<Compression>().unwrap().to_string(), name);
    }
    assert_eq!(
        "zstd".parse::<Compression>().unwrap(),
        Compression::default()
    );
    for bad in [
        "", "zstd:0", "zstd:23", "xz:10", "gzip:0", "none:1", "lz4:1", "lzo", "zstd:", "zstd:-1",
    ] {
        assert!(bad.parse::<Compression>().is_err(), "{bad}");
    }
    let levels: Vec<String> = (0..=9)
        .map(|l| Compression::from_conda_pack_level(l).unwrap().to_string())
        .collect();
    assert_eq!(
        levels,
        [
            "none", "zstd:2", "zstd:5", "zstd:7", "zstd:10", "zstd:12", "zstd:15", "zstd:17",
            "zstd:20", "xz:6"
        ]
    );
    assert_eq!(Compression::from_conda_pack_level(10), None);
}

/// "hello, lzo world!", compressed by the reference library.
const LZO: [u8; 21] = [
    34, 104, 101, 108, 108, 111, 44, 32, 108, 122, 111, 32, 119, 111, 114, 108, 100, 33, 17, 0, 0,
];

#[test]
fn read_only_codecs_decompress_and_are_bounded() {
    let mut lzma = Vec::new();
    let text: Vec<u8> = (0..4000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
    let mut encoder = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    lzma.reserve(8192);
    encoder
        .process_vec(&text, &mut lzma, liblzma::stream::Action::Finish)
        .unwrap();
    let samples = [
        (
            CompressorId::Lzo,
            LZO.to_vec(),
            b"hello, lzo world!".to_vec(),
        ),
        (CompressorId::Lzma, lzma, text),
    ];
    for (id, stored, text) in samples {
        assert_eq!(Compression::for_id(id), None);
        let mut decompressor = decompressor(id).unwrap();
        let mut out = vec![0; text.len()];
        assert_eq!(
            decompressor.decompress(&stored, &mut out).unwrap(),
            text.len()
        );
        assert!(out == text, "{id}");
        for room in [0, 1, text.len() - 1] {
            assert!(
                decompressor.decompress(&stored, &mut out[..room]).is_err(),
                "{id}"
            );
        }
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            for bits in [0x01, 0x55, 0x80, 0xff] {
                bad[at] = stored[at] ^ bits;
                if let Ok(len) = decompressor.decompress(&bad, &mut out) {
                    assert!(len <= out.len());
                }
            }
            let cut = decompressor.decompress(&stored[..at], &mut out);
            assert!(cut.is_err(), "{id}: cut at {at}");
        }
    }
}

#[test]
fn zstd_frames_fit_the_kernel() {
    // Level 19 would take an 8 MiB window by itself. A frame of known size in a single segment
    // says so in its descriptor: bit 5, and a content size field.
    let mut compressor = compressor(&Compression::Zstd { level: 19 }, 131_072)
        .unwrap()
        .unwrap();
    let mut out = Vec::new();
    assert!(compressor.compress(&[1; 131_072], &mut out).unwrap());
    let descriptor = out[4];
    assert!(
        descriptor & 0x20 != 0,
        "single segment: no window beyond the content"
    );
    assert_eq!(descriptor & 0x04, 0, "no checksum");
}
