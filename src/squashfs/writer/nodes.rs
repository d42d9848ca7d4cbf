//! The pushed tree, kept small: about 60 bytes for a file and its name, besides the name itself,
//! its block list and its place in the data area.

use std::collections::HashMap;
use std::ops::Range;

use super::error::{Result, WriteError};
use super::xattrs::XattrLists;
use crate::squashfs::format::{InodeKind, InodeRef, MAX_IDS, MAX_SYMLINK, NO_XATTR, check_name};

/// The attributes of a node, without its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// The inode number, 1..=n over all nodes of the image, or 0 to number nodes in the order of
    /// the inode table. Either all nodes have a number or none has. When amending: the number in
    /// the old image, or one above the highest there.
    pub number: u32,
    /// Permission bits, with set-id and sticky bits (the low 12 bits of `st_mode`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Extended attributes: full names (`user.`, `trusted.` and `security.` only) and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A node that was pushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) u32);

/// The fields of a node's inode, without its content.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: InodeKind,
    pub(super) mode: u16,
    pub(super) uid: u16,
    pub(super) gid: u16,
    pub(super) mtime: u32,
    /// 0 until nodes are numbered.
    pub(super) number: u32,
    /// Names that lead here.
    pub(super) links: u32,
    /// Index of the xattr list, or `NO_XATTR`.
    pub(super) xattr: u32,
    /// File: index of the file. Symlink: index of the target. Device: its number. Directory, once
    /// sorted: index of its first entry.
    pub(super) payload: u32,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    dir: u32,
    pub(super) child: u32,
    name: u32,
    len: u8,
}

/// All nodes and names.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    entries: Vec<Entry>,
    names: Vec<u8>,
    /// The end of each target in `targets`.
    target_ends: Vec<u32>,
    targets: Vec<u8>,
    ids: Vec<u32>,
    id_of: HashMap<u32, u16>,
    pub(super) xattrs: XattrLists,
    /// The number of inodes in the old image when its tables are amended: new numbers are higher.
    old_inodes: Option<u32>,
    /// The positions of nodes that are unchanged in the amended tables.
    kept: HashMap<u32, InodeRef>,
}

impl Tree {
    /// Creates a tree that amends one with these user and group ids and number of inodes.
    pub(super) fn amending(ids: &[u32], inodes: u32) -> Tree {
        let index = |at: usize| at.min(MAX_IDS) as u16;
        Tree {
            id_of: ids
                .iter()
                .enumerate()
                .map(|(at, id)| (*id, index(at)))
                .collect(),
            ids: ids.to_vec(),
            xattrs: XattrLists::of_old_image(),
            old_inodes: Some(inodes),
            ..Tree::default()
        }
    }

    /// Adds an unchanged inode of the old image.
    pub(super) fn keep(&mut self, kind: InodeKind, number: u32, at: InodeRef) -> Result<NodeId> {
        let meta = Meta {
            number,
            ..Meta::default()
        };
        let id = self.push_node(kind, &meta, (0, 0, NO_XATTR), 0)?;
        self.kept.insert(id.0, at);
        Ok(id)
    }

    /// Returns the unchanged nodes of the old image with their positions.
    pub(super) fn kept(&self) -> impl Iterator<Item = (u32, InodeRef)> {
        self.kept.iter().map(|(id, at)| (*id, *at))
    }

    /// Returns the highest inode number of the sealed tree.
    pub(super) fn inodes(&self) -> u32 {
        let highest = || self.nodes.iter().map(|node| node.number).max();
        match self.old_inodes {
            Some(old) => highest().unwrap_or(0).max(old),
            // Numbers are dense.
            None => self.nodes.len() as u32,
        }
    }

    /// Adds a node of any kind.
    pub(super) fn add(&mut self, kind: InodeKind, meta: &Meta, payload: u32) -> Result<NodeId> {
        let xattr = self.xattrs.add(&meta.xattrs)?;
        let (uid, gid) = (self.id(meta.uid)?, self.id(meta.gid)?);
        self.push_node(kind, meta, (uid, gid, xattr), payload)
    }

    fn push_node(
        &mut self,
        kind: InodeKind,
        meta: &Meta,
        (uid, gid, xattr): (u16, u16, u32),
        payload: u32,
    ) -> Result<NodeId> {
        // The root's parent is numbered one above the highest number.
        let id = u32::try_from(self.nodes.len())
            .ok()
            .filter(|id| *id < u32::MAX - 2)
            .ok_or_else(|| WriteError::tree("too many inodes", "more than 2^32 - 3"))?;
        self.nodes.push(Node {
            kind,
            mode: meta.mode & 0o7777,
            uid,
            gid,
            mtime: meta.mtime,
            number: meta.number,
            links: 0,
            xattr,
            payload,
        });
        Ok(NodeId(id))
    }

    /// Adds a symbolic link.
    pub(super) fn add_symlink(&mut self, meta: &Meta, target: &[u8]) -> Result<NodeId> {
        if target.is_empty() || target.len() > MAX_SYMLINK || target.contains(&0) {
            return Err(WriteError::tree(
                "symlink target",
                format!("{} bytes (1..={MAX_SYMLINK} without NUL)", target.len()),
            ));
        }
        let index = self.target_ends.len() as u32;
        let node = self.add(InodeKind::Symlink, meta, index)?;
        self.targets.extend_from_slice(target);
        let end = u32::try_from(self.targets.len())
            .map_err(|_| WriteError::tree("symlink targets", "more than 4 GiB of them"))?;
        self.target_ends.push(end);
        Ok(node)
    }

    /// Gives `child` a name in `dir`.
    pub(super) fn link(&mut self, dir: NodeId, name: &[u8], child: NodeId) -> Result<()> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        check_name(name).map_err(|why| WriteError::tree(why, shown()))?;
        if self.node(dir)?.kind != InodeKind::Directory {
            return Err(WriteError::tree(
                "a name in a node that is not a directory",
                shown(),
            ));
        }
        let node = self
            .nodes
            .get_mut(child.0 as usize)
            .ok_or_else(|| WriteError::tree("unknown node", format!("{child:?}")))?;
        if node.kind == InodeKind::Directory && node.links > 0 {
            return Err(WriteError::tree("a second name for a directory", shown()));
        }
        node.links += 1;
        let at = u32::try_from(self.names.len())
            .map_err(|_| WriteError::tree("names", "more than 4 GiB of them"))?;
        self.names.extend_from_slice(name);
        // check_name has limited the length to 255.
        self.entries.push(Entry {
            dir: dir.0,
            child: child.0,
            name: at,
            len: name.len() as u8,
        });
        Ok(())
    }

    fn id(&mut self, id: u32) -> Result<u16> {
        if let Some(index) = self.id_of.get(&id) {
            return Ok(*index);
        }
        if self.ids.len() >= MAX_IDS {
            // The old table may have ids that are no longer used.
            if self.old_inodes.is_some() {
                return Err(WriteError::Amend("its id table is full".into()));
            }
            return Err(WriteError::tree(
                "too many owners",
                format!("more than {MAX_IDS} different users and groups"),
            ));
        }
        let index = self.ids.len() as u16;
        self.ids.push(id);
        self.id_of.insert(id, index);
        Ok(index)
    }

    pub(super) fn node(&self, id: NodeId) -> Result<&Node> {
        self.nodes
            .get(id.0 as usize)
            .ok_or_else(|| WriteError::tree("unknown node", format!("{id:?}")))
    }

    /// Returns all nodes in the order in which they were added.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the user and group ids, by index.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(super) fn name(&self, entry: &Entry) -> &[u8] {
        let from = entry.name as usize;
        &self.names[from..from + usize::from(entry.len)]
    }

    pub(super) fn target(&self, node: &Node) -> &[u8] {
        let index = node.payload as usize;
        let from = index
            .checked_sub(1)
            .map_or(0, |before| self.target_ends[before] as usize);
        &self.targets[from..self.target_ends[index] as usize]
    }

    /// Returns the entries of a directory in order. The tree must be sealed.
    pub(super) fn entries(&self, range: Range<usize>) -> &[Entry] {
        &self.entries[range]
    }

    /// Sorts the names and checks that all nodes form one tree under `root`. Returns the
    /// directories, children before parents and the root last, with their ranges of entries.
    pub(super) fn seal(&mut self, root: NodeId) -> Result<Vec<(u32, Range<usize>)>> {
        let root_node = self.node(root)?;
        if root_node.kind != InodeKind::Directory || root_node.links > 0 {
            return Err(WriteError::tree(
                "root",
                "not a directory, or it has a name itself",
            ));
        }
        let names = &self.names;
        let name = |entry: &Entry| {
            let from = entry.name as usize;
            &names[from..from + usize::from(entry.len)]
        };
        self.entries
            .sort_unstable_by(|a, b| (a.dir, name(a)).cmp(&(b.dir, name(b))));
        if let Some(twice) = self
            .entries
            .windows(2)
            .find(|w| w[0].dir == w[1].dir && name(&w[0]) == name(&w[1]))
        {
            let shown = String::from_utf8_lossy(name(&twice[0])).into_owned();
            return Err(WriteError::tree("a name twice in a directory", shown));
        }
        // Each directory has the index of its first entry. There cannot be `u32::MAX` entries,
        // since names are limited to 4 GiB.
        for (at, entry) in self.entries.iter().enumerate().rev() {
            self.nodes[entry.dir as usize].payload = at as u32;
        }
        self.walk(root)
    }

    fn range(&self, dir: u32) -> Range<usize> {
        let from = self.nodes[dir as usize].payload as usize;
        let len = self
            .entries
            .get(from..)
            .map_or(0, |rest| rest.partition_point(|entry| entry.dir == dir));
        from..from + len
    }

    fn walk(&mut self, root: NodeId) -> Result<Vec<(u32, Range<usize>)>> {
        let mut order = Vec::new();
        let range = self.range(root.0);
        let mut stack = vec![(root.0, range.clone(), range.start)];
        while let Some((dir, range, cursor)) = stack.last_mut() {
            let next = self.entries[*cursor..range.end].iter().position(|entry| {
                self.nodes[entry.child as usize].kind == InodeKind::Directory
                    && !self.kept.contains_key(&entry.child)
            });
            match next {
                Some(skip) => {
                    let child = self.entries[*cursor + skip].child;
                    *cursor += skip + 1;
                    let range = self.range(child);
                    stack.push((child, range.clone(), range.start));
                }
                None => {
                    order.push((*dir, range.clone()));
                    stack.pop();
                }
            }
        }
        let nameless = |(id, node): &(usize, &Node)| node.links == 0 && *id != root.0 as usize;
        if let Some((id, node)) = self.nodes.iter().enumerate().find(nameless) {
            let detail = format!("{:?}, pushed as number {id}", node.kind);
            return Err(WriteError::tree("a node without a name", detail));
        }
        let reached: usize = order.iter().map(|(_, range)| range.len()).sum();
        if reached != self.entries.len() {
            return Err(WriteError::tree(
                "a directory is inside itself",
                "unreachable from the root",
            ));
        }
        self.number(root, &order)?;
        Ok(order)
    }

    /// Numbers the nodes in the order of the inode table, or checks the numbers of the caller.
    fn number(&mut self, root: NodeId, order: &[(u32, Range<usize>)]) -> Result<()> {
        if let Some(old) = self.old_inodes {
            return self.check_amended(old);
        }
        let given = self.nodes.iter().filter(|node| node.number != 0).count();
        if given == 0 {
            let mut next = 1;
            for (_, range) in order {
                for entry in &self.entries[range.clone()] {
                    let node = &mut self.nodes[entry.child as usize];
                    if node.number == 0 {
                        node.number = next;
                        next += 1;
                    }
                }
            }
            self.nodes[root.0 as usize].number = next;
            return Ok(());
        }
        let mut seen = vec![false; self.nodes.len()];
        for node in &self.nodes {
            let slot = (node.number as usize)
                .checked_sub(1)
                .and_then(|at| seen.get_mut(at));
            match slot {
                Some(seen) if !*seen => *seen = true,
                _ => {
                    return Err(WriteError::tree(
                        "inode numbers must be 1..=n, each once",
                        format!("{} among {}", node.number, self.nodes.len()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks that the numbers of new nodes follow those of the old image.
    fn check_amended(&self, old: u32) -> Result<()> {
        let mut numbers: Vec<u32> = self.nodes.iter().map(|node| node.number).collect();
        numbers.sort_unstable();
        let twice = numbers.windows(2).find(|pair| pair[0] == pair[1]);
        let new = numbers.iter().filter(|number| **number > old).count();
        let gap = new as u64 != u64::from(self.inodes() - old);
        if numbers.first() == Some(&0) || twice.is_some() || gap {
            return Err(WriteError::tree(
                "inode numbers must follow those of the old image, each once",
                format!("{new} nodes above {old}"),
            ));
        }
        Ok(())
    }
}
