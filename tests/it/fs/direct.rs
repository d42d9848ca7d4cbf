//! For tests: images mounted without a store, and a plain directory on ext4 as a reference.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Run, TestEnv, User, find, has, is_alive, run, skip_allowed, wait_for};

/// Images mounted writable by `envfs mount --image`.
pub(crate) struct Direct {
    pub(crate) env: TestEnv,
    options: String,
    /// The images below the top one.
    below: Vec<PathBuf>,
}

/// Packs a directory with `mksquashfs`.
fn pack(source: &Path, image: &Path, user: &User) {
    let mut pack = Command::new("mksquashfs");
    pack.arg(source)
        .arg(image)
        .args(["-noappend", "-no-progress", "-quiet", "-comp", "zstd"])
        .args(["-Xcompression-level", "1"]);
    run(pack).ok();
    user.give(image);
}

impl Direct {
    /// Packs a directory and mounts the image.
    pub(crate) fn of(env: TestEnv, source: &Path, options: &str) -> Option<Direct> {
        Direct::of_several(env, &[source], options)
    }

    /// Packs several directories and mounts the images as a stack, the first on top.
    pub(crate) fn of_several(env: TestEnv, sources: &[&Path], options: &str) -> Option<Direct> {
        if !has("mksquashfs") {
            return None;
        }
        let below = (1..sources.len()).map(|n| env.work().join(format!("below-{n}.sqfs")));
        let direct = Direct {
            below: below.collect(),
            env,
            options: options.to_owned(),
        };
        for (source, image) in sources.iter().zip(direct.images()) {
            pack(source, &image, direct.env.user());
        }
        fs::create_dir_all(direct.at()).unwrap();
        direct.env.user().give(&direct.at());
        if direct.env.user().is_root() {
            // Other users need access to the mount point.
            fs::set_permissions(direct.env.work(), PermissionsExt::from_mode(0o755)).unwrap();
        }
        direct.mount();
        Some(direct)
    }

    /// Mounts an image of an empty directory.
    pub(crate) fn empty(env: TestEnv, options: &str) -> Option<Direct> {
        let source = env.work().join("nothing");
        fs::create_dir(&source).unwrap();
        env.user().give(&source);
        Direct::of(env, &source, options)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.env.work().join("image.sqfs")
    }

    /// Returns all images, top first.
    pub(crate) fn images(&self) -> Vec<PathBuf> {
        let mut all = vec![self.image()];
        all.extend(self.below.iter().cloned());
        all
    }

    /// Returns the directory of the changes.
    pub(crate) fn upper(&self) -> PathBuf {
        self.env.work().join("changes")
    }

    /// Returns the mount point.
    pub(crate) fn at(&self) -> PathBuf {
        self.env.work().join("at")
    }

    pub(crate) fn mount(&self) -> Run {
        let mut command = self.env.envfs_command(&["mount"]);
        for image in self.images() {
            command.arg("--image").arg(image);
        }
        command.arg("--upper").arg(self.upper()).arg(self.at());
        if !self.options.is_empty() {
            command.args(["-o", &self.options]);
        }
        run(command).ok()
    }

    pub(crate) fn unmount(&self) {
        self.env.unmount(&self.at()).ok();
    }

    pub(crate) fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// Returns the process that serves the mount.
    pub(crate) fn daemon(&self) -> Pid {
        daemon_of(&self.at()).expect("the mount has a daemon")
    }

    pub(crate) fn kill(&self) {
        let pid = self.daemon();
        kill(pid, Signal::SIGKILL).unwrap();
        wait_for("the end of the daemon", || !is_alive(pid));
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let daemon = daemon_of(&self.at());
        // Fails if the test has unmounted it.
        self.env.unmount(&self.at());
        if let Some(pid) = daemon {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while is_alive(pid) && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            if is_alive(pid) {
                kill(pid, Signal::SIGKILL).ok();
            }
        }
    }
}

/// Finds the process that serves a mount without a store.
fn daemon_of(at: &Path) -> Option<Pid> {
    let wanted = format!("\"mount_point\":\"{}\"", at.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let is_it = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("__serve") && line.contains(&wanted)
    };
    entries
        .filter(is_it)
        .find_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
}

/// Creates a directory on a new ext4 file system. Skips the test and returns None if that is
/// impossible.
pub(crate) fn plain_directory(env: &TestEnv) -> Option<PathBuf> {
    let at = env.root().join("plain");
    fs::create_dir(&at).unwrap();
    if User::current().is_root() && find("mkfs.ext4").is_some() {
        let file = env.root().join("plain.ext4");
        fs::File::create(&file).unwrap().set_len(3 << 30).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-N", "400000"])
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1"])
            .arg(&file);
        run(make).ok();
        let mut mount = Command::new("mount");
        mount
            .args(["-o", "loop,nosuid,nodev,noatime"])
            .arg(&file)
            .arg(&at);
        // Without loop devices this fails, and /tmp may be on ext4.
        run(mount);
    }
    let kind = nix::sys::statfs::statfs(&at).unwrap().filesystem_type();
    if kind != nix::sys::statfs::EXT4_SUPER_MAGIC {
        skip_allowed("no ext4 as a reference");
        return None;
    }
    let dir = at.join("dir");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&at, PermissionsExt::from_mode(0o755)).unwrap();
    env.user().give(&dir);
    Some(dir)
}
