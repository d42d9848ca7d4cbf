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

#[test]
fn packages_install_completely_and_are_removed_completely() {
    let Some(tools) = std::env::var_os("ENVFS_TEST_DEB") else {
        skip_allowed("ENVFS_TEST_DEB is not set");
        return;
    };
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
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut package = Command::new(source.join("examples/package.sh"));
    package.arg(env!("CARGO_BIN_EXE_envfs")).arg(&out);
    let path = std::env::var("PATH").unwrap();
    package.env("PATH", format!("{}:{path}", tools.to_string_lossy()));
    let made = run(package).ok();
    assert!(made.out.contains("or later of glibc"), "{made}");
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

    let archive = with_ending(&out, ".tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-xzf")
        .arg(&archive)
        .arg("--strip-components=1")
        .arg("-C")
        .arg(&root);
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
