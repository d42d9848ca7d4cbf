//! What a daemon is told to serve, as JSON on its command line.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::commit;
use crate::environment::{CacheConfig, Layout, Poll, SessionKind};
use crate::squashfs::ReaderOptions;
use crate::sys::mount::{MountFlags, MountOptions, MountRequest, Rights};
use crate::sys::mountinfo;
use crate::sys::text::Text;

/// The description of a mount without a store. All paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DirectMount {
    /// The SquashFS images, top first; at least one.
    pub images: Vec<Text>,
    /// The offset of the image in its file, unless it is detected; for a single image.
    #[serde(default)]
    pub offset: Option<u64>,
    /// The directory for changes, created if it does not exist; `None` for a read-only mount.
    pub upper: Option<Text>,
    /// The database, if not in the directory for changes.
    pub state: Option<Text>,
    /// An existing directory.
    pub mount_point: Text,
    /// The source in the mount table.
    pub source: String,
    /// The part of the file system type after `fuse.`.
    pub subtype: String,
    /// The flags for the kernel.
    pub flags: MountFlags,
    /// Whether other users may access the mount.
    pub allow_other: bool,
    /// Whether the user who mounts has root's rights there; excludes `allow_other`.
    pub fakeroot: bool,
    /// The session, if an image of an environment is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionSpec>,
    /// The trial, if the state of an environment is mounted with further changes. Then there are no
    /// images, and the directory for changes has only the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialSpec>,
}

/// The session that a daemon serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SessionSpec {
    /// Read-only or ephemeral.
    pub kind: SessionKind,
    /// The name of the environment.
    pub name: String,
    /// Its id.
    pub environment: String,
    /// The revision.
    pub revision: i64,
    /// The file name of its image in the home.
    pub image: String,
    /// The directories for notes. Where the daemon has no permission, it writes none.
    pub notes: Vec<Text>,
    /// The process with which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_with: Option<u32>,
    /// How long it may be unused before it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// The bytes that its changes may take, if there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Whether it is mounted in a namespace of its own.
    #[serde(default)]
    pub is_private: bool,
    /// The caches of its mount.
    #[serde(default)]
    pub cache: CacheConfig,
    /// How its daemon waits for requests.
    #[serde(default)]
    pub poll: Poll,
}

/// A trial, for the process that serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrialSpec {
    /// The home of the environment.
    pub home: Text,
    /// The name of the directory of the trial.
    pub token: String,
    /// The layer that takes its changes.
    pub layer: i64,
    /// The caches of its mount.
    #[serde(default)]
    pub cache: CacheConfig,
}

impl DirectMount {
    /// Returns the mount to create; `id` names it unless it has a source.
    pub(super) fn request(&self, id: &str) -> MountRequest {
        MountRequest {
            mount_point: self.mount_point.as_path().to_path_buf(),
            id: id.to_owned(),
            allow_other: self.allow_other,
            rights: self.rights(),
            options: MountOptions {
                source: Some(self.source.clone()),
                subtype: self.subtype.clone(),
                flags: self.flags,
            },
        }
    }

    /// Returns the directory of its changes.
    pub(super) fn changes(&self) -> Option<Text> {
        match &self.trial {
            Some(trial) => Some(trial.changes().into()),
            None => self.upper.clone(),
        }
    }

    /// Returns the caches of the mount.
    pub(super) fn reader(&self) -> ReaderOptions {
        let session = self.session.as_ref();
        let cache = session.map(|session| session.cache.clone());
        commit::reader_options(&cache.unwrap_or_default())
    }

    /// Returns the number of bytes that its changes may take, if there is a limit.
    pub(super) fn limit(&self) -> Option<u64> {
        self.session.as_ref()?.limit
    }

    pub(super) fn rights(&self) -> Rights {
        match self.fakeroot {
            true => Rights::Root,
            false => Rights::Own,
        }
    }

    /// Returns the default source of a mount: the image, if the mount table can represent its path.
    pub(crate) fn default_source(image: &Path) -> String {
        match image.to_str() {
            Some(text) if !text.contains([',', '\\']) => text.to_owned(),
            _ => String::from("envfs"),
        }
    }

    /// Returns whether the mount point is a directory, even if a dead mount covers it.
    pub(crate) fn has_mount_point(&self) -> bool {
        let path = self.mount_point.as_path();
        path.as_os_str().as_bytes().starts_with(b"/") && (path.is_dir() || mountinfo::is_dead(path))
    }
}

impl TrialSpec {
    pub(super) fn layout(&self) -> Layout {
        Layout::new(self.home.as_path())
    }

    /// Returns the directory of its database, lock and log.
    pub(crate) fn session(&self) -> Layout {
        self.layout().trial(&self.token).session_of_trial()
    }

    /// Returns the directory of its changes.
    pub(crate) fn changes(&self) -> PathBuf {
        self.layout().layer(self.layer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_session_has_the_caches_of_its_configuration() {
        let mut what: DirectMount = serde_json::from_value(serde_json::json!({
            "images": ["/i"], "upper": null, "state": null, "mount_point": "/m", "source": "s",
            "subtype": "envfs", "flags": MountFlags::default(), "allow_other": false,
            "fakeroot": false,
            "session": {
                "kind": "read-only", "name": "e", "environment": "1", "revision": 1,
                "image": "1.sqfs", "notes": [], "cache": {"data_mib": 3, "metadata_mib": 5},
            },
        }))
        .unwrap();
        let shown = |what: &DirectMount| format!("{:?}", what.reader());
        let cache = CacheConfig {
            data_mib: Some(3),
            metadata_mib: 5,
        };
        let wanted = format!("{:?}", commit::reader_options(&cache));
        assert_eq!(shown(&what), wanted);
        what.session = None;
        assert_ne!(shown(&what), wanted);
    }
}
