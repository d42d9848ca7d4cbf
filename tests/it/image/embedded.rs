//! Images inside other files.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::{TestEnv, has};

/// An ELF file like the runtime of an AppImage, with section headers at its end.
fn elf(is_64: bool, is_big: bool) -> Vec<u8> {
    let len: usize = 5000;
    let mut bytes = vec![0x90; len];
    bytes[..4].copy_from_slice(b"\x7fELF");
    bytes[4] = 1 + u8::from(is_64);
    bytes[5] = 1 + u8::from(is_big);
    bytes[8..11].copy_from_slice(b"AI\x02");
    let (size, count): (usize, usize) = if is_64 { (64, 5) } else { (40, 5) };
    let mut put = |at: usize, width: usize, value: usize| {
        let value = (value as u64).to_le_bytes();
        let to = &mut bytes[at..at + width];
        to.copy_from_slice(&value[..width]);
        if is_big {
            to.reverse();
        }
    };
    let at = if is_64 {
        (40, 8, 58, 60)
    } else {
        (32, 4, 46, 48)
    };
    put(at.0, at.1, len - size * count);
    put(at.2, 2, size);
    put(at.3, 2, count);
    bytes
}

/// One object of a container: its type and, for a partition, its file system and kind.
struct Part<'a> {
    kind: u32,
    is_used: bool,
    fs: u32,
    part: u32,
    data: &'a [u8],
}

/// A SIF container: a header of 128 bytes, descriptors of 585 bytes, then the objects.
fn sif(parts: &[Part<'_>]) -> Vec<u8> {
    let (table, data_at) = (4096u64, 32768u64);
    let mut bytes = b"#!/usr/bin/env run-singularity\n".to_vec();
    bytes.resize(32, 0);
    bytes.extend(b"SIF_MAGIC\x0001\x0002\0");
    bytes.extend([7; 16]);
    let total: usize = parts.iter().map(|part| part.data.len()).sum();
    for number in [
        1,
        1,
        48 - parts.len() as u64,
        48,
        table,
        48 * 585,
        data_at,
        total as u64,
    ] {
        bytes.extend(number.to_le_bytes());
    }
    assert_eq!(bytes.len(), 128);
    bytes.resize(table as usize, 0);
    let mut at = data_at;
    for (index, part) in parts.iter().enumerate() {
        let start = bytes.len();
        bytes.extend(part.kind.to_le_bytes());
        bytes.push(u8::from(part.is_used));
        for number in [index as u32 + 1, 0xf000_0001, 0] {
            bytes.extend(number.to_le_bytes());
        }
        let len = part.data.len() as u64;
        for number in [at, len, len, 1, 1, 0, 0] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.resize(start + 201, 0);
        bytes.extend(part.fs.to_le_bytes());
        bytes.extend(part.part.to_le_bytes());
        bytes.extend(b"02\0");
        bytes.resize(start + 585, 0);
        at += len;
    }
    bytes.resize(data_at as usize, 0);
    parts.iter().for_each(|part| bytes.extend(part.data));
    bytes
}

#[test]
fn images_in_appimages_and_sif_containers_are_found() {
    for env in TestEnv::of_all_users() {
        if !has("mksquashfs") {
            return;
        }
        env.sh(
            "mkdir -p tree/sub other; echo hello >tree/sub/file; head -c 300000 /dev/urandom >tree/large
             echo other >other/other
             mksquashfs tree tree.sqfs -quiet -no-progress; mksquashfs other other.sqfs -quiet -no-progress",
        )
        .ok();
        let read = |name: &str| fs::read(env.work().join(name)).unwrap();
        let (tree, other, large) = (read("tree.sqfs"), read("other.sqfs"), read("tree/large"));
        let definition = Part {
            kind: 0x4001,
            is_used: true,
            fs: 0,
            part: 0,
            data: b"Bootstrap: docker\n",
        };
        let part = |is_used, fs, part, data| Part {
            kind: 0x4004,
            is_used,
            fs,
            part,
            data,
        };
        let behind = |bytes: Vec<u8>| [&bytes[..], &tree].concat();
        let primary = [
            definition,
            part(true, 1, 4, &other),
            part(false, 1, 2, &other),
            part(true, 2, 2, &other),
            part(true, 1, 2, &tree),
        ];
        let files = [
            ("little64", behind(elf(true, false)), None),
            ("big64", behind(elf(true, true)), None),
            ("little32", behind(elf(false, false)), None),
            ("big32", behind(elf(false, true)), None),
            ("sif", sif(&primary), None),
            ("sif-data", sif(&[part(true, 1, 3, &tree)]), None),
            ("unknown", behind(vec![1; 1234]), Some("1234")),
        ];
        for (name, bytes, offset) in files {
            let file = env.work().join(name);
            fs::write(&file, &bytes).unwrap();
            let offset = offset.map_or(String::new(), |at| format!("--offset {at}"));
            let listed = env.sh(&format!("envfs image ls -R {offset} {name}")).ok();
            assert!(listed.out.contains("sub/file"), "{listed}");
            let found = env
                .sh(&format!("envfs image info --json {offset} {name}"))
                .ok();
            let at = bytes.windows(tree.len()).position(|part| part == tree);
            assert_eq!(found.json()["offset"], at.unwrap(), "{name}");
            env.sh(&format!("envfs image verify -q {offset} {name}; test \"$(envfs image cat {offset} {name} sub/file)\" = hello"))
                .ok();
            check_import_and_mount(&env, name, &offset, &large);
            if !offset.is_empty() {
                env.envfs(&["image", "ls", name])
                    .fails(6, &["not a SquashFS image"]);
                let refused = env.envfs(&["import", name, "no"]);
                assert!(refused.err.contains("--offset"), "{refused}");
            }
        }
        // Files without an image.
        for (name, bytes) in [
            ("no-image", elf(true, false)),
            ("no-partition", sif(&[part(true, 2, 2, &tree)])),
            ("far", {
                let mut bytes = sif(&[part(true, 1, 2, &tree)]);
                bytes[4096 + 17..4096 + 25].copy_from_slice(&u64::MAX.to_le_bytes());
                bytes
            }),
        ] {
            fs::write(env.work().join(name), bytes).unwrap();
            env.envfs(&["image", "info", name])
                .fails(6, &["not a SquashFS image"]);
        }
    }
}

/// Imports an image and commits a change; mounts it without a store and changes it.
fn check_import_and_mount(env: &TestEnv, name: &str, offset: &str, large: &[u8]) {
    env.sh(&format!("envfs import -q {offset} {name} e")).ok();
    let at = env.mount("e").display().to_string();
    env.sh(&format!("cmp '{at}/large' tree/large; echo new >'{at}/new'; envfs commit -q e; envfs verify -q e; envfs unmount -q e; envfs remove -q -y e"))
        .ok();
    let script = format!(
        "mkdir -p at; envfs mount {offset} --image {name} --upper changes-{name} at
         cmp at/large tree/large; cat at/sub/file; test -e at/new && cat at/new || echo new >at/new; fusermount3 -u at"
    );
    assert_eq!(env.sh(&script).ok().out, "hello\n");
    assert_eq!(env.sh(&script).ok().out, "hello\nnew\n");
    assert_eq!(
        fs::read(Path::new(&env.work()).join("tree/large")).unwrap(),
        large
    );
}
