//! Images whose inodes say less links than they have names.

use std::fs;
use std::path::Path;

use crate::support::{TestEnv, has};

const SIZE: u64 = 12_345;

/// Sets the link count of the one file of `SIZE` bytes in an image with uncompressed inodes.
fn set_links(image: &Path, from: u32, to: u32) {
    let mut bytes = fs::read(image).unwrap();
    // An extended file: type, and 24 bytes on, behind mode, owner, time, number and start, its size;
    // then the bytes of holes, and the links.
    let at = (0..bytes.len() - 56).find(|&at| {
        bytes[at..].starts_with(&9u16.to_le_bytes())
            && bytes[at + 24..].starts_with(&SIZE.to_le_bytes())
            && bytes[at + 40..].starts_with(&from.to_le_bytes())
    });
    let at = at.unwrap() + 40;
    bytes[at..at + 4].copy_from_slice(&to.to_le_bytes());
    fs::write(image, bytes).unwrap();
}

#[test]
fn a_file_with_more_names_than_its_image_says_lives_until_the_last_is_removed() {
    for env in TestEnv::of_all_users() {
        if !has("mksquashfs") {
            return;
        }
        env.sh("mkdir tree; head -c 12345 /dev/zero | tr '\\0' a >tree/a; ln tree/a tree/b; ln tree/a tree/c; mksquashfs tree wrong.sqfs -noI -no-progress -quiet")
            .ok();
        let image = env.work().join("wrong.sqfs");
        set_links(&image, 3, 1);
        env.envfs(&["import", "-q", "wrong.sqfs", "e"]).ok();
        let at = env.mount("e").display().to_string();
        let changed = "a new content";
        env.sh(&format!(
            "cd '{at}'; test $(stat -c %h a) = 3; echo {changed} >b; rm a; test $(stat -c %h b) = 2; test \"$(cat c)\" = '{changed}'; rm c"
        ))
        .ok();
        env.envfs(&["unmount", "e"]).ok();
        env.mount("e");
        let seen = env.sh(&format!("cd '{at}'; ls; cat b; stat -c %h b"));
        assert_eq!(seen.ok().out, format!("b\n{changed}\n1\n"));
        env.envfs(&["commit", "-q", "e"]).ok();
        env.envfs(&["rollback", "-q", "-y", "e", "1"]).ok();
        let seen = env.sh(&format!("cd '{at}'; ls; stat -c %h a b"));
        assert_eq!(seen.ok().out, "a\nb\nc\n3\n3\n");
        env.verify("e");
    }
}
