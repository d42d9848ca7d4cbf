//! Archives made by various programs; the reference is what GNU tar extracts.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::tree::{self, Look, Tree};
use crate::support::{Run, TestEnv, find, has, images, run, skip};

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes the archives. Returns the directory of those that GNU tar extracts, and that of the
/// others.
fn make_archives(env: &TestEnv) -> Option<(PathBuf, PathBuf)> {
    if !has("python3") {
        return None;
    }
    if find("bsdtar").is_none() {
        skip("no bsdtar");
    }
    let (good, bad) = (env.work().join("good"), env.work().join("bad"));
    fs::create_dir(&good).unwrap();
    fs::create_dir(&bad).unwrap();
    let mut command = env.command("python3");
    command.arg("-c").arg(include_str!("archives.py"));
    run({
        command.args([&good, &bad]);
        command
    })
    .ok();
    let mut command = env.command("sh");
    command.args(["-ec", include_str!("archives.sh"), "sh"]);
    run({
        command.arg(&good);
        command
    })
    .ok();
    Some((good, bad))
}

/// The archives in a directory, with names for environments.
fn archives(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            (name.replace('.', "-"), path)
        })
        .collect();
    all.sort();
    all
}

fn gnu_tar(env: &TestEnv, archive: &Path, to: &Path) -> Run {
    fs::create_dir(to).unwrap();
    let mut command = env.command("tar");
    command.args([
        "--numeric-owner",
        "-px",
        "-f",
        word(archive),
        "-C",
        word(to),
    ]);
    run(command)
}

/// Extracts the image of an environment.
fn unpack(env: &TestEnv, name: &str, to: &Path) {
    let mut command = env.command("unsquashfs");
    command.args(["-quiet", "-no-progress", "-no-xattrs", "-d", word(to)]);
    run({
        command.arg(images::current(env, name));
        command
    })
    .ok();
}

/// Removes permitted differences: an image stores times between 1970 and 2106, and the time of a
/// directory without an entry of its own, or with entries added later through a link, is the time
/// of extraction.
fn normalize_times(theirs: &mut Tree, ours: &mut Tree, begun: i64) {
    for (path, their) in theirs {
        their.mtime = their.mtime.clamp(0, i64::from(u32::MAX));
        let is_new = their.mtime >= begun && their.mode & 0o170_000 == 0o040_000;
        if let Some(our) = ours.get_mut(path).filter(|_| is_new) {
            (their.mtime, our.mtime) = (0, 0);
        }
    }
}

#[test]
fn archives_are_imported_as_gnu_tar_extracts_them() {
    if !has("unsquashfs") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let begun = now.as_secs() as i64;
    let Some((good, bad)) = make_archives(&env) else {
        return;
    };
    let good = archives(&good);
    assert!(good.len() > 75, "{}", good.len());
    let look = Look {
        xattrs: false,
        root: false,
        ..tree::of_unsquashfs()
    };
    let mut wrong = Vec::new();
    for (name, archive) in good {
        let result = std::panic::catch_unwind(|| {
            let theirs = env.work().join(format!("{name}.tar-x"));
            gnu_tar(&env, &archive, &theirs).ok();
            let imported = env.envfs(&["import", word(&archive), &name]).ok();
            let is_rooted = name.contains("absolute");
            assert_eq!(
                imported.err.contains("begin with /"),
                is_rooted,
                "{imported}"
            );
            let ours = env.work().join(format!("{name}.envfs"));
            unpack(&env, &name, &ours);
            let (mut theirs, mut ours) = (tree::read(&theirs), tree::read(&ours));
            normalize_times(&mut theirs, &mut ours, begun);
            tree::assert_same(&theirs, &ours, look, &name);
        });
        if result.is_err() {
            wrong.push(name);
        }
    }
    let before = env.store_listing();
    for (name, archive) in archives(&bad) {
        let theirs = env.work().join(format!("{name}.tar-x"));
        let unpacked = gnu_tar(&env, &archive, &theirs);
        let refused = env.envfs(&["import", word(&archive), &name]);
        // GNU tar accepts a truncated header.
        let is_no_error = name.starts_with("cut-in-header");
        let is_told = refused.err.contains(word(&archive)) && !refused.err.contains("node");
        if (unpacked.code == 0) != is_no_error || refused.code == 0 || !is_told {
            eprintln!("{name}:\n{unpacked}\n{refused}");
            wrong.push(name);
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(env.store_listing(), before);
}

/// Makes an archive of one sparse file of 2 TiB.
fn huge(env: &TestEnv, name: &str, format: &str) -> PathBuf {
    let script = format!(
        "test -e huge || {{ truncate -s 2T huge; printf begin | dd of=huge conv=notrunc status=none
         printf end | dd of=huge bs=1M seek=1500000 conv=notrunc status=none; }}
         tar {format} -Scf {name}.tar huge; gzip -k {name}.tar"
    );
    env.sh(&script).ok();
    env.work().join(format!("{name}.tar"))
}

#[test]
fn holes_of_a_huge_sparse_file_take_no_space() {
    let Some(env) = TestEnv::new() else { return };
    for (name, format) in [("gnu", "--format=gnu"), ("pax", "--format=posix")] {
        let archive = huge(&env, name, format);
        assert!(fs::metadata(&archive).unwrap().len() <= 20480);
        for archive in [archive.clone(), archive.with_extension("tar.gz")] {
            // Writing the holes would exceed the file size limit.
            let script = format!(
                "ulimit -f 100000; envfs import -q --block-size 1048576 '{}' e",
                archive.display()
            );
            env.sh(&script).ok();
            let prefix = env.mount("e");
            let seen = fs::metadata(prefix.join("huge")).unwrap();
            assert_eq!(seen.size(), 2 << 40);
            assert!(seen.blocks() < 8192, "{}", seen.blocks());
            let at = prefix.display();
            let script = format!(
                "head -c 5 '{at}/huge'; dd if='{at}/huge' bs=1M skip=1500000 count=1 status=none | head -c 3"
            );
            assert_eq!(env.sh(&script).ok().out, "beginend");
            env.envfs(&["unmount", "e"]).ok();
            env.envfs(&["remove", "-y", "e"]).ok();
        }
    }
}

#[test]
fn errors_about_very_long_paths_are_short() {
    let Some(env) = TestEnv::new() else { return };
    if !has("python3") {
        return;
    }
    env.sh("python3 -c \"import tarfile
entry = tarfile.TarInfo('begin/' + 'd/' * 70_000 + 'end')
tarfile.open('long.tar', 'w').addfile(entry)\"")
        .ok();
    let failed = env.envfs(&["import", "long.tar", "e"]);
    assert_ne!(failed.code, 0, "{failed}");
    let said = &failed.err;
    assert!(said.contains("begin/d/"), "{said}");
    assert!(
        said.contains(" bytes …]") && said.contains("/d/end"),
        "{said}"
    );
    assert!(said.len() < 5_000, "{} bytes", said.len());
}
