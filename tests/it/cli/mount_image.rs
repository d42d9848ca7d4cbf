//! `envfs mount --image`: mounts without a store, and mount options.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fs::direct::Direct;
use crate::support::{Run, TestEnv, has, run, skip_allowed};

fn write_some(dir: &Path) {
    fs::write(dir.join("lower"), "changed").unwrap();
    fs::write(dir.join("new"), "new").unwrap();
    fs::remove_file(dir.join("gone")).unwrap();
}

fn source(env: &TestEnv) -> PathBuf {
    let source = env.work().join("source");
    for name in ["lower", "gone"] {
        env.write(&source.join(name), "original");
    }
    source
}

/// Returns names and content of the files in a directory.
fn contents(env: &TestEnv, at: &Path) -> String {
    let script = format!(
        "cd '{}'; for f in *; do echo $f $(cat $f); done",
        at.display()
    );
    env.sh(&script).ok().out
}

#[test]
fn mount_without_a_store_keeps_changes() {
    for env in TestEnv::of_all_users() {
        let source = source(&env);
        let Some(direct) = Direct::of(env, &source, "fsname=some name,subtype=other") else {
            return;
        };
        let (env, at) = (&direct.env, direct.at());
        let table = String::from_utf8_lossy(&fs::read("/proc/self/mounts").unwrap()).into_owned();
        let line = table
            .lines()
            .find(|line| line.contains(at.to_str().unwrap()));
        assert!(line.unwrap().starts_with(r"some\040name "), "{line:?}");
        assert!(line.unwrap().contains(" fuse.other rw,"), "{line:?}");
        let change = format!(
            "cd '{}'; echo changed >lower; echo new >new; rm gone",
            at.display()
        );
        env.sh(&change).ok();
        let expected = "lower changed\nnew new\n";
        assert_eq!(contents(env, &at), expected);
        direct.remount();
        assert_eq!(contents(env, &at), expected);
        // Mounted again after a kill.
        env.sh(&format!("echo late >'{}/late'", at.display())).ok();
        direct.kill();
        direct.mount();
        assert_eq!(contents(env, &at), format!("late late\n{expected}"));
        assert_eq!(
            crate::support::mounts_below(&at).len(),
            1,
            "the dead mount was not detached"
        );
        assert!(!env.store().exists(), "a store was created");
    }
}

#[test]
fn read_only_mount_needs_only_the_image() {
    for env in TestEnv::of_all_users() {
        let source = source(&env);
        let Some(direct) = Direct::of(env, &source, "") else {
            return;
        };
        let (env, at) = (&direct.env, direct.at());
        direct.unmount();
        let image = direct.image();
        let mut command = env.envfs_command(&["mount", "-o", "ro,noatime", "--image"]);
        run({
            command.arg(&image).arg(&at);
            command
        })
        .ok();
        let (a, words) = (at.display(), "Read-only file system");
        let refused = env.sh(&format!(
            "cat '{a}/lower'; ! rm '{a}/lower' && ! touch '{a}/x'"
        ));
        assert_eq!(refused.clone().ok().out, "original");
        assert_eq!(refused.err.matches(words).count(), 2, "{refused}");
    }
}

#[test]
fn invalid_mounts_are_refused_with_the_reason() {
    let Some(env) = TestEnv::new() else { return };
    let source = source(&env);
    let Some(direct) = Direct::of(env, &source, "") else {
        return;
    };
    let env = &direct.env;
    let (image, upper, at) = (direct.image(), direct.upper(), direct.at());
    let (image, upper, at) = (
        image.to_str().unwrap(),
        upper.to_str().unwrap(),
        at.to_str().unwrap(),
    );
    env.envfs(&["mount", "--image", image, "--upper", upper, at])
        .fails(5, &["in use"]);
    direct.unmount();
    let text = source.join("lower");
    for (words, code, said) in [
        (vec!["--image", "nowhere", "-o", "ro", at], 3, "nowhere"),
        (
            vec!["--image", text.to_str().unwrap(), "-o", "ro", at],
            6,
            "not a SquashFS image",
        ),
        (vec!["--image", image, at], 2, "--upper"),
        (vec!["--image", image, "-o", "ro"], 2, "no mount point"),
        (
            vec!["--image", image, "-o", "ro", "no/mount/point"],
            2,
            "no/mount/point",
        ),
        (
            vec!["--image", image, "-o", "ro,frozen", at],
            2,
            "unknown mount option frozen",
        ),
        (
            vec!["--image", image, "--upper", upper, "--state", "other", at],
            4,
            "do not belong",
        ),
        (vec!["-o", "ro", "name"], 2, "--image"),
    ] {
        let mut all = vec!["mount"];
        all.extend(words);
        env.envfs(&all).fails(code, &[said]);
    }
    assert!(
        !env.work().join("other").exists(),
        "a refused mount created its state"
    );
    // The changes belong to the original image.
    let other = env.work().join("other-source");
    env.write(&other.join("x"), "x");
    let mut pack = Command::new("mksquashfs");
    pack.arg(&other)
        .args([image, "-noappend", "-no-progress", "-quiet"]);
    run(pack).ok();
    let refused = env.envfs(&["mount", "--image", image, "--upper", upper, at]);
    refused.fails(4, &["another image"]);
    assert!(crate::support::mounts_below(Path::new(at)).is_empty());
}

#[test]
fn works_as_a_helper_of_mount() {
    let Some(env) = TestEnv::new() else { return };
    let source = source(&env);
    let Some(direct) = Direct::of(env, &source, "") else {
        return;
    };
    let (env, at) = (&direct.env, direct.at());
    write_some(&at);
    direct.unmount();
    let helper = env.work().join("mount.fuse.envfs");
    std::os::unix::fs::symlink(env.program(), &helper).unwrap();
    // As mount(8) calls it for `mount -t fuse.envfs -o upper=…,rw IMAGE DIR`.
    let mut command = env.command(&helper);
    let upper = format!(
        "rw,noatime,upper={0},state={0}/state.db",
        direct.upper().display()
    );
    command
        .arg(direct.image())
        .arg(&at)
        .args(["-n", "-o", &upper, "-t", "fuse.envfs"]);
    run(command).ok();
    assert_eq!(contents(env, &at), "lower changed\nnew new\n");
}

/// Mounts from a shell with resource limits.
fn mount_under(direct: &Direct, limits: &str) {
    direct.unmount();
    let mount = format!(
        "{limits}; envfs mount --image '{}' --upper '{}' '{}'",
        direct.image().display(),
        direct.upper().display(),
        direct.at().display()
    );
    direct.env.sh(&mount).ok();
}

#[test]
fn limits_of_the_shell_do_not_break_a_mount() {
    for env in TestEnv::of_all_users() {
        let Some(direct) = Direct::empty(env, "") else {
            return;
        };
        // Sizes in units of 512 bytes.
        mount_under(
            &direct,
            "ulimit -n 100; ulimit -S -n 70; ulimit -f 4000; ulimit -S -f 100",
        );
        let limits = fs::read_to_string(format!("/proc/{}/limits", direct.daemon())).unwrap();
        let of = |what: &str| -> Vec<&str> {
            let line = limits.lines().find_map(|line| line.strip_prefix(what));
            line.unwrap().split_whitespace().take(2).collect()
        };
        assert_eq!(of("Max open files"), ["100", "100"]);
        assert_eq!(of("Max file size"), ["2048000", "2048000"]);
        // Uses more files than can be open at once, each of them twice.
        let (env, at) = (&direct.env, direct.at());
        let many = "for d in a b c; do mkdir $d; for n in $(seq 60); do mkdir $d/$n; echo $d$n >$d/$n/f; done; done
             for d in a b c; do for n in $(seq 60); do test $(cat $d/$n/f) = $d$n; echo x >>$d/$n/f; done; done";
        env.sh(&format!("cd '{}'; {many}", at.display())).ok();
        // Writes up to the file size limit succeed; beyond it they fail with EFBIG and kill
        // nothing.
        if !has("python3") {
            return;
        }
        let write = "import errno, os
fd = os.open('large', os.O_RDWR | os.O_CREAT)
assert os.write(fd, b'x' * 3_000_000) == os.fstat(fd).st_size == 2_048_000
for change in [lambda: os.write(fd, b'x'), lambda: os.ftruncate(fd, 4_000_000)]:
    try:
        change()
        raise AssertionError('too large')
    except OSError as error:
        assert error.errno == errno.EFBIG, error
os.ftruncate(fd, 1_000_000)
other = os.open('other', os.O_RDWR | os.O_CREAT)
assert os.copy_file_range(fd, other, 1_000_000, 0, 1_500_000) == 548_000
assert os.pread(other, 1, 1_600_000) == b'x'
";
        env.sh(&format!("cd '{}'; python3 -c \"{write}\"", at.display()))
            .ok();
        assert_eq!(
            env.sh(&format!("cat '{}/a/1/f'", at.display())).ok().out,
            "a1\nx\n"
        );
    }
}

#[test]
fn upper_writable_by_others_is_refused() {
    for env in TestEnv::of_all_users() {
        let Some(direct) = Direct::empty(env, "") else {
            return;
        };
        direct.unmount();
        let env = &direct.env;
        let upper = env.work().join("open");
        fs::create_dir(&upper).unwrap();
        env.user().give(&upper);
        let mount = || {
            let mut command = env.envfs_command(&["mount", "--image"]);
            command.arg(direct.image()).arg("--upper").arg(&upper);
            command.arg(direct.at());
            run(command)
        };
        let set = |mode| fs::set_permissions(&upper, PermissionsExt::from_mode(mode)).unwrap();
        for mode in [0o777, 0o775] {
            set(mode);
            mount().fails(4, &["writable for others", "chmod go-w"]);
            assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
        }
        set(0o755);
        mount().ok();
        env.sh(&format!(
            "cd '{}'; mkdir d; echo x >d/f",
            direct.at().display()
        ))
        .ok();
        for entry in walkdir::WalkDir::new(&upper).min_depth(1) {
            let entry = entry.unwrap();
            let (meta, name) = (entry.metadata().unwrap(), entry.file_name());
            // Symbolic links have no permissions, and files of the mount have their own.
            let is_ours = !meta.is_symlink() && name != "f";
            let mode = meta.permissions().mode() & 0o077;
            assert!(!is_ours || mode == 0, "{}", entry.path().display());
        }
        direct.unmount();
        if env.user().is_root() {
            nix::unistd::chown(&upper, Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
            mount().fails(4, &["belongs to nobody", "chown"]);
        }
    }
}

/// Returns the options of a mount and of its file system from the mount table.
fn options_of(at: &Path) -> String {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table).into_owned();
    let place = format!(" {} ", at.display());
    let line = table.lines().rfind(|line| line.contains(&place));
    let fields: Vec<&str> = line.unwrap().split(' ').collect();
    format!(",{},{},", fields[5], fields.last().unwrap())
}

/// Runs envfs as mount(8) runs a helper.
fn helper(direct: &Direct, options: &str) -> Run {
    let helper = direct.env.work().join("mount.fuse.envfs");
    if !helper.exists() {
        std::os::unix::fs::symlink(direct.env.program(), &helper).unwrap();
    }
    let mut command = direct.env.command(&helper);
    command.arg(direct.image()).arg(direct.at());
    command.args(["-n", "-o", options, "-t", "fuse.envfs"]);
    run(command)
}

#[test]
fn mount_and_fstab_options_are_applied_or_ignored() {
    for env in TestEnv::of_all_users() {
        let source = source(&env);
        let Some(direct) = Direct::of(env, &source, "") else {
            return;
        };
        let (env, at) = (&direct.env, direct.at());
        let upper = format!("upper={}", direct.upper().display());
        direct.unmount();
        let advice = "rw,user,user=joe,users,owner,group,comment=for backups,x-systemd.automount,X-mount.mkdir,\
                      auto,noauto,nofail,_netdev,defaults,atime,noatime,diratime,nodiratime,relatime,\
                      norelatime,strictatime,nostrictatime,lazytime,nolazytime,iversion,noiversion,mand,nomand,\
                      silent,loud,exec,async,symfollow,nosuid,nodev";
        helper(&direct, &format!("{advice},{upper}")).ok();
        env.sh(&format!(
            "cd '{}'; cp /bin/true .; ./true; rm true",
            at.display()
        ))
        .ok();
        let options = options_of(&at);
        assert!(options.contains(",nosuid,nodev,"), "{options}");
        direct.unmount();
        helper(&direct, &format!("noexec,sync,{upper}")).ok();
        let options = options_of(&at);
        assert!(options.contains(",noexec,"), "{options}");
        assert!(options.contains(",sync,"), "{options}");
        env.sh(&format!(
            "cd '{}'; cp /bin/true .; mkdir d; mv true d; chmod 700 d; ! d/true || exit 1; rm -r d",
            at.display()
        ))
        .ok();
        direct.unmount();
        for unknown in ["frozen", "noexec=1", "user_id=0", "comment"] {
            helper(&direct, &format!("{unknown},{upper}"))
                .fails(2, &["unknown mount option", unknown]);
        }
        if env.user().is_root() {
            helper(&direct, &format!("suid,nosymfollow,{upper}")).ok();
            let options = options_of(&at);
            assert!(options.contains(",nodev,"), "suid alone: {options}");
            assert!(!options.contains(",nosuid,"), "{options}");
            assert!(options.contains(",nosymfollow,"), "{options}");
        }
    }
}

#[test]
fn remount_changes_options() {
    for env in TestEnv::of_all_users() {
        let source = source(&env);
        let Some(direct) = Direct::of(env, &source, "") else {
            return;
        };
        let (env, at) = (&direct.env, direct.at());
        // mount(8) passes the options in the mount table before those of the user.
        let table = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        if !env.user().is_root() {
            helper(&direct, &format!("{table},remount,ro")).fails(1, &["Operation not permitted"]);
            continue;
        }
        let write = |may: bool| {
            // In another process: a child that another test starts meanwhile would inherit the open
            // file, and the kernel remounts read-only only if no file is open for writing.
            let script = format!("echo late 2>&1 >'{}/late'", at.display());
            let written = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(written.status.success(), may, "{written:?}");
        };
        write(true);
        helper(&direct, &format!("{table},remount,ro,noexec")).ok();
        write(false);
        assert!(options_of(&at).contains(",nosuid,nodev,noexec,"));
        assert_eq!(fs::read_to_string(at.join("lower")).unwrap(), "original");
        let words = ["mount", "-o", "remount,rw,exec", at.to_str().unwrap()];
        env.envfs(&words).ok();
        write(true);
        assert!(options_of(&at).contains(",nosuid,nodev,relatime,"));
        for (options, said) in [
            ("remount,sync", "only when mounting"),
            ("remount,frozen", "unknown mount option frozen"),
        ] {
            helper(&direct, options).fails(2, &[said]);
        }
        env.envfs(&["mount", "-o", "remount,ro", "/proc"])
            .fails(2, &["/proc is not a mount of envfs"]);
        // A mount without an upper cannot become writable.
        direct.unmount();
        helper(&direct, "ro").ok();
        helper(&direct, "remount,rw").fails(2, &["without a directory for changes"]);
        assert!(fs::write(at.join("late"), "late").is_err());
        helper(&direct, "remount,noexec").ok();
    }
}

/// Runs a shell command as the user nobody.
fn as_nobody(script: &str) -> Run {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", script]).uid(65534).gid(65534);
    run(command)
}

#[test]
fn mounts_of_root_are_visible_to_other_users() {
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        return skip_allowed("needs root");
    }
    let source = source(&env);
    let Some(direct) = Direct::of(env, &source, "") else {
        return;
    };
    let at = direct.at();
    fs::set_permissions(at.join("gone"), PermissionsExt::from_mode(0o600)).unwrap();
    as_nobody(&format!("cat '{0}/lower'; ! cat '{0}/gone'", at.display())).ok();
}

#[test]
fn writes_drop_set_user_id_at_once() {
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        return skip_allowed("needs root");
    }
    let source = env.work().join("source");
    for name in ["written", "allocated", "copied", "cut"] {
        fs::create_dir_all(&source).unwrap();
        fs::copy("/bin/sh", source.join(name)).unwrap();
        // Writable for all users, so that the user `nobody` can write it.
        fs::set_permissions(source.join(name), PermissionsExt::from_mode(0o4777)).unwrap();
    }
    let Some(direct) = Direct::of(env, &source, "suid") else {
        return;
    };
    let at = direct.at();
    let runs_as = |name: &str| {
        let run = as_nobody(&format!("'{}/{name}' -pc 'id -u'", at.display()));
        run.ok().out
    };
    for name in ["written", "allocated", "copied", "cut"] {
        assert_eq!(runs_as(name), "0\n", "{name}: before the write");
        let path = at.join(name);
        let change = match name {
            "written" => "dd if=/bin/sh of=\"$F\" bs=64 count=1 conv=notrunc",
            "allocated" => "fallocate -l 10 -n \"$F\"",
            "copied" => "dd if=/bin/sh of=\"$F\" bs=64 count=1 conv=notrunc oflag=append",
            _ => "truncate -s +1 \"$F\"",
        };
        as_nobody(&format!("F='{}'; {change}", path.display())).ok();
        assert_eq!(runs_as(name), "65534\n", "{name}");
    }
}
