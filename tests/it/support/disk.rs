//! A file system in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Run, has, run, skip_allowed, unmount};

/// A file system in a file, unmounted when dropped.
pub(crate) struct Disk {
    file: PathBuf,
    mounted: PathBuf,
    options: Vec<String>,
}

impl Disk {
    /// Creates one with an `mkfs` program. Skips the test and returns None if it cannot be mounted.
    pub(crate) fn new(dir: &Path, maker: &str, arguments: &[&str], mib: u64) -> Option<Disk> {
        Disk::with_options(dir, maker, arguments, &[], mib)
    }

    /// Like [`Disk::new`], with options for mount(8).
    pub(crate) fn with_options(
        dir: &Path,
        maker: &str,
        arguments: &[&str],
        options: &[&str],
        mib: u64,
    ) -> Option<Disk> {
        if !nix::unistd::geteuid().is_root() {
            skip_allowed("a file system in a file needs root");
            return None;
        }
        if !has(maker) {
            return None;
        }
        let file = dir.join(format!("{maker}.disk"));
        fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        let mut make = Command::new(maker);
        make.args(arguments).arg(&file);
        run(make).ok();
        Disk::mount(file, dir.join(maker), options)
    }

    fn mount(file: PathBuf, mounted: PathBuf, options: &[&str]) -> Option<Disk> {
        fs::create_dir(&mounted).unwrap();
        let disk = Disk {
            file,
            mounted,
            options: options.iter().map(|word| (*word).to_owned()).collect(),
        };
        let done = disk.attach();
        if done.code != 0 {
            skip_allowed(&format!("{}: {}", disk.file.display(), done.err.trim()));
            return None;
        }
        Some(disk)
    }

    /// Mounts it again.
    pub(crate) fn attach(&self) -> Run {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).args(&self.options);
        mount.arg(&self.file).arg(&self.mounted);
        run(mount)
    }

    /// Flushes everything to the disk.
    pub(crate) fn sync(&self) {
        let dir = fs::File::open(&self.mounted).unwrap();
        nix::unistd::syncfs(dir).unwrap();
    }

    /// Simulates a power failure: nothing reaches the disk from now on.
    pub(crate) fn shut_down(&self) {
        let mut command = Command::new("xfs_io");
        // -x: works on ext4, too. Without -f the journal is not flushed.
        command.args(["-x", "-c", "shutdown"]).arg(&self.mounted);
        run(command).ok();
    }

    /// Remounts after [`Disk::shut_down`], which replays the journal.
    ///
    /// Mounts a copy of the file: the mount may still exist in the mount namespace of another
    /// process, and mounting the same file would yield the file system that was shut down.
    pub(crate) fn restart(&self) {
        let file = self.copy("again");
        unmount(&self.mounted).ok();
        fs::rename(&file, &self.file).unwrap();
        self.attach().ok();
    }

    fn copy(&self, extension: &str) -> PathBuf {
        let file = self.file.with_extension(extension);
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").arg(&self.file).arg(&file);
        run(copy).ok();
        file
    }

    /// Returns the mount point.
    pub(crate) fn at(&self) -> &Path {
        &self.mounted
    }

    /// Mounts a copy of the disk, without data that the kernel has not written yet.
    pub(crate) fn after_power_cut(&self) -> Option<Disk> {
        let file = self.copy("cut");
        Disk::mount(file, self.mounted.with_extension("cut"), &[])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A daemon of a store on it may still be exiting.
        if unmount(&self.mounted).code != 0 {
            let mut umount = Command::new("umount");
            drop(umount.arg("-l").arg(&self.mounted).status());
        }
    }
}
