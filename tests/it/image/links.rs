//! Images with wrong link counts.

use std::fs;
use std::path::Path;

use crate::support::{TestEnv, has};

const SIZE: u64 = 12_345;

/// Sets the link count of the one file of `SIZE` bytes in an image with uncompressed inodes.
fn set_links(image: &Path, from: u32, to: u32) {
    let mut bytes = fs::read(image).unwrap();
    // An extended file inode: the type, after 24 bytes the size, after 8 more bytes (the sparse
    // bytes) the link count.
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
fn file_with_a_wrong_link_count_lives_until_its_last_name_is_removed() {
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

#[test]
fn directory_link_counts_are_corrected() {
    for env in TestEnv::of_all_users() {
        if !has("gensquashfs") || !has("tar2sqfs") {
            return;
        }
        env.sh(
            "mkdir -p tree/a/b/c tree/empty tree/files; touch tree/x tree/a/y tree/files/1 tree/files/2 tree/files/3
             gensquashfs -q -D tree gen.sqfs; tar -cf - -C tree . | tar2sqfs -q tar.sqfs",
        )
        .ok();
        let counts = |at: &str| {
            let script = format!("cd '{at}'; stat -c '%n %h' . a a/b a/b/c empty files");
            env.sh(&script).ok().out
        };
        let wanted = counts(env.work().join("tree").to_str().unwrap());
        // gensquashfs and tar2sqfs write wrong counts.
        let verified = env.envfs(&["image", "verify", "--json", "gen.sqfs"]).ok();
        assert_ne!(
            verified.json()["directory_link_mismatches"],
            0,
            "{verified}"
        );
        for image in ["gen.sqfs", "tar.sqfs"] {
            env.envfs(&["import", "-q", image, "e"]).ok();
            let at = env.mount("e").display().to_string();
            assert_eq!(counts(&at), wanted, "{image}");
            env.sh(&format!("mkdir '{at}/files/new'; touch '{at}/files/4'"))
                .ok();
            let changed = counts(&at);
            assert!(changed.contains("files 3"), "{changed}");
            env.envfs(&["commit", "-q", "e"]).ok();
            assert_eq!(counts(&at), changed, "{image}");
            env.envfs(&["unmount", "-q", "e"]).ok();
            env.envfs(&["remove", "-q", "-y", "e"]).ok();

            let mounted = "mkdir -p at";
            let with = |more: &str| format!("{mounted}; envfs mount --image {image} {more} at");
            let at = env.work().join("at").display().to_string();
            let upper = format!("--upper changes-of-{image}");
            for more in ["-o ro", &upper, "--image gen.sqfs -o ro"] {
                env.sh(&with(more)).ok();
                assert_eq!(counts(&at), wanted, "{image} {more}");
                env.sh("fusermount3 -u at").ok();
            }
        }
    }
}
