//! Checks of single file system properties: the functions of the Python program in `posix/`, each
//! run on ext4, which proves the check itself, and on a mount, for each user.

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
        &[$(($file, include_str!(concat!("posix/", $file)))),*]
    };
}

/// The files of the program, by name.
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

/// Creates the tree that the checks expect.
pub(super) fn make_tree(env: &TestEnv, root: &Path) {
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

fn command(env: &TestEnv, script: &Path, check: &str, dir: &Path, upper: Option<&Path>) -> Command {
    let mut command = env.command("python3");
    command.arg(script).arg(check).arg(dir);
    command.args(upper);
    command
}

fn install_script(env: &TestEnv) -> PathBuf {
    let script = env.root().join("posix");
    fs::create_dir_all(&script).unwrap();
    for (name, text) in SCRIPT {
        fs::write(script.join(name), text).unwrap();
    }
    script
}

/// Runs one check for every user, on a mount and, unless it describes a difference, on ext4.
fn check(name: &str, is_mount_only: bool, users: Vec<TestEnv>) {
    if !has("python3") {
        return;
    }
    for env in users {
        let script = install_script(&env);
        let source = env.work().join("source");
        make_tree(&env, &source);
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
            make_tree(env, &plain.join("tree"));
            run_for(command(env, &script, name, &plain.join("tree"), None), 300).ok();
        }
        let upper = direct.upper().join("layers");
        run_for(command(env, &script, name, &direct.at(), Some(&upper)), 300).ok();
        direct.remount();
    }
}

macro_rules! checks {
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

checks! { everywhere:
    inode_numbers_survive_copy_up_and_rename
    d_ino_equals_st_ino
    inode_numbers_are_unique
    hard_links_are_one_object
    hard_links_to_symlinks_and_fifos
    directory_link_counts
    removed_open_directory_has_no_links
    open_descriptor_sees_later_writes
    mapping_sees_later_writes
    shared_mappings_are_coherent
    unlinked_open_file_stays_usable
    replaced_open_file_stays_usable
    copy_up_keeps_metadata
    copy_up_keeps_times_of_parents
    copy_up_keeps_holes
    names_can_change_their_type
    unchanged_entries_are_listed_exactly_once
    directory_can_be_emptied_while_listed
    seekdir_returns_to_entries
    listing_ends_while_names_are_created
    concurrent_listings_are_independent
    concurrent_appends_do_not_mix
    concurrent_first_writes_lose_nothing
    direct_io
    fallocate_modes
    seek_hole_and_seek_data
    mapped_writes_are_data
    copy_file_range_and_sendfile
    vectored_and_boundary_io
    flock_excludes_other_processes
    posix_locks_exclude_byte_ranges
    open_file_description_locks_exclude_each_other
    writes_clear_set_user_id
    cleared_mode_bits_are_visible_at_once
    chown_clears_set_user_id
    chown_without_owner_clears_set_user_id
    set_group_id_directories_pass_on_their_group
    sticky_bit_protects_files_of_others
    umask_is_applied_once
    modes_are_enforced
    xattrs_are_created_replaced_and_removed
    trusted_xattrs_are_visible_to_root_only
    creation_times_are_monotonic
    utimensat_sets_every_combination
    directory_times_change_with_their_entries
    names_of_255_arbitrary_bytes
    symlinks_of_4095_bytes
    paths_deeper_than_path_max
    rename_flags
    statvfs_reports_the_underlying_file_system
    special_files_work
    inotify_reports_changes
    sync_calls_succeed
}

checks! { mount_only:
    reads_and_failures_copy_nothing_up
    open_for_writing_copies_nothing_up
    o_tmpfile_is_refused
    collapse_and_insert_range_are_refused
    posix_acls_are_refused
    xattrs_of_all_sizes
    reads_do_not_change_access_times
    reads_of_upper_files_do_not_change_access_times
    rename_whiteout_is_refused
    links_across_the_mount_are_refused
    fifo_writes_do_not_change_times
    fiemap_and_getflags_are_refused
}

/// For one user, because it takes long.
#[test]
fn directory_with_100_000_entries() {
    check(
        "directory_with_100_000_entries",
        false,
        TestEnv::new().into_iter().collect(),
    );
}

#[test]
fn every_check_of_the_script_is_a_test() {
    if !has("python3") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let mut list = env.command("python3");
    list.arg(install_script(&env)).arg("--list");
    let said = run(list).ok().out;
    let mut listed: Vec<&str> = said.lines().collect();
    let mut expected: Vec<String> = everywhere()
        .iter()
        .chain(&["directory_with_100_000_entries"])
        .map(|name| format!("{name} everywhere"))
        .chain(mount_only().iter().map(|name| format!("{name} mount_only")))
        .collect();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

/// Returns all paths with their inode numbers and devices.
fn inode_numbers(env: &TestEnv, at: &Path) -> String {
    let script = format!("cd '{}'; find . -printf '%p %i %D\\n' | sort", at.display());
    env.sh(&script).ok().out
}

#[test]
fn inode_numbers_survive_remounts_and_commits() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.mount("e");
        let change =
            "echo x >>lib/a.txt; mv lib/deep moved; mkdir new; echo n >new/f; chmod 700 bin";
        let before = inode_numbers(&env, &at);
        env.sh(&format!("cd '{}'; {change}", at.display())).ok();
        let seen = inode_numbers(&env, &at);
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
        assert_eq!(inode_numbers(&env, &at), seen, "after a commit");
        // Another mount has another device number, and the same inode numbers.
        let without_device = |text: &str| -> Vec<String> {
            let of = |line: &str| line.rsplit_once(' ').unwrap().0.to_owned();
            text.lines().map(of).collect()
        };
        env.envfs(&["unmount", "e"]).ok();
        env.mount("e");
        assert_eq!(
            without_device(&inode_numbers(&env, &at)),
            without_device(&seen),
            "after a remount"
        );
        env.envfs(&["commit", "-q", "--rebuild", "e"]).ok();
        assert_eq!(
            without_device(&inode_numbers(&env, &at)),
            without_device(&seen),
            "after a rebuild"
        );
    }
}

#[test]
fn unlinked_open_files_survive_a_commit() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let at = env.mount("e");
        // One script, so that the descriptors stay open.
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
fn explicit_times_keep_nanoseconds_until_a_commit() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let at = env.mount("e");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 123_456_789);
    let set = |path: &Path| File::open(path).unwrap().set_modified(time).unwrap();
    let get = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let path = at.join("lib/c.txt");
    set(&path);
    assert_eq!(get(&path), time);
    // Changes of names and attributes keep them.
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
fn synced_changes_are_in_a_copy_of_the_upper() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    make_tree(&env, &source);
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
    // The copy has other inode numbers, as after a restore from a backup.
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
