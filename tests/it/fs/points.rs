//! Exact points of what a file system must do: the functions of the Python program in `points/`, each on
//! ext4 (so that what they say is true) and on a mount of each user.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::direct::{Direct, plain_directory};
use crate::support::{TestEnv, has, run, run_for, samples};

macro_rules! script {
    ($($file:literal)*) => {
        &[$(($file, include_str!(concat!("points/", $file)))),*]
    };
}

/// The program's files, by name.
const SCRIPT: &[(&str, &str)] = script! {
    "__main__.py"
    "attributes.py"
    "content.py"
    "copy_up.py"
    "identity.py"
    "links.py"
    "listings.py"
    "locks.py"
    "names.py"
    "opened.py"
    "permissions.py"
    "support.py"
    "watching.py"
};

/// Makes the tree that the points expect.
pub(super) fn lay(env: &TestEnv, root: &Path) {
    env.write(&root.join("small"), "alpha\n");
    env.write(&root.join("big"), samples::noise(400_000, 3));
    env.write(&root.join("hard-a"), "one\n");
    fs::hard_link(root.join("hard-a"), root.join("hard-b")).unwrap();
    env.write(&root.join("dir/x"), "x\n");
    env.write(&root.join("dir/y"), "y\n");
    env.write(&root.join("dir/sub/z"), "z\n");
    fs::create_dir(root.join("empty")).unwrap();
    symlink("small", root.join("link")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o644)).unwrap();
    env.write(&root.join("tool"), "#!/bin/sh\necho tool\n");
    fs::copy("/bin/sleep", root.join("sleep")).unwrap();
    for name in ["tool", "sleep"] {
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    env.write(&root.join("rich"), "rich\n");
    fs::set_permissions(root.join("rich"), PermissionsExt::from_mode(0o640)).unwrap();
    xattr::set(root.join("rich"), "user.a", b"value").unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"island", 1 << 20).unwrap();
    for number in 0..3000 {
        env.write(&root.join(format!("many/entry-{number:04}")), "");
    }
    env.user().give_tree(root);
    let old = TimeSpec::new(1_000_000_000, 0);
    for entry in walkdir::WalkDir::new(root).contents_first(true) {
        let path = entry.unwrap().into_path();
        utimensat(AT_FDCWD, &path, &old, &old, UtimensatFlags::NoFollowSymlink).unwrap();
    }
}

fn command(env: &TestEnv, script: &Path, point: &str, dir: &Path, upper: Option<&Path>) -> Command {
    let mut command = env.command("python3");
    command.arg(script).arg(point).arg(dir);
    command.args(upper);
    command
}

fn place_script(env: &TestEnv) -> PathBuf {
    let script = env.root().join("points");
    fs::create_dir_all(&script).unwrap();
    for (name, text) in SCRIPT {
        fs::write(script.join(name), text).unwrap();
    }
    script
}

/// Runs one point on ext4, unless it tells of a difference, and on a mount, for every user.
pub(super) fn check(point: &str, is_mount_only: bool, users: Vec<TestEnv>) {
    if !has("python3") {
        return;
    }
    for env in users {
        let script = place_script(&env);
        let source = env.work().join("source");
        lay(&env, &source);
        let plain = if is_mount_only {
            None
        } else {
            plain_directory(&env)
        };
        let Some(direct) = Direct::of(env, &source, "") else {
            return;
        };
        let env = &direct.env;
        if let Some(plain) = plain {
            lay(env, &plain.join("tree"));
            run_for(command(env, &script, point, &plain.join("tree"), None), 300).ok();
        }
        let upper = direct.upper().join("layers");
        run_for(
            command(env, &script, point, &direct.at(), Some(&upper)),
            300,
        )
        .ok();
        direct.remount();
    }
}

macro_rules! points {
    ($how:ident: $($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), stringify!($how) == "mount_only", TestEnv::of_all_users());
        })*
        fn $how() -> Vec<&'static str> {
            vec![$(stringify!($name)),*]
        }
    };
}

points! { everywhere:
    numbers_are_kept_by_copy_up_and_rename
    numbers_in_listings_are_those_of_the_objects
    a_number_is_not_given_to_two_objects
    hard_links_are_one_object
    links_to_links_and_special_files
    directories_count_their_subdirectories
    directories_held_open_know_that_they_are_gone
    an_old_descriptor_sees_what_is_written_later
    an_old_mapping_sees_what_is_written_later
    shared_mappings_are_coherent_among_processes
    an_unlinked_file_lives_while_it_is_open
    a_replaced_file_lives_while_it_is_open
    copying_up_keeps_mode_owner_times_and_attributes
    copying_up_leaves_the_times_of_the_directories_above
    copying_up_keeps_holes
    a_name_may_become_another_type
    entries_that_stay_are_listed_once_whatever_else_happens
    a_listing_may_be_emptied_while_it_is_read
    places_in_a_listing_can_be_come_back_to
    a_listing_ends_though_names_are_made_meanwhile
    listings_of_one_directory_do_not_disturb_each_other
    appends_of_several_processes_do_not_mix
    first_writers_at_once_lose_nothing
    direct_reads_and_writes
    space_is_allocated_punched_and_zeroed
    holes_and_data_are_found
    what_is_written_through_a_mapping_is_data
    ranges_are_copied_between_files
    reads_and_writes_of_all_shapes
    flocks_exclude_other_processes
    posix_locks_exclude_other_processes_byte_by_byte
    locks_of_open_files_exclude_each_other
    writing_takes_the_set_user_id_bits
    bits_that_are_gone_are_gone_for_everybody_at_once
    giving_a_file_away_takes_the_set_user_id_bits
    naming_no_owner_takes_the_set_user_id_bits
    what_is_made_in_a_set_group_id_directory_is_of_its_group
    the_sticky_bit_protects_the_files_of_others
    the_umask_is_applied_once
    permissions_are_those_of_the_modes
    attributes_are_made_replaced_and_removed
    trusted_attributes_are_shown_to_root_alone
    what_is_made_later_is_not_older
    times_are_set_in_every_combination
    changes_of_names_are_seen_in_the_times_of_their_directories
    names_of_255_bytes_of_any_kind
    links_of_4095_bytes
    paths_deeper_than_path_max
    renames_with_and_without_flags
    the_file_system_tells_of_its_space
    special_files_work
    changes_are_told_to_who_watches
    syncing_succeeds_on_all_that_can_be_opened
}

points! { mount_only:
    reading_and_failing_copy_nothing_up
    opening_for_writing_copies_nothing_up
    temporary_files_without_a_name_are_refused
    ranges_cannot_be_collapsed_or_inserted
    access_control_lists_are_refused
    attributes_of_all_sizes
    reading_does_not_change_access_times
    reading_what_was_made_or_copied_up_does_not_change_access_times
    whiteouts_cannot_be_asked_for
    links_from_outside_are_refused
    writing_through_a_fifo_leaves_its_time
    extents_and_flags_cannot_be_asked_for
}

/// One user is enough for so many.
#[test]
fn a_hundred_thousand_entries() {
    check(
        "a_hundred_thousand_entries",
        false,
        TestEnv::new().into_iter().collect(),
    );
}

#[test]
fn every_point_of_the_script_is_a_test() {
    if !has("python3") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let mut list = env.command("python3");
    list.arg(place_script(&env)).arg("--list");
    let said = run(list).ok().out;
    let mut listed: Vec<&str> = said.lines().collect();
    let mut expected: Vec<String> = everywhere()
        .iter()
        .chain(&["a_hundred_thousand_entries"])
        .map(|name| format!("{name} everywhere"))
        .chain(mount_only().iter().map(|name| format!("{name} mount_only")))
        .collect();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

/// What an `ls` in a mount shows that a rename, a commit and a remount may not change.
fn numbers(env: &TestEnv, at: &Path) -> String {
    let script = format!("cd '{}'; find . -printf '%p %i %D\\n' | sort", at.display());
    env.sh(&script).ok().out
}

#[test]
fn numbers_are_kept_by_remounts_and_commits() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.mount("e");
        let change =
            "echo x >>lib/a.txt; mv lib/deep moved; mkdir new; echo n >new/f; chmod 700 bin";
        let before = numbers(&env, &at);
        env.sh(&format!("cd '{}'; {change}", at.display())).ok();
        let seen = numbers(&env, &at);
        let number_of = |text: &str, path: &str| -> String {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{path} ")));
            line.unwrap().split(' ').nth(1).unwrap().to_owned()
        };
        for (old, new) in [
            ("./lib/a.txt", "./lib/a.txt"),
            ("./lib/deep/x", "./moved/x"),
            ("./lib/deep", "./moved"),
        ] {
            assert_eq!(number_of(&before, old), number_of(&seen, new));
        }
        env.envfs(&["commit", "-q", "e"]).ok();
        assert_eq!(numbers(&env, &at), seen, "a commit");
        // Another mount is another device; the numbers stay.
        let without_device = |text: &str| -> Vec<String> {
            let of = |line: &str| line.rsplit_once(' ').unwrap().0.to_owned();
            text.lines().map(of).collect()
        };
        env.envfs(&["unmount", "e"]).ok();
        env.mount("e");
        assert_eq!(
            without_device(&numbers(&env, &at)),
            without_device(&seen),
            "a remount"
        );
        env.envfs(&["commit", "-q", "--rebuild", "e"]).ok();
        assert_eq!(
            without_device(&numbers(&env, &at)),
            without_device(&seen),
            "a rebuild"
        );
    }
}

#[test]
fn what_is_open_and_unlinked_lives_through_a_commit() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.mount("e");
        // As one script, so that the descriptors stay open.
        let script = format!(
            "cd '{}'; exec 3<lib/c.txt 4<>lib/deep/er/file 5<>new; echo five >&5
             rm lib/c.txt lib/deep/er/file new; printf XX >&4
             envfs commit -q e; test \"$(cat <&3)\" = gamma; test \"$(head -c2 /proc/self/fd/4)\" = XX
             test \"$(cat /proc/self/fd/5)\" = five; echo more >&5; envfs commit -q e
             test \"$(tail -n1 /proc/self/fd/5)\" = more; test \"$(stat -L -c %h /proc/self/fd/3)\" = 0
             ! test -e lib/c.txt",
            at.display()
        );
        env.sh(&script).ok();
    }
}

#[test]
fn times_set_by_hand_keep_their_nanoseconds_until_a_commit() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let at = env.mount("e");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 123_456_789);
    let set = |path: &Path| File::open(path).unwrap().set_modified(time).unwrap();
    let get = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let path = at.join("lib/c.txt");
    set(&path);
    assert_eq!(get(&path), time);
    // Content that comes up later keeps them.
    fs::rename(&path, at.join("lib/d.txt")).unwrap();
    fs::set_permissions(at.join("lib/d.txt"), PermissionsExt::from_mode(0o600)).unwrap();
    env.envfs(&["unmount", "e"]).ok();
    env.mount("e");
    assert_eq!(get(&at.join("lib/d.txt")), time);
    env.envfs(&["commit", "-q", "e"]).ok();
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    assert_eq!(get(&at.join("lib/d.txt")), whole);
}

#[test]
fn what_was_synced_is_in_a_copy_of_the_store_taken_at_once() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    lay(&env, &source);
    let Some(direct) = Direct::of(env, &source, "") else {
        return;
    };
    let at = direct.at();
    fs::write(at.join("fresh"), "new").unwrap();
    fs::rename(at.join("dir"), at.join("moved")).unwrap();
    fs::write(at.join("moved/x"), "changed").unwrap();
    fs::remove_file(at.join("small")).unwrap();
    for name in ["fresh", "moved/x", "moved", "."] {
        File::open(at.join(name)).unwrap().sync_all().unwrap();
    }
    direct.kill();
    // Inode numbers of the copy are others, as after a restore from a backup.
    let copy = direct.env.work().join("copy");
    let mut command = Command::new("cp");
    command.arg("-a").arg(direct.upper()).arg(&copy);
    run(command).ok();
    direct.unmount();
    fs::rename(direct.upper(), direct.env.work().join("original")).unwrap();
    fs::rename(&copy, direct.upper()).unwrap();
    direct.mount();
    assert_eq!(fs::read(at.join("fresh")).unwrap(), b"new");
    assert_eq!(fs::read(at.join("moved/x")).unwrap(), b"changed");
    assert_eq!(fs::read(at.join("moved/sub/z")).unwrap(), b"z\n");
    assert!(!at.join("dir").exists() && !at.join("small").exists());
}
