#![allow(clippy::unwrap_used)]

mod processes;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::client::Client;
use super::failure::{Failure, Kind};
use super::protocol::*;
use super::runtime::RuntimeDir;
use super::server::{Control, Server};
use super::service::Local;
use crate::commit::{
    self, CheckpointOptions, Checkpointed, Collected, CommitError, CommitOptions, Committed,
    GcOptions, Phases, RolledBack, TrialDone, TrialRequest, UndoOptions, Undone, Way,
};
use crate::environment::{Config, EnvName, Store};
use crate::object::{Ino, Kind as ObjectKind};
use crate::packages::Differences;
use crate::progress::{NoProgress, Progress, Report};
use crate::squashfs::writer::WriteStats;
use crate::state::{OperationId, RevisionId};
use crate::sys::mount::UnmountMode;
use crate::union::{Change, ChangeKind, Creator, NewObject, Restored, Summary};

/// A service whose behaviour depends on the request.
#[derive(Default)]
struct Fake {
    was_cancelled: AtomicBool,
}

impl Fake {
    /// Waits for the client to disconnect.
    fn wait_if(&self, waits: bool, progress: &dyn Progress) -> Result<(), Failure> {
        let end = Instant::now() + Duration::from_secs(20);
        while waits && Instant::now() < end {
            if progress.is_cancelled() {
                self.was_cancelled.store(true, Ordering::SeqCst);
                return Err(Failure::new(Kind::Cancelled, "stopped"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Service for Fake {
    fn status(&self) -> Result<Status, Failure> {
        Ok(Status {
            revision: Some(7),
            ..Status::default()
        })
    }

    fn differences(&self, _: &Selection) -> Result<Differences, Failure> {
        Ok(Differences::default())
    }

    fn changes(&self, selection: &Selection) -> Result<Vec<Change>, Failure> {
        Ok(selection
            .paths
            .iter()
            .map(|path| Change {
                path: path.as_bytes().to_vec(),
                what: ChangeKind::Added,
                kind: crate::object::Kind::File,
                size: 1,
                ino: crate::object::Ino(7),
                committed: None,
            })
            .collect())
    }

    fn differences_since(&self, _: &Since) -> Result<Differences, Failure> {
        Ok(Differences::default())
    }

    fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<Option<Committed>, Failure> {
        for files_done in 1..=3 {
            progress.report(&Report {
                phase: format!("phase {files_done}"),
                files_done,
                files_total: 3,
                bytes_done: 0,
                bytes_total: 0,
            });
        }
        self.wait_if(options.message == "wait", progress)?;
        Ok(Some(Committed {
            revision: RevisionId(8),
            way: Way::Append,
            because: None,
            dead_bytes: 0,
            image: WriteStats::default(),
            millis: Phases::default(),
            changes: Summary::default(),
            packages: Default::default(),
            forgot: None,
            stale: Vec::new(),
        }))
    }

    fn preview(&self, _: &Committable, _: &dyn Progress) -> Result<commit::Preview, Failure> {
        Ok(commit::Preview::default())
    }

    fn committable(&self, _: &Committable) -> Result<Vec<Change>, Failure> {
        Ok(Vec::new())
    }

    fn amend(&self, options: &AmendOptions, _: &dyn Progress) -> Result<Amended, Failure> {
        Ok(Amended {
            message: options.message.clone(),
            ..Amended::default()
        })
    }

    fn discard(&self, _: &DiscardOptions, _: &dyn Progress) -> Result<Discarded, Failure> {
        Err(Failure::new(Kind::NoSpace, "full").hint("make room"))
    }

    fn rollback(&self, _: &RollbackOptions, _: &dyn Progress) -> Result<RolledBack, Failure> {
        Ok(RolledBack {
            revision: RevisionId(9),
            of: RevisionId(8),
            stale: Vec::new(),
        })
    }

    fn restore(&self, _: &Since, _: &dyn Progress) -> Result<Restored, Failure> {
        Ok(Restored::default())
    }

    fn undo(&self, _: &UndoOptions, _: &dyn Progress) -> Result<Undone, Failure> {
        Err(CommitError::NothingToUndo.into())
    }

    fn checkpoint(&self, _: &CheckpointOptions, _: &dyn Progress) -> Result<Checkpointed, Failure> {
        Ok(Checkpointed {
            operation: OperationId(3),
            has_changes: true,
        })
    }

    fn trial(&self, _: &TrialRequest, _: &dyn Progress) -> Result<TrialDone, Failure> {
        Err(Failure::new(Kind::Internal, "not used"))
    }

    fn tag(&self, options: &TagOptions, progress: &dyn Progress) -> Result<(), Failure> {
        self.wait_if(options.tag == "wait", progress)
    }

    fn gc(&self, _: GcOptions, _: &dyn Progress) -> Result<Collected, Failure> {
        Ok(Collected::default())
    }

    fn stats(&self) -> Result<serde_json::Value, Failure> {
        Ok(serde_json::json!({"reads": 1}))
    }
}

struct NoMount;

impl Control for NoMount {
    fn unmount(&self, _: UnmountMode) -> Result<Unmounted, Failure> {
        Err(Failure::new(Kind::Busy, "in use"))
    }
}

/// Records progress, and may cancel at once.
#[derive(Default)]
struct Recorder {
    phases: Mutex<Vec<String>>,
    is_cancelled: bool,
}

impl Progress for Recorder {
    fn report(&self, report: &Report) {
        self.phases.lock().unwrap().push(report.phase.clone());
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }
}

fn serving() -> (
    tempfile::TempDir,
    PathBuf,
    Arc<Fake>,
    super::server::Running,
) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    let fake = Arc::new(Fake::default());
    let running = Server::bind(&socket, "id", None)
        .unwrap()
        .start(fake.clone(), Arc::new(NoMount))
        .unwrap();
    (dir, socket, fake, running)
}

#[test]
fn requests_are_answered_with_progress_results_and_failures() {
    let (_dir, socket, _, running) = serving();
    let client = Client::connect(&socket).unwrap().unwrap();
    assert_eq!(client.hello().environment, "id");
    assert_eq!(client.hello().pid, std::process::id());
    client.call::<()>(&Request::Ping, &NoProgress).unwrap();
    assert_eq!(client.status().unwrap().revision, Some(7));
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\n\xff");
    let selection = Selection {
        paths: vec![crate::sys::text::Text::from(name)],
    };
    assert_eq!(
        client.changes(&selection).unwrap()[0].path,
        selection.paths[0].as_bytes()
    );
    let recorder = Recorder::default();
    assert_eq!(
        client
            .commit(&CommitOptions::default(), &recorder)
            .unwrap()
            .unwrap()
            .revision,
        RevisionId(8)
    );
    assert_eq!(
        *recorder.phases.lock().unwrap(),
        ["phase 1", "phase 2", "phase 3"]
    );
    let failure = client
        .discard(&DiscardOptions::default(), &NoProgress)
        .unwrap_err();
    assert_eq!((failure.kind, failure.hints.len()), (Kind::NoSpace, 1));
    assert_eq!(
        client.unmount(UnmountMode::Plain, &|| {}).unwrap_err().kind,
        Kind::Busy
    );
    assert_eq!(client.stats().unwrap()["reads"], 1);
    drop(running);
    assert!(Client::connect(&socket).unwrap().is_none());
    assert!(!socket.exists());
}

#[test]
fn disconnecting_cancels_a_commit() {
    let (_dir, socket, fake, running) = serving();
    let client = Client::connect(&socket).unwrap().unwrap();
    let options = CommitOptions {
        message: String::from("wait"),
        ..CommitOptions::default()
    };
    let recorder = Recorder {
        is_cancelled: true,
        ..Recorder::default()
    };
    let failure = client.commit(&options, &recorder).unwrap_err();
    assert_eq!(failure.kind, Kind::Cancelled);
    drop(running);
    assert!(fake.was_cancelled.load(Ordering::SeqCst));
}

#[test]
fn disconnecting_cancels_requests_without_progress() {
    let (_dir, socket, fake, running) = serving();
    let client = Client::connect(&socket).unwrap().unwrap();
    let options = TagOptions {
        tag: String::from("wait"),
        revision: None,
    };
    let recorder = Recorder {
        is_cancelled: true,
        ..Recorder::default()
    };
    let failure = client.tag(&options, &recorder).unwrap_err();
    assert_eq!(failure.kind, Kind::Cancelled);
    drop(running);
    assert!(fake.was_cancelled.load(Ordering::SeqCst));
}

#[test]
fn requests_after_the_end_are_refused() {
    use std::io::Write;
    let (_dir, socket, _, running) = serving();
    let mut stream = UnixStream::connect(&socket).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("protocol"));
    drop(running);
    stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
    let answer = lines.next().unwrap().unwrap();
    assert!(answer.contains("about to end"), "{answer}");
}

/// Returns a new environment, open without a mount, with one change.
fn local() -> (tempfile::TempDir, Local) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("store"));
    let new = store.create(&EnvName::new("e").unwrap()).unwrap();
    let config = Config::default();
    let options = commit::ImportOptions {
        first: Vec::new(),
        offset: None,
        relocate: commit::Relocate::No,
        prefix: dir.path().join("prefix"),
        message: String::new(),
        settings: commit::Settings::from_config(&config),
        exclude: Vec::new(),
    };
    let environment = commit::create_empty(new, &options).unwrap();
    let local = Local::open(environment, &config, "test", Duration::ZERO).unwrap();
    let creator = Creator { uid: 0, gid: 0 };
    let union = local.workspace().union();
    union
        .create(
            Ino::ROOT,
            b"new",
            &NewObject::new(ObjectKind::Directory, 0o755, creator),
        )
        .unwrap();
    (dir, local)
}

#[test]
fn requests_cancelled_while_waiting_for_others_change_nothing() {
    let (_dir, local) = local();
    let cancelled = Recorder {
        is_cancelled: true,
        ..Recorder::default()
    };
    let tag = TagOptions {
        tag: String::from("name"),
        revision: Some(1),
    };
    let keep = GcOptions {
        keep: 1,
        before: None,
        current_since: None,
        dry_run: false,
        scope: commit::Scope::Everything,
    };
    let all = Selection::default();
    let back = RollbackOptions {
        discard_changes: true,
        revision: Some(1),
        ..RollbackOptions::default()
    };
    let kinds = [
        local
            .discard(&DiscardOptions::default(), &cancelled)
            .unwrap_err()
            .kind,
        local.rollback(&back, &cancelled).unwrap_err().kind,
        local
            .undo(&UndoOptions::default(), &cancelled)
            .unwrap_err()
            .kind,
        local
            .checkpoint(&CheckpointOptions::default(), &cancelled)
            .unwrap_err()
            .kind,
        local.tag(&tag, &cancelled).unwrap_err().kind,
        local.gc(keep, &cancelled).unwrap_err().kind,
        local
            .commit(&CommitOptions::default(), &cancelled)
            .unwrap_err()
            .kind,
    ];
    assert_eq!(kinds, [Kind::Cancelled; 7]);
    assert_eq!(local.changes(&all).unwrap().len(), 1);
    assert!(local.workspace().db().tags().unwrap().is_empty());
    assert_eq!(local.workspace().db().revisions().unwrap().len(), 1);
    local
        .discard(&DiscardOptions::default(), &NoProgress)
        .unwrap();
    assert!(local.changes(&all).unwrap().is_empty());
}

#[test]
fn malformed_and_missing_requests_do_no_harm() {
    use std::io::Write;
    let (_dir, socket, _, _running) = serving();
    drop(UnixStream::connect(&socket).unwrap());
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"{\"request\":\"sing\"}\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.next().unwrap().unwrap().contains("protocol"));
    assert!(lines.next().unwrap().unwrap().contains("\"error\""));
    assert!(Client::connect(&socket).unwrap().is_some());
}

#[test]
fn only_a_private_directory_is_used_for_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(RuntimeDir::at(&open).unwrap_err().kind, Kind::Conflict);
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    assert!(RuntimeDir::at(&dir.path().join("link")).is_err());
    assert!(RuntimeDir::at(&dir.path().join("new")).is_ok());
}

#[test]
fn a_prefix_that_is_not_empty_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("p");
    super::prefix::prepare_prefix(&prefix).unwrap();
    std::fs::write(prefix.join("x"), "").unwrap();
    let failure = super::prefix::prepare_prefix(&prefix).unwrap_err();
    assert_eq!(failure.kind, Kind::Conflict);
    let failure = super::prefix::prepare_prefix(&prefix.join("x")).unwrap_err();
    assert_eq!(failure.kind, Kind::Conflict);
    assert_eq!(
        super::prefix::prepare_prefix(Path::new("p"))
            .unwrap_err()
            .kind,
        Kind::Usage
    );
    let failure = super::prefix::prepare_prefix(Path::new("/proc")).unwrap_err();
    assert!(failure.message.contains("mounted"), "{failure}");
}
