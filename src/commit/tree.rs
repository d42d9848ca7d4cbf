//! Hands a merged view to the image writer: unchanged data as it lies in the old image, the rest as
//! content to be compressed.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use super::amend::Amendment;
use super::error::{CommitError, Result};
use crate::object::{Attr, Ino, Kind};
use crate::squashfs::writer::{Content, ImageWriter, Meta, NodeId, Source};
use crate::state::IdMap;
use crate::union::{ContentLayer, ImageLayer, Layer, LowerStack, SeekTarget};

/// A merged view on its way into an image.
pub(super) struct Tree<'a> {
    view: Arc<LowerStack>,
    /// The image whose data may be carried over.
    old: Option<&'a ImageLayer>,
    ids: IdMap,
    /// What has to be written, if not all.
    amendment: Option<Amendment>,
    /// Files of the old image whose data is in use again under another identity.
    reused: HashSet<Ino>,
    /// Files of the old image that got other content.
    left: Vec<Ino>,
    /// Objects with several names, once pushed.
    linked: HashMap<Ino, NodeId>,
    /// Files whose content was not carried over whole: what is to be checked afterwards.
    pub(super) fresh: Vec<Ino>,
}

impl<'a> Tree<'a> {
    /// Looks over the view and gives every object its inode number: in the order of identities, so
    /// that the map back is short.
    pub(super) fn new(view: Arc<LowerStack>, old: Option<&'a ImageLayer>) -> Result<Tree<'a>> {
        let mut inos = vec![Ino::ROOT];
        let mut pending = vec![Ino::ROOT];
        while let Some(dir) = pending.pop() {
            for (_, ino, kind) in view.list(dir)?.iter() {
                inos.push(ino);
                if kind == Kind::Directory {
                    pending.push(ino);
                }
            }
        }
        inos.sort_unstable();
        inos.dedup();
        let ids = IdMap::from_ascending(inos).map_err(|e| CommitError::Check(e.to_string()))?;
        Ok(Tree::of(view, old, ids))
    }

    /// The same, when only an amendment has to be written.
    pub(super) fn amending(
        view: Arc<LowerStack>,
        old: &'a ImageLayer,
        amendment: Amendment,
    ) -> Tree<'a> {
        let ids = amendment.ids.clone();
        Tree {
            amendment: Some(amendment),
            ..Tree::of(view, Some(old), ids)
        }
    }

    fn of(view: Arc<LowerStack>, old: Option<&'a ImageLayer>, ids: IdMap) -> Tree<'a> {
        Tree {
            view,
            old,
            ids,
            amendment: None,
            reused: HashSet::new(),
            left: Vec::new(),
            linked: HashMap::new(),
            fresh: Vec::new(),
        }
    }

    /// Directories that have been pushed, where not all have.
    pub(super) fn pushed(&self) -> Option<&HashSet<Ino>> {
        self.amendment.as_ref().map(Amendment::dirs)
    }

    /// The identities of the inodes of the new image.
    pub(super) fn ids(&self) -> &IdMap {
        &self.ids
    }

    /// Pushes everything, directory by directory in the order of names, and returns the root.
    pub(super) fn push(&mut self, writer: &mut ImageWriter) -> Result<NodeId> {
        let meta = self.known_meta(writer, Ino::ROOT, &self.attr(Ino::ROOT)?)?;
        let root = writer.add_directory(&meta)?;
        let mut pending = vec![(Ino::ROOT, root, Some(Ino::ROOT))];
        while let Some((dir, dir_node, twin)) = pending.pop() {
            let listing = self.view.list(dir)?;
            let mut below = Vec::new();
            for (name, ino, kind) in listing.iter() {
                let node = match self.linked.get(&ino) {
                    Some(node) => *node,
                    None => match self.keep(writer, ino, kind)? {
                        Some(kept) => {
                            writer.link(dir_node, name, kept)?;
                            continue;
                        }
                        None => self.push_object(writer, twin, name, ino)?,
                    },
                };
                writer.link(dir_node, name, node)?;
                if kind == Kind::Directory {
                    below.push((ino, node, self.twin(twin, name, ino)?));
                }
            }
            // The last pushed is popped first: directories in the order of names.
            pending.extend(below.into_iter().rev());
        }
        if let (Some(amendment), Some(old)) = (&self.amendment, self.old) {
            let lost = amendment.lost.iter().chain(&self.left);
            for ino in lost.filter(|ino| !self.reused.contains(ino)) {
                writer.leave(&*old.layout(*ino)?)?;
            }
        }
        Ok(root)
    }

    /// Pushes an object that stays as the old image has it; `None` if it does not.
    fn keep(&mut self, writer: &mut ImageWriter, ino: Ino, kind: Kind) -> Result<Option<NodeId>> {
        let (Some(amendment), Some(old)) = (&self.amendment, self.old) else {
            return Ok(None);
        };
        let place = match old.inode_ref(ino)? {
            Some(place) if amendment.stays(ino) => place,
            _ => return Ok(None),
        };
        let node = writer.keep(kind.into(), self.number(ino)?, place)?;
        if kind != Kind::Directory {
            self.linked.insert(ino, node);
        }
        Ok(Some(node))
    }

    /// The directory of the old image that a directory was before: itself, or what had its path. (An
    /// installer that replaces a package removes its directories and makes them anew.)
    fn twin(&self, parent: Option<Ino>, name: &[u8], ino: Ino) -> Result<Option<Ino>> {
        let Some(old) = self.old else {
            return Ok(None);
        };
        if old.inode_ref(ino)?.is_some() {
            return Ok(Some(ino));
        }
        let Some(parent) = parent else {
            return Ok(None);
        };
        Ok(match old.lookup(parent, name)? {
            crate::union::Lookup::Is(same) => old
                .inode(same)?
                .filter(|found| found.attr.kind == Kind::Directory)
                .map(|_| same),
            _ => None,
        })
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        let missing = || CommitError::Check(format!("object {ino} is listed but not there"));
        self.view.attr(ino)?.ok_or_else(missing)
    }

    fn number(&self, ino: Ino) -> Result<u32> {
        let missing = || CommitError::Check(format!("object {ino} has no inode number"));
        self.ids.number_of(ino).ok_or_else(missing)
    }

    fn meta(&self, ino: Ino, attr: &Attr) -> Result<Meta> {
        Ok(Meta {
            number: self.number(ino)?,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            // SquashFS keeps whole seconds from 1970 to 2106.
            mtime: u32::try_from(attr.mtime.secs.max(0)).unwrap_or(u32::MAX),
            xattrs: self
                .view
                .xattrs(ino)?
                .into_iter()
                .map(|(n, v)| (n.into_vec(), v.into_vec()))
                .collect(),
        })
    }

    /// The same. When tables are amended, the writer learns which xattrs of the old image these are.
    fn known_meta(&self, writer: &mut ImageWriter, ino: Ino, attr: &Attr) -> Result<Meta> {
        let meta = self.meta(ino, attr)?;
        if let (Some(_), Some(old), false) = (&self.amendment, self.old, meta.xattrs.is_empty())
            && let Some(index) = old.xattr_index(ino)?
        {
            let known = old.xattrs(ino)?.into_iter();
            let known: Vec<_> = known.map(|(n, v)| (n.into_vec(), v.into_vec())).collect();
            writer.know_xattrs(&known, index);
        }
        Ok(meta)
    }

    fn push_object(
        &mut self,
        writer: &mut ImageWriter,
        twin: Option<Ino>,
        name: &[u8],
        ino: Ino,
    ) -> Result<NodeId> {
        let attr = self.attr(ino)?;
        let meta = self.known_meta(writer, ino, &attr)?;
        let node = match attr.kind {
            Kind::Directory => writer.add_directory(&meta)?,
            Kind::Symlink => writer.add_symlink(&meta, &self.view.read_link(ino)?)?,
            Kind::BlockDevice | Kind::CharDevice => {
                writer.add_device(&meta, attr.kind == Kind::BlockDevice, attr.rdev)?
            }
            Kind::Fifo => writer.add_fifo(&meta)?,
            Kind::Socket => writer.add_socket(&meta)?,
            Kind::File => self.push_file(writer, twin, name, ino, &attr, &meta)?,
        };
        if attr.nlink > 1 && attr.kind != Kind::Directory {
            self.linked.insert(ino, node);
        }
        Ok(node)
    }

    fn push_file(
        &mut self,
        writer: &mut ImageWriter,
        twin: Option<Ino>,
        name: &[u8],
        ino: Ino,
        attr: &Attr,
        meta: &Meta,
    ) -> Result<NodeId> {
        let label = || String::from_utf8_lossy(name).into_owned();
        let Some(old) = self.old else {
            self.fresh.push(ino);
            let source = LayerSource {
                view: self.view.clone(),
                ino,
                label: label(),
            };
            return Ok(writer.add_file(meta, attr.size, Box::new(source))?);
        };
        if matches!(self.view.content(ino)?, ContentLayer::Image(_)) {
            self.reuse(ino);
            return Ok(writer.add_carried(meta, &*old.layout(ino)?)?);
        }
        if self.amendment.is_some() && old.is_file(ino)? {
            self.left.push(ino);
        }
        // New content. What the file was before, under its identity or under its path, may have most
        // of it already.
        let before = match (old.inode_ref(ino)?, twin) {
            (Some(_), _) => Some(ino),
            (None, Some(twin)) => match old.lookup(twin, name)? {
                crate::union::Lookup::Is(same_name) => Some(same_name),
                _ => None,
            },
            (None, None) => None,
        };
        let before = match before {
            Some(before) if old.is_file(before)? => Some((before, old.layout(before)?)),
            _ => None,
        };
        let source = LayerSource {
            view: self.view.clone(),
            ino,
            label: label(),
        };
        let Some((before, body)) = before.filter(|(_, body)| body.size() > 0 && attr.size > 0)
        else {
            self.fresh.push(ino);
            return Ok(writer.add_file(meta, attr.size, Box::new(source))?);
        };
        let block_size = u64::from(old.image().superblock().block_size);
        let dirty = self.dirty_blocks(old, ino, attr.size, before, body.size(), block_size)?;
        if body.size() == attr.size && !dirty.contains(&true) {
            self.reuse(before);
            return Ok(writer.add_carried(meta, &body)?);
        }
        self.fresh.push(ino);
        if !dirty.contains(&false) {
            return Ok(writer.add_file(meta, attr.size, Box::new(source))?);
        }
        let mut is_dirty = |block: u64| {
            let block = usize::try_from(block).unwrap_or(usize::MAX);
            dirty.get(block).copied().unwrap_or(true)
        };
        Ok(writer.add_partly_carried(meta, &body, attr.size, &mut is_dirty, Box::new(source))?)
    }

    fn reuse(&mut self, ino: Ino) {
        if self.amendment.is_some() {
            self.reused.insert(ino);
        }
    }

    /// Compares new content with old, block by block: true where they differ.
    fn dirty_blocks(
        &self,
        old: &ImageLayer,
        ino: Ino,
        size: u64,
        before: Ino,
        old_size: u64,
        block_size: u64,
    ) -> Result<Vec<bool>> {
        let mut dirty = Vec::new();
        let mut at = 0;
        while at < size {
            let len = block_size.min(size - at);
            let same_length = len == block_size.min(old_size.saturating_sub(at));
            let differs = !same_length || !self.equal(old, ino, before, at, len)?;
            dirty.push(differs);
            at += len;
        }
        Ok(dirty)
    }

    fn equal(&self, old: &ImageLayer, ino: Ino, before: Ino, at: u64, len: u64) -> Result<bool> {
        let mut done = 0;
        while done < len {
            let want = usize::try_from(len - done).unwrap_or(usize::MAX);
            let theirs = old.read(before, at + done, want)?;
            let theirs = (*theirs).as_ref();
            let ours = self.view.read(ino, at + done, theirs.len())?;
            let ours = (*ours).as_ref();
            if theirs.is_empty() || ours.is_empty() || theirs.get(..ours.len()) != Some(ours) {
                return Ok(false);
            }
            done += ours.len() as u64;
        }
        Ok(true)
    }
}

/// A file of a view as content for the writer.
struct LayerSource {
    view: Arc<LowerStack>,
    ino: Ino,
    label: String,
}

impl Source for LayerSource {
    fn open(&self) -> io::Result<Box<dyn Content>> {
        Ok(Box::new(LayerContent {
            view: self.view.clone(),
            ino: self.ino,
            at: 0,
        }))
    }

    fn label(&self) -> String {
        self.label.clone()
    }
}

struct LayerContent {
    view: Arc<LowerStack>,
    ino: Ino,
    at: u64,
}

impl Read for LayerContent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self
            .view
            .read(self.ino, self.at, buffer.len())
            .map_err(io::Error::other)?;
        let bytes = (*bytes).as_ref();
        let Some(target) = buffer.get_mut(..bytes.len()) else {
            return Err(io::Error::other("a layer returned more than was asked for"));
        };
        target.copy_from_slice(bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Content for LayerContent {
    fn hole_ahead(&mut self) -> io::Result<u64> {
        match self
            .view
            .seek(self.ino, self.at, SeekTarget::Data)
            .map_err(io::Error::other)?
        {
            Some(data) => Ok(data.saturating_sub(self.at)),
            // No data until the end; where that is, reading finds out.
            None => Ok(0),
        }
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.at = self.at.saturating_add(bytes);
        Ok(())
    }
}
