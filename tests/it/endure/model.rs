//! What may be found at each path of one process: what is promised, and what came since.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::Random;
use super::acts::{Act, Bytes, DRAFT, What};

/// What is at a path.
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

/// What may be at a path after an act has begun.
#[derive(Debug, Clone)]
enum Allowed {
    Is(Node),
    /// A file that is being written.
    AnyFile,
    /// A file that is being appended to: it begins so, and has no more than so many bytes.
    Longer(Arc<[u8]>, usize),
    /// Nothing, because it has another name now, where something since then must be found.
    MovedTo(String),
}

#[derive(Debug, Clone)]
struct State {
    /// Number of the act.
    act: u64,
    allowed: Allowed,
}

/// What one path went through. States before the promised one are over.
#[derive(Debug, Clone)]
struct History {
    states: Vec<State>,
    promised: usize,
}

impl History {
    fn of(node: Node) -> History {
        let allowed = Allowed::Is(node);
        History {
            states: vec![State { act: 0, allowed }],
            promised: 0,
        }
    }

    fn now(&self) -> &Node {
        match &self.states[self.states.len() - 1].allowed {
            Allowed::Is(node) => node,
            Allowed::MovedTo(_) => &Node::Absent,
            other => panic!("an act has no end: {other:?}"),
        }
    }

    /// Returns false while the content was written and nothing has made it durable.
    fn is_certain(&self) -> bool {
        let last = self.states.len() - 1;
        self.promised == last
            || self.states[last].act != self.states[last - 1].act
            || matches!(
                self.states[last - 1].allowed,
                Allowed::Is(_) | Allowed::MovedTo(_)
            )
    }

    /// Returns the states that may be meant by what is found.
    fn meant<'a>(&'a self, found: &'a Node) -> impl Iterator<Item = &'a State> {
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

/// What each process has below its directory, as read.
pub(super) type Found = BTreeMap<String, Node>;

/// Positions in the histories of all paths.
pub(super) type Mark = BTreeMap<String, usize>;

/// What may be found below the directory of one process.
#[derive(Debug, Clone)]
pub(super) struct Model {
    paths: BTreeMap<String, History>,
    acts: u64,
    /// Paths of the act under way, and how many states each had before it.
    under_way: Vec<(String, usize)>,
}

/// Names at which files are made; directories too are renamed.
const NAMES: &[&str] = &[
    "a", "b", "c", "d", "x/a", "x/b", "y/a", "y/b", "z/a", "lower/0", "lower/1", "lower/2",
    "lower/3",
];
const DIRECTORIES: &[&str] = &["x", "y", "z", "lower"];

/// Reads what a process has.
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
    /// Everything is as it was found, for good.
    pub(super) fn of(found: &Found) -> Model {
        let histories = found
            .iter()
            .map(|(path, node)| (path.clone(), History::of(node.clone())));
        Model {
            paths: histories.collect(),
            acts: 0,
            under_way: Vec::new(),
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

    /// Chooses an act that is possible now.
    pub(super) fn choose(&self, random: &mut Random, sync_percent: usize) -> Act {
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
            (Node::Absent, 0) => (path, What::Symlink(format!("to-{}", bytes.seed))),
            (Node::Absent, 1..=3) => (path, What::Replace(bytes)),
            (Node::Absent, _) => (path, What::Create(bytes)),
            (Node::File(_), 0 | 1) => (path, What::Overwrite(bytes)),
            (Node::File(_), 2 | 3) => (path, What::Append(bytes)),
            (Node::File(now), 4 | 5) => (path, What::Patch(random.below(now.len() + 1), bytes)),
            (Node::File(now), 6) => (path, What::Resize(random.below(2 * now.len() + 2))),
            (Node::File(_), 7 | 8) => (path, What::Replace(bytes)),
            (Node::File(_), 9) | (Node::Link(_), 0..=6) => (path, What::Unlink),
            (Node::File(_) | Node::Link(_), _) => (path, What::Rename(other.to_owned())),
        };
        let mut what = what;
        if random.chance(6) {
            let from = DIRECTORIES[random.below(DIRECTORIES.len())];
            let to = DIRECTORIES[random.below(DIRECTORIES.len())];
            if from != to && !self.below(from).is_empty() && self.below(to).is_empty() {
                (path, what) = (from, What::Rename(to.to_owned()));
            }
        }
        Act {
            path: path.to_owned(),
            what,
            sync: random.chance(sync_percent),
        }
    }

    fn push(&mut self, path: &str, allowed: Allowed) {
        let act = self.acts;
        let history = self
            .paths
            .entry(path.to_owned())
            .or_insert_with(|| History::of(Node::Absent));
        if !self.under_way.iter().any(|(known, _)| known == path) {
            self.under_way.push((path.to_owned(), history.states.len()));
        }
        history.states.push(State { act, allowed });
    }

    /// An act begins: from now on its outcome may be found.
    pub(super) fn begin(&mut self, act: &Act) {
        self.acts += 1;
        assert!(self.under_way.is_empty(), "one act at a time");
        let path = act.path.as_str();
        let now = match self.now(path) {
            Node::File(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        };
        let file = |bytes: Vec<u8>| Allowed::Is(Node::File(bytes.into()));
        match &act.what {
            What::Create(bytes) | What::Overwrite(bytes) => {
                self.push(path, Allowed::AnyFile);
                self.push(path, file(bytes.make()));
            }
            What::Append(bytes) => {
                let all = [now.clone(), bytes.make()].concat();
                self.push(path, Allowed::Longer(now.into(), all.len()));
                self.push(path, file(all));
            }
            What::Patch(at, bytes) => {
                let (mut all, bytes) = (now, bytes.make());
                all.resize(all.len().max(at + bytes.len()), 0);
                all[*at..at + bytes.len()].copy_from_slice(&bytes);
                self.push(path, Allowed::AnyFile);
                self.push(path, file(all));
            }
            What::Resize(len) => {
                let mut all = now;
                all.resize(*len, 0);
                self.push(path, Allowed::AnyFile);
                self.push(path, file(all));
            }
            What::Replace(bytes) => self.push(path, file(bytes.make())),
            What::Symlink(target) => self.push(path, Allowed::Is(Node::Link(target.clone()))),
            What::Unlink => {
                // Where the power is lost before the removal is synced, the file may be gone and its row not:
                // then what was committed shows again (docs/commit.md), which is neither of the two.
                if matches!(self.now(path), Node::File(_)) {
                    self.push(path, Allowed::AnyFile);
                }
                self.push(path, Allowed::Is(Node::Absent));
            }
            What::Rename(to) if to == path => {}
            What::Rename(to) => {
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
            What::CopyTo(_) => {}
        }
    }

    /// The act is done; what it did is promised if it `counts`.
    pub(super) fn end(&mut self, counts: bool) {
        for (path, _) in std::mem::take(&mut self.under_way) {
            let history = self.paths.get_mut(&path).unwrap();
            if counts {
                history.promised = history.states.len() - 1;
            }
        }
    }

    /// Returns where everything is now: an act under way has not happened.
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

    /// Whatever was done before a mark is promised.
    pub(super) fn promise(&mut self, mark: &Mark) {
        for (path, at) in mark {
            let history = self.paths.get_mut(path).unwrap();
            history.promised = history.promised.max(*at);
        }
    }

    /// Returns what was there at some moment since a mark.
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

    /// Says what is wrong with what was found.
    pub(super) fn check(&self, found: &Found) -> Vec<String> {
        let mut wrong = Vec::new();
        let nothing = History::of(Node::Absent);
        for path in found.keys().filter(|path| !self.paths.contains_key(*path)) {
            wrong.push(format!(
                "{path}: nobody made it, and it is {:?}",
                found[path]
            ));
        }
        for (path, history) in &self.paths {
            let node = found.get(path).unwrap_or(&Node::Absent);
            let mut meant = history.meant(node).peekable();
            if meant.peek().is_none() {
                let states = history.states.iter().skip(history.promised);
                let states: Vec<_> = states.map(|state| format!("{state:?}")).collect();
                wrong.push(format!(
                    "{path} is {node:?}; promised and since then: {}",
                    states.join("; ")
                ));
                continue;
            }
            // What has no name here any more must be found where it went, or something newer.
            let is_there = meant.any(|state| match &state.allowed {
                Allowed::MovedTo(to) => {
                    let there = self.paths.get(to).unwrap_or(&nothing);
                    let node = found.get(to).unwrap_or(&Node::Absent);
                    there.meant(node).any(|newer| newer.act >= state.act)
                }
                _ => true,
            });
            if !is_there {
                wrong.push(format!("{path} was lost on its way to another name"));
            }
        }
        wrong
    }
}

mod tests {
    use super::*;

    fn act(path: &str, what: What) -> Act {
        Act {
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
    fn the_model_knows_what_is_lost() {
        let mut model = Model::of(&found(&[("a", b"old"), ("x/b", b"kept")]));
        let bytes = Bytes { seed: 1, len: 9 };
        let new = bytes.make();
        model.begin(&act("a", What::Replace(bytes)));
        let old_or_new = [b"old".to_vec(), new.clone()];
        for content in &old_or_new {
            let now = found(&[("a", content), ("x/b", b"kept")]);
            assert_eq!(model.check(&now), [""; 0]);
        }
        assert_eq!(model.check(&found(&[("x/b", b"kept")])).len(), 1);
        model.end(true);
        let old = found(&[("a", b"old"), ("x/b", b"kept")]);
        assert_eq!(model.check(&old).len(), 1, "the new one was promised");

        model.begin(&act("x", What::Rename("y".to_owned())));
        model.end(false);
        for name in ["x/b", "y/b"] {
            assert_eq!(
                model.check(&found(&[("a", &new), (name, b"kept")])),
                [""; 0]
            );
        }
        assert_eq!(model.check(&found(&[("a", &new)])).len(), 1, "neither name");
        // The new content of what was written and not synced need not have gone with it.
        let mut other = model.clone();
        other.begin(&act("y/b", What::Overwrite(bytes)));
        other.end(false);
        other.begin(&act("y/b", What::Rename("z/a".to_owned())));
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
