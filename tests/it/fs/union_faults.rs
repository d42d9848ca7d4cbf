//! Known faults of other union file systems. Most are covered by the checks in `posix`; these need
//! a script, or a remount in between.

use std::fs;

use super::direct::Direct;
use crate::support::{TestEnv, has, mounts_below, samples};

/// Runs a script in the mount of a small image and another one after a remount, for each user.
fn in_mounts(script: &str, after_remount: &str) {
    for env in TestEnv::of_all_users() {
        let source = env.work().join("source");
        samples::small(&env, &source);
        let Some(direct) = Direct::of(env, &source, "") else {
            return;
        };
        let at = direct.at();
        let head = format!(
            "cd '{0}'; P='{0}'; U='{1}'",
            at.display(),
            direct.upper().display()
        );
        direct.env.sh(&format!("{head}; {script}")).ok();
        direct.remount();
        direct.env.sh(&format!("{head}; {after_remount}")).ok();
        assert_eq!(mounts_below(&at).len(), 1);
    }
}

#[test]
fn image_without_xattrs_can_be_changed() {
    in_mounts(
        "! getfattr -n system.posix_acl_access lib/c.txt 2>err || exit 1; rm err
         echo x >>lib/c.txt; cp -a lib/c.txt lib/d.txt; cp -a lib copy; mv lib/a.txt copy/
         setfattr -n user.k -v v lib/c.txt; getfattr -n user.k lib/c.txt; ls -l lib >/dev/null",
        "test \"$(tail -n1 lib/d.txt)\" = x; getfattr -n user.k lib/c.txt",
    );
}

#[test]
fn absolute_symlinks_into_the_mount_do_not_deadlock() {
    in_mounts(
        "ln -s \"$P/lib/c.txt\" absolute; ln -s \"$P\" whole; ln -s \"$P/fifo\" to-fifo; mkfifo fifo
         ! setfattr -h -n user.k -v v absolute 2>/dev/null || exit 1; setfattr -n user.k -v v absolute
         touch -h absolute whole to-fifo; chown -h $(id -u) absolute to-fifo; ln absolute absolute2; mv whole w
         getfattr -n user.k lib/c.txt; rm to-fifo fifo; ls -lR . >/dev/null",
        "test \"$(readlink absolute2)\" = \"$P/lib/c.txt\"; test -e w/lib
         ! getfattr -h -n user.k absolute 2>/dev/null || exit 1",
    );
}

#[test]
fn hard_link_to_an_image_file_is_the_same_file() {
    in_mounts(
        "i=$(stat -c %i lib/c.txt); ln lib/c.txt lib/n.txt; test $(stat -c %i lib/c.txt) = $i
         test $(stat -c %i lib/n.txt) = $i; test $(stat -c %h lib/c.txt) = 2; echo x >>lib/n.txt; cmp lib/n.txt lib/c.txt
         echo $i >number",
        "test $(stat -c %i lib/n.txt) = $(cat number); test $(stat -c %h lib/n.txt) = 2",
    );
}

#[test]
fn hard_links_of_the_image_stay_linked_after_a_write() {
    in_mounts(
        "echo x >>lib/a.txt; cmp lib/a.txt lib/b.txt; test $(stat -c %h lib/b.txt) = 2
         test $(stat -c %i lib/a.txt) = $(stat -c %i lib/b.txt)",
        "cmp lib/a.txt lib/b.txt; test $(stat -c %h lib/b.txt) = 2; echo y >>lib/b.txt; cmp lib/a.txt lib/b.txt",
    );
}

#[test]
fn directory_renames_copy_nothing_up() {
    if !has("python3") {
        return;
    }
    in_mounts(
        "mv -T lib/deep moved; python3 -c 'import os; os.rename(\"moved\", \"lib/deep2\"); os.rename(\"lib\", \"~ib\")'
         test -s ~ib/deep2/er/file; test ! -e lib; test -z \"$(find \"$U\"/layers/*/upper -type f)\"
         mkdir lib; test -z \"$(ls -A lib)\"; mv -T ~ib lib/inner; mv lib/inner/a.txt lib/inner/deep2/",
        "test -s lib/inner/deep2/er/file; test -s lib/inner/deep2/a.txt; test $(ls lib | wc -l) = 1; test ! -e ~ib",
    );
}

#[test]
fn descriptors_from_before_and_after_a_copy_up_see_the_same_content() {
    in_mounts(
        "exec 3<lib/c.txt; echo new >lib/c.txt; exec 4<lib/c.txt 5<>lib/c.txt
         read -r line <&3; test \"$line\" = new; read -r line <&4; test \"$line\" = new; echo five >&5; test \"$(cat lib/c.txt)\" = five",
        "test \"$(cat lib/c.txt)\" = five",
    );
}

#[test]
fn tools_copy_where_links_across_the_mount_fail() {
    in_mounts(
        "mkdir \"$U/../cache\"; echo c >\"$U/../cache/f\"; ! ln \"$U/../cache/f\" f 2>err || exit 1
         grep -q 'Invalid cross-device link' err; cp -l \"$U/../cache/f\" f 2>/dev/null || cp \"$U/../cache/f\" f; mv \"$U/../cache\" moved",
        "test $(cat f) = c; test $(cat moved/f) = c",
    );
}

#[test]
fn reflink_copies_fall_back_or_fail() {
    in_mounts(
        "cp --reflink=auto lib/deep/er/file copy; cmp copy lib/deep/er/file; cp --reflink=auto copy copy2
         ! cp --reflink=always copy copy3 2>/dev/null || exit 1",
        "cmp copy2 lib/deep/er/file",
    );
}

#[test]
fn removed_entries_do_not_reappear() {
    in_mounts(
        "rm lib/deep/x lib/deep/er/file; rmdir lib/deep/er lib/deep; rm -rf lib; mkdir lib; test -z \"$(ls -A lib)\"
         mkdir lib/deep; test -z \"$(ls -A lib/deep)\"; echo n >lib/a.txt; rm lib/a.txt; rm -r bin; echo file >bin; rm bin; mkdir bin",
        "test \"$(ls -A lib)\" = deep; test -z \"$(ls -A lib/deep)\"; test -z \"$(ls -A bin)\"; rmdir lib/deep lib bin; test -z \"$(ls -A)\"",
    );
}

#[test]
fn times_are_clamped_to_the_range_of_an_image() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let at = env.mount("e");
    let cases = [
        ("1500000000.7", "1500000000"),
        ("-5", "0"),
        ("5000000000", "4294967295"),
    ];
    for (number, (time, _)) in cases.iter().enumerate() {
        env.sh(&format!(
            "cd '{}'; echo {number} >f{number}; touch -d @{time} f{number}",
            at.display()
        ))
        .ok();
    }
    env.envfs(&["commit", "-q", "e"]).ok();
    for (number, (_, kept)) in cases.iter().enumerate() {
        let seen = env
            .sh(&format!("stat -c %Y.%y '{}/f{number}'", at.display()))
            .ok();
        assert!(seen.line().starts_with(&format!("{kept}.")), "{seen}");
        assert!(seen.line().contains(".000000000 "), "{seen}");
    }
    // Further commits do not change the time of an unchanged file.
    fs::write(at.join("other"), "x").unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    assert_eq!(
        env.sh(&format!("stat -c %Y '{}/f2'", at.display()))
            .ok()
            .line(),
        "4294967295"
    );
}
