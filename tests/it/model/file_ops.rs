//! Operations of programs on one or two objects, on a view and on the model.

use std::collections::BTreeMap;

use envfs::object::{Ino, Kind, Timestamp};
use envfs::union::{
    AllocateMode, Creator, NewObject, RenameMode, SetAttr, SetIdBits, SetTime, XattrMode,
};
use nix::errno::Errno;

use super::machine::{CAPABILITY, Machine, outcome, without_privileges};
use super::numbers::{self, Allocate, CopyRange};
use super::ops::{Make, Place, SetMask};
use super::tree::{Body, Node, show};

impl Machine {
    pub(super) fn make(&mut self, place: Place, make: Make, mode: u16) {
        let (dir, name) = self.place(place);
        let mode = numbers::mode(mode);
        let (kind, rdev) = make.node();
        let target = (kind == Kind::Symlink).then_some(numbers::TARGET.as_bytes());
        let new = NewObject {
            kind,
            mode,
            rdev,
            target,
            creator: Creator { uid: 7, gid: 8 },
        };
        let done = self.holding(&[(dir, dir)], |union| {
            outcome(union.create(dir, &name, &new))
        });
        self.done = done.as_ref().map(|_| ()).map_err(|e| *e);
        if !self.is_named(dir) {
            assert_eq!(done.map(|_| ()), Err(Errno::ENOENT));
            return;
        }
        if self.tree.dir(dir).contains_key(&name) {
            assert_eq!(done.map(|_| ()), Err(Errno::EEXIST));
            return;
        }
        let (ino, attr) = done.unwrap();
        assert!(self.seen.insert(ino), "identity {ino} was reused");
        assert_eq!(self.union().attr(ino).unwrap(), attr);
        let above = self.tree.node(dir);
        let passes_group = above.mode & 0o2000 != 0;
        let gid = if passes_group { above.owner.1 } else { 8 };
        let node = Node {
            body: match make {
                Make::File => Body::File(Vec::new()),
                Make::Directory => Body::Directory(BTreeMap::new()),
                Make::Symlink => Body::Symlink(numbers::TARGET.into()),
                Make::Fifo | Make::Socket | Make::Device | Make::BlockDevice => {
                    Body::Special(kind, rdev)
                }
            },
            mode: if passes_group && kind == Kind::Directory {
                mode | 0o2000
            } else {
                mode
            },
            owner: (7, gid),
            mtime: None,
            xattrs: BTreeMap::new(),
        };
        self.tree.nodes.insert(ino, node);
        self.tree.dir_mut(dir).insert(name, ino);
    }

    pub(super) fn write(&mut self, file: (Ino, Ino), offset: usize, data: &[u8], kill: bool) {
        let len = data.len();
        let done = self.holding(&[file], |union| {
            union.write_at(file.0, offset as u64, data, SetIdBits::clear_if(kill))
        });
        assert_eq!(done.unwrap(), len);
        let node = self.tree.node_mut(file.0);
        node.xattrs.remove(CAPABILITY);
        if kill {
            node.mode = without_privileges(node.mode);
        }
        if len == 0 {
            return;
        }
        let content = self.tree.file_mut(file.0);
        if content.len() < offset + len {
            content.resize(offset + len, 0);
        }
        content[offset..offset + len].copy_from_slice(data);
    }

    pub(super) fn allocate(&mut self, file: (Ino, Ino), what: Allocate) {
        let Allocate {
            offset,
            len,
            mode,
            kill,
        } = what;
        let done = self.holding(&[file], |union| {
            outcome(union.allocate(
                file.0,
                offset as u64,
                len as u64,
                mode,
                SetIdBits::clear_if(kill),
            ))
        });
        if done == Err(Errno::EOPNOTSUPP) {
            // The file system does not support it. A copy-up may have happened, which drops a
            // capability.
            if self.union().xattr(file.0, CAPABILITY).is_err() {
                self.tree.node_mut(file.0).xattrs.remove(CAPABILITY);
            }
            return;
        }
        done.unwrap();
        let node = self.tree.node_mut(file.0);
        if kill {
            node.mode = without_privileges(node.mode);
        }
        node.xattrs.remove(CAPABILITY);
        let content = self.tree.file_mut(file.0);
        let grows = matches!(
            mode,
            AllocateMode::Reserve { keep_size: false }
                | AllocateMode::ZeroRange { keep_size: false }
        );
        if grows && content.len() < offset + len {
            content.resize(offset + len, 0);
        }
        let zeroes = !matches!(mode, AllocateMode::Reserve { .. });
        if zeroes && offset < content.len() {
            let end = content.len().min(offset + len);
            content[offset..end].fill(0);
        }
    }

    pub(super) fn copy_range(&mut self, range: CopyRange) {
        let (Some(from), Some(to)) = (self.file(range.from), self.file(range.to)) else {
            return;
        };
        let source = match &self.tree.node(from.0).body {
            Body::File(content) => content.clone(),
            _ => return,
        };
        if from.0 == to.0 && range.overlaps() {
            return;
        }
        let (from_offset, to_offset) = (range.source_offset(), range.target_offset());
        let done = self.holding(&[from, to], |union| {
            union.copy_range(
                from.0,
                from_offset as u64,
                to.0,
                to_offset as u64,
                range.len() as u64,
                SetIdBits::clear_if(range.kill()),
            )
        });
        let len = range.len().min(source.len().saturating_sub(from_offset));
        assert_eq!(done.unwrap(), len as u64);
        if len == 0 {
            return;
        }
        let node = self.tree.node_mut(to.0);
        if range.kill() {
            node.mode = without_privileges(node.mode);
        }
        node.xattrs.remove(CAPABILITY);
        let content = self.tree.file_mut(to.0);
        if content.len() < to_offset + len {
            content.resize(to_offset + len, 0);
        }
        content[to_offset..to_offset + len]
            .copy_from_slice(&source[from_offset..from_offset + len]);
    }

    pub(super) fn remove(&mut self, entry: u16, as_dir: bool) {
        let (dir, name, ino) = self.entry(entry);
        if name.is_empty() {
            return;
        }
        let done = self.holding(&[(dir, dir)], |union| {
            outcome(if as_dir {
                union.rmdir(dir, &name)
            } else {
                union.unlink(dir, &name)
            })
        });
        self.done = done;
        let expected = match &self.tree.node(ino).body {
            Body::Directory(_) if !as_dir => Err(Errno::EISDIR),
            Body::Directory(entries) if !entries.is_empty() => Err(Errno::ENOTEMPTY),
            Body::Directory(_) => Ok(()),
            _ if as_dir => Err(Errno::ENOTDIR),
            _ => Ok(()),
        };
        assert_eq!(done, expected, "removing {}", show(&name));
        if done.is_ok() {
            self.tree.dir_mut(dir).remove(&name);
            self.remove_unreachable();
        }
    }

    pub(super) fn rename(&mut self, entry: u16, to: Place, mode: u8) {
        let (dir, name, ino) = self.entry(entry);
        if name.is_empty() {
            return;
        }
        let (new_dir, new_name) = self.place(to);
        let mode = numbers::rename_mode(mode);
        let done = self.holding(&[(dir, dir), (new_dir, new_dir)], |union| {
            outcome(union.rename(dir, &name, new_dir, &new_name, mode))
        });
        self.done = done;
        if !self.is_named(new_dir) {
            assert_eq!(done, Err(Errno::ENOENT));
            return;
        }
        let other = self.tree.dir(new_dir).get(&new_name).copied();
        let is_dir = |ino: Ino| self.tree.node(ino).kind() == Kind::Directory;
        let expected = match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => Err(Errno::ENOENT),
            (_, Some(other)) if other == ino => Ok(None),
            _ if is_dir(ino) && self.tree.is_within(new_dir, ino) => Err(Errno::EINVAL),
            (RenameMode::Exchange, Some(other)) => {
                if is_dir(other) && self.tree.is_within(dir, other) {
                    Err(Errno::EINVAL)
                } else {
                    Ok(Some(()))
                }
            }
            (_, Some(other)) if is_dir(ino) && !is_dir(other) => Err(Errno::ENOTDIR),
            (_, Some(other)) if !is_dir(ino) && is_dir(other) => Err(Errno::EISDIR),
            (_, Some(other)) if is_dir(other) && !self.tree.dir(other).is_empty() => {
                Err(Errno::ENOTEMPTY)
            }
            _ => Ok(Some(())),
        };
        assert_eq!(
            done,
            expected.map(|_| ()),
            "renaming {} to {}",
            show(&name),
            show(&new_name)
        );
        if expected != Ok(Some(())) {
            return;
        }
        if mode == RenameMode::Exchange {
            self.tree.dir_mut(dir).insert(name, other.unwrap());
        } else {
            self.tree.dir_mut(dir).remove(&name);
        }
        self.tree.dir_mut(new_dir).insert(new_name, ino);
        self.remove_unreachable();
    }

    pub(super) fn link(&mut self, entry: u16, to: Place) {
        let Some((ino, parent)) = self.object(entry, |_| true) else {
            return;
        };
        let (dir, name) = self.place(to);
        let done = self.holding(&[(ino, parent), (dir, dir)], |union| {
            outcome(union.link(ino, dir, &name))
        });
        let done = done.map(|attr| attr.nlink);
        self.done = done.map(|_| ());
        let expected = if !self.is_named(dir) {
            Err(Errno::ENOENT)
        } else if self.tree.dir(dir).contains_key(&name) {
            Err(Errno::EEXIST)
        } else if !self.is_named(ino) {
            Err(Errno::ENOENT)
        } else if self.tree.node(ino).kind() == Kind::Directory {
            Err(Errno::EPERM)
        } else {
            Ok(self.tree.nlink(ino) + 1)
        };
        assert_eq!(done, expected);
        if done.is_ok() {
            self.tree.dir_mut(dir).insert(name, ino);
        }
    }

    pub(super) fn set_xattr(&mut self, entry: u16, name: u8, len: u16) {
        let Some(object) = self.object(entry, |_| true) else {
            return;
        };
        let (name, value, mode) = numbers::attribute(name, len);
        let done = self.holding(&[object], |union| {
            outcome(union.set_xattr(object.0, &name, &value, mode))
        });
        self.done = done;
        let xattrs = &mut self.tree.node_mut(object.0).xattrs;
        let expected = match (mode, xattrs.contains_key(&name)) {
            (XattrMode::Create, true) => Err(Errno::EEXIST),
            (XattrMode::Replace, false) => Err(Errno::ENODATA),
            _ => Ok(()),
        };
        assert_eq!(done, expected);
        if done.is_ok() {
            xattrs.insert(name, value);
        }
    }

    pub(super) fn set_attr(
        &mut self,
        entry: u16,
        mask: SetMask,
        mode: u16,
        owner: (u8, u8),
        size: u16,
        secs: u32,
    ) {
        let Some(object) = self.object(entry, |_| true) else {
            return;
        };
        let is_file = self.tree.node(object.0).kind() == Kind::File;
        let time = Timestamp {
            secs: i64::from(secs),
            nanos: numbers::nanos(secs),
        };
        let set_time = if mask.to_now {
            SetTime::Now
        } else {
            SetTime::To(time)
        };
        let size = numbers::offset(size);
        let set = SetAttr {
            mode: mask.mode.then_some(numbers::mode(mode)),
            uid: mask.uid.then_some(owner.0.into()),
            gid: mask.gid.then_some(owner.1.into()),
            size: (mask.size && is_file).then_some(size as u64),
            atime: mask.atime.then_some(set_time),
            mtime: mask.mtime.then_some(set_time),
            set_id: SetIdBits::clear_if(mask.kill),
        };
        let attr = self
            .holding(&[object], |union| union.set_attr(object.0, &set))
            .unwrap();
        assert_eq!(self.union().attr(object.0).unwrap(), attr);
        if let Some(SetTime::To(time)) = set.atime {
            assert_eq!(attr.atime, time);
        }
        if set.size.is_some() {
            self.tree.file_mut(object.0).resize(size, 0);
        }
        let node = self.tree.node_mut(object.0);
        if set.size.is_some() {
            node.xattrs.remove(CAPABILITY);
            if mask.kill {
                node.mode = without_privileges(node.mode);
            }
        }
        if (mask.uid || mask.gid) && node.kind() != Kind::Directory {
            node.mode = without_privileges(node.mode);
            node.xattrs.remove(CAPABILITY);
        }
        node.mode = set.mode.unwrap_or(node.mode);
        node.owner.0 = set.uid.unwrap_or(node.owner.0);
        node.owner.1 = set.gid.unwrap_or(node.owner.1);
        match set.mtime {
            Some(SetTime::To(time)) => node.mtime = Some(time),
            Some(SetTime::Now) => node.mtime = None,
            None => {}
        }
    }
}
