//! Marks of the directories of a layer: they show whether names in it have changed since.
//!
//! A file system changes the times of a directory with every name that is created, removed or
//! renamed in it. So comparing the times of all directories finds every change that comparing all
//! names would find, at the cost of one `stat` for each directory.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};
use serde::{Deserialize, Serialize};

use super::{UpperDir, name};
use crate::sys::walk::{self, CurrentDir, Subdirs, Visitor};
use std::os::unix::ffi::OsStrExt;

/// Times of files advance in steps, of up to 10 ms by the kernel's clock. A directory that changed
/// less than this ago may change again without a change of its times.
const STEP: Duration = Duration::from_millis(20);

/// The directories of a layer as they were at one moment.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marks {
    upper: Vec<(Vec<u8>, Mark)>,
    work: Mark,
}

/// Identifies a directory and the last change in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Mark {
    changed: (i64, i64),
    modified: (i64, i64),
    ino: u64,
}

impl Mark {
    fn of(stat: &FileStat) -> Mark {
        Mark {
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            ino: stat.st_ino,
        }
    }

    fn is_recent(&self) -> bool {
        let (secs, nanos) = self.changed.max(self.modified);
        let at = u64::try_from(secs).ok().zip(u32::try_from(nanos).ok());
        let at = at.and_then(|(secs, nanos)| UNIX_EPOCH.checked_add(Duration::new(secs, nanos)));
        let age = at.map(|at| SystemTime::now().duration_since(at));
        !age.is_some_and(|age| age.is_ok_and(|age| age > STEP))
    }
}

impl UpperDir {
    /// Returns the marks of all directories, once none of them has changed for a moment; `None` if
    /// they do not come to rest, or have times in the future. Cost follows the number of names.
    pub(crate) fn marks(&self) -> io::Result<Option<Marks>> {
        let mut marks = self.marks_now()?;
        if marks.is_recent() {
            std::thread::sleep(STEP + STEP);
            marks = self.marks_now()?;
        }
        Ok((!marks.is_recent()).then_some(marks))
    }

    fn marks_now(&self) -> io::Result<Marks> {
        let mut upper = Marked(Vec::new());
        let root = self.root().try_clone_to_owned()?;
        walk::walk_from(root, &self.path.join("upper"), (), &mut upper)?;
        Ok(Marks {
            upper: upper.0,
            work: Mark::of(&fstat(self.work())?),
        })
    }

    /// Returns true if all directories are as they were: no name has been created, removed or
    /// renamed since.
    pub(crate) fn is_as_marked(&self, marks: &Marks) -> bool {
        let root = self.root();
        let is_same = |path: &[u8], mark: &Mark| {
            let found = match path {
                b"" => fstat(root),
                path => fstatat(root, name(path), AtFlags::AT_SYMLINK_NOFOLLOW),
            };
            found.is_ok_and(|found| Mark::of(&found) == *mark)
        };
        fstat(self.work()).is_ok_and(|work| Mark::of(&work) == marks.work)
            // The root is among them, so a layer without marks is never as marked.
            && !marks.upper.is_empty()
            && marks.upper.iter().all(|(path, mark)| is_same(path, mark))
    }
}

impl Marks {
    fn is_recent(&self) -> bool {
        let newest = self.upper.iter().map(|(_, mark)| mark).chain([&self.work]);
        newest.max().is_none_or(Mark::is_recent)
    }
}

struct Marked(Vec<(Vec<u8>, Mark)>);

impl Visitor for Marked {
    type Tag = ();
    type Error = io::Error;

    fn enter(&mut self, here: &CurrentDir<'_>, _: ()) -> io::Result<Subdirs<()>> {
        // Before the names are read: a change after this is noticed.
        let mark = Mark::of(&fstat(here.fd().as_fd())?);
        let path: PathBuf = here.names().iter().map(|part| name(part)).collect();
        self.0.push((path.as_os_str().as_bytes().to_vec(), mark));
        let mut below = Vec::new();
        for entry in std::fs::read_dir(here.path())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                below.push((entry.file_name().as_bytes().to_vec(), ()));
            }
        }
        Ok(below)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[test]
    fn every_change_of_a_name_changes_a_mark() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join("layer").join(name);
        let layer = UpperDir::create(&at(""), &dir.path().join("strays")).unwrap();
        fs::create_dir_all(at("upper/a/b")).unwrap();
        fs::write(at("upper/a/b/file"), "1").unwrap();
        let changes: [&dyn Fn(); 7] = [
            &|| fs::write(at("upper/new"), "").unwrap(),
            &|| fs::write(at("work/new"), "").unwrap(),
            &|| fs::write(at("upper/a/b/new"), "").unwrap(),
            &|| fs::rename(at("upper/a/b/new"), at("upper/a/new")).unwrap(),
            &|| fs::remove_file(at("upper/a/b/file")).unwrap(),
            &|| fs::remove_dir(at("upper/a/b")).unwrap(),
            &|| fs::rename(at("upper/a"), at("upper/c")).unwrap(),
        ];
        for change in changes {
            let marks = layer.marks().unwrap().unwrap();
            assert!(layer.is_as_marked(&marks));
            change();
            assert!(!layer.is_as_marked(&marks));
        }
        // Content is not a name.
        let marks = layer.marks().unwrap().unwrap();
        fs::write(at("upper/new"), "longer").unwrap();
        assert!(layer.is_as_marked(&marks));
    }
}
