//! Kernel overlayfs, as a reference.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{TestEnv, User, run, skip_allowed, unmount};

/// An overlayfs over images, unmounted when dropped.
pub(crate) struct Overlay {
    at: PathBuf,
    lower: Vec<PathBuf>,
    changes: PathBuf,
    options: String,
}

impl Overlay {
    /// Mounts images, top first, with changes in a directory whose file system supports it. Skips
    /// the test and returns None if that is impossible.
    pub(crate) fn mount(
        env: &TestEnv,
        images: &[PathBuf],
        changes: &Path,
        options: &str,
    ) -> Option<Overlay> {
        if !User::current().is_root() {
            skip_allowed("overlayfs needs root");
            return None;
        }
        let mut overlay = Overlay {
            at: env.root().join("overlay"),
            lower: Vec::new(),
            changes: changes.to_owned(),
            options: options.to_owned(),
        };
        fs::create_dir(&overlay.at).unwrap();
        for name in ["upper", "work"] {
            fs::create_dir_all(changes.join(name)).unwrap();
        }
        for (number, image) in images.iter().enumerate() {
            let lower = env.root().join(format!("lower-{number}"));
            fs::create_dir(&lower).unwrap();
            let mut command = Command::new("mount");
            command.args(["-t", "squashfs", "-o", "loop,ro"]);
            command.arg(image).arg(&lower);
            let mounted = run(command);
            if mounted.code != 0 {
                skip_allowed(&format!("cannot mount squashfs: {}", mounted.err.trim()));
                return None;
            }
            overlay.lower.push(lower);
        }
        let mounted = overlay.mount_again();
        if mounted.code != 0 {
            skip_allowed(&format!("cannot mount overlayfs: {}", mounted.err.trim()));
            return None;
        }
        Some(overlay)
    }

    fn mount_again(&self) -> super::Run {
        let lower: Vec<String> = self
            .lower
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let changes = self.changes.display();
        let mut words = format!(
            "nosuid,nodev,noatime,lowerdir={},upperdir={changes}/upper,workdir={changes}/work",
            lower.join(":")
        );
        if !self.options.is_empty() {
            words = format!("{words},{}", self.options);
        }
        let mut command = Command::new("mount");
        command
            .args(["-t", "overlay", "overlay", "-o", &words])
            .arg(&self.at);
        run(command)
    }

    /// Returns the mount point.
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// Unmounts it and mounts it again.
    pub(crate) fn remount(&self) {
        unmount(&self.at).ok();
        self.mount_again().ok();
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // Fails if it is not mounted.
        unmount(&self.at);
        for lower in &self.lower {
            unmount(lower);
        }
    }
}
