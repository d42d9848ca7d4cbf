//! Random trees and random changes with any number of threads: the reader returns what was pushed.

use std::collections::BTreeMap;

use super::readers::*;
use super::support::*;
use crate::squashfs::reader::Image;
use crate::squashfs::writer::*;

const BLOCK: usize = 4096;

/// A small deterministic random number generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    /// Content with lengths around multiples of a block, often repeated, with noise and zeros.
    fn content(&mut self) -> Vec<u8> {
        let blocks = self.below(6) as usize;
        let len = match self.below(4) {
            0 => blocks * BLOCK,
            1 => blocks * BLOCK + 1,
            2 => (blocks * BLOCK + BLOCK - 1).max(1),
            _ => self.below(20_000) as usize,
        };
        let seed = self.below(12);
        let mut bytes = if self.below(4) == 0 {
            noise(seed, len)
        } else {
            text(seed, len)
        };
        if self.below(3) == 0 {
            for block in bytes.chunks_mut(BLOCK) {
                if self.below(2) == 0 {
                    block.fill(0);
                }
            }
        }
        bytes
    }
}

type Files = BTreeMap<String, Vec<u8>>;

fn check(image: &Image, files: &Files, what: &str) {
    let root = inode_at(image, "");
    assert_eq!(image.read_dir(&root).unwrap().len(), files.len(), "{what}");
    for (name, bytes) in files {
        assert!(
            content(image, &inode_at(image, name)) == *bytes,
            "{what}: {name}"
        );
    }
}

#[test]
fn random_images_and_changes_contain_what_was_pushed() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 1..=40u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let compression = CODECS[(seed % 5) as usize];
        let mut files: Files = (0..dice.below(60))
            .map(|i| (format!("f{i:02}"), dice.content()))
            .collect();
        let mut written = Vec::new();
        for threads in [1, 3] {
            let path = dir.path().join(format!("image{threads}"));
            let list: Vec<_> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
            flat(
                &path,
                WriterOptions {
                    compression,
                    ..options(BLOCK as u32, threads)
                },
                &list,
            );
            written.push(std::fs::read(&path).unwrap());
        }
        assert!(written[0] == written[1], "seed {seed}");
        let mut current = open(&dir.path().join("image1"));
        check(&current, &files, &format!("seed {seed}"));
        for round in 0..4 {
            let what = format!("seed {seed}, round {round}");
            let path = dir.path().join(format!("round{}", round % 2));
            let carry = if dice.below(3) == 0 {
                CarryMode::Compact
            } else {
                CarryMode::Append
            };
            let options = AppendOptions {
                carry,
                compression: Some(compression),
                threads: (1 + dice.below(3) as usize).try_into().unwrap(),
                ..AppendOptions::default()
            };
            let mut writer = ImageWriter::append(&path, &current, options).unwrap();
            let root = writer.add_directory(&meta(0o755)).unwrap();
            let mut next = Files::new();
            for (name, bytes) in &files {
                let layout = current.file_layout(&inode_at(&current, name)).unwrap();
                let mut bytes = bytes.clone();
                let node = match dice.below(8) {
                    0 => continue,
                    1 => {
                        bytes = dice.content();
                        writer.add_file(&meta(0o644), bytes.len() as u64, memory(&bytes))
                    }
                    2 | 3 => {
                        // Changes some blocks and perhaps the length. Only changed blocks are
                        // dirty.
                        let mut dirty = Vec::new();
                        for (at, block) in bytes.chunks_mut(BLOCK).enumerate() {
                            if dice.below(4) == 0 {
                                let fresh = text(dice.below(99), block.len());
                                block.copy_from_slice(&fresh);
                                dirty.push(at as u64);
                            }
                        }
                        match dice.below(4) {
                            0 => bytes.truncate(dice.below(20_000) as usize),
                            1 => bytes.extend(text(dice.below(9), dice.below(9000) as usize)),
                            _ => {}
                        }
                        let size = bytes.len() as u64;
                        let mut is_dirty = |block| dirty.contains(&block);
                        let source = memory(&bytes);
                        let meta = meta(0o644);
                        writer.add_partly_carried(&meta, &layout, size, &mut is_dirty, source)
                    }
                    _ => writer.add_carried(&meta(0o644), &layout),
                };
                writer.link(root, name.as_bytes(), node.unwrap()).unwrap();
                next.insert(name.clone(), bytes);
            }
            writer.finish(root).unwrap();
            current = open(&path);
            check(&current, &next, &what);
            files = next;
        }
        if seed % 8 == 0 {
            let last = dir.path().join("round1");
            check_everywhere(&last, &describe_image(&current));
        }
    }
}
