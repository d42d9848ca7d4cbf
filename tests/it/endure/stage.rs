//! An environment in use: processes that change files, a conductor that commits and discards, and a
//! crash.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::Random;
use super::model::{self, Found, Mark, Model};
use super::worker::{Action, FileOp, Worker};
use crate::support::{Run, TestEnv, is_alive, mounts_below, run, wait_for};

/// The name of the environment.
const NAME: &str = "e";

/// The number of processes in the mount.
const WORKERS: usize = 3;

/// The models of all processes.
type Models = Vec<Model>;

/// An operation on the whole environment that has begun.
#[derive(Debug)]
enum Pending {
    Commit(Part, Vec<Mark>),
    /// A discard, or a rollback, which adds a revision; either restores these contents.
    Back {
        to: Models,
        adds: Adds,
    },
    /// Garbage collection, which may remove old revisions.
    Collect,
}

/// What a commit includes: everything, or the directory of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    Of(usize),
}

impl Part {
    fn includes(self, worker: usize) -> bool {
        self == Part::All || self == Part::Of(worker)
    }
}

/// A revision and its contents.
#[derive(Debug)]
struct Revision {
    id: i64,
    holds: Models,
}

/// What an operation adds to the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adds {
    Nothing,
    Revision,
}

/// The history of the environment.
#[derive(Debug, Default)]
struct Past {
    /// Oldest first; the last is the current one.
    revisions: Vec<Revision>,
    pending: Option<Pending>,
}

impl Past {
    /// Returns the contents of the current revision.
    fn last(&self) -> &Models {
        &self.revisions[self.revisions.len() - 1].holds
    }
}

/// Operations of the conductor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Wait,
    Commit,
    /// Commits the directory of one process.
    CommitPart,
    Discard,
    /// Discards the changes in the directory of one process.
    DiscardPart,
    /// Discards everything, and takes that back.
    UndoDiscard,
    Rollback,
    /// Restores the directory of one process from a revision.
    RestorePart,
    Checkpoint,
    Collect,
    /// Exports the history and imports it as another environment.
    Transfer,
    Remount,
    /// Unmounts, commits without a daemon, mounts.
    CommitUnmounted,
    /// Commands that only read.
    Inspect,
    Verify,
    Compare,
}

/// An environment with its processes and models.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) env: TestEnv,
    /// `ENVFS_FAULT` for all commands.
    fault: Option<&'static str>,
    prefix: PathBuf,
    workers: Vec<Mutex<(Worker, Random)>>,
    models: Vec<Mutex<Model>>,
    past: Mutex<Past>,
    sync_percent: usize,
    /// Whether all completed operations are promised, not only synced ones.
    all_counts: bool,
    /// Held shared during each operation of a process, exclusively while there must be none.
    quiet: RwLock<()>,
    /// Set by a crash: from now on operations may fail.
    is_down: AtomicBool,
    is_over: AtomicBool,
    done: AtomicUsize,
    pub(super) promised: AtomicUsize,
    copies: AtomicUsize,
    /// The environment with an imported history, and what its log must say, once that is promised.
    transferred: Mutex<Option<(String, Option<Value>)>>,
}

impl Stage {
    /// Imports and mounts an environment; `all_counts` is for tests that only kill the daemon.
    pub(super) fn new(
        env: TestEnv,
        fault: Option<&'static str>,
        all_counts: bool,
        seed: u64,
    ) -> Stage {
        let source = env.work().join("source");
        for worker in 0..WORKERS {
            for file in 0..4_usize {
                let path = source.join(format!("{worker}/lower/{file}"));
                let content = crate::support::samples::noise(
                    [10, 5_000, 140_000, 300_000][file],
                    (4 * worker + file) as u64,
                );
                env.write(&path, content);
            }
        }
        env.user().give_tree(&source);
        env.envfs(&["import", "-q", source.to_str().unwrap(), NAME])
            .ok();
        let prefix = env.prefix(NAME);
        let workers = (0..WORKERS).map(|worker| {
            let root = prefix.join(worker.to_string());
            let random = Random::new(seed * 1000 + worker as u64);
            Mutex::new((Worker::start(&env, &root), random))
        });
        let workers = workers.collect();
        let founds = (0..WORKERS).map(|worker| model::read(&source.join(worker.to_string())));
        let models: Models = founds.map(|found| Model::of(&found)).collect();
        let first = Revision {
            id: 1,
            holds: models.clone(),
        };
        let stage = Stage {
            fault,
            prefix,
            workers,
            models: models.into_iter().map(Mutex::new).collect(),
            past: Mutex::new(Past {
                revisions: vec![first],
                pending: None,
            }),
            sync_percent: if all_counts { 15 } else { 50 },
            all_counts,
            quiet: RwLock::new(()),
            is_down: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
            copies: AtomicUsize::new(0),
            transferred: Mutex::new(None),
            env,
        };
        stage.mount().ok();
        stage
    }

    fn mount(&self) -> Run {
        self.env
            .envfs_with("ENVFS_FAULT", self.fault.unwrap_or(""), &["mount", NAME])
    }

    fn is_down(&self) -> bool {
        self.is_down.load(Ordering::SeqCst)
    }

    /// Returns whether the work has ended, by a crash or a failure.
    pub(super) fn has_ended(&self) -> bool {
        self.is_over.load(Ordering::SeqCst) || self.is_down()
    }

    /// Returns the ids of the revisions, oldest first, and the current one.
    fn log(&self) -> Result<(Vec<i64>, i64), Run> {
        let done = self.env.envfs(&["log", "--json", NAME]);
        if done.code != 0 {
            return Err(done);
        }
        let rows = done.json();
        let rows = rows.as_array().unwrap();
        let id = |row: &Value| row["revision"].as_i64().unwrap();
        let mut ids: Vec<i64> = rows.iter().map(id).collect();
        ids.sort_unstable();
        let current = rows.iter().find(|row| row["current"] == true).map(id);
        Ok((ids, current.unwrap_or(0)))
    }

    /// Returns the number of the newest operation that can be undone.
    fn newest_operation(&self) -> Option<i64> {
        let done = self.env.envfs(&["log", "--all", "-n", "1", "--json", NAME]);
        match self.has_succeeded(&done) {
            true => done.json()[0]["operation"].as_i64(),
            false => None,
        }
    }

    /// Drives one process until the end.
    fn work(&self, worker: usize) {
        loop {
            let _busy = self.quiet.read().unwrap();
            // Checked under the lock: after a crash, the environment must not be used.
            if self.has_ended() {
                return;
            }
            let mut guard = self.workers[worker].lock().unwrap();
            let (process, random) = &mut *guard;
            let op = {
                let mut model = self.models[worker].lock().unwrap();
                let op = model.choose(random, self.sync_percent);
                model.begin(&op);
                op
            };
            match process.perform(&op) {
                Ok(()) => {
                    // A file system that is being shut down acknowledges some syncs that it has
                    // not made: ext4 forgets the transaction for which the sync waits.
                    let counts = self.all_counts || op.sync && !self.is_down();
                    self.models[worker].lock().unwrap().end(counts);
                    self.done.fetch_add(1, Ordering::SeqCst);
                    self.promised
                        .fetch_add(usize::from(counts), Ordering::SeqCst);
                }
                Err(error) => {
                    assert!(self.is_down(), "{op:?} of {worker} failed: {error}");
                    return;
                }
            }
        }
    }

    /// Runs the processes and the conductor. A panic of any of them ends all.
    pub(super) fn play(&self, conduct: impl FnOnce(&Stage)) {
        self.is_over.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                scope.spawn(move || {
                    let guard = EndOnPanic(self);
                    self.work(worker);
                    std::mem::forget(guard);
                });
            }
            let _end = EndOnPanic(self);
            conduct(self);
        });
    }

    /// Allows operations to fail from now on, and causes the crash.
    pub(super) fn crash(&self, how: impl FnOnce()) {
        self.is_down.store(true, Ordering::SeqCst);
        how();
    }

    /// Waits until `count` operations were promised. Returns false if the work ended before.
    pub(super) fn wait_for_promises(&self, count: usize) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.promised.load(Ordering::SeqCst) < count {
            if self.has_ended() {
                return false;
            }
            assert!(Instant::now() < deadline, "too few operations in a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Returns whether a command succeeded. It may fail only after a crash.
    fn has_succeeded(&self, done: &Run) -> bool {
        if done.code != 0 {
            assert!(self.is_down(), "{done}");
        }
        done.code == 0 && !self.is_down()
    }

    fn run(&self, words: &[&str]) -> Run {
        let mut command = self.env.envfs_command(words);
        command.env("ENVFS_FAULT", self.fault.unwrap_or(""));
        run(command)
    }

    /// Performs an operation on the whole environment and records its guarantees.
    pub(super) fn perform(&self, operation: Operation, random: &mut Random) {
        match operation {
            Operation::Wait => std::thread::sleep(Duration::from_millis(random.next() % 100)),
            Operation::Commit => self.commit(random, Part::All),
            Operation::CommitPart => {
                let worker = random.below(WORKERS);
                self.commit(random, Part::Of(worker));
            }
            Operation::Checkpoint => {
                self.has_succeeded(&self.run(&["checkpoint", "-q", NAME]));
            }
            Operation::CommitUnmounted => {
                let _quiet = self.quiet.write().unwrap();
                if !self.has_succeeded(&self.run(&["unmount", NAME])) {
                    return;
                }
                self.commit(random, Part::All);
                self.has_succeeded(&self.run(&["mount", NAME]));
            }
            Operation::Discard => {
                let _quiet = self.quiet.write().unwrap();
                self.discard();
            }
            Operation::UndoDiscard => {
                let _quiet = self.quiet.write().unwrap();
                let before = self.now();
                let newest = self.newest_operation();
                // Without changes there was nothing to discard, and an undo would take back
                // something else.
                if self.discard() && self.newest_operation() != newest {
                    self.go_back(before, Adds::Nothing, None, &["undo", "-q", NAME]);
                }
            }
            Operation::DiscardPart => {
                let _quiet = self.quiet.write().unwrap();
                let (worker, mut to) = (random.below(WORKERS), self.now());
                to[worker] = self.past.lock().unwrap().last()[worker].clone();
                let path = worker.to_string();
                let words = ["discard", "-y", "-q", NAME, &path];
                self.go_back(to, Adds::Nothing, Some(Part::Of(worker)), &words);
            }
            Operation::RestorePart => {
                let _quiet = self.quiet.write().unwrap();
                let (worker, mut to) = (random.below(WORKERS), self.now());
                let id = {
                    let past = self.past.lock().unwrap();
                    let at = random.below(past.revisions.len());
                    to[worker] = past.revisions[at].holds[worker].clone();
                    past.revisions[at].id.to_string()
                };
                let path = worker.to_string();
                let words = ["restore", "-q", NAME, &path, "--from", &id];
                self.go_back(to, Adds::Nothing, Some(Part::Of(worker)), &words);
            }
            Operation::Rollback => {
                let _quiet = self.quiet.write().unwrap();
                let (to, id, last) = {
                    let past = self.past.lock().unwrap();
                    let revision = &past.revisions[random.below(past.revisions.len())];
                    let last = past.revisions[past.revisions.len() - 1].id;
                    (revision.holds.clone(), revision.id, last)
                };
                if id == last {
                    self.discard();
                } else {
                    let words = ["rollback", "-y", "-q", NAME, &id.to_string()];
                    self.go_back(to, Adds::Revision, Some(Part::All), &words);
                }
            }
            Operation::Collect => {
                self.past.lock().unwrap().pending = Some(Pending::Collect);
                let keep = (2 + random.below(4)).to_string();
                if self.has_succeeded(&self.run(&["gc", "--keep", &keep, NAME]))
                    && let Ok((ids, _)) = self.log()
                {
                    let mut past = self.past.lock().unwrap();
                    past.revisions.retain(|revision| ids.contains(&revision.id));
                    past.pending = None;
                }
            }
            Operation::Transfer => self.transfer(),
            Operation::Remount => {
                let _quiet = self.quiet.write().unwrap();
                if self.has_succeeded(&self.run(&["unmount", NAME])) {
                    self.has_succeeded(&self.run(&["mount", NAME]));
                }
            }
            Operation::Inspect => {
                for words in [["status", NAME], ["diff", NAME], ["log", NAME]] {
                    self.has_succeeded(&self.run(&words));
                }
            }
            Operation::Verify => drop(self.has_succeeded(&self.run(&["verify", NAME]))),
            Operation::Compare => {
                let _quiet = self.quiet.write().unwrap();
                if let Ok(found) = self.read() {
                    assert_eq!(self.wrong(&self.now(), &found), [""; 0]);
                }
            }
        }
    }

    /// Imports the history as another environment, which replaces that of the last time.
    fn transfer(&self) {
        let before = self.transferred.lock().unwrap().take();
        if let Some((name, _)) = before {
            self.has_succeeded(&self.run(&["remove", "-y", "-q", &name]));
        }
        let archive = self.env.work().join("archive");
        let archive = archive.to_str().unwrap();
        let export = ["export", "-q", "--force", NAME, archive, "--history"];
        if !self.has_succeeded(&self.run(&export)) {
            return;
        }
        let log = match self.facts(NAME) {
            Ok(log) => log,
            Err(done) => return assert!(self.is_down(), "{done}"),
        };
        let name = format!("copy-{}", self.copies.fetch_add(1, Ordering::SeqCst));
        *self.transferred.lock().unwrap() = Some((name.clone(), None));
        if self.has_succeeded(&self.run(&["import", "-q", archive, &name])) {
            *self.transferred.lock().unwrap() = Some((name, Some(log)));
            self.promised.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns what the log says, without what depends on the files of images.
    fn facts(&self, name: &str) -> Result<Value, Run> {
        let done = self.env.envfs(&["log", "--json", name]);
        if done.code != 0 {
            return Err(done);
        }
        let mut log = done.json();
        for entry in log.as_array_mut().unwrap() {
            let entry = entry.as_object_mut().unwrap();
            entry.remove("image");
            entry.remove("frees_bytes");
        }
        Ok(log)
    }

    /// Checks an imported history after a crash, and removes it. Returns what was lost.
    fn recover_transferred(&self) -> Vec<String> {
        let Some((name, promised)) = self.transferred.lock().unwrap().take() else {
            return Vec::new();
        };
        let found = match (self.facts(&name), &promised) {
            (Ok(found), _) => found,
            // It was not complete.
            (Err(done), None) if done.code == 3 => return Vec::new(),
            (Err(done), _) => return vec![format!("an imported history is lost: {done}")],
        };
        let mut wrong = Vec::new();
        if promised.is_some_and(|log| log != found) {
            wrong.push(format!("{name} has another log: {found}"));
        }
        for entry in found.as_array().unwrap() {
            let done = self.run(&["verify", &format!("{name}@{}", entry["revision"])]);
            if done.code != 0 {
                wrong.push(format!("an imported history: {done}"));
            }
        }
        let done = self.run(&["remove", "-y", "-q", &name]);
        if done.code != 0 {
            wrong.push(done.to_string());
        }
        wrong
    }

    fn now(&self) -> Models {
        let models = self.models.iter();
        models.map(|model| model.lock().unwrap().clone()).collect()
    }

    fn set(&self, found: &[Found]) {
        for (model, found) in self.models.iter().zip(found) {
            *model.lock().unwrap() = Model::of(found);
        }
    }

    fn wrong(&self, models: &[Model], found: &[Found]) -> Vec<String> {
        let both = models.iter().zip(found).enumerate();
        both.flat_map(|(worker, (model, found))| {
            let wrong = model.check(found).into_iter();
            wrong.map(move |line| format!("{worker}/{line}"))
        })
        .collect()
    }

    /// Reads the directories through the processes, because other users have no access to the
    /// mount.
    fn read(&self) -> Result<Vec<Found>, String> {
        let mut all = Vec::new();
        for worker in &self.workers {
            let number = self.copies.fetch_add(1, Ordering::SeqCst);
            let to = self.env.work().join(format!("copy-{number}"));
            let op = FileOp {
                path: String::new(),
                what: Action::CopyTo(to.clone()),
                sync: false,
            };
            let done = worker
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .0
                .perform(&op);
            if let Err(error) = done {
                if self.is_down() {
                    return Err(error);
                }
                return Err(format!("cannot read the mount: {error}"));
            }
            all.push(model::read(&to));
            std::fs::remove_dir_all(&to).unwrap();
        }
        Ok(all)
    }

    fn commit(&self, random: &mut Random, part: Part) {
        let marks: Vec<Mark> = self
            .models
            .iter()
            .map(|model| model.lock().unwrap().mark())
            .collect();
        self.past.lock().unwrap().pending = Some(Pending::Commit(part, marks));
        let mut words = vec!["commit", "-q", NAME];
        let path;
        match (part, random.below(8)) {
            (Part::All, 0) => words.push("--rebuild"),
            (Part::All, 1) => words.push("--compact"),
            (Part::All, _) => {}
            (Part::Of(worker), _) => {
                path = worker.to_string();
                words.push(&path);
            }
        }
        if !self.has_succeeded(&self.run(&words)) {
            return;
        }
        let mut past = self.past.lock().unwrap();
        let Some(Pending::Commit(part, marks)) = past.pending.take() else {
            panic!("another operation has replaced the pending commit");
        };
        // Promised whether or not the log can be read after a crash.
        let holds = self.hold(past.last(), part, &marks, true);
        match self.log() {
            Ok((_, current)) if past.revisions.last().is_some_and(|last| last.id == current) => {}
            Ok((_, id)) => past.revisions.push(Revision { id, holds }),
            Err(done) => {
                assert!(self.is_down(), "{done}");
                past.pending = Some(Pending::Commit(part, marks));
            }
        }
        self.promised.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns the allowed contents of a commit that began at a mark and has ended. The revision
    /// before it has the contents `last`.
    fn hold(&self, last: &Models, part: Part, marks: &[Mark], is_promised: bool) -> Models {
        let all = self.models.iter().zip(marks).zip(last).enumerate();
        all.map(|(worker, ((model, mark), last))| {
            if !part.includes(worker) {
                return last.clone();
            }
            let mut model = model.lock().unwrap();
            if is_promised {
                model.promise(mark);
            }
            model.since(mark)
        })
        .collect()
    }

    /// Discards everything. Returns whether that was done.
    fn discard(&self) -> bool {
        let to = self.past.lock().unwrap().last().clone();
        self.go_back(
            to,
            Adds::Nothing,
            Some(Part::All),
            &["discard", "-y", "-q", NAME],
        )
    }

    /// Restores contents by a command, from a revision in the directories of `durable`. Returns
    /// whether that was done.
    fn go_back(&self, to: Models, adds: Adds, durable: Option<Part>, command: &[&str]) -> bool {
        self.past.lock().unwrap().pending = Some(Pending::Back {
            to: to.clone(),
            adds,
        });
        let done = self.run(command);
        if !self.has_succeeded(&done) {
            return false;
        }
        for (model, to) in self.models.iter().zip(&to) {
            *model.lock().unwrap() = to.clone();
        }
        let mut past = self.past.lock().unwrap();
        match self.log() {
            Ok((_, current)) => {
                if adds == Adds::Revision {
                    past.revisions.push(Revision {
                        id: current,
                        holds: to,
                    });
                }
                past.pending = None;
            }
            Err(done) => assert!(self.is_down(), "{done}"),
        }
        self.promised.fetch_add(1, Ordering::SeqCst);
        drop(past);
        // The commit may contain any state from its start to its end; now it is known which.
        match self.read() {
            Ok(found) => {
                assert_eq!(
                    self.wrong(&self.now(), &found),
                    [""; 0],
                    "after {}",
                    done.line
                );
                for (worker, found) in found.iter().enumerate() {
                    if durable.is_some_and(|part| part.includes(worker)) {
                        *self.models[worker].lock().unwrap() = Model::of(found);
                    }
                }
                true
            }
            Err(error) => {
                assert!(self.is_down(), "{error}");
                false
            }
        }
    }

    /// Kills the daemon.
    pub(super) fn kill_daemon(&self) {
        for pid in self.env.daemons() {
            kill(pid, Signal::SIGKILL).ok();
            wait_for("the end of the daemon", || !is_alive(pid));
        }
    }

    /// Kills the daemon and detaches its mount, so that the disk is not busy.
    pub(super) fn detach(&self) {
        self.kill_daemon();
        for mount in mounts_below(&self.prefix) {
            umount2(&mount, MntFlags::MNT_DETACH).unwrap();
        }
    }

    /// Mounts and checks the environment after a crash. Returns what was lost.
    pub(super) fn recover(&self) -> Vec<String> {
        self.is_down.store(false, Ordering::SeqCst);
        let mut past = self.past.lock().unwrap();
        for (what, done) in [
            ("mount", self.mount()),
            ("verify", self.run(&["verify", NAME])),
        ] {
            if done.code != 0 {
                return vec![format!("{what}: {done}")];
            }
        }
        let mut wrong = self.recover_transferred();
        let (ids, current) = match self.log() {
            Ok(log) => log,
            Err(done) => return vec![done.to_string()],
        };
        let pending = past.pending.take();
        let mut known: Vec<i64> = past.revisions.iter().map(|revision| revision.id).collect();
        if matches!(pending, Some(Pending::Collect)) {
            known.drain(..known.len() - 1);
        }
        for id in known.iter().filter(|id| !ids.contains(id)) {
            wrong.push(format!(
                "revision {id} of {known:?} is lost, there are {ids:?}"
            ));
        }
        let found = match self.read() {
            Ok(found) => found,
            Err(error) => return vec![error],
        };
        let last = past.revisions.last().unwrap().id;
        let added = (current != last).then_some(current);
        let now = self.now();
        let as_now = self.wrong(&now, &found);
        match pending {
            Some(Pending::Commit(part, marks)) => {
                wrong.extend(as_now);
                if let Some(id) = added {
                    let holds = self.hold(past.last(), part, &marks, false);
                    past.revisions.push(Revision { id, holds });
                }
            }
            Some(Pending::Back { to, adds }) => {
                let as_then = self.wrong(&to, &found);
                let is_then = as_then.is_empty() && (adds == Adds::Nothing || added.is_some());
                let is_now = as_now.is_empty() && added.is_none();
                if !is_then && !is_now {
                    wrong.push(format!(
                        "neither the old nor the new state: revision {current} after {last}"
                    ));
                    wrong.extend(as_now);
                    wrong.extend(as_then);
                }
                if let Some(id) = added {
                    past.revisions.push(Revision { id, holds: to });
                }
            }
            Some(Pending::Collect) | None => {
                wrong.extend(as_now);
                if let Some(id) = added {
                    wrong.push(format!("revision {id} has no origin"));
                }
            }
        }
        past.revisions.retain(|revision| ids.contains(&revision.id));
        drop(past);
        self.set(&found);
        wrong
    }

    /// Describes the amount of work, for the output of the test.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} operations, {} of them promised",
            self.done.load(Ordering::SeqCst),
            self.promised.load(Ordering::SeqCst)
        )
    }
}

/// Ends all threads when one panics or the conductor has finished.
struct EndOnPanic<'a>(&'a Stage);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}
