//! The contents that are allowed at each path of one process: the last durable one, and later ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::Random;
use super::worker::{Action, Bytes, DRAFT, FileOp};

/// The content of a path.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Node {
    Absent,
    File(Arc<[u8]>),
    Link(String),
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::Absent => write!(f, "nothing"),
            Node::File(bytes) => {
                let start = bytes.iter().take(4).map(|byte| format!("{byte:02x}"));
                let start = start.collect::<String>();
                write!(f, "a file of {} bytes ({start}…)", bytes.len())
            }
            Node::Link(target) => write!(f, "a link to {target}"),
        }
    }
}

/// Action may be at a path once an operation has begun.
#[derive(Debug, Clone)]
enum Allowed {
    Is(Node),
    /// A file with any content, while it is being written.
    AnyFile,
    /// A file with this prefix and at most this size, while it is being appended to.
    Longer(Arc<[u8]>, usize),
    /// Nothing, if this state or a newer one exists at another name.
    MovedTo(String),
}

#[derive(Debug, Clone)]
struct State {
    /// The number of the operation.
    op: u64,
    allowed: Allowed,
}

/// The states of one path. States before the promised one are not allowed any more.
#[derive(Debug, Clone)]
struct History {
    states: Vec<State>,
    promised: usize,
}

impl History {
    fn of(node: Node) -> History {
        let allowed = Allowed::Is(node);
        History {
            states: vec![State { op: 0, allowed }],
            promised: 0,
        }
    }

    fn now(&self) -> &Node {
        match &self.states[self.states.len() - 1].allowed {
            Allowed::Is(node) => node,
            Allowed::MovedTo(_) => &Node::Absent,
            other => panic!("an operation has not ended: {other:?}"),
        }
    }

    /// Returns false if the last content was written but not made durable.
    fn is_certain(&self) -> bool {
        let last = self.states.len() - 1;
        self.promised == last
            || self.states[last].op != self.states[last - 1].op
            || matches!(
                self.states[last - 1].allowed,
                Allowed::Is(_) | Allowed::MovedTo(_)
            )
    }

    /// Returns the allowed states that match a found content.
    fn matching<'a>(&'a self, found: &'a Node) -> impl Iterator<Item = &'a State> {
        let allowed = self.states.iter().skip(self.promised);
        allowed.filter(move |state| match (&state.allowed, found) {
            (Allowed::Is(node), found) => node == found,
            (Allowed::AnyFile, Node::File(_)) | (Allowed::MovedTo(_), Node::Absent) => true,
            (Allowed::Longer(start, most), Node::File(found)) => {
                found.starts_with(start) && found.len() <= *most
            }
            _ => false,
        })
    }
}

/// The contents of the directory of a process, by path.
pub(super) type Found = BTreeMap<String, Node>;

/// Positions in the histories of all paths.
pub(super) type Mark = BTreeMap<String, usize>;

/// The allowed contents of the directory of one process.
#[derive(Debug, Clone)]
pub(super) struct Model {
    paths: BTreeMap<String, History>,
    operations: u64,
    /// Paths of the current operation, and the number of states each had before it.
    under_way: Vec<(String, usize)>,
}

/// Names of files; directories are renamed, too.
const NAMES: &[&str] = &[
    "a", "b", "c", "d", "x/a", "x/b", "y/a", "y/b", "z/a", "lower/0", "lower/1", "lower/2",
    "lower/3",
];
const DIRECTORIES: &[&str] = &["x", "y", "z", "lower"];

/// Reads the directory of a process.
pub(super) fn read(root: &Path) -> Found {
    let mut found = Found::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap();
        let path = path.to_str().unwrap().to_owned();
        if entry.file_type().is_dir() || path == DRAFT {
            continue;
        }
        let node = if entry.file_type().is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            Node::Link(target.to_str().unwrap().to_owned())
        } else {
            Node::File(fs::read(entry.path()).unwrap().into())
        };
        found.insert(path, node);
    }
    found
}

impl Model {
    /// Creates a model in which the found contents are promised.
    pub(super) fn of(found: &Found) -> Model {
        let histories = found
            .iter()
            .map(|(path, node)| (path.clone(), History::of(node.clone())));
        Model {
            paths: histories.collect(),
            operations: 0,
            under_way: Vec::new(),
        }
    }

    /// Returns the start of a file that must survive an append. Blocks of earlier appends that were
    /// not synced may be lost even if later ones are on the disk.
    fn durable_start(&self, path: &str, all: &[u8]) -> Arc<[u8]> {
        let history = self.paths.get(path);
        match history.map(|history| &history.states[history.promised].allowed) {
            Some(Allowed::Is(Node::File(bytes))) if all.starts_with(bytes) => bytes.clone(),
            _ => Arc::default(),
        }
    }

    fn now(&self, path: &str) -> &Node {
        self.paths.get(path).map_or(&Node::Absent, History::now)
    }

    fn below<'a>(&'a self, dir: &str) -> Vec<(String, &'a Node)> {
        let start = format!("{dir}/");
        let all = self.paths.iter();
        all.filter(|(path, history)| path.starts_with(&start) && *history.now() != Node::Absent)
            .map(|(path, history)| (path.clone(), history.now()))
            .collect()
    }

    /// Chooses an operation that is possible now.
    pub(super) fn choose(&self, random: &mut Random, sync_percent: usize) -> FileOp {
        let path = NAMES[random.below(NAMES.len())];
        let other = NAMES[random.below(NAMES.len())];
        let len = match random.below(10) {
            0 => 0,
            1 => 100_000 + random.below(200_000),
            _ => random.below(12_000),
        };
        let bytes = Bytes {
            seed: random.next(),
            len,
        };
        let (mut path, what) = match (self.now(path), random.below(12)) {
            (Node::Absent, 0) => (path, Action::Symlink(format!("to-{}", bytes.seed))),
            (Node::Absent, 1..=3) => (path, Action::Replace(bytes)),
            (Node::Absent, _) => (path, Action::Create(bytes)),
            (Node::File(_), 0 | 1) => (path, Action::Overwrite(bytes)),
            (Node::File(_), 2 | 3) => (path, Action::Append(bytes)),
            (Node::File(now), 4 | 5) => (path, Action::Patch(random.below(now.len() + 1), bytes)),
            (Node::File(now), 6) => (path, Action::Resize(random.below(2 * now.len() + 2))),
            (Node::File(_), 7 | 8) => (path, Action::Replace(bytes)),
            (Node::File(_), 9) | (Node::Link(_), 0..=6) => (path, Action::Unlink),
            (Node::File(_) | Node::Link(_), _) => (path, Action::Rename(other.to_owned())),
        };
        let mut what = what;
        if random.chance(6) {
            let from = DIRECTORIES[random.below(DIRECTORIES.len())];
            let to = DIRECTORIES[random.below(DIRECTORIES.len())];
            if from != to && !self.below(from).is_empty() && self.below(to).is_empty() {
                (path, what) = (from, Action::Rename(to.to_owned()));
            }
        }
        FileOp {
            path: path.to_owned(),
            what,
            sync: random.chance(sync_percent),
        }
    }

    fn push(&mut self, path: &str, allowed: Allowed) {
        let op = self.operations;
        let history = self
            .paths
            .entry(path.to_owned())
            .or_insert_with(|| History::of(Node::Absent));
        if !self.under_way.iter().any(|(known, _)| known == path) {
            self.under_way.push((path.to_owned(), history.states.len()));
        }
        history.states.push(State { op, allowed });
    }

    /// Begins an operation: from now on its result is allowed.
    pub(super) fn begin(&mut self, op: &FileOp) {
        self.operations += 1;
        assert!(self.under_way.is_empty(), "another operation has not ended");
        let path = op.path.as_str();
        let now = match self.now(path) {
            Node::File(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        };
        let file = |bytes: Vec<u8>| Allowed::Is(Node::File(bytes.into()));
        match &op.what {
            Action::Create(bytes) | Action::Overwrite(bytes) => {
                self.push(path, Allowed::AnyFile);
                self.push(path, file(bytes.make()));
            }
            Action::Append(bytes) => {
                let all = [now, bytes.make()].concat();
                let durable = self.durable_start(path, &all);
                self.push(path, Allowed::Longer(durable, all.len()));
                self.push(path, file(all));
            }
            Action::Patch(at, bytes) => {
                let (mut all, bytes) = (now, bytes.make());
                all.resize(all.len().max(at + bytes.len()), 0);
                all[*at..at + bytes.len()].copy_from_slice(&bytes);
                self.push(path, Allowed::AnyFile);
                self.push(path, file(all));
            }
            Action::Resize(len) => {
                let mut all = now;
                all.resize(*len, 0);
                self.push(path, Allowed::AnyFile);
                self.push(path, file(all));
            }
            Action::Replace(bytes) => self.push(path, file(bytes.make())),
            Action::Symlink(target) => self.push(path, Allowed::Is(Node::Link(target.clone()))),
            Action::Unlink => {
                self.push(path, Allowed::Is(Node::Absent));
            }
            Action::Rename(to) if to == path => {}
            Action::Rename(to) => {
                let mut moved = Vec::new();
                for (below, node) in self.below(path) {
                    let new = format!("{to}{}", &below[path.len()..]);
                    moved.push((below, new, node.clone()));
                }
                if *self.now(path) != Node::Absent {
                    moved.push((path.to_owned(), to.clone(), self.now(path).clone()));
                }
                for (old, new, node) in moved {
                    let is_certain = self.paths[&old].is_certain();
                    self.push(&old, Allowed::MovedTo(new.clone()));
                    if !is_certain {
                        self.push(&new, Allowed::AnyFile);
                    }
                    self.push(&new, Allowed::Is(node));
                }
            }
            Action::CopyTo(_) => {}
        }
    }

    /// Ends the operation; its result is promised if it `counts`.
    pub(super) fn end(&mut self, counts: bool) {
        for (path, _) in std::mem::take(&mut self.under_way) {
            let history = self.paths.get_mut(&path).unwrap();
            if counts {
                history.promised = history.states.len() - 1;
            }
        }
    }

    /// Returns the current positions in all histories, before a current operation.
    pub(super) fn mark(&self) -> Mark {
        let mut mark: Mark = self
            .paths
            .iter()
            .map(|(path, history)| (path.clone(), history.states.len() - 1))
            .collect();
        for (path, before) in &self.under_way {
            mark.insert(path.clone(), before - 1);
        }
        mark
    }

    /// Promises everything that was done before a mark.
    pub(super) fn promise(&mut self, mark: &Mark) {
        for (path, at) in mark {
            let history = self.paths.get_mut(path).unwrap();
            history.promised = history.promised.max(*at);
        }
    }

    /// Returns a model of all states since a mark.
    pub(super) fn since(&self, mark: &Mark) -> Model {
        let mut model = self.clone();
        model.under_way.clear();
        for (path, history) in &mut model.paths {
            let first = mark.get(path).copied().unwrap_or(0);
            history.states.drain(..first);
            history.promised = 0;
        }
        model
    }

    /// Returns the violations in the found contents.
    pub(super) fn check(&self, found: &Found) -> Vec<String> {
        let mut wrong = Vec::new();
        let nothing = History::of(Node::Absent);
        for path in found.keys().filter(|path| !self.paths.contains_key(*path)) {
            wrong.push(format!(
                "{path}: never created, but it is {:?}",
                found[path]
            ));
        }
        for (path, history) in &self.paths {
            let node = found.get(path).unwrap_or(&Node::Absent);
            let mut matching = history.matching(node).peekable();
            if matching.peek().is_none() {
                let states = history.states.iter().skip(history.promised);
                let states: Vec<_> = states.map(|state| format!("{state:?}")).collect();
                wrong.push(format!(
                    "{path} is {node:?}; promised and since then: {}",
                    states.join("; ")
                ));
                continue;
            }
            // A renamed object, or something newer, must exist at its new name.
            let is_there = matching.any(|state| match &state.allowed {
                Allowed::MovedTo(to) => {
                    let there = self.paths.get(to).unwrap_or(&nothing);
                    let node = found.get(to).unwrap_or(&Node::Absent);
                    there.matching(node).any(|newer| newer.op >= state.op)
                }
                _ => true,
            });
            if !is_there {
                wrong.push(format!("{path} was lost in a rename"));
            }
        }
        wrong
    }
}

mod tests {
    use super::*;

    fn op(path: &str, what: Action) -> FileOp {
        FileOp {
            path: path.to_owned(),
            what,
            sync: false,
        }
    }

    fn found(nodes: &[(&str, &[u8])]) -> Found {
        let nodes = nodes.iter();
        nodes
            .map(|(path, bytes)| ((*path).to_owned(), Node::File((*bytes).into())))
            .collect()
    }

    #[test]
    fn model_detects_losses() {
        let mut model = Model::of(&found(&[("a", b"old"), ("x/b", b"kept")]));
        let bytes = Bytes { seed: 1, len: 9 };
        let new = bytes.make();
        model.begin(&op("a", Action::Replace(bytes)));
        let old_or_new = [b"old".to_vec(), new.clone()];
        for content in &old_or_new {
            let now = found(&[("a", content), ("x/b", b"kept")]);
            assert_eq!(model.check(&now), [""; 0]);
        }
        assert_eq!(model.check(&found(&[("x/b", b"kept")])).len(), 1);
        model.end(true);
        let old = found(&[("a", b"old"), ("x/b", b"kept")]);
        assert_eq!(model.check(&old).len(), 1, "the new content was promised");

        model.begin(&op("x", Action::Rename("y".to_owned())));
        model.end(false);
        for name in ["x/b", "y/b"] {
            assert_eq!(
                model.check(&found(&[("a", &new), (name, b"kept")])),
                [""; 0]
            );
        }
        assert_eq!(model.check(&found(&[("a", &new)])).len(), 1, "neither name");
        // A rename need not carry content that was not synced.
        let mut other = model.clone();
        other.begin(&op("y/b", Action::Overwrite(bytes)));
        other.end(false);
        other.begin(&op("y/b", Action::Rename("z/a".to_owned())));
        other.end(false);
        let now = found(&[("a", &new), ("z/a", b"")]);
        assert_eq!(other.check(&now), [""; 0]);
        let mark = model.mark();
        model.promise(&mark);
        let now = found(&[("a", &new), ("x/b", b"kept")]);
        assert_eq!(model.check(&now).len(), 2, "committed under its new name");
        let now = found(&[("a", &new), ("y/b", b"kept"), ("stranger", b"")]);
        assert_eq!(model.check(&now).len(), 1);
    }
}
