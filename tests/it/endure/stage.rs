//! An environment at work: processes that act, a conductor that commits and discards, and the crash.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};

use super::Random;
use super::acts::{Act, Actor, What};
use super::model::{self, Found, Mark, Model};
use crate::support::{Run, TestEnv, is_alive, mounts_below, run, wait_for};

/// Environment that all is done to.
const NAME: &str = "e";

/// How many processes work in the mount.
const ACTORS: usize = 3;

/// What may be found of all processes.
type Models = Vec<Model>;

/// Something done to the whole environment that has begun.
#[derive(Debug)]
enum Pending {
    Commit(Vec<Mark>),
    /// A discard, or a rollback, which makes a revision: all of it is to be as then.
    Back {
        to: Models,
        adds: bool,
    },
    /// Old revisions may go.
    Collect,
}

/// What a revision holds.
#[derive(Debug)]
struct Revision {
    id: i64,
    holds: Models,
}

/// What was done to the whole environment.
#[derive(Debug, Default)]
struct Past {
    /// Oldest first; the last is the current one.
    revisions: Vec<Revision>,
    pending: Option<Pending>,
}

/// What the conductor may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Wait,
    Commit,
    Discard,
    Rollback,
    Collect,
    Remount,
    /// Unmounts, commits without a daemon, mounts.
    CommitUnmounted,
    Look,
    Verify,
    Compare,
}

/// An environment, what works in it, and what must be true of it.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) env: TestEnv,
    /// Variables for commands that start a daemon.
    fault: Option<&'static str>,
    prefix: PathBuf,
    actors: Vec<Mutex<(Actor, Random)>>,
    models: Vec<Mutex<Model>>,
    past: Mutex<Past>,
    sync_percent: usize,
    /// Whether all that is done is promised, not only what is synced.
    all_counts: bool,
    /// Held by each act; whoever writes has quiet.
    quiet: RwLock<()>,
    /// Nothing that fails from now on is a fault.
    is_down: AtomicBool,
    is_over: AtomicBool,
    done: AtomicUsize,
    pub(super) promised: AtomicUsize,
    copies: AtomicUsize,
}

impl Stage {
    /// Imports and mounts an environment; `all_counts` is for crashes of the daemon alone.
    pub(super) fn new(
        env: TestEnv,
        fault: Option<&'static str>,
        all_counts: bool,
        seed: u64,
    ) -> Stage {
        let source = env.work().join("source");
        for actor in 0..ACTORS {
            for file in 0..4_usize {
                let path = source.join(format!("{actor}/lower/{file}"));
                let content = crate::support::samples::noise(
                    [10, 5_000, 140_000, 300_000][file],
                    (4 * actor + file) as u64,
                );
                env.write(&path, content);
            }
        }
        env.user().give_tree(&source);
        env.envfs(&["import", "-q", source.to_str().unwrap(), NAME])
            .ok();
        let prefix = env.prefix(NAME);
        let actors = (0..ACTORS).map(|actor| {
            let root = prefix.join(actor.to_string());
            let random = Random::new(seed * 1000 + actor as u64);
            Mutex::new((Actor::start(&env, &root), random))
        });
        let actors = actors.collect();
        let founds = (0..ACTORS).map(|actor| model::read(&source.join(actor.to_string())));
        let models: Models = founds.map(|found| Model::of(&found)).collect();
        let first = Revision {
            id: 1,
            holds: models.clone(),
        };
        let stage = Stage {
            fault,
            prefix,
            actors,
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

    /// Returns whether nothing more happens: after a crash, or a failure of the test.
    pub(super) fn has_ended(&self) -> bool {
        self.is_over.load(Ordering::SeqCst) || self.is_down()
    }

    /// Ids of the revisions, oldest first, and the current one.
    fn log(&self) -> Result<(Vec<i64>, i64), Run> {
        let done = self.env.envfs(&["log", "--json", NAME]);
        if done.code != 0 {
            return Err(done);
        }
        let rows = done.json();
        let rows = rows.as_array().unwrap();
        let id = |row: &serde_json::Value| row["revision"].as_i64().unwrap();
        let mut ids: Vec<i64> = rows.iter().map(id).collect();
        ids.sort_unstable();
        let current = rows.iter().find(|row| row["current"] == true).map(id);
        Ok((ids, current.unwrap_or(0)))
    }

    /// One process, until it is over.
    fn work(&self, actor: usize) {
        loop {
            let _busy = self.quiet.read().unwrap();
            // Not before: nothing may be mounted after a crash while all was quiet.
            if self.has_ended() {
                return;
            }
            let mut guard = self.actors[actor].lock().unwrap();
            let (process, random) = &mut *guard;
            let act = {
                let mut model = self.models[actor].lock().unwrap();
                let act = model.choose(random, self.sync_percent);
                model.begin(&act);
                act
            };
            match process.act(&act) {
                Ok(()) => {
                    let counts = self.all_counts || act.sync;
                    self.models[actor].lock().unwrap().end(counts);
                    self.done.fetch_add(1, Ordering::SeqCst);
                    self.promised
                        .fetch_add(usize::from(counts), Ordering::SeqCst);
                }
                Err(error) => {
                    assert!(self.is_down(), "{act:?} of {actor} failed: {error}");
                    return;
                }
            }
        }
    }

    /// Runs the processes, and the conductor with what is to happen meanwhile. A panic anywhere ends all.
    pub(super) fn play(&self, conduct: impl FnOnce(&Stage)) {
        self.is_over.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for actor in 0..ACTORS {
                scope.spawn(move || {
                    let guard = EndOnPanic(self);
                    self.work(actor);
                    std::mem::forget(guard);
                });
            }
            let _end = EndOnPanic(self);
            conduct(self);
        });
    }

    /// Says that what fails from now on is no fault, and has this happen.
    pub(super) fn crash(&self, how: impl FnOnce()) {
        self.is_down.store(true, Ordering::SeqCst);
        how();
    }

    /// Waits until so much was promised; false if the stage is over before.
    pub(super) fn wait_for_promises(&self, count: usize) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.promised.load(Ordering::SeqCst) < count {
            if self.has_ended() {
                return false;
            }
            assert!(Instant::now() < deadline, "little is promised in a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn conclude(&self, done: &Run) -> bool {
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

    /// Does something to the whole environment, and notes what was promised by it.
    pub(super) fn perform(&self, deed: Deed, random: &mut Random) {
        match deed {
            Deed::Wait => std::thread::sleep(Duration::from_millis(random.next() % 100)),
            Deed::Commit => self.commit(random, &[]),
            Deed::CommitUnmounted => {
                let _quiet = self.quiet.write().unwrap();
                if !self.conclude(&self.run(&["unmount", NAME])) {
                    return;
                }
                self.commit(random, &[]);
                self.conclude(&self.run(&["mount", NAME]));
            }
            Deed::Discard => self.go_back(None),
            Deed::Rollback => self.go_back(Some(random)),
            Deed::Collect => {
                self.past.lock().unwrap().pending = Some(Pending::Collect);
                let keep = (2 + random.below(4)).to_string();
                if self.conclude(&self.run(&["gc", "--keep", &keep, NAME]))
                    && let Ok((ids, _)) = self.log()
                {
                    let mut past = self.past.lock().unwrap();
                    past.revisions.retain(|revision| ids.contains(&revision.id));
                    past.pending = None;
                }
            }
            Deed::Remount => {
                let _quiet = self.quiet.write().unwrap();
                if self.conclude(&self.run(&["unmount", NAME])) {
                    self.conclude(&self.run(&["mount", NAME]));
                }
            }
            Deed::Look => {
                for words in [["status", NAME], ["diff", NAME], ["log", NAME]] {
                    self.conclude(&self.run(&words));
                }
            }
            Deed::Verify => drop(self.conclude(&self.run(&["verify", NAME]))),
            Deed::Compare => {
                let _quiet = self.quiet.write().unwrap();
                if let Ok(found) = self.read() {
                    assert_eq!(self.wrong(&self.now(), &found), [""; 0]);
                }
            }
        }
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
        both.flat_map(|(actor, (model, found))| {
            let wrong = model.check(found).into_iter();
            wrong.map(move |line| format!("{actor}/{line}"))
        })
        .collect()
    }

    /// Reads what there is, through the processes: others may not look.
    fn read(&self) -> Result<Vec<Found>, String> {
        let mut all = Vec::new();
        for actor in &self.actors {
            let number = self.copies.fetch_add(1, Ordering::SeqCst);
            let to = self.env.work().join(format!("copy-{number}"));
            let act = Act {
                path: String::new(),
                what: What::CopyTo(to.clone()),
                sync: false,
            };
            let done = actor.lock().unwrap_or_else(|e| e.into_inner()).0.act(&act);
            if let Err(error) = done {
                if self.is_down() {
                    return Err(error);
                }
                return Err(format!("cannot be read: {error}"));
            }
            all.push(model::read(&to));
            std::fs::remove_dir_all(&to).unwrap();
        }
        Ok(all)
    }

    fn commit(&self, random: &mut Random, more: &[&str]) {
        let marks: Vec<Mark> = self
            .models
            .iter()
            .map(|model| model.lock().unwrap().mark())
            .collect();
        self.past.lock().unwrap().pending = Some(Pending::Commit(marks));
        let mut words = vec!["commit", "-q", NAME];
        match random.below(8) {
            0 => words.push("--rebuild"),
            1 => words.push("--compact"),
            _ => {}
        }
        words.extend(more);
        if !self.conclude(&self.run(&words)) {
            return;
        }
        let mut past = self.past.lock().unwrap();
        let Some(Pending::Commit(marks)) = past.pending.take() else {
            panic!("nothing else is done meanwhile");
        };
        // What the log says was promised, whether or not the log can be asked.
        let holds = self.hold(&marks, true);
        match self.log() {
            Ok((_, current)) if past.revisions.last().is_some_and(|last| last.id == current) => {}
            Ok((_, id)) => past.revisions.push(Revision { id, holds }),
            Err(done) => {
                assert!(self.is_down(), "{done}");
                past.pending = Some(Pending::Commit(marks));
            }
        }
        self.promised.fetch_add(1, Ordering::SeqCst);
    }

    /// What a commit holds that began at a mark and has ended by now.
    fn hold(&self, marks: &[Mark], is_promised: bool) -> Models {
        let both = self.models.iter().zip(marks);
        both.map(|(model, mark)| {
            let mut model = model.lock().unwrap();
            if is_promised {
                model.promise(mark);
            }
            model.since(mark)
        })
        .collect()
    }

    /// Discards everything, or goes back to some revision.
    fn go_back(&self, random: Option<&mut Random>) {
        let _quiet = self.quiet.write().unwrap();
        let (to, id) = {
            let past = self.past.lock().unwrap();
            let at = match random {
                Some(random) => random.below(past.revisions.len()),
                None => past.revisions.len() - 1,
            };
            (past.revisions[at].holds.clone(), past.revisions[at].id)
        };
        let is_rollback = self.past.lock().unwrap().revisions.last().unwrap().id != id;
        self.past.lock().unwrap().pending = Some(Pending::Back {
            to: to.clone(),
            adds: is_rollback,
        });
        let done = if is_rollback {
            self.run(&["rollback", "-y", "-q", NAME, &id.to_string()])
        } else {
            self.run(&["discard", "-y", "-q", NAME])
        };
        if !self.conclude(&done) {
            return;
        }
        for (model, to) in self.models.iter().zip(&to) {
            *model.lock().unwrap() = to.clone();
        }
        let mut past = self.past.lock().unwrap();
        match self.log() {
            Ok((_, current)) => {
                if is_rollback {
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
        // Which of the moments of its commit it was is known only now.
        match self.read() {
            Ok(found) => {
                assert_eq!(
                    self.wrong(&self.now(), &found),
                    [""; 0],
                    "after {}",
                    done.line
                );
                self.set(&found);
            }
            Err(error) => assert!(self.is_down(), "{error}"),
        }
    }

    /// Kills the daemon.
    pub(super) fn kill_daemon(&self) {
        for pid in self.env.daemons() {
            kill(pid, Signal::SIGKILL).ok();
            wait_for("the end of the daemon", || !is_alive(pid));
        }
    }

    /// Kills the daemon and takes its mount away, so that the disk below is not busy.
    pub(super) fn clear_away(&self) {
        self.kill_daemon();
        for mount in mounts_below(&self.prefix) {
            umount2(&mount, MntFlags::MNT_DETACH).unwrap();
        }
    }

    /// Starts again after a crash. Returns what was lost.
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
        let mut wrong = Vec::new();
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
            Some(Pending::Commit(marks)) => {
                wrong.extend(as_now);
                if let Some(id) = added {
                    let holds = self.hold(&marks, false);
                    past.revisions.push(Revision { id, holds });
                }
            }
            Some(Pending::Back { to, adds }) => {
                let as_then = self.wrong(&to, &found);
                let is_then = as_then.is_empty() && (!adds || added.is_some());
                let is_now = as_now.is_empty() && added.is_none();
                if !is_then && !is_now {
                    wrong.push(format!(
                        "neither here nor there: revision {current} after {last}"
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
                    wrong.push(format!("revision {id} is from nowhere"));
                }
            }
        }
        past.revisions.retain(|revision| ids.contains(&revision.id));
        drop(past);
        self.set(&found);
        wrong
    }

    /// What happened, for the log of the test.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} acts and {} promises so far",
            self.done.load(Ordering::SeqCst),
            self.promised.load(Ordering::SeqCst)
        )
    }
}

/// Ends the others when a thread panics or the conductor is through.
struct EndOnPanic<'a>(&'a Stage);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}
