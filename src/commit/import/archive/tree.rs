//! The tree that results from unpacking the entries of an archive in order, as GNU tar does.
//!
//! Later entries replace earlier ones. A path may lead through a symbolic link to a directory of
//! the archive, unless the target of the link is absolute or contains "..", since it could then
//! lead outside.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::error::{Error, Result};
use crate::squashfs::writer::{ImageWriter, Meta, NodeId};
use crate::sys::text::shortened;

/// Index of a node; the root is 0.
pub(super) type Index = usize;

/// A name in a directory.
type Place = (Index, Box<[u8]>);

const ROOT: Index = 0;

/// Maximum number of components of a path: the maximum depth of a view.
const MAX_DEPTH: usize = 1 << 16;

/// Maximum number of symbolic links in the resolution of a path.
const MAX_LINKS: usize = 40;

/// An object without its names.
#[derive(Debug)]
pub(super) enum Object {
    /// Its entries, and its attributes if the archive has an entry for it.
    Directory(BTreeMap<Box<[u8]>, Index>, Option<Meta>),
    /// The index of the entry with the content, and the node in the image.
    File(usize, NodeId),
    Symlink(Meta, Box<[u8]>),
    BlockDevice(Meta, u64),
    CharDevice(Meta, u64),
    Fifo(Meta),
}

#[derive(Debug)]
struct Node {
    object: Object,
    /// The number of names.
    names: u32,
}

/// What to do about a missing directory in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Create it.
    Create,
    /// Nothing exists at the path.
    Ignore,
}

/// The unpacked tree.
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

    /// Adds an object, as unpacking its entry would.
    pub(super) fn add(&mut self, path: &[&[u8]], object: Object) -> Result<()> {
        let Some(place) = self.place(path)? else {
            return self.set_attributes(ROOT, object, path);
        };
        let there = self.lookup(&place);
        if matches!(object, Object::Directory(..))
            && let Some(there) = there
            && self.is_directory(there)
        {
            return self.set_attributes(there, object, path);
        }
        self.remove(&place, path)?;
        let index = self.nodes.len();
        self.nodes.push(Node { object, names: 1 });
        self.insert(place, index);
        Ok(())
    }

    /// Adds a hard link.
    pub(super) fn link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<()> {
        let refuse = |why: &str| {
            let (path, target) = (shown(path), shown(target));
            Err(Error::Refused(format!(
                "entry {path} is a hard link to {target}, which {why}"
            )))
        };
        let found = match self.resolve(target, Missing::Ignore)? {
            Some(place) => self.lookup(&place),
            None => return refuse("is a directory"),
        };
        let Some(found) = found else {
            return refuse("does not exist");
        };
        if self.is_directory(found) {
            return refuse("is a directory");
        }
        let Some(place) = self.place(path)? else {
            return refuse("would replace the root");
        };
        if self.lookup(&place) == Some(found) {
            return Ok(());
        }
        self.remove(&place, path)?;
        if let Some(node) = self.nodes.get_mut(found) {
            node.names += 1;
        }
        self.insert(place, found);
        Ok(())
    }

    /// Sets the attributes of an existing directory.
    fn set_attributes(&mut self, at: Index, object: Object, path: &[&[u8]]) -> Result<()> {
        match (self.nodes.get_mut(at).map(|node| &mut node.object), object) {
            (Some(Object::Directory(_, meta)), Object::Directory(_, new)) => {
                *meta = new.or(meta.take());
                Ok(())
            }
            _ => Err(Error::Refused(format!(
                "entry {} would replace the root",
                shown(path)
            ))),
        }
    }

    /// Removes a name. Fails if it is that of a directory with entries.
    fn remove(&mut self, place: &Place, path: &[&[u8]]) -> Result<()> {
        let Some(there) = self.lookup(place) else {
            return Ok(());
        };
        if let Some(Object::Directory(entries, _)) = self.object(there)
            && !entries.is_empty()
        {
            let why = format!(
                "entry {} would replace a directory that is not empty",
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

    /// Returns the place of an entry, and creates missing directories above it. `None` for the
    /// root.
    fn place(&mut self, path: &[&[u8]]) -> Result<Option<Place>> {
        self.resolve(path, Missing::Create)
    }

    fn resolve(&mut self, path: &[&[u8]], missing: Missing) -> Result<Option<Place>> {
        let refuse = |why: String| {
            let path = shown(path);
            Err(Error::Refused(format!("entry {path} {why}")))
        };
        if path.len() > MAX_DEPTH {
            return refuse(format!("has more than {MAX_DEPTH} components"));
        }
        let Some((last, above)) = path.split_last() else {
            return Ok(None);
        };
        let mut at = ROOT;
        let mut links = 0;
        // Components to be followed, and whether they come from a symbolic link.
        let mut ahead: VecDeque<(Box<[u8]>, bool)> =
            above.iter().map(|name| (Box::from(*name), false)).collect();
        while let Some((name, of_link)) = ahead.pop_front() {
            let place = (at, name);
            let Some(next) = self.lookup(&place) else {
                if missing == Missing::Ignore {
                    // No entry has an empty name.
                    return Ok(Some((at, Box::from(&b""[..]))));
                }
                if of_link {
                    return refuse("leads through a dangling symbolic link".to_owned());
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
                            "leads through the symbolic link {}, which could lead outside",
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
                        "is below {}, which is not a directory",
                        String::from_utf8_lossy(&place.1)
                    ));
                }
            }
        }
        Ok(Some((at, Box::from(*last))))
    }

    /// Returns the indexes of the entries whose file no longer has a name.
    pub(super) fn replaced(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().filter_map(|node| match node.object {
            Object::File(entry, _) if node.names == 0 => Some(entry),
            _ => None,
        })
    }

    /// Pushes all directories, names and objects other than files, directory by directory in the
    /// order of names. `default` has the attributes of directories without an entry. Returns the
    /// root and the number of names.
    pub(super) fn push(
        &self,
        default: &Meta,
        writer: &mut ImageWriter,
    ) -> Result<(NodeId, u64), crate::commit::error::CommitError> {
        let meta = |object: Option<&Object>| match object {
            Some(Object::Directory(_, Some(meta))) => meta.clone(),
            _ => default.clone(),
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
                    (None, Some(Object::BlockDevice(meta, number))) => {
                        writer.add_block_device(meta, *number)?
                    }
                    (None, Some(Object::CharDevice(meta, number))) => {
                        writer.add_char_device(meta, *number)?
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

    /// Returns the entries of a directory in the order of names.
    pub(super) fn entries(&self, index: Index) -> impl Iterator<Item = (&[u8], Index)> {
        let entries = match self.object(index) {
            Some(Object::Directory(entries, _)) => Some(entries),
            _ => None,
        };
        let entries = entries.into_iter().flatten();
        entries.map(|(name, index)| (&**name, *index))
    }
}

/// Returns the components of a path, without "." and empty ones.
pub(super) fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".")
}

/// Returns a path for messages, shortened in the middle if it is very long.
pub(super) fn shown(path: &[&[u8]]) -> String {
    let all = path.join(&b'/');
    shortened(&String::from_utf8_lossy(&all), 1024).into_owned()
}
