//! The bottom of an environment that has no image yet: a root directory and nothing in it.

use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};

use super::Result;
use super::layer::{Bytes, Layer, LayerInode, LayerListing, Lookup, Source};
use crate::object::{Attr, Ino, Kind, Timestamp};

/// An empty root directory, owned by whoever looks.
#[derive(Debug, Default)]
pub struct EmptyLayer;

impl Layer for EmptyLayer {
    fn lookup(&self, _dir: Ino, _name: &[u8]) -> Result<Lookup> {
        Ok(Lookup::Unknown)
    }

    fn list(&self, dir: Ino) -> Result<Option<LayerListing>> {
        Ok((dir == Ino::ROOT).then(Vec::new))
    }

    fn inode(&self, ino: Ino) -> Result<Option<LayerInode>> {
        let epoch = Timestamp::default();
        Ok((ino == Ino::ROOT).then(|| LayerInode {
            attr: Attr {
                kind: Kind::Directory,
                mode: 0o755,
                uid: geteuid().as_raw(),
                gid: getegid().as_raw(),
                rdev: 0,
                nlink: 2,
                size: 4096,
                blocks: 0,
                atime: epoch,
                mtime: epoch,
                ctime: epoch,
            },
            content: Source::Here,
            xattrs: Source::Here,
        }))
    }

    fn parent(&self, _dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> {
        Ok(None)
    }

    fn read(&self, _ino: Ino, _offset: u64, _len: usize) -> Result<Box<dyn Bytes>> {
        Err(Errno::ESTALE.into())
    }

    fn is_ready(&self, _ino: Ino, _offset: u64, _len: usize) -> bool {
        true
    }

    fn seek(&self, _ino: Ino, _offset: u64, _hole: bool) -> Result<Option<u64>> {
        Err(Errno::ESTALE.into())
    }

    fn read_link(&self, _ino: Ino) -> Result<Box<[u8]>> {
        Err(Errno::ESTALE.into())
    }

    fn xattrs(&self, _ino: Ino) -> Result<Vec<(Box<[u8]>, Box<[u8]>)>> {
        Ok(Vec::new())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
