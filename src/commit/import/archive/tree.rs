//! What an archive leaves when its entries are unpacked in their order, as GNU tar would unpack them.
//!
//! Later entries replace earlier ones. A path may lead through a symbolic link of the archive to one of its
//! directories, unless the link names an absolute path or "..": what would be written there might be outside.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::error::{Error, Result};
use crate::squashfs::writer::{ImageWriter, Meta, NodeId};

/// Index of a node; the root is 0.
pub(super) type Index = usize;

/// A name in a directory.
type Place = (Index, Box<[u8]>);

const ROOT: Index = 0;

/// A path has at most so many names: as deep as a view can be.
const MAX_DEPTH: usize = 1 << 16;

/// Symbolic links that one path may lead through.
const MAX_LINKS: usize = 40;

/// An object, without its names.
#[derive(Debug)]
pub(super) enum Object {
    /// The entries in it, and its attributes where an entry of its own has told them.
    Directory(BTreeMap<Box<[u8]>, Index>, Option<Meta>),
    /// A file: the entry with its content, and its node in the image.
    File(usize, NodeId),
    Symlink(Meta, Box<[u8]>),
    Device(Meta, bool, u64),
    Fifo(Meta),
}

#[derive(Debug)]
struct Node {
    object: Object,
    /// Names that lead to it.
    names: u32,
}

/// The tree so far.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    pub(super) fn new() -> Tree {
        let root = Node {
            object: Object::Directory(BTreeMap::new(), None),
            names: 1,
        };
        Tree { nodes: vec![root] }
    }

    /// Unpacks an object.
    pub(super) fn add(&mut self, path: &[&[u8]], object: Object) -> Result<()> {
        let Some(place) = self.place(path)? else {
            return self.describe_directory(ROOT, object, path);
        };
        let there = self.lookup(&place);
        if matches!(object, Object::Directory(..))
            && let Some(there) = there
            && self.is_directory(there)
        {
            return self.describe_directory(there, object, path);
        }
        self.make_room(&place, path)?;
        let index = self.nodes.len();
        self.nodes.push(Node { object, names: 1 });
        self.insert(place, index);
        Ok(())
    }

    /// Unpacks a hard link.
    pub(super) fn link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<()> {
        let refuse = |why: &str| {
            let (path, target) = (shown(path), shown(target));
            Err(Error::Refused(format!(
                "its entry {path} is a link to {target}, which {why}"
            )))
        };
        let found = match self.resolve(target, false)? {
            Some(place) => self.lookup(&place),
            None => return refuse("is a directory"),
        };
        let Some(found) = found else {
            return refuse("is not there");
        };
        if self.is_directory(found) {
            return refuse("is a directory");
        }
        let Some(place) = self.place(path)? else {
            return refuse("cannot replace the root");
        };
        if self.lookup(&place) == Some(found) {
            return Ok(());
        }
        self.make_room(&place, path)?;
        if let Some(node) = self.nodes.get_mut(found) {
            node.names += 1;
        }
        self.insert(place, found);
        Ok(())
    }

    /// A directory that is there gets other attributes.
    fn describe_directory(&mut self, at: Index, object: Object, path: &[&[u8]]) -> Result<()> {
        match (self.nodes.get_mut(at).map(|node| &mut node.object), object) {
            (Some(Object::Directory(_, meta)), Object::Directory(_, new)) => {
                *meta = new.or(meta.take());
                Ok(())
            }
            _ => Err(Error::Refused(format!(
                "its entry {} would replace the root",
                shown(path)
            ))),
        }
    }

    /// Removes what a name leads to, so that it can lead to something else.
    fn make_room(&mut self, place: &Place, path: &[&[u8]]) -> Result<()> {
        let Some(there) = self.lookup(place) else {
            return Ok(());
        };
        if let Some(Object::Directory(entries, _)) = self.object(there)
            && !entries.is_empty()
        {
            let why = format!(
                "its entry {} would replace a directory with entries",
                shown(path)
            );
            return Err(Error::Refused(why));
        }
        if let Some(node) = self.nodes.get_mut(there) {
            node.names = node.names.saturating_sub(1);
        }
        Ok(())
    }

    fn insert(&mut self, (dir, name): Place, index: Index) {
        if let Some(Object::Directory(entries, _)) =
            self.nodes.get_mut(dir).map(|node| &mut node.object)
        {
            entries.insert(name, index);
        }
    }

    pub(super) fn object(&self, index: Index) -> Option<&Object> {
        self.nodes.get(index).map(|node| &node.object)
    }

    fn is_directory(&self, index: Index) -> bool {
        matches!(self.object(index), Some(Object::Directory(..)))
    }

    fn lookup(&self, (dir, name): &Place) -> Option<Index> {
        match self.object(*dir) {
            Some(Object::Directory(entries, _)) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Where an entry goes; directories on the way are made. `None` for the root.
    fn place(&mut self, path: &[&[u8]]) -> Result<Option<Place>> {
        self.resolve(path, true)
    }

    fn resolve(&mut self, path: &[&[u8]], make: bool) -> Result<Option<Place>> {
        let refuse = |why: String| {
            let path = shown(path);
            Err(Error::Refused(format!("its entry {path} {why}")))
        };
        if path.len() > MAX_DEPTH {
            return refuse(format!("lies in more than {MAX_DEPTH} directories"));
        }
        let Some((last, above)) = path.split_last() else {
            return Ok(None);
        };
        let mut at = ROOT;
        let mut links = 0;
        // Names that are still to be followed, and whether a symbolic link has them.
        let mut ahead: VecDeque<(Box<[u8]>, bool)> =
            above.iter().map(|name| (Box::from(*name), false)).collect();
        while let Some((name, of_link)) = ahead.pop_front() {
            let place = (at, name);
            let Some(next) = self.lookup(&place) else {
                if !make {
                    // What is not there has no entries either.
                    return Ok(Some((at, Box::from(&b""[..]))));
                }
                if of_link {
                    return refuse("leads through a symbolic link to nothing".to_owned());
                }
                let index = self.nodes.len();
                self.nodes.push(Node {
                    object: Object::Directory(BTreeMap::new(), None),
                    names: 1,
                });
                self.insert(place, index);
                at = index;
                continue;
            };
            match self.object(next) {
                Some(Object::Directory(..)) => at = next,
                Some(Object::Symlink(_, target)) => {
                    let parts: Vec<&[u8]> = parts(target).collect();
                    if target.starts_with(b"/") || parts.contains(&&b".."[..]) {
                        return refuse(format!(
                            "leads through the symbolic link {}, which may lead outside",
                            String::from_utf8_lossy(&place.1)
                        ));
                    }
                    links += 1;
                    if links > MAX_LINKS {
                        return refuse("leads through too many symbolic links".to_owned());
                    }
                    for part in parts.into_iter().rev() {
                        ahead.push_front((Box::from(part), true));
                    }
                }
                _ => {
                    return refuse(format!(
                        "lies below {}, which is not a directory",
                        String::from_utf8_lossy(&place.1)
                    ));
                }
            }
        }
        Ok(Some((at, Box::from(*last))))
    }

    /// The entries whose content no name leads to any more.
    pub(super) fn replaced(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().filter_map(|node| match node.object {
            Object::File(entry, _) if node.names == 0 => Some(entry),
            _ => None,
        })
    }

    /// Gives everything its names in the image, directory by directory in the order of names. Directories
    /// without an entry of their own get the usual attributes. Returns the root, and the number of names.
    pub(super) fn push(
        &self,
        usual: &Meta,
        writer: &mut ImageWriter,
    ) -> Result<(NodeId, u64), crate::commit::error::CommitError> {
        let meta = |object: Option<&Object>| match object {
            Some(Object::Directory(_, Some(meta))) => meta.clone(),
            _ => usual.clone(),
        };
        let root = writer.add_directory(&meta(self.object(ROOT)))?;
        let mut pushed: HashMap<Index, NodeId> = HashMap::new();
        let mut names = 0;
        let mut pending = vec![(ROOT, root)];
        while let Some((dir, dir_node)) = pending.pop() {
            let Some(Object::Directory(entries, _)) = self.object(dir) else {
                continue;
            };
            let mut below = Vec::new();
            for (name, &index) in entries {
                names += 1;
                let node = match (pushed.get(&index), self.object(index)) {
                    (Some(node), _) => *node,
                    (None, Some(Object::File(_, node))) => *node,
                    (None, Some(Object::Symlink(meta, target))) => {
                        writer.add_symlink(meta, target)?
                    }
                    (None, Some(Object::Device(meta, is_block, number))) => {
                        writer.add_device(meta, *is_block, *number)?
                    }
                    (None, Some(Object::Fifo(meta))) => writer.add_fifo(meta)?,
                    (None, object) => {
                        let node = writer.add_directory(&meta(object))?;
                        below.push((index, node));
                        node
                    }
                };
                if self.nodes.get(index).is_some_and(|node| node.names > 1) {
                    pushed.insert(index, node);
                }
                writer.link(dir_node, name, node)?;
            }
            pending.extend(below.into_iter().rev());
        }
        Ok((root, names))
    }

    /// The names in a directory.
    pub(super) fn entries(&self, index: Index) -> impl Iterator<Item = (&[u8], Index)> {
        let entries = match self.object(index) {
            Some(Object::Directory(entries, _)) => Some(entries),
            _ => None,
        };
        let entries = entries.into_iter().flatten();
        entries.map(|(name, index)| (&**name, *index))
    }
}

/// The names of a path.
pub(super) fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".")
}

/// A path in messages, cut where it is very long.
pub(super) fn shown(path: &[&[u8]]) -> String {
    let mut all = String::new();
    for part in path {
        if !all.is_empty() {
            all.push('/');
        }
        all.push_str(&String::from_utf8_lossy(part));
        if all.len() > 4096 {
            all.push_str("...");
            break;
        }
    }
    all
}
