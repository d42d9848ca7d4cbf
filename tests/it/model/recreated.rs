//! Trees that are removed and created again, as package managers do.

use std::collections::BTreeMap;

use envfs::object::{Ino, Kind, Timestamp};
use envfs::union::{Creator, NewObject, SetAttr, SetIdBits, SetTime, XattrMode};

use super::machine::Machine;
use super::tree::{Body, Node, Tree};

/// The difference between the second tree and the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variation {
    Nothing,
    OneIsMissing,
    Content,
    Mode,
    Time,
}

/// The largest number of objects in a tree that is recreated.
const LARGE: usize = 40;

/// A removed tree, and how it is created again.
struct Copy<'a> {
    old: &'a Tree,
    variation: Variation,
    /// The number of objects before the one with the variation.
    left: usize,
    /// New identities by old ones, for hard links within the tree.
    made: BTreeMap<Ino, Ino>,
}

impl Machine {
    pub(super) fn recreate(&mut self, entry: u16, variation: Variation, which: u8) {
        let (dir, name, ino) = self.entry(entry);
        if name.is_empty() {
            return;
        }
        let old = Tree::read(self.union());
        let mut objects = 0;
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            objects += 1;
            if let Body::Directory(entries) = &old.node(ino).body {
                pending.extend(entries.values());
            }
        }
        if objects > LARGE {
            return;
        }
        self.remove_tree(dir, &name, ino);
        self.remove_unreachable();
        let mut copy = Copy {
            old: &old,
            variation,
            left: usize::from(which) % objects,
            made: BTreeMap::new(),
        };
        self.copy_tree(dir, &name, ino, &mut copy);
    }

    fn remove_tree(&mut self, dir: Ino, name: &[u8], ino: Ino) {
        let entries = match &self.tree.node(ino).body {
            Body::Directory(entries) => Some(entries.clone()),
            _ => None,
        };
        for (name, child) in entries.iter().flatten() {
            self.remove_tree(ino, name, *child);
        }
        let union = self.union();
        match entries {
            Some(_) => union.rmdir(dir, name).unwrap(),
            None => union.unlink(dir, name).unwrap(),
        }
        self.tree.dir_mut(dir).remove(name);
    }

    fn copy_tree(&mut self, dir: Ino, name: &[u8], old: Ino, copy: &mut Copy<'_>) {
        let is_varied = copy.left == 0;
        copy.left = copy.left.wrapping_sub(1);
        let variation = if is_varied {
            copy.variation
        } else {
            Variation::Nothing
        };
        if variation == Variation::OneIsMissing {
            return;
        }
        if let Some(made) = copy.made.get(&old) {
            self.union().link(*made, dir, name).unwrap();
            self.tree.dir_mut(dir).insert(name.to_vec(), *made);
            return;
        }
        let mut node = copy.old.node(old).clone();
        match (variation, &mut node.body) {
            (Variation::Content, Body::File(content)) => match content.last_mut() {
                Some(last) => *last ^= 1,
                None => content.push(b'x'),
            },
            (Variation::Content, Body::Symlink(target)) => target.push(b'x'),
            (Variation::Mode, _) => node.mode ^= 0o004,
            (Variation::Time, _) => node.mtime = Some(Timestamp { secs: 77, nanos: 0 }),
            _ => {}
        }
        let ino = self.make_like(dir, name, &node);
        copy.made.insert(old, ino);
        let entries = match &copy.old.node(old).body {
            Body::Directory(entries) => entries,
            _ => return,
        };
        for (name, child) in entries {
            self.copy_tree(ino, name, *child, copy);
        }
    }

    /// Creates an object with the content and attributes of a node, without the entries of a
    /// directory.
    fn make_like(&mut self, dir: Ino, name: &[u8], node: &Node) -> Ino {
        let union = self.union();
        let (rdev, target) = match &node.body {
            Body::Special(_, rdev) => (*rdev, None),
            Body::Symlink(target) => (0, Some(&target[..])),
            Body::Directory(_) | Body::File(_) => (0, None),
        };
        let creator = Creator {
            uid: node.owner.0,
            gid: node.owner.1,
        };
        let new = NewObject {
            kind: node.kind(),
            mode: node.mode,
            rdev,
            target,
            creator,
        };
        let (ino, _) = union.create(dir, name, &new).unwrap();
        if let Body::File(content) = &node.body {
            assert_eq!(
                union.write_at(ino, 0, content, SetIdBits::Keep).unwrap(),
                content.len()
            );
        }
        let owner = SetAttr {
            uid: Some(node.owner.0),
            gid: Some(node.owner.1),
            ..SetAttr::default()
        };
        union.set_attr(ino, &owner).unwrap();
        for (name, value) in &node.xattrs {
            union
                .set_xattr(ino, name, value, XattrMode::Create)
                .unwrap();
        }
        let set = SetAttr {
            mode: (node.kind() != Kind::Symlink).then_some(node.mode),
            mtime: node.mtime.map(SetTime::To),
            ..SetAttr::default()
        };
        let attr = union.set_attr(ino, &set).unwrap();
        assert!(self.seen.insert(ino), "identity {ino} was reused");
        let mut node = Node {
            mode: attr.mode,
            ..node.clone()
        };
        if let Body::Directory(entries) = &mut node.body {
            entries.clear();
            node.mtime = None;
        }
        self.tree.nodes.insert(ino, node);
        self.tree.dir_mut(dir).insert(name.to_vec(), ino);
        ino
    }
}
