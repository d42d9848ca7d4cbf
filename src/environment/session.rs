//! Sessions: mounts of a committed revision, beside the one writable mount of an environment, and
//! the notes that they leave.
//!
//! A session writes a note into the home, where it may, so that `gc` keeps its image, and another
//! into the directory of sockets of its host. It renews both every [`HEARTBEAT`]. A note of this
//! boot and process namespace is judged by its process, any other by the time of its last renewal.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use super::process::HostProcess;
use crate::sys::text::Text;
use crate::sys::{durable, process, regular};

/// The interval at which a session renews its notes.
pub const HEARTBEAT: Duration = Duration::from_secs(60);

/// The time after which a session that did not renew its note is taken to have ended, unless its
/// process can be seen.
pub(super) const EXPIRY: Duration = Duration::from_secs(600);

/// The size limit of a note, in bytes.
const NOTE_LIMIT: u64 = 64 << 10;
/// The largest number of notes that are read from one directory.
const MAX_NOTES: usize = 10_000;
const SUFFIX: &str = ".json";
/// The name of the file in which `gc` announces what it removes.
const REMOVAL: &str = "removing";

/// What a mount of an environment shows, and where its changes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionKind {
    /// The current revision and its changes, which go to the environment's upper.
    Writable,
    /// A committed revision, without changes.
    ReadOnly,
    /// A committed revision, and changes that are dropped at the end.
    Ephemeral,
    /// The current revision and its changes, and further ones that are kept or dropped at the end.
    Try,
}

impl SessionKind {
    /// Returns the word for messages, options and the mount table.
    pub fn word(self) -> &'static str {
        match self {
            SessionKind::Writable => "writable",
            SessionKind::ReadOnly => "read-only",
            SessionKind::Ephemeral => "ephemeral",
            SessionKind::Try => "try",
        }
    }
}

/// The note of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionNote {
    /// The kind.
    pub kind: SessionKind,
    /// The name of the environment when the session began.
    pub name: String,
    /// The id of the environment.
    pub environment: String,
    /// The revision.
    pub revision: i64,
    /// The file name of its image in the home.
    pub image: String,
    /// The mount point, in the mount namespace of the daemon.
    pub mount_point: Text,
    /// The daemon.
    #[serde(flatten)]
    pub process: HostProcess,
    /// The namespace of the daemon's process ID.
    pub pid_namespace: Option<u64>,
    /// The user of the daemon.
    pub user: u32,
    /// When it began, in seconds since 1970.
    pub since: i64,
    /// The directory of its changes, which is removed at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<Text>,
    /// The process with which the session ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_with: Option<u32>,
    /// The bytes that its changes may take, if there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Whether its mount is in a namespace of its own.
    #[serde(default)]
    pub is_private: bool,
}

impl SessionNote {
    /// Returns whether envfs could have written this note.
    fn is_valid(&self) -> bool {
        let upper = self.upper.as_ref();
        !self.image.contains('/') && upper.is_none_or(|upper| upper.as_path().is_absolute())
    }

    /// Returns whether the daemon's process is visible to this process if it runs.
    pub fn is_visible(&self) -> bool {
        is_visible(&self.process, self.pid_namespace)
    }

    /// Returns whether the session runs, as far as can be told from here.
    fn is_live(&self, age: Duration) -> bool {
        if self.is_visible() {
            return self.process.is_running();
        }
        age <= EXPIRY
    }

    fn file_name(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let host = self.process.host.chars().take(64);
        let host: String = host.map(|c| if plain(c) { c } else { '_' }).collect();
        let HostProcess { pid, pid_start, .. } = &self.process;
        format!("{host}-{pid}-{pid_start}{SUFFIX}")
    }
}

fn is_visible(process: &HostProcess, pid_namespace: Option<u64>) -> bool {
    !process.boot_id.is_empty()
        && process.boot_id == process::boot_id()
        && pid_namespace.is_some()
        && pid_namespace == process::pid_namespace()
}

/// A note that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedSession {
    /// The content.
    pub note: SessionNote,
    /// The file.
    pub path: PathBuf,
    /// Whether the session runs, as far as can be told from here.
    pub is_live: bool,
}

/// A directory of notes.
#[derive(Clone, Debug)]
pub struct SessionNotes {
    dir: PathBuf,
}

impl SessionNotes {
    /// Returns the notes in a directory, which need not exist.
    pub fn new(dir: PathBuf) -> SessionNotes {
        SessionNotes { dir }
    }

    /// Reads the notes. Those that cannot be read are logged and left out.
    pub fn read(&self) -> io::Result<Vec<NotedSession>> {
        let entries = match regular::open_dir(&self.dir).and_then(|_| fs::read_dir(&self.dir)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for entry in entries.take(MAX_NOTES) {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read_note(&path) {
                Ok((note, age)) => found.push(NotedSession {
                    is_live: note.is_live(age),
                    note,
                    path,
                }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot read the note of a session");
                }
            }
        }
        found.sort_by(|a, b| (a.note.since, &a.path).cmp(&(b.note.since, &b.path)));
        Ok(found)
    }

    /// Writes a note. Creates the directory if it does not exist, unless it would belong to another
    /// user than the directory above.
    pub fn write(&self, note: &SessionNote) -> io::Result<WrittenNote> {
        let dir = match regular::open_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.create()?;
                regular::open_dir(&self.dir)?
            }
            opened => opened?,
        };
        let name = note.file_name();
        let draft = self.dir.join(format!(".{name}.draft"));
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o644)
            .open(&draft)?;
        let written = serde_json::to_vec(note)
            .map_err(io::Error::from)
            .and_then(|text| file.write_all(&text))
            .and_then(|()| fs::rename(&draft, self.dir.join(&name)));
        if let Err(error) = written {
            if let Err(error) = fs::remove_file(&draft) {
                tracing::debug!(path = %draft.display(), %error, "cannot remove a draft");
            }
            return Err(error);
        }
        Ok(WrittenNote { dir, file, name })
    }
}

impl SessionNotes {
    /// Announces that these images will be removed. A session that begins from now on does not use
    /// them; those that have left a note before must be asked for after this.
    pub fn announce_removal(&self, images: Vec<String>) -> io::Result<AnnouncedRemoval> {
        match regular::open_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.create()?,
            opened => drop(opened?),
        }
        let path = self.dir.join(REMOVAL);
        let removal = Removal {
            images,
            process: HostProcess::current(),
            pid_namespace: process::pid_namespace(),
        };
        durable::replace(&path, &serde_json::to_vec(&removal)?)?;
        Ok(AnnouncedRemoval { path })
    }

    /// Returns whether a process that runs has announced to remove this image. Ignores what is not
    /// from the owner of the environment or root: the directory may be open to all users.
    pub fn is_being_removed(&self, image: &str) -> bool {
        let path = self.dir.join(REMOVAL);
        let read = || -> io::Result<bool> {
            let above = self.dir.parent().unwrap_or(Path::new("/"));
            let author = fs::symlink_metadata(&path)?.uid();
            if author != 0 && author != fs::metadata(above)?.uid() {
                return Err(io::Error::from(io::ErrorKind::PermissionDenied));
            }
            let age = age_of(&path)?;
            let removal: Removal = serde_json::from_slice(&regular::read(&path, NOTE_LIMIT)?)?;
            let is_live = match is_visible(&removal.process, removal.pid_namespace) {
                true => removal.process.is_running(),
                false => age <= EXPIRY,
            };
            Ok(is_live && removal.images.iter().any(|name| name == image))
        };
        read().unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot read what gc removes");
            }
            false
        })
    }

    fn create(&self) -> io::Result<()> {
        let above = self.dir.parent().unwrap_or(Path::new("/"));
        if fs::metadata(above)?.uid() != process::user_id() {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }
}

fn read_note(path: &Path) -> io::Result<(SessionNote, Duration)> {
    let age = age_of(path)?;
    let note: SessionNote = serde_json::from_slice(&regular::read(path, NOTE_LIMIT)?)?;
    if !note.is_valid() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a note of envfs",
        ));
    }
    Ok((note, age))
}

/// Returns the time since a file was changed. A time in the future counts as now.
fn age_of(path: &Path) -> io::Result<Duration> {
    let modified = fs::symlink_metadata(path)?.modified()?;
    let age = SystemTime::now().duration_since(modified);
    Ok(age.unwrap_or_default())
}

/// What `gc` is about to remove. It is in the directory of the notes, because creating a file in a
/// directory of a network file system makes this host see the files that others have created there.
#[derive(Debug, Serialize, Deserialize)]
struct Removal {
    images: Vec<String>,
    #[serde(flatten)]
    process: HostProcess,
    pid_namespace: Option<u64>,
}

/// An announced removal. Ends when dropped.
#[derive(Debug)]
pub struct AnnouncedRemoval {
    path: PathBuf,
}

impl Drop for AnnouncedRemoval {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an announcement");
        }
    }
}

/// A note that this process renews. Removed when dropped.
#[derive(Debug)]
pub struct WrittenNote {
    /// Stays valid when the environment is renamed.
    dir: File,
    file: File,
    name: String,
}

impl WrittenNote {
    /// Renews the note: the time is that of the file server.
    pub fn renew(&self) -> io::Result<()> {
        Ok(futimens(
            &self.file,
            &TimeSpec::UTIME_NOW,
            &TimeSpec::UTIME_NOW,
        )?)
    }
}

impl Drop for WrittenNote {
    fn drop(&mut self) {
        let removed = unlinkat(&self.dir, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        if let Err(error) = removed
            && error != nix::errno::Errno::ENOENT
        {
            tracing::warn!(name = self.name, %error, "cannot remove the note of a session");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn note() -> SessionNote {
        SessionNote {
            kind: SessionKind::ReadOnly,
            name: String::from("e"),
            environment: String::from("1"),
            revision: 3,
            image: String::from("3.sqfs"),
            mount_point: Text::from("/x"),
            process: HostProcess::current(),
            pid_namespace: process::pid_namespace(),
            user: 0,
            since: 1,
            upper: None,
            ends_with: None,
            limit: None,
            is_private: false,
        }
    }

    fn set_age(path: &Path, age: Duration) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn a_note_lives_as_long_as_its_process_and_is_removed_with_its_session() {
        let dir = tempfile::tempdir().unwrap();
        let notes = SessionNotes::new(dir.path().join("sessions"));
        assert_eq!(notes.read().unwrap(), []);
        let written = notes.write(&note()).unwrap();
        let found = notes.read().unwrap();
        assert_eq!((found.len(), found[0].is_live), (1, true));
        assert_eq!(found[0].note, note());
        // Its process can be seen, so the age does not matter.
        set_age(&found[0].path, EXPIRY * 2);
        assert!(notes.read().unwrap()[0].is_live);
        // The directory was renamed.
        fs::rename(dir.path().join("sessions"), dir.path().join("moved")).unwrap();
        written.renew().unwrap();
        drop(written);
        let moved = SessionNotes::new(dir.path().join("moved"));
        assert_eq!(moved.read().unwrap(), []);
        let mut ended = note();
        ended.process.pid_start += 1;
        let _written = moved.write(&ended).unwrap();
        assert!(!moved.read().unwrap()[0].is_live);
    }

    #[test]
    fn a_note_of_another_host_lives_while_it_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let notes = SessionNotes::new(dir.path().to_path_buf());
        let mut other = note();
        other.process.boot_id = String::from("another");
        let written = notes.write(&other).unwrap();
        let path = notes.read().unwrap()[0].path.clone();
        for (age, is_live) in [(EXPIRY / 2, true), (EXPIRY * 2, false)] {
            set_age(&path, age);
            assert_eq!(notes.read().unwrap()[0].is_live, is_live, "{age:?}");
        }
        written.renew().unwrap();
        assert!(notes.read().unwrap()[0].is_live);
    }

    #[test]
    fn an_announcement_counts_while_its_process_runs() {
        let dir = tempfile::tempdir().unwrap();
        let notes = SessionNotes::new(dir.path().join("sessions"));
        assert!(!notes.is_being_removed("3.sqfs"));
        let announced = notes.announce_removal(vec!["3.sqfs".to_owned()]).unwrap();
        assert!(notes.is_being_removed("3.sqfs") && !notes.is_being_removed("4.sqfs"));
        assert_eq!(notes.read().unwrap(), []);
        let path = announced.path.clone();
        let text = fs::read_to_string(&path).unwrap();
        drop(announced);
        assert!(!path.exists());
        // The process has ended.
        let start = HostProcess::current().pid_start;
        fs::write(&path, text.replace(&start.to_string(), "1")).unwrap();
        assert!(!notes.is_being_removed("3.sqfs"));
        // It is on another host.
        fs::write(&path, text.replace(&process::boot_id(), "another")).unwrap();
        assert!(notes.is_being_removed("3.sqfs"));
        set_age(&path, EXPIRY * 2);
        assert!(!notes.is_being_removed("3.sqfs"));
        fs::write(&path, "{").unwrap();
        assert!(!notes.is_being_removed("3.sqfs"));
    }

    #[test]
    fn files_that_are_no_notes_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let notes = SessionNotes::new(dir.path().to_path_buf());
        for (name, text) in [("a.json", "{"), ("b.json", ""), ("c.txt", "{}")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        nix::unistd::mkfifo(&dir.path().join("d.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("e.json")).unwrap();
        let mut hostile = note();
        hostile.image = String::from("../../x");
        let text = serde_json::to_vec(&hostile).unwrap();
        fs::write(dir.path().join("f.json"), text).unwrap();
        assert_eq!(notes.read().unwrap(), []);
        let link = SessionNotes::new(dir.path().join("link"));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        link.read().unwrap_err();
        link.write(&note()).unwrap_err();
    }
}
