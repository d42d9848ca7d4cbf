//! A file system of its own, in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{has, run, skip_allowed, unmount};

/// A file system in a file, unmounted when it is dropped.
pub(crate) struct Disk {
    file: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// Makes one with a program of the `mkfs` kind. None, and said so, where nothing can be mounted.
    pub(crate) fn new(dir: &Path, maker: &str, arguments: &[&str], mib: u64) -> Option<Disk> {
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
        Disk::mount(file, dir.join(maker))
    }

    fn mount(file: PathBuf, mounted: PathBuf) -> Option<Disk> {
        fs::create_dir(&mounted).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&file).arg(&mounted);
        let done = run(mount);
        if done.code != 0 {
            skip_allowed(&format!("{}: {}", file.display(), done.err.trim()));
            return None;
        }
        Some(Disk { file, mounted })
    }

    /// Where it is mounted.
    pub(crate) fn at(&self) -> &Path {
        &self.mounted
    }

    /// What is on the disk now, without what the kernel has yet to write.
    pub(crate) fn after_power_cut(&self) -> Option<Disk> {
        let file = self.file.with_extension("cut");
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").arg(&self.file).arg(&file);
        run(copy).ok();
        Disk::mount(file, self.mounted.with_extension("cut"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The daemon of a store on it may still be on its way out.
        if unmount(&self.mounted).code != 0 {
            let mut umount = Command::new("umount");
            drop(umount.arg("-l").arg(&self.mounted).status());
        }
    }
}
