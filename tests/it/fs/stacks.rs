//! Stacks of several images, compared with overlayfs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::direct::{Direct, plain_directory};
use crate::support::overlay::Overlay;
use crate::support::tree::{Look, Tree, assert_same, read};
use crate::support::{TestEnv, has, run};

/// Creates the directories that the images are made from, top first. Their times are old, so that
/// changes are recognized by their times.
fn make_trees(env: &TestEnv) -> [PathBuf; 3] {
    let sources = ["top", "middle", "base"].map(|name| env.work().join(name));
    // Whiteouts and user.* attributes need no privileges; trusted.* ones need root.
    let space = if env.user().is_root() {
        "trusted"
    } else {
        "user"
    };
    let script = format!(
        "umask 022; mkdir top middle base
         cd base; mkdir both only opaque both/sub both/gone-dir twice; echo base >both/base; echo base >both/changed; echo plain >both/plain
         echo deep >both/sub/deep; echo x >both/gone; echo x >both/gone-dir/x; echo x >only/x; ln both/base both/linked
         echo hidden >opaque/hidden; ln both/base opaque/linked; echo file >dir-over-file; mkdir file-over-dir
         echo x >file-over-dir/x; ln -s both link; ln -s both link-over-file; echo 1 >twice/1; echo x >twice/back
         mknod both/reserved c 0 0; setfattr -n user.k -v base both; setfattr -n {space}.overlay.x -v y only/x; mkfifo fifo
         head -c 300000 /dev/urandom >both/large; cd ..
         cd middle; mkdir twice both; echo 2 >twice/2; mknod twice/back c 0 0; echo middle >both/middle; mkdir middle; cd ..
         cd top; mkdir both both/sub opaque dir-over-file twice opaque/new; echo top >both/top; echo top >both/changed
         echo deeper >both/sub/deeper; mknod both/gone c 0 0; mknod both/gone-dir c 0 0; mknod nothing c 0 0
         echo shown >opaque/shown; setfattr -n {space}.overlay.opaque -v y opaque; echo in >dir-over-file/in
         echo file >file-over-dir; rm -f link-over-file; echo file >link-over-file; echo 3 >twice/3; echo again >twice/back
         setfattr -n user.k -v top both; chmod 700 both/sub; mknod middle c 0 0; cd ..
         for d in top middle base; do find $d -depth -exec touch -h -d @1000000000 {{}} +; done"
    );
    env.sh(&script).ok();
    sources
}

const EXPECTED: &str = "both both/base both/changed both/large both/linked both/middle both/plain both/sub both/sub/deep \
    both/sub/deeper both/top dir-over-file dir-over-file/in fifo file-over-dir link link-over-file only only/x \
    opaque opaque/new opaque/shown twice twice/1 twice/2 twice/3 twice/back";

/// Changes of objects of each image, and of directories merged from several.
const CHANGES: &str = "
    echo more >>both/plain; echo more >>both/top; echo more >>both/middle; chmod 600 both/sub/deep; chown 12 both/changed
    mv both/sub/deeper both/deeper; mv both/sub/deep twice/deep; ln only/x only/linked; rm both/changed
    echo again >both/gone; mkdir both/gone-dir middle; echo in >both/gone-dir/in; rm -r opaque; mkdir opaque
    truncate -s 3 link-over-file; printf x | dd of=both/large bs=1 seek=200000 conv=notrunc status=none
    setfattr -n user.new -v v only/x; mv twice moved; echo late >>moved/1; echo late >>moved/2; rm moved/3
    rm -r dir-over-file; echo file >dir-over-file; rm file-over-dir; mkdir file-over-dir; mv both renamed; mkdir both
    echo x >both/sub; rmdir renamed/sub; mkdir renamed/sub; mv -T link link2; touch -d @1000000500 renamed/top";

fn change(dir: &Path) {
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", CHANGES]).current_dir(dir);
    run(command).ok();
}

/// Reads a tree without what differs between two file systems: inode numbers and times of changes.
fn comparable(dir: &Path) -> Tree {
    let mut tree = read(dir);
    for entry in tree.values_mut() {
        entry.same_as = PathBuf::new();
        if entry.mtime > 1_600_000_000 {
            entry.mtime = 0;
        }
    }
    tree
}

/// Lists path, inode number, type, mode, links, time and target of everything, and checksums of the
/// content.
fn listing(env: &TestEnv, at: &Path) -> String {
    let script = format!(
        "cd '{}'; find . -mindepth 1 -printf '%P %i %y %m %n %T@ %l\\n' | sort
         find . -type f -print0 | sort -z | xargs -0 sha256sum",
        at.display()
    );
    env.sh(&script).ok().out
}

/// Returns all paths with their inode numbers.
fn names(env: &TestEnv, at: &Path) -> Vec<(String, u64)> {
    let script = format!(
        "cd '{}'; find . -mindepth 1 -printf '%P %i\\n' | sort",
        at.display()
    );
    let said = env.sh(&script).ok().out;
    let words = said.lines().filter_map(|line| line.rsplit_once(' '));
    words
        .map(|(path, ino)| (path.to_owned(), ino.parse().unwrap()))
        .collect()
}

fn stacked(env: TestEnv) -> Option<Direct> {
    if !has("setfattr") {
        return None;
    }
    let sources = make_trees(&env);
    Direct::of_several(env, &[&sources[0], &sources[1], &sources[2]], "")
}

#[test]
fn stacked_images_match_overlayfs() {
    let Some(env) = TestEnv::new() else { return };
    let Some(plain) = plain_directory(&env) else {
        return;
    };
    let Some(direct) = stacked(env) else { return };
    let changes = plain.join("changes");
    let Some(overlay) = Overlay::mount(&direct.env, &direct.images(), &changes, "") else {
        return;
    };
    let same = |what: &str| {
        let (ours, mut theirs) = (comparable(&direct.at()), comparable(overlay.at()));
        // Two of three names are visible; overlayfs counts the hidden one until it copies the file
        // up.
        for path in ["both/base", "both/linked"] {
            if let Some(ours) = ours.get(Path::new(path))
                && let Some(theirs) = theirs.get_mut(Path::new(path))
            {
                assert_eq!(theirs.nlink, ours.nlink + 1, "{path}");
                theirs.nlink = ours.nlink;
            }
        }
        // The root of overlayfs has the attributes of its upper directory.
        let look = Look {
            root: false,
            ..Look::ALL
        };
        assert_same(&ours, &theirs, look, what);
    };
    same("as mounted");
    change(&direct.at());
    change(overlay.at());
    same("changed");
    direct.remount();
    overlay.remount();
    same("after a remount");
    direct.kill();
    direct.mount();
    same("after a kill");
}

#[test]
fn stacked_images_keep_changes() {
    for env in TestEnv::of_all_users() {
        let Some(direct) = stacked(env) else { return };
        let (env, at) = (&direct.env, direct.at());
        let before: BTreeMap<String, u64> = names(env, &at).into_iter().collect();
        let expected: Vec<&str> = EXPECTED.split_whitespace().collect();
        assert_eq!(before.keys().collect::<Vec<_>>(), expected);
        let seen = env.sh(&format!(
            "cd '{}'; cat both/changed both/sub/deep twice/back opaque/shown; stat -c '%a %h' both both/sub opaque . both/base
             getfattr --absolute-names -d -m - opaque both only/x",
            at.display()
        ));
        let seen = seen.ok().out;
        assert_eq!(
            seen,
            "top\ndeep\nagain\nshown\n755 3\n700 2\n755 3\n755 7\n644 2\n\
             # file: both\nuser.k=\"top\"\n\n"
        );
        // An ordinary user cannot change owners.
        let changes = CHANGES.replace("chown 12 both/changed", "true");
        let script = format!("cd '{}'; {changes}", at.display());
        env.sh(&script).ok();
        let seen = listing(env, &at);
        let after: BTreeMap<String, u64> = names(env, &at).into_iter().collect();
        let moved = "both renamed both/base renamed/base both/middle renamed/middle both/top renamed/top \
                     twice/1 moved/1 both/sub/deep moved/deep both/plain renamed/plain";
        let moved: Vec<&str> = moved.split_whitespace().collect();
        for pair in moved.chunks(2) {
            assert_eq!(
                before[pair[0]], after[pair[1]],
                "{} is {}",
                pair[0], pair[1]
            );
        }
        direct.remount();
        assert_eq!(listing(env, &at), seen, "after a remount");
        direct.kill();
        direct.mount();
        assert_eq!(listing(env, &at), seen, "after a kill");
        // Removes entries of all three images and of the upper.
        env.sh(&format!(
            "cd '{}'; rm -rf -- *; test -z \"$(ls -A)\"; mkdir both; test -z \"$(ls -A both)\"",
            at.display()
        ))
        .ok();
        direct.remount();
        assert_eq!(names(env, &at).len(), 1);
    }
}

#[test]
fn stacked_images_in_another_order_are_refused() {
    let Some(env) = TestEnv::new() else { return };
    let Some(direct) = stacked(env) else { return };
    direct.unmount();
    let (env, images) = (&direct.env, direct.images());
    let mount = |images: &[&PathBuf], options: &str| {
        let mut command = env.envfs_command(&["mount"]);
        for image in images {
            command.arg("--image").arg(image);
        }
        command.arg("--upper").arg(direct.upper()).arg(direct.at());
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        run(command)
    };
    mount(&[&images[0], &images[2], &images[1]], "").fails(4, &["another image", " over "]);
    mount(&[&images[0]], "").fails(4, &["another image"]);
    // The order is given by overlayfs's option lowerdir, too.
    let list: Vec<String> = images
        .iter()
        .map(|image| image.display().to_string())
        .collect();
    mount(&[], &format!("lowerdir={}", list.join(":"))).ok();
    assert_eq!(
        names(env, &direct.at()).len(),
        EXPECTED.split_whitespace().count()
    );
    direct.unmount();
    // A read-only mount keeps no state.
    let mut command = env.envfs_command(&["mount", "-o", "ro"]);
    for image in &images {
        command.arg("--image").arg(image);
    }
    command.arg(direct.at());
    run(command).ok();
    assert_eq!(
        names(env, &direct.at()).len(),
        EXPECTED.split_whitespace().count()
    );
}

#[test]
fn metacopy_and_redirect_are_refused() {
    let Some(env) = TestEnv::new() else { return };
    if !has("setfattr") {
        return;
    }
    let (top, base) = (env.work().join("top"), env.work().join("base"));
    env.write(&base.join("dir/file"), "content");
    env.write(&base.join("copied"), "content");
    env.write(&top.join("copied"), "");
    env.write(&top.join("elsewhere/x"), "");
    env.sh("setfattr -n user.overlay.metacopy top/copied; truncate -s 7 top/copied")
        .ok();
    let Some(direct) = Direct::of_several(env, &[&top, &base], "") else {
        return;
    };
    let (env, at) = (&direct.env, direct.at());
    // The content is not read as zeros.
    env.sh(&format!("cat '{}/copied'", at.display()))
        .fails(1, &["Operation not permitted"]);
    env.sh(&format!(
        "cd '{}'; rm copied; echo x >copied; cat dir/file",
        at.display()
    ))
    .ok();
    direct.unmount();
    env.sh("setfattr -n user.overlay.redirect -v dir top/elsewhere")
        .ok();
    let other = env.work().join("other.sqfs");
    let mut pack = Command::new("mksquashfs");
    pack.arg(&top)
        .arg(&other)
        .args(["-noappend", "-no-progress", "-quiet"]);
    run(pack).ok();
    let mut command = env.envfs_command(&["mount", "-o", "ro", "--image"]);
    command
        .arg(&other)
        .arg("--image")
        .arg(&direct.images()[1])
        .arg(&at);
    run(command).fails(6, &["overlay.redirect", "elsewhere"]);
}

#[test]
fn owner_of_each_image_maps_to_the_user() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    if !has("mksquashfs") {
        return;
    }
    env.sh("mkdir top base at; echo top >top/top; echo base >base/base; echo x >base/both; echo x >top/both")
        .ok();
    for (name, owner) in [("top", "4242"), ("base", "0")] {
        let mut pack = env.command("mksquashfs");
        pack.args([name, &format!("{name}.sqfs"), "-no-progress", "-quiet"])
            .args(["-force-uid", owner, "-force-gid", owner]);
        run(pack).ok();
    }
    env.envfs(&[
        "mount",
        "--image",
        "top.sqfs",
        "--image",
        "base.sqfs",
        "--upper",
        "up",
        "at",
    ])
    .ok();
    let seen = env
        .sh("cd at; stat -c %u . top base both; echo more >>base; echo more >>top; cat base top");
    let uid = env.user().uid();
    assert_eq!(
        seen.ok().out,
        format!("{uid}\n{uid}\n{uid}\n{uid}\nbase\nmore\ntop\nmore\n")
    );
    env.sh("fusermount3 -u at").ok();
}
