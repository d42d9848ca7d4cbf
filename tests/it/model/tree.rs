//! The model: a tree in memory, which can be read from a view.

use std::collections::{BTreeMap, BTreeSet};

use envfs::object::{Attr, Ino, Kind, Timestamp};
use envfs::union::{Error, SeekTarget, Union};
use nix::errno::Errno;

/// The content of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Directory(BTreeMap<Vec<u8>, Ino>),
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Special(Kind, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) body: Body,
    pub(super) mode: u16,
    pub(super) owner: (u32, u32),
    /// `None` if it was not set explicitly.
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        match self.body {
            Body::Directory(_) => Kind::Directory,
            Body::File(_) => Kind::File,
            Body::Symlink(_) => Kind::Symlink,
            Body::Special(kind, _) => kind,
        }
    }
}

/// All objects with a name, and open ones without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<Ino, Node>,
}

pub(super) fn in_whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp { nanos: 0, ..time }
}

/// A name: the directory, the name in it, and the object.
pub(super) type Entry = (Ino, Vec<u8>, Ino);

impl Tree {
    pub(super) fn node(&self, ino: Ino) -> &Node {
        &self.nodes[&ino]
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    pub(super) fn dir(&self, ino: Ino) -> &BTreeMap<Vec<u8>, Ino> {
        match &self.node(ino).body {
            Body::Directory(entries) => entries,
            other => panic!("{ino} is not a directory but {other:?}"),
        }
    }

    pub(super) fn dir_mut(&mut self, ino: Ino) -> &mut BTreeMap<Vec<u8>, Ino> {
        let node = self.node_mut(ino);
        node.mtime = None;
        match &mut node.body {
            Body::Directory(entries) => entries,
            other => panic!("{ino} is not a directory but {other:?}"),
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> &mut Vec<u8> {
        let node = self.node_mut(ino);
        node.mtime = None;
        match &mut node.body {
            Body::File(content) => content,
            other => panic!("{ino} is not a file but {other:?}"),
        }
    }

    /// Returns all entries, in the order of a walk.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        let mut pending = vec![Ino::ROOT];
        while let Some(dir) = pending.pop() {
            for (name, ino) in self.dir(dir) {
                all.push((dir, name.clone(), *ino));
                if self.node(*ino).kind() == Kind::Directory {
                    pending.push(*ino);
                }
            }
        }
        all
    }

    pub(super) fn nlink(&self, ino: Ino) -> u32 {
        if let Body::Directory(entries) = &self.node(ino).body {
            let below = entries
                .values()
                .filter(|child| self.node(**child).kind() == Kind::Directory);
            let held = ino == Ino::ROOT || self.entries().iter().any(|entry| entry.2 == ino);
            return if held { 2 + below.count() as u32 } else { 0 };
        }
        self.entries().iter().filter(|entry| entry.2 == ino).count() as u32
    }

    /// Returns whether `dir` is `above` or below it.
    pub(super) fn is_within(&self, dir: Ino, above: Ino) -> bool {
        let parents: BTreeMap<Ino, Ino> = self
            .entries()
            .into_iter()
            .map(|(dir, _, ino)| (ino, dir))
            .collect();
        let mut at = dir;
        loop {
            if at == above {
                return true;
            }
            match parents.get(&at) {
                Some(up) => at = *up,
                None => return false,
            }
        }
    }

    /// Returns all paths.
    pub(super) fn paths(&self) -> BTreeMap<Vec<u8>, Ino> {
        let mut paths = BTreeMap::new();
        let mut pending = vec![(Ino::ROOT, Vec::new())];
        while let Some((dir, above)) = pending.pop() {
            for (name, ino) in self.dir(dir) {
                let mut path = above.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                if self.node(*ino).kind() == Kind::Directory {
                    pending.push((*ino, path.clone()));
                }
                paths.insert(path, *ino);
            }
        }
        paths
    }

    /// Returns the tree without objects that have no name.
    pub(super) fn named(&self) -> Tree {
        let mut named: BTreeSet<Ino> = self.entries().into_iter().map(|entry| entry.2).collect();
        named.insert(Ino::ROOT);
        let nodes = self.nodes.iter().filter(|(ino, _)| named.contains(ino));
        Tree {
            nodes: nodes.map(|(ino, node)| (*ino, node.clone())).collect(),
        }
    }

    /// Returns the tree with the times that an image stores.
    pub(super) fn in_whole_seconds(mut self) -> Tree {
        for node in self.nodes.values_mut() {
            node.mtime = node.mtime.map(in_whole_seconds);
        }
        self
    }

    /// Reads a view by listing it, and checks its consistency.
    pub(super) fn read(union: &Union) -> Tree {
        let mut tree = Tree {
            nodes: BTreeMap::new(),
        };
        let mut nlinks = BTreeMap::new();
        let (root, attr) = (Ino::ROOT, union.attr(Ino::ROOT).unwrap());
        nlinks.insert(root, attr.nlink);
        tree.nodes.insert(root, read_node(union, root, &attr));
        let mut pending = vec![(root, root)];
        while let Some((dir, parent)) = pending.pop() {
            let mut entries = BTreeMap::new();
            for (name, ino, kind) in list(union, dir, parent) {
                let (found, attr) = union
                    .lookup(dir, &name)
                    .unwrap()
                    .unwrap_or_else(|| panic!("{} is listed in {dir} but not found", show(&name)));
                assert_eq!(found, ino, "{} in {dir}: listed and found", show(&name));
                assert_eq!(
                    attr.kind,
                    kind,
                    "{} in {dir}: listed and found",
                    show(&name)
                );
                assert_eq!(union.attr(ino).unwrap(), attr);
                assert!(
                    entries.insert(name.clone(), ino).is_none(),
                    "{} is listed twice",
                    show(&name)
                );
                nlinks.insert(ino, attr.nlink);
                if kind == Kind::Directory {
                    assert!(
                        !tree.nodes.contains_key(&ino),
                        "directory {ino} has two names"
                    );
                    pending.push((ino, dir));
                }
                tree.nodes
                    .entry(ino)
                    .or_insert_with(|| read_node(union, ino, &attr));
            }
            tree.node_mut(dir).body = Body::Directory(entries);
        }
        for (ino, nlink) in nlinks {
            assert_eq!(
                nlink,
                tree.nlink(ino),
                "link count of {ino} {:?}",
                tree.node(ino)
            );
        }
        tree
    }

    /// Panics unless a view, as read, equals the model.
    pub(super) fn assert_is(&self, actual: &Tree) {
        let name_of: BTreeMap<Ino, Vec<u8>> = self
            .paths()
            .into_iter()
            .map(|(path, ino)| (ino, path))
            .collect();
        for (ino, node) in &self.nodes {
            let path = name_of
                .get(ino)
                .map_or("(root)".to_owned(), |path| show(path));
            let Some(found) = actual.nodes.get(ino) else {
                panic!("{path} ({ino}) is missing: {:?}", node.body);
            };
            assert_same(node, found, &format!("{path} ({ino})"));
        }
        for ino in actual.nodes.keys() {
            assert!(self.nodes.contains_key(ino), "{ino} should not exist");
        }
    }

    /// Checks with lookups that all entries are found, and other names are not.
    pub(super) fn assert_found(&self, union: &Union, names: &[Vec<u8>]) {
        for (ino, node) in &self.nodes {
            let Body::Directory(entries) = &node.body else {
                continue;
            };
            for (name, child) in entries {
                let found = union.lookup(*ino, name).unwrap().map(|found| found.0);
                assert_eq!(found, Some(*child), "{} in {ino}", show(name));
            }
            for name in names {
                if !entries.contains_key(name) {
                    let found = union.lookup(*ino, name).unwrap().map(|found| found.0);
                    assert_eq!(found, None, "{} in {ino}", show(name));
                }
            }
        }
    }
}

pub(super) fn assert_same(node: &Node, found: &Node, what: &str) {
    if let (Body::File(ours), Body::File(theirs)) = (&node.body, &found.body)
        && ours != theirs
    {
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
        panic!(
            "content of {what}: {} bytes, should be {}; first difference at {at:?}",
            theirs.len(),
            ours.len()
        );
    }
    assert_eq!(node.body, found.body, "{what}");
    assert_eq!(
        format!("{:o}", node.mode),
        format!("{:o}", found.mode),
        "mode of {what}"
    );
    assert_eq!(node.owner, found.owner, "owner of {what}");
    assert_eq!(node.xattrs, found.xattrs, "attributes of {what}");
    if node.mtime.is_some() {
        assert_eq!(node.mtime, found.mtime, "mtime of {what}");
    }
}

pub(super) fn show(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.len() > 40 {
        format!("{}…", text.chars().take(20).collect::<String>())
    } else {
        text
    }
}

/// Lists a directory in small steps.
pub(super) fn list(union: &Union, dir: Ino, parent: Ino) -> Vec<(Vec<u8>, Ino, Kind)> {
    let mut all = Vec::new();
    let mut at = 0;
    loop {
        let part = union.read_dir(dir, at, 3).unwrap();
        let ended = part.len() < 3;
        for item in part {
            at = item.next;
            match &*item.name {
                b"." => assert_eq!((item.ino, at), (dir, 1)),
                // The bits above these encode the order of the listing.
                b".." => assert_eq!((item.ino, at & 0xffff_ffff), (parent, 2)),
                name => all.push((name.to_vec(), item.ino, item.kind)),
            }
        }
        if ended {
            return all;
        }
    }
}

pub(super) fn read_node(union: &Union, ino: Ino, attr: &Attr) -> Node {
    let body = match attr.kind {
        Kind::Directory => Body::Directory(BTreeMap::new()),
        Kind::File => Body::File(read_file(union, ino, attr.size)),
        Kind::Symlink => {
            let target = union.read_link(ino).unwrap().into_vec();
            assert_eq!(attr.size, target.len() as u64);
            Body::Symlink(target)
        }
        kind => Body::Special(kind, attr.rdev),
    };
    let names = union.xattr_names(ino).unwrap();
    let mut xattrs = BTreeMap::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        xattrs.insert(name.to_vec(), union.xattr(ino, name).unwrap().into_vec());
    }
    Node {
        body,
        mode: attr.mode,
        owner: (attr.uid, attr.gid),
        mtime: Some(attr.mtime),
        xattrs,
    }
}

fn read_file(union: &Union, ino: Ino, size: u64) -> Vec<u8> {
    let whole = union.read_at(ino, 0, size as usize + 10).unwrap();
    let whole = (*whole).as_ref().to_vec();
    assert_eq!(whole.len() as u64, size, "size of {ino}");
    // A range that starts and ends within blocks.
    let (from, len) = (whole.len() / 3, whole.len() / 2);
    let part = union.read_at(ino, from as u64, len).unwrap();
    assert_eq!((*part).as_ref(), &whole[from..from + len], "part of {ino}");
    let mut at = 0;
    loop {
        let data = match union.seek(ino, at, SeekTarget::Data) {
            Ok(data) => data,
            Err(Error::Posix(Errno::ENXIO)) => size,
            Err(e) => panic!("{e}"),
        };
        assert!(
            data >= at && data <= size,
            "data of {ino} at {data} of {size} from {at}"
        );
        assert!(
            whole[at as usize..data as usize]
                .iter()
                .all(|byte| *byte == 0),
            "hole of {ino} has data"
        );
        if data == size {
            break;
        }
        at = union.seek(ino, data, SeekTarget::Hole).unwrap();
        assert!(
            at > data && at <= size,
            "hole of {ino} at {at} of {size} from {data}"
        );
    }
    whole
}
