//! Owners of files: images of other users, and `fakeroot`.

use std::path::Path;
use std::process::Command;

use crate::support::{TestEnv, has, images, run};

/// An ordinary user with `root.sqfs`, an image whose files belong to root, except `own`, which
/// belongs to the user, and `other`, which belongs to a third user.
fn with_image_of_root() -> Option<TestEnv> {
    let env = TestEnv::as_tester()?;
    if !has("mksquashfs") || !has("unsquashfs") {
        return None;
    }
    env.sh("mkdir tree; for n in own other plain secret; do echo $n >tree/$n; done; chmod 600 tree/secret")
        .ok();
    let (uid, gid) = (env.user().uid(), env.user().gid());
    let mut pack = Command::new("/bin/sh");
    pack.current_dir(env.work()).args([
        "-ec",
        &format!(
            "chown -R 0:0 tree; chown {uid}:{gid} tree/own; chown 4242:4242 tree/other
             mksquashfs tree root.sqfs -no-progress -quiet; chmod 644 root.sqfs"
        ),
    ]);
    run(pack).ok();
    Some(env)
}

/// Lists `path uid/gid` of everything in an image with `unsquashfs`.
fn owners_in(env: &TestEnv, image: &Path) -> Vec<String> {
    let mut list = env.command("unsquashfs");
    list.arg("-lln").arg(image);
    let out = run(list).ok().out;
    let mut found: Vec<String> = out
        .lines()
        .filter(|line| line.contains("squashfs-root"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = words[5].trim_start_matches("squashfs-root");
            format!("{} {}", name.trim_start_matches('/'), words[1])
        })
        .collect();
    found.sort();
    found
}

#[test]
fn commit_keeps_owners_of_an_image_of_another_user() {
    let Some(env) = with_image_of_root() else {
        return;
    };
    let (uid, gid) = (env.user().uid(), env.user().gid());
    env.envfs(&["import", "-q", "root.sqfs", "e"]).ok();
    let at = env.mount("e").display().to_string();
    let owners = format!("cd '{at}'; stat -c '%n %u/%g' . *");
    let seen = format!(
        ". {uid}/{gid}\nother 4242/4242\nown {uid}/{gid}\nplain {uid}/{gid}\nsecret {uid}/{gid}\n"
    );
    assert_eq!(env.sh(&owners).ok().out, seen);
    let expected = |more: &[&str]| {
        let mut all: Vec<String> = ["0/0", "other 4242/4242", "plain 0/0", "secret 0/0"]
            .map(String::from)
            .to_vec();
        all[0] = String::from(" 0/0");
        all.push(format!("own {uid}/{gid}"));
        all.extend(more.iter().map(|line| String::from(*line)));
        all.sort();
        all
    };
    // Changes of content, mode and names; the second commit rewrites the whole image.
    env.sh(&format!(
        "cd '{at}'; echo more >>own; chmod 640 plain; echo new >new; mkdir dir; : >dir/file"
    ))
    .ok();
    for options in [
        &["commit", "-q", "e"][..],
        &["commit", "-q", "--rebuild", "e"],
    ] {
        env.envfs(options).ok();
        assert_eq!(
            owners_in(&env, &images::current(&env, "e")),
            expected(&["dir 0/0", "dir/file 0/0", "new 0/0"]),
            "{options:?}"
        );
        let all = env
            .sh(&format!("cd '{at}'; find . -user {uid} | wc -l"))
            .ok();
        assert_eq!(all.line(), "7", "all but `other` belong to the user");
        env.sh(&format!("touch '{at}/plain'")).ok();
    }
    // Changing the owner of own files to oneself is allowed.
    env.sh(&format!(
        "cd '{at}'; chown {uid}:{gid} plain own; chgrp {gid} new"
    ))
    .ok();
    env.envfs(&["commit", "-q", "e"]).ok();
    env.verify("e");
}

#[test]
fn fakeroot_allows_chown_and_reading_foreign_files() {
    let Some(env) = with_image_of_root() else {
        return;
    };
    let (uid, gid) = (env.user().uid(), env.user().gid());
    env.envfs(&["import", "-q", "root.sqfs", "e"]).ok();
    let at = env.mount("e").display().to_string();
    let refused = env.sh(&format!("chown 4242:4242 '{at}/plain'"));
    assert!(refused.err.contains("not permitted"), "{refused}");
    env.envfs(&["mount", "--fakeroot", "e"])
        .fails(5, &["already", "envfs unmount e"]);
    env.envfs(&["unmount", "e"]).ok();

    env.envfs(&["mount", "--fakeroot", "e"]).ok();
    // Repeating the mount succeeds, also without the option.
    env.envfs(&["mount", "--fakeroot", "e"]).ok();
    env.envfs(&["mount", "e"]).ok();
    let owners = format!("cd '{at}'; stat -c '%n %u/%g %a' . *");
    env.sh(&format!(
        "cd '{at}'; test $(stat -c %u secret) = 0; cat secret; : >new; echo more >>other
         chown 0:0 new; chown 7:8 plain; chmod 0 new; echo written >>new; chown -h 9:9 . ; chgrp 5 own
         test ! -x secret; chmod 711 other; test -x other; ! ./secret 2>/dev/null"
    ))
    .ok();
    let seen = format!(
        ". 9/9 755\nnew 0/0 0\nother 4242/4242 711\nown {uid}/5 644\nplain 7/8 644\nsecret 0/0 600\n"
    );
    assert_eq!(env.sh(&owners).ok().out, seen);
    env.envfs(&["commit", "-q", "e"]).ok();
    assert_eq!(env.sh(&owners).ok().out, seen, "after the commit");
    let kept = owners_in(&env, &images::current(&env, "e"));
    assert!(kept.contains(&String::from("plain 7/8")), "{kept:?}");
    assert!(kept.contains(&String::from(" 9/9")), "{kept:?}");

    // Without fakeroot, files of the image's owner appear as the user's, and no others.
    env.sh(&format!("chown 0:0 '{at}/own'; chown 12 '{at}/plain'"))
        .ok();
    env.envfs(&["unmount", "e"]).ok();
    env.mount("e");
    let seen = format!(
        ". 9/9 755\nnew {uid}/{gid} 0\nother 4242/4242 711\nown {uid}/{gid} 644\nplain 12/8 644\nsecret {uid}/{gid} 600\n"
    );
    assert_eq!(env.sh(&owners).ok().out, seen);
    let refused = env.sh(&format!("echo x >>'{at}/plain'"));
    assert!(refused.err.contains("ermission denied"), "{refused}");
    env.sh(&format!("echo x >>'{at}/own'")).ok();
    env.verify("e");
}

#[test]
fn fakeroot_works_without_a_store() {
    let Some(env) = with_image_of_root() else {
        return;
    };
    env.sh("mkdir at").ok();
    let with = |options: &str| {
        env.envfs(&[
            "mount",
            "--image",
            "root.sqfs",
            "--upper",
            "up",
            "-o",
            options,
            "at",
        ])
    };
    with("fakeroot,allow_other").fails(2, &["cannot be combined"]);
    with("fakeroot").ok();
    let done = env.sh("cd at; chown 3:4 own; stat -c %u:%g own plain; cat secret");
    assert_eq!(done.ok().out, "3:4\n0:0\nsecret\n");
    env.sh("fusermount3 -u at").ok();
    with("rw").ok();
    let (uid, gid) = (env.user().uid(), env.user().gid());
    let done = env.sh("cd at; stat -c %u:%g own plain");
    assert_eq!(done.ok().out, format!("3:4\n{uid}:{gid}\n"));
    env.sh("fusermount3 -u at").ok();
}

#[test]
fn fakeroot_is_refused_for_root() {
    let Some(env) = TestEnv::new() else { return };
    if env.user().uid() != 0 {
        return crate::support::skip_allowed("needs root");
    }
    env.import_sample("e");
    env.envfs(&["mount", "--fakeroot", "e"])
        .fails(2, &["--fakeroot is not for root"]);
}
