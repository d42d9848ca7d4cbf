//! The part of a session that its daemon runs: its notes, by which others find it, and its end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use crate::daemon::failure::{Failure, Kind};
use crate::daemon::idle::Idle;
use crate::daemon::runtime::RuntimeDir;
use crate::daemon::spec::{DirectMount, SessionSpec};
use crate::daemon::unmount;
use crate::environment::{
    HEARTBEAT, HostProcess, SessionKind, SessionNote, SessionNotes, WrittenNote,
};
use crate::fault;
use crate::fuse::Counters;
use crate::fuse::session::{Session, StopHandle};
use crate::object::Timestamp;
use crate::sys::daemonize;
use crate::sys::process::{self, ProcessHandle};
use crate::sys::text::Text;
use crate::sys::walk;

/// The time limit for a `gc` that removes images.
const GC_TIMEOUT: Duration = Duration::from_secs(60);
/// The time after which a session that has begun needs little of the program.
const SETTLED: Duration = Duration::from_secs(1);
/// The interval at which a session tries to end that could not.
const END_RETRY: Duration = Duration::from_millis(500);
/// The interval at which a session looks whether it has.
const GC_POLL: Duration = Duration::from_millis(20);

impl SessionSpec {
    /// Ends the session after it was idle for the configured time, if there is one.
    pub(in crate::daemon) fn end_when_idle(
        &self,
        what: &DirectMount,
        session: &Session,
        counters: Arc<Counters>,
    ) {
        // A private session ends with its last process.
        let Some(seconds) = self.idle_seconds.filter(|_| !self.is_private) else {
            return;
        };
        let idle = Idle {
            limit: Duration::from_secs(seconds),
            mount_point: what.mount_point.as_path().to_path_buf(),
            source: what.source.clone(),
            counters,
            stop_handle: session.stop_handle(),
            runtime: RuntimeDir::open(),
        };
        idle.watch();
    }

    fn note(&self, what: &DirectMount) -> SessionNote {
        SessionNote {
            kind: self.kind,
            name: self.name.clone(),
            environment: self.environment.clone(),
            revision: self.revision,
            image: self.image.clone(),
            mount_point: what.mount_point.clone(),
            process: HostProcess::current(),
            pid_namespace: process::pid_namespace(),
            user: process::user_id(),
            since: Timestamp::now().secs,
            upper: what.changes(),
            ends_with: self.ends_with,
            limit: self.limit,
            is_private: self.is_private,
        }
    }

    /// Returns the process with which the session ends. Must be called before the start is
    /// reported: that process waits for the report, and may end at once afterwards.
    pub(in crate::daemon) fn command(&self) -> Result<Option<ProcessHandle>, Failure> {
        let opened = self.ends_with.map(ProcessHandle::open).transpose();
        opened.map_err(|error| Failure::io("cannot watch the command of the session", &error))
    }

    /// Ends the session when its command does.
    pub(in crate::daemon) fn watch(
        command: ProcessHandle,
        mount_point: &Path,
        source: &str,
        stop_handle: StopHandle,
    ) -> Result<JoinHandle<()>, Failure> {
        let (mount_point, source) = (mount_point.to_path_buf(), source.to_owned());
        std::thread::Builder::new()
            .name(String::from("command"))
            .spawn(move || {
                while !command.wait(HEARTBEAT).unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot wait for a process");
                    std::thread::sleep(END_RETRY);
                    false
                }) {}
                let mut is_told = false;
                while let Err(failure) = unmount::end(&mount_point, &source, &stop_handle) {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!("{failure}; will try again");
                    }
                    std::thread::sleep(END_RETRY);
                }
            })
            .map_err(|error| Failure::io("cannot start a thread", &error))
    }

    /// Waits for a `gc` that may be removing the image. Fails if it has removed it.
    fn wait_for_gc(&self, what: &DirectMount) -> Result<(), Failure> {
        let of = format!("revision {} of {}", self.revision, self.name);
        let is_being_removed = || {
            let mut dirs = self.notes.iter().map(|dir| dir.as_path().to_path_buf());
            dirs.any(|dir| SessionNotes::new(dir).is_being_removed(&self.image))
        };
        let deadline = Instant::now() + GC_TIMEOUT;
        while is_being_removed() {
            if Instant::now() > deadline {
                let message = format!("envfs gc has been removing {of} for a minute");
                return Err(Failure::new(Kind::Busy, message).hint("try again later"));
            }
            std::thread::sleep(GC_POLL);
        }
        let is_there = |image: &Text| image.as_path().exists();
        if !what.images.iter().all(is_there) {
            let message = format!("envfs gc has just removed {of}");
            return Err(Failure::new(Kind::NotFound, message)
                .hint(format!("envfs log {} shows what there is", self.name)));
        }
        Ok(())
    }
}

/// Removes the directory for the changes of an ephemeral session.
pub(in crate::daemon) fn remove_upper(what: &DirectMount) {
    let is_dropped = |spec: &SessionSpec| spec.kind == SessionKind::Ephemeral;
    if what.session.as_ref().is_some_and(is_dropped)
        && let Some(upper) = &what.upper
        && let Err(error) = walk::remove_tree(upper.as_path())
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %upper.as_path().display(), "cannot remove the changes");
    }
}

/// The notes of the session of this daemon, renewed by a thread. Removed when dropped.
#[derive(Debug)]
pub(in crate::daemon) struct Notes {
    /// Dropping it ends the thread.
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

impl Notes {
    /// Writes the notes. A failure to write one is only logged: the session works without notes.
    /// Fails if `gc` has removed the image. Must be called before the image is opened.
    pub(in crate::daemon) fn write(
        spec: &SessionSpec,
        what: &DirectMount,
    ) -> Result<Notes, Failure> {
        let note = spec.note(what);
        let mut written: Vec<WrittenNote> = Vec::new();
        for dir in &spec.notes {
            match SessionNotes::new(dir.as_path().to_path_buf()).write(&note) {
                Ok(one) => written.push(one),
                Err(error) => {
                    tracing::info!(path = %dir.as_path().display(), %error, "cannot write a note of the session");
                }
            }
        }
        fault::pause("pause.session.noted");
        // One that begins its work now sees the notes.
        spec.wait_for_gc(what)?;
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let renewal = std::thread::Builder::new()
            .name(String::from("heartbeat"))
            .spawn(move || {
                // By then the first programs have started.
                if stopped.recv_timeout(SETTLED) == Err(RecvTimeoutError::Timeout) {
                    daemonize::release_program();
                }
                while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                    for note in &written {
                        if let Err(error) = note.renew() {
                            tracing::warn!(%error, "cannot renew the note of the session");
                        }
                    }
                }
            });
        Ok(Notes {
            stop: Some(stop),
            renewal: renewal
                .inspect_err(|error| tracing::warn!(%error, "cannot start a thread"))
                .ok(),
        })
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewal) = self.renewal.take()
            && renewal.join().is_err()
        {
            tracing::error!("the thread that renews notes panicked");
        }
    }
}
