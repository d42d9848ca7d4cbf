//! stub
use super::layer::*; use super::Result; use crate::object::*; use crate::state::IdMap;
/// x
#[derive(Debug, Clone, Copy)] pub struct OwnerMap;
/// x
#[derive(Debug)] pub struct ImageLayer;
impl ImageLayer { /// x
 pub fn new(_f: crate::squashfs::Image, _m: IdMap, _o: Option<OwnerMap>) -> Result<ImageLayer> { Ok(ImageLayer) } }
impl Layer for ImageLayer {
    fn lookup(&self, _dir: Ino, _name: &[u8]) -> Result<Lookup> { Ok(Lookup::Unknown) }
    fn list(&self, _dir: Ino) -> Result<Option<LayerListing>> { Ok(None) }
    fn inode(&self, _ino: Ino) -> Result<Option<LayerInode>> { Ok(None) }
    fn parent(&self, _dir: Ino) -> Result<Option<(Ino, Box<[u8]>)>> { Ok(None) }
    fn read(&self, _ino: Ino, _offset: u64, _len: usize) -> Result<Box<dyn Bytes>> { Ok(Box::new(vec![])) }
    fn seek(&self, _ino: Ino, _offset: u64, _hole: bool) -> Result<Option<u64>> { Ok(None) }
    fn read_link(&self, _ino: Ino) -> Result<Box<[u8]>> { Ok(Box::default()) }
    fn xattrs(&self, _ino: Ino) -> Result<Vec<(Box<[u8]>, Box<[u8]>)>> { Ok(vec![]) }
    fn as_any(&self) -> &dyn std::any::Any { self }
}
