//! The Debian package and the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{PATH, TestEnv, has, run, skip_allowed};

/// What an installed package has, apart from the documents.
const FILES: [&str; 6] = [
    "usr/bin/envfs",
    "usr/share/man/man1/envfs.1.gz",
    "usr/share/man/man1/envfs-commit.1.gz",
    "usr/share/bash-completion/completions/envfs",
    "usr/share/zsh/vendor-completions/_envfs",
    "usr/share/fish/vendor_completions.d/envfs.fish",
];

/// Returns the files below a directory, except the database of dpkg.
fn files(root: &Path) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(root).into_iter().flatten();
    let files = all.filter(|entry| !entry.file_type().is_dir());
    let files = files.map(|entry| entry.path().strip_prefix(root).unwrap().to_owned());
    files
        .filter(|path| !path.starts_with("var/lib/dpkg"))
        .collect()
}

/// Returns the file in a directory with this ending.
fn with_ending(dir: &Path, ending: &str) -> PathBuf {
    let mut all = fs::read_dir(dir).unwrap().flatten().map(|file| file.path());
    all.find(|path| path.to_string_lossy().ends_with(ending))
        .unwrap_or_else(|| panic!("no {ending} in {}", dir.display()))
}

/// Makes the packages of the program that is tested: an archive and, with cargo-deb in a directory,
/// a Debian package. Returns what was printed.
fn make(out: &Path, cargo_deb: &Path) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut package = Command::new(source.join("examples/package.sh"));
    package.arg(env!("CARGO_BIN_EXE_envfs")).arg(out);
    let path = std::env::var("PATH").unwrap();
    package.env("PATH", format!("{}:{path}", cargo_deb.display()));
    run(package).ok().out
}

/// Returns a directory of tools and systems that `tests/run` makes.
fn suites(name: &str) -> PathBuf {
    let suites = std::env::var_os("ENVFS_SUITES");
    suites
        .map_or_else(|| PathBuf::from("target/suites"), PathBuf::from)
        .join(name)
}

#[test]
fn the_archive_is_complete_and_needs_no_newer_glibc_than_ubuntu_22_04_has() {
    if !has("objdump") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let out = env.work().join("out");
    let made = make(&out, Path::new("/nonexistent"));
    let needed = made
        .lines()
        .find_map(|line| line.strip_prefix("needs 2."))
        .unwrap();
    let needed: u32 = needed.split(' ').next().unwrap().parse().unwrap();
    assert!(needed <= 35, "{made}");

    let root = env.work().join("installed");
    fs::create_dir(&root).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(with_ending(&out, ".tar.gz"));
    tar.arg("--strip-components=1").arg("-C").arg(&root);
    run(tar).ok();
    let mut envfs = env.command(root.join("bin/envfs"));
    envfs.arg("--version");
    assert!(run(envfs).ok().out.starts_with("envfs "));
    for file in [
        "share/man/man1/envfs-commit.1.gz",
        "share/bash-completion/completions/envfs",
        "share/zsh/site-functions/_envfs",
        "share/fish/vendor_completions.d/envfs.fish",
        "share/doc/envfs/LICENSE-MIT",
    ] {
        assert!(root.join(file).exists(), "{file}");
    }
}

/// What root and an ordinary user do in a system where only `fuse3` was added.
const IN_DEBIAN: &str = r#"
export HOME=/tmp/root
use() {
    envfs --version
    envfs doctor
    mkdir -p "$HOME/tree" && echo one >"$HOME/tree/file"
    envfs import -q "$HOME/tree" sample
    at=$(envfs mount sample)
    echo two >"$at/new"
    envfs commit -q sample
    envfs run sample -- grep -q two "$at/new"
    envfs unmount sample
    envfs verify sample
    envfs remove -y sample
    rm -r "$HOME/tree"
}
use
id newcomer >/dev/null 2>&1 || useradd newcomer
install -d -o newcomer /tmp/newcomer
setpriv --reuid newcomer --regid newcomer --clear-groups \
    /bin/sh -euc "$(sed '/^use$/,$d' "$0"); HOME=/tmp/newcomer; use"
"#;

#[test]
fn the_archive_runs_on_a_bare_debian_12() {
    let debian = suites("debian12");
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() || !debian.join("usr/bin/fusermount3").exists() {
        skip_allowed("no bare Debian 12, which tests/run makes as root");
        return;
    }
    let out = env.work().join("out");
    make(&out, Path::new("/nonexistent"));
    // Its own mounts end with the namespace.
    let script = r#"
        mount --bind "$1" "$1" && cd "$1"
        mount --rbind /dev dev && mount -t proc proc proc && mount -t tmpfs tmpfs tmp
        tar -xzf "$2" --strip-components=1 -C usr/local
        cp "$3" tmp/use.sh
        chroot . /bin/sh -eu /tmp/use.sh"#;
    let file = env.work().join("use.sh");
    env.write(&file, IN_DEBIAN);
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "/bin/sh",
        "-euc",
        script,
        "sh",
    ]);
    command
        .arg(&debian)
        .arg(with_ending(&out, ".tar.gz"))
        .arg(&file);
    let done = run(command).ok();
    assert_eq!(done.out.matches("mounting works").count(), 2, "{done}");
    assert_eq!(done.err.matches("no problems").count(), 2, "{done}");
}

#[test]
fn the_debian_package_installs_completely_and_is_removed_completely() {
    let tools = std::env::var_os("ENVFS_TEST_DEB").map_or_else(|| suites("bin"), PathBuf::from);
    if !tools.join("cargo-deb").exists() {
        skip_allowed("no cargo-deb, which tests/run installs");
        return;
    }
    if !has("dpkg") || !has("objdump") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        skip_allowed("dpkg needs root");
        return;
    }
    let root = env.root().join("installed");
    let dpkg = root.join("var/lib/dpkg");
    for dir in ["info", "updates"] {
        fs::create_dir_all(dpkg.join(dir)).unwrap();
    }
    fs::write(dpkg.join("status"), "").unwrap();
    let out = env.work().join("out");
    make(&out, &tools);
    let deb = with_ending(&out, ".deb");

    // No package is installed below this root, so that nothing the package depends on is.
    let dpkg = |words: &[&str]| {
        let mut command = Command::new("dpkg");
        let root = format!("--root={}", root.display());
        command
            .env("PATH", PATH)
            .arg(root)
            .arg("--force-depends")
            .args(words);
        run(command).ok()
    };
    dpkg(&["-i", deb.to_str().unwrap()]);
    for file in FILES {
        assert!(root.join(file).metadata().unwrap().len() > 100, "{file}");
    }
    let fields = dpkg(&["-s", "envfs"]).out;
    for field in ["Maintainer: ", "fuse3", "libc6 (>= 2."] {
        assert!(fields.contains(field), "no {field} in {fields}");
    }
    let mut envfs = env.command(root.join(FILES[0]));
    envfs.arg("--version");
    assert!(run(envfs).ok().out.starts_with("envfs "));
    let mut man = Command::new("gzip");
    man.arg("-dc").arg(root.join(FILES[2]));
    let page = run(man).ok().out;
    assert!(page.contains("no\\-profile"), "{page}");
    dpkg(&["-P", "envfs"]);
    let left = files(&root);
    assert!(left.is_empty(), "{left:?}");
}
