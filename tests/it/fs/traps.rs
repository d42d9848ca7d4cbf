//! Traps into which other union file systems fall, each by its number in our notes and by what goes
//! wrong there.

use std::fs;
use std::path::Path;

use super::direct::Direct;
use super::points::check;
use crate::support::{TestEnv, has, mounts_below};

/// Runs a script in the mount of a small image, for each user, and once more after a remount.
fn in_mounts(source: impl Fn(&TestEnv, &Path), script: &str, again: &str) {
    for env in TestEnv::of_all_users() {
        let from = env.work().join("source");
        source(&env, &from);
        let Some(direct) = Direct::of(env, &from, "") else {
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
        direct.env.sh(&format!("{head}; {again}")).ok();
        assert_eq!(mounts_below(&at).len(), 1);
    }
}

fn small(env: &TestEnv, root: &Path) {
    crate::support::samples::small(env, root);
}

fn both(points: &[&str]) {
    for point in points {
        check(point, false, TestEnv::of_all_users());
    }
}

#[test]
fn trap_01_an_image_without_attributes_can_be_written_to() {
    let script = "! getfattr -n system.posix_acl_access lib/c.txt 2>err || exit 1; rm err
         echo x >>lib/c.txt; cp -a lib/c.txt lib/d.txt; cp -a lib copy; mv lib/a.txt copy/
         setfattr -n user.k -v v lib/c.txt; getfattr -n user.k lib/c.txt; ls -l lib >/dev/null";
    in_mounts(
        small,
        script,
        "test \"$(tail -n1 lib/d.txt)\" = x; getfattr -n user.k lib/c.txt",
    );
}

#[test]
fn trap_02_a_link_with_an_absolute_target_in_the_mount_does_not_lock_up() {
    let script = "ln -s \"$P/lib/c.txt\" absolute; ln -s \"$P\" whole; ln -s \"$P/fifo\" to-fifo; mkfifo fifo
         ! setfattr -h -n user.k -v v absolute 2>/dev/null; setfattr -n user.k -v v absolute
         touch -h absolute whole to-fifo; chown -h $(id -u) absolute to-fifo; ln absolute absolute2; mv whole w
         getfattr -n user.k lib/c.txt; rm to-fifo fifo; ls -lR . >/dev/null";
    in_mounts(
        small,
        script,
        "test \"$(readlink absolute2)\" = \"$P/lib/c.txt\"; test -e w/lib; ! getfattr -h -n user.k absolute 2>/dev/null",
    );
}

#[test]
fn trap_03_a_link_to_a_file_of_the_image_is_the_same_file() {
    let script = "i=$(stat -c %i lib/c.txt); ln lib/c.txt lib/n.txt; test $(stat -c %i lib/c.txt) = $i
         test $(stat -c %i lib/n.txt) = $i; test $(stat -c %h lib/c.txt) = 2; echo x >>lib/n.txt; cmp lib/n.txt lib/c.txt
         echo $i >number";
    in_mounts(
        small,
        script,
        "test $(stat -c %i lib/n.txt) = $(cat number); test $(stat -c %h lib/n.txt) = 2",
    );
}

#[test]
fn trap_04_links_of_the_image_stay_one_object_when_one_is_written() {
    let script = "echo x >>lib/a.txt; cmp lib/a.txt lib/b.txt; test $(stat -c %h lib/b.txt) = 2
         test $(stat -c %i lib/a.txt) = $(stat -c %i lib/b.txt)";
    in_mounts(
        small,
        script,
        "cmp lib/a.txt lib/b.txt; test $(stat -c %h lib/b.txt) = 2; echo y >>lib/b.txt; cmp lib/a.txt lib/b.txt",
    );
}

#[test]
fn trap_05_numbers_are_stable_and_those_of_listings() {
    both(&[
        "numbers_are_kept_by_copy_up_and_rename",
        "numbers_in_listings_are_those_of_the_objects",
    ]);
}

#[test]
fn trap_06_a_directory_of_the_image_is_renamed_and_nothing_is_copied() {
    let script = "mv -T lib/deep moved; python3 -c 'import os; os.rename(\"moved\", \"lib/deep2\"); os.rename(\"lib\", \"~ib\")'
         test -s ~ib/deep2/er/file; ! test -e lib; test -z \"$(find \"$U\"/layers/*/upper -type f)\"
         mkdir lib; test -z \"$(ls -A lib)\"; mv -T ~ib lib/inner; mv lib/inner/a.txt lib/inner/deep2/";
    in_mounts(
        small,
        script,
        "test -s lib/inner/deep2/er/file; test -s lib/inner/deep2/a.txt; test $(ls lib | wc -l) = 1; ! test -e ~ib",
    );
}

#[test]
fn trap_07_a_second_open_after_a_copy_up_works_beside_an_old_one() {
    let script = "exec 3<lib/c.txt; echo new >lib/c.txt; exec 4<lib/c.txt 5<>lib/c.txt
         read -r line <&3; test \"$line\" = new; read -r line <&4; test \"$line\" = new; echo five >&5; test \"$(cat lib/c.txt)\" = five";
    in_mounts(small, script, "test \"$(cat lib/c.txt)\" = five");
}

#[test]
fn trap_08_a_copy_up_leaves_the_times_of_directories() {
    both(&["copying_up_leaves_the_times_of_the_directories_above"]);
}

#[test]
fn trap_09_old_descriptors_and_mappings_see_what_is_new() {
    both(&[
        "an_old_descriptor_sees_what_is_written_later",
        "an_old_mapping_sees_what_is_written_later",
    ]);
}

#[test]
fn trap_10_an_unlinked_file_is_whole_by_its_descriptor() {
    both(&["an_unlinked_file_lives_while_it_is_open"]);
}

#[test]
fn trap_11_modes_are_as_asked_for_and_lose_privileges_when_written() {
    both(&[
        "the_umask_is_applied_once",
        "what_is_made_in_a_set_group_id_directory_is_of_its_group",
        "writing_takes_the_set_user_id_bits",
    ]);
}

#[test]
fn trap_12_all_names_and_nodes_are_ordinary() {
    both(&[
        "names_of_255_bytes_of_any_kind",
        "special_files_work",
        "attributes_are_made_replaced_and_removed",
    ]);
}

#[test]
fn trap_13_depth_has_no_end() {
    both(&["paths_deeper_than_path_max"]);
}

#[test]
fn trap_14_links_from_outside_are_refused_and_tools_copy() {
    check(
        "links_from_outside_are_refused",
        true,
        TestEnv::of_all_users(),
    );
    let script = "mkdir \"$U/../cache\"; echo c >\"$U/../cache/f\"; ! ln \"$U/../cache/f\" f 2>err || exit 1
         grep -q 'Invalid cross-device link' err; cp -l \"$U/../cache/f\" f 2>/dev/null || cp \"$U/../cache/f\" f; mv \"$U/../cache\" moved";
    in_mounts(small, script, "test $(cat f) = c; test $(cat moved/f) = c");
}

#[test]
fn trap_15_locks_exclude_and_watchers_are_told() {
    both(&[
        "flocks_exclude_other_processes",
        "posix_locks_exclude_other_processes_byte_by_byte",
        "locks_of_open_files_exclude_each_other",
        "changes_are_told_to_who_watches",
    ]);
}

#[test]
fn trap_16_what_fuse_cannot_do_is_refused_so_that_tools_fall_back() {
    for point in [
        "temporary_files_without_a_name_are_refused",
        "ranges_cannot_be_collapsed_or_inserted",
    ] {
        check(point, true, TestEnv::of_all_users());
    }
    both(&[
        "ranges_are_copied_between_files",
        "direct_reads_and_writes",
        "reads_and_writes_of_all_shapes",
    ]);
    in_mounts(
        small,
        "cp --reflink=auto lib/deep/er/file copy; cmp copy lib/deep/er/file; cp --reflink=auto copy copy2; ! cp --reflink=always copy copy3 2>/dev/null",
        "cmp copy2 lib/deep/er/file",
    );
}

#[test]
fn trap_17_holes_are_found_and_kept() {
    both(&["holes_and_data_are_found", "copying_up_keeps_holes"]);
}

#[test]
fn trap_18_listings_are_stable_while_entries_go() {
    both(&[
        "a_listing_may_be_emptied_while_it_is_read",
        "places_in_a_listing_can_be_come_back_to",
    ]);
}

#[test]
fn trap_19_what_was_removed_does_not_shine_through_again() {
    let script = "rm lib/deep/x lib/deep/er/file; rmdir lib/deep/er lib/deep; rm -rf lib; mkdir lib; test -z \"$(ls -A lib)\"
         mkdir lib/deep; test -z \"$(ls -A lib/deep)\"; echo n >lib/a.txt; rm lib/a.txt; rm -r bin; echo file >bin; rm bin; mkdir bin";
    let again = "test \"$(ls -A lib)\" = deep; test -z \"$(ls -A lib/deep)\"; test -z \"$(ls -A bin)\"; rmdir lib/deep lib bin; test -z \"$(ls -A)\"";
    in_mounts(small, script, again);
}

#[test]
fn trap_20_first_writers_at_once_lose_nothing() {
    both(&[
        "first_writers_at_once_lose_nothing",
        "appends_of_several_processes_do_not_mix",
    ]);
}

#[test]
fn trap_21_times_an_image_cannot_keep_are_brought_to_what_it_can() {
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
    // What nobody touched keeps its time however often there is a commit.
    fs::write(at.join("other"), "x").unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    assert_eq!(
        env.sh(&format!("stat -c %Y '{}/f2'", at.display()))
            .ok()
            .line(),
        "4294967295"
    );
}

#[test]
fn the_notes_have_no_trap_without_a_test() {
    let numbers: Vec<u32> = include_str!("traps.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("fn trap_")?.get(..2)?.parse().ok())
        .collect();
    assert_eq!(numbers, (1..=21).collect::<Vec<_>>());
    assert!(has("python3"));
}
