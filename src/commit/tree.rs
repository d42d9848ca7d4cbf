//! Pushes a merged view to an image writer: unchanged data is carried over from the old image, all
//! other content is compressed.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use super::amend::Amendment;
use super::error::{CommitError, Result};
use crate::object::{Attr, Ino, Kind};
use crate::squashfs::writer::{
    Content, ImageAmender, ImageWriter, Meta, NodeId, Source, WriteStats,
};
use crate::state::IdMap;
use crate::union::{ContentLayer, ImageLayer, Layer, LowerStack, SeekTarget};

/// A file whose data comes before that of all files in the order of the tree.
#[derive(Debug)]
pub(super) struct First {
    ino: Ino,
    /// One of its names, for errors.
    name: Box<[u8]>,
}

/// Numbers all objects of a view in the order of their identities, which keeps the map short.
/// Returns also those of the `wanted` objects that are regular files with a name, in order.
pub(super) fn number(view: &LowerStack, wanted: &[Ino]) -> Result<(IdMap, Vec<First>)> {
    let ranks = wanted.iter().enumerate();
    let mut ranks: HashMap<Ino, usize> = ranks.map(|(at, ino)| (*ino, at)).collect();
    let mut first = Vec::new();
    let mut inos = vec![Ino::ROOT];
    let mut pending = vec![Ino::ROOT];
    while let Some(dir) = pending.pop() {
        for (name, ino, kind) in view.list(dir)?.iter() {
            inos.push(ino);
            if kind == Kind::Directory {
                pending.push(ino);
            } else if kind == Kind::File
                && let Some(rank) = ranks.remove(&ino)
            {
                let name = Box::from(name);
                first.push((rank, First { ino, name }));
            }
        }
    }
    inos.sort_unstable();
    inos.dedup();
    first.sort_unstable_by_key(|(rank, _)| *rank);
    let ids = IdMap::from_ascending(inos).map_err(|e| CommitError::Check(e.to_string()))?;
    Ok((ids, first.into_iter().map(|(_, file)| file).collect()))
}

/// The new image, and what it is built from.
pub(super) enum Target<'a> {
    /// All nodes are written. Data may be carried over from an old image.
    Whole {
        writer: ImageWriter,
        old: Option<&'a ImageLayer>,
    },
    /// Only an amendment of the old image is written.
    Amended(Box<Amended<'a>>),
}

/// An image that amends an old one.
pub(super) struct Amended<'a> {
    amender: ImageAmender,
    old: &'a ImageLayer,
    amendment: Amendment,
    /// Files of the old image whose data is used again under another identity.
    reused: HashSet<Ino>,
    /// Files of the old image that have new content.
    replaced: Vec<Ino>,
}

impl<'a> Target<'a> {
    pub(super) fn amended(
        amender: ImageAmender,
        old: &'a ImageLayer,
        amendment: Amendment,
    ) -> Target<'a> {
        Target::Amended(Box::new(Amended {
            amender,
            old,
            amendment,
            reused: HashSet::new(),
            replaced: Vec::new(),
        }))
    }

    /// The writer for nodes that are not kept.
    fn writer(&mut self) -> &mut ImageWriter {
        match self {
            Target::Whole { writer, .. } => writer,
            Target::Amended(amended) => amended.amender.writer(),
        }
    }

    /// The image whose data may be carried over.
    fn old(&self) -> Option<&'a ImageLayer> {
        match self {
            Target::Whole { old, .. } => *old,
            Target::Amended(amended) => Some(amended.old),
        }
    }

    fn amended_mut(&mut self) -> Option<&mut Amended<'a>> {
        match self {
            Target::Whole { .. } => None,
            Target::Amended(amended) => Some(amended),
        }
    }
}

impl Amended<'_> {
    /// Keeps an object that is unchanged in the old image. Returns `None` if it has to be pushed.
    fn keep(&mut self, ids: &IdMap, ino: Ino, kind: Kind) -> Result<Option<NodeId>> {
        let place = match self.old.inode_ref(ino)? {
            Some(place) if self.amendment.is_unchanged(ino) => place,
            _ => return Ok(None),
        };
        let number = inode_number(ids, ino)?;
        Ok(Some(self.amender.keep(kind.into(), number, place)?))
    }

    /// Registers the xattrs that an object has in the old image.
    fn register_xattrs(&mut self, ino: Ino) -> Result<()> {
        if let Some(index) = self.old.xattr_index(ino)? {
            let known = self.old.xattrs(ino)?.into_iter();
            let known: Vec<_> = known.map(|(n, v)| (n.into_vec(), v.into_vec())).collect();
            self.amender.register_xattrs(&known, index);
        }
        Ok(())
    }

    /// Marks the data of files as dead that the new image does not have.
    fn mark_dead(&mut self) -> Result<()> {
        for ino in self.amendment.removed.iter().chain(&self.replaced) {
            if !self.reused.contains(ino) {
                self.amender.mark_dead(&*self.old.layout(*ino)?)?;
            }
        }
        Ok(())
    }
}

/// A written image.
pub(super) struct Pushed {
    pub(super) stats: WriteStats,
    /// Files whose content was not carried over whole: their content has to be verified.
    pub(super) fresh: Vec<Ino>,
    /// The directories that were written; `None` for all.
    pub(super) dirs: Option<HashSet<Ino>>,
}

/// A merged view that is being pushed.
pub(super) struct Tree<'a> {
    view: Arc<LowerStack>,
    ids: &'a IdMap,
    target: Target<'a>,
    /// Objects that were pushed and may have further names.
    linked: HashMap<Ino, NodeId>,
    fresh: Vec<Ino>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(view: Arc<LowerStack>, ids: &'a IdMap, target: Target<'a>) -> Tree<'a> {
        Tree {
            view,
            ids,
            target,
            linked: HashMap::new(),
            fresh: Vec::new(),
        }
    }

    /// Pushes the `first` files, then all other nodes, directory by directory in the order of
    /// names, and completes the image.
    pub(super) fn write(mut self, first: &[First]) -> Result<Pushed> {
        self.push_first(first)?;
        let root = self.push()?;
        let (stats, dirs) = match self.target {
            Target::Whole { writer, .. } => (writer.finish(root)?, None),
            Target::Amended(mut amended) => {
                amended.mark_dead()?;
                let stats = amended.amender.finish(root)?;
                (stats, Some(amended.amendment.into_dirs()))
            }
        };
        Ok(Pushed {
            stats,
            fresh: self.fresh,
            dirs,
        })
    }

    /// Pushes files whose data comes first. Small ones are packed anew, since their old fragment
    /// blocks contain other files, too.
    fn push_first(&mut self, first: &[First]) -> Result<()> {
        if first.is_empty() {
            return Ok(());
        }
        for First { ino, name } in first {
            let node = match self.is_only_a_tail(*ino)? {
                true => {
                    let attr = self.attr(*ino)?;
                    let meta = self.meta(*ino, &attr)?;
                    self.push_fresh(name, *ino, &attr, &meta)?
                }
                false => self.push_object(None, name, *ino)?,
            };
            self.linked.insert(*ino, node);
        }
        Ok(self.target.writer().end_fragment()?)
    }

    /// Returns whether all data of a file is in a fragment block of the old image.
    fn is_only_a_tail(&self, ino: Ino) -> Result<bool> {
        Ok(match (self.target.old(), self.view.content(ino)?) {
            (Some(old), ContentLayer::Image(_)) => old.layout(ino)?.blocks().is_empty(),
            _ => false,
        })
    }

    fn push(&mut self) -> Result<NodeId> {
        let meta = self.meta(Ino::ROOT, &self.attr(Ino::ROOT)?)?;
        self.register_xattrs(Ino::ROOT, &meta)?;
        let root = self.target.writer().add_directory(&meta)?;
        let mut pending = vec![(Ino::ROOT, root, Some(Ino::ROOT))];
        while let Some((dir, dir_node, twin)) = pending.pop() {
            let listing = self.view.list(dir)?;
            let mut below = Vec::new();
            for (name, ino, kind) in listing.iter() {
                let node = match self.linked.get(&ino) {
                    Some(node) => *node,
                    None => match self.keep(ino, kind)? {
                        Some(kept) => {
                            self.target.writer().link(dir_node, name, kept)?;
                            continue;
                        }
                        None => self.push_object(twin, name, ino)?,
                    },
                };
                self.target.writer().link(dir_node, name, node)?;
                if kind == Kind::Directory {
                    below.push((ino, node, self.twin(twin, name, ino)?));
                }
            }
            // The last pushed is popped first: directories in the order of names.
            pending.extend(below.into_iter().rev());
        }
        Ok(root)
    }

    /// Keeps an object that is unchanged in the amended image. Returns `None` if it has to be
    /// pushed.
    fn keep(&mut self, ino: Ino, kind: Kind) -> Result<Option<NodeId>> {
        let Target::Amended(amended) = &mut self.target else {
            return Ok(None);
        };
        let kept = amended.keep(self.ids, ino, kind)?;
        if let Some(node) = kept
            && kind != Kind::Directory
        {
            self.linked.insert(ino, node);
        }
        Ok(kept)
    }

    /// Finds the directory of the old image that a directory corresponds to: itself, or the one
    /// that had its path. (An installer that replaces a package removes its directories and
    /// recreates them.)
    fn twin(&self, parent: Option<Ino>, name: &[u8], ino: Ino) -> Result<Option<Ino>> {
        let Some(old) = self.target.old() else {
            return Ok(None);
        };
        if old.inode_ref(ino)?.is_some() {
            return Ok(Some(ino));
        }
        let Some(parent) = parent else {
            return Ok(None);
        };
        Ok(match old.lookup(parent, name)? {
            crate::union::Lookup::Found(same) => old
                .inode(same)?
                .filter(|found| found.attr.kind == Kind::Directory)
                .map(|_| same),
            _ => None,
        })
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        let missing = || CommitError::Check(format!("object {ino} has a name, but does not exist"));
        self.view.attr(ino)?.ok_or_else(missing)
    }

    fn meta(&self, ino: Ino, attr: &Attr) -> Result<Meta> {
        Ok(Meta {
            number: inode_number(self.ids, ino)?,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            // SquashFS stores whole seconds from 1970 to 2106.
            mtime: u32::try_from(attr.mtime.secs.max(0)).unwrap_or(u32::MAX),
            xattrs: self
                .view
                .xattrs(ino)?
                .into_iter()
                .map(|(n, v)| (n.into_vec(), v.into_vec()))
                .collect(),
        })
    }

    /// Registers the xattrs of an object that is pushed to an amended image.
    fn register_xattrs(&mut self, ino: Ino, meta: &Meta) -> Result<()> {
        match self.target.amended_mut() {
            Some(amended) if !meta.xattrs.is_empty() => amended.register_xattrs(ino),
            _ => Ok(()),
        }
    }

    fn push_object(&mut self, twin: Option<Ino>, name: &[u8], ino: Ino) -> Result<NodeId> {
        let attr = self.attr(ino)?;
        let meta = self.meta(ino, &attr)?;
        self.register_xattrs(ino, &meta)?;
        let writer = self.target.writer();
        let node = match attr.kind {
            Kind::Directory => writer.add_directory(&meta)?,
            Kind::Symlink => writer.add_symlink(&meta, &self.view.read_link(ino)?)?,
            Kind::BlockDevice => writer.add_block_device(&meta, attr.rdev)?,
            Kind::CharDevice => writer.add_char_device(&meta, attr.rdev)?,
            Kind::Fifo => writer.add_fifo(&meta)?,
            Kind::Socket => writer.add_socket(&meta)?,
            Kind::File => self.push_file(twin, name, ino, &attr, &meta)?,
        };
        if attr.nlink > 1 && attr.kind != Kind::Directory {
            self.linked.insert(ino, node);
        }
        Ok(node)
    }

    fn push_file(
        &mut self,
        twin: Option<Ino>,
        name: &[u8],
        ino: Ino,
        attr: &Attr,
        meta: &Meta,
    ) -> Result<NodeId> {
        let Some(old) = self.target.old() else {
            return self.push_fresh(name, ino, attr, meta);
        };
        if matches!(self.view.content(ino)?, ContentLayer::Image(_)) {
            self.reuse(ino);
            return Ok(self.target.writer().add_carried(meta, &*old.layout(ino)?)?);
        }
        if let Some(amended) = self.target.amended_mut()
            && old.is_file(ino)?
        {
            amended.replaced.push(ino);
        }
        // The content is new, but the file that had this identity or this path before may have most
        // of the same blocks.
        let before = match (old.inode_ref(ino)?, twin) {
            (Some(_), _) => Some(ino),
            (None, Some(twin)) => match old.lookup(twin, name)? {
                crate::union::Lookup::Found(same_name) => Some(same_name),
                _ => None,
            },
            (None, None) => None,
        };
        let before = match before {
            Some(before) if old.is_file(before)? => Some((before, old.layout(before)?)),
            _ => None,
        };
        let Some((before, body)) = before.filter(|(_, body)| body.size() > 0 && attr.size > 0)
        else {
            return self.push_fresh(name, ino, attr, meta);
        };
        let block_size = u64::from(old.image().superblock().block_size);
        let dirty = self.dirty_blocks(old, ino, attr.size, before, body.size(), block_size)?;
        if body.size() == attr.size && !dirty.contains(&true) {
            self.reuse(before);
            return Ok(self.target.writer().add_carried(meta, &body)?);
        }
        if !dirty.contains(&false) {
            return self.push_fresh(name, ino, attr, meta);
        }
        self.fresh.push(ino);
        let source = self.source(name, ino);
        let mut is_dirty = |block: u64| {
            let block = usize::try_from(block).unwrap_or(usize::MAX);
            dirty.get(block).copied().unwrap_or(true)
        };
        Ok(self.target.writer().add_partly_carried(
            meta,
            &body,
            attr.size,
            &mut is_dirty,
            source,
        )?)
    }

    /// Pushes a file whose content is compressed anew.
    fn push_fresh(&mut self, name: &[u8], ino: Ino, attr: &Attr, meta: &Meta) -> Result<NodeId> {
        self.fresh.push(ino);
        let source = self.source(name, ino);
        Ok(self.target.writer().add_file(meta, attr.size, source)?)
    }

    fn source(&self, name: &[u8], ino: Ino) -> Box<LayerSource> {
        Box::new(LayerSource {
            view: self.view.clone(),
            ino,
            label: String::from_utf8_lossy(name).into_owned(),
        })
    }

    fn reuse(&mut self, ino: Ino) {
        if let Some(amended) = self.target.amended_mut() {
            amended.reused.insert(ino);
        }
    }

    /// Compares new content with old. Returns true for each block that differs.
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

fn inode_number(ids: &IdMap, ino: Ino) -> Result<u32> {
    let missing = || CommitError::Check(format!("object {ino} has no inode number"));
    ids.number_of(ino).ok_or_else(missing)
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
            return Err(io::Error::other(
                "a layer returned more bytes than requested",
            ));
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
            // No data until the end of the file.
            None => Ok(0),
        }
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.at = self.at.saturating_add(bytes);
        Ok(())
    }
}
