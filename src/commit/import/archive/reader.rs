//! Reads the entries of an archive in order.

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Codec;
use super::content::{Data, FileSource};
use super::error::{Error, Result};
use super::header::{self, Header};
use super::pax::Pax;
use super::sparse::{self, Map};
use super::stream::{Input, Stream};

/// Data of a compressed archive up to this size, in bytes, is read into memory.
const IN_MEMORY: u64 = 1 << 20;
/// Data of a compressed archive up to this size, in bytes, is copied to a temporary file, so that
/// it can be read twice. Larger data is read once, and not compared with other files to find
/// duplicates.
const MAX_SPOOLED: u64 = 1 << 30;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// An entry, as described by its headers.
#[derive(Debug)]
pub(super) struct Entry {
    /// The number of entries before it.
    pub(super) index: usize,
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u16,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: i64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) device: (u64, u64),
    /// The regions of a file that the archive contains.
    pub(super) map: Arc<Map>,
}

/// Reads an archive.
pub(super) struct Reader {
    stream: Arc<Mutex<Stream>>,
    global: Pax,
    entries: usize,
}

impl Reader {
    pub(super) fn open(source: &Path, codec: Codec) -> Result<Reader> {
        let file = File::open(source)?;
        let buffered = |file| BufReader::with_capacity(64 << 10, file);
        let input = match codec {
            Codec::Plain => {
                let len = file.metadata()?.len();
                Input::Plain(Arc::new(file), 0, len)
            }
            Codec::Gzip => {
                let decoder = flate2::read::MultiGzDecoder::new(buffered(file));
                Input::Compressed(Box::new(BufReader::new(decoder)))
            }
            Codec::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(buffered(file))?;
                Input::Compressed(Box::new(BufReader::new(decoder)))
            }
            Codec::Xz => {
                let decoder = liblzma::read::XzDecoder::new_multi_decoder(buffered(file));
                Input::Compressed(Box::new(BufReader::new(decoder)))
            }
        };
        Ok(Reader {
            stream: Arc::new(Mutex::new(Stream {
                input,
                data: 0,
                padding: 0,
            })),
            global: Pax::default(),
            entries: 0,
        })
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        // Consistent even if poisoned: a panic has failed the import.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the next entry. Returns `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let (mut pax, mut path, mut link) = (Pax::default(), None, None);
        let shared = self.stream.clone();
        let mut stream = shared.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            stream.finish()?;
            let Some(block) = stream.block()? else {
                // Some writers omit the two blocks of zeros at the end.
                return match self.entries {
                    0 => Err(Error::Damaged("it is empty after decompression".to_owned())),
                    _ => Ok(None),
                };
            };
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::new(block).ok_or_else(|| {
                Error::Damaged(format!("no valid header after entry {}", self.entries))
            })?;
            let size = header.number(header::SIZE)?;
            let size = u64::try_from(size)
                .map_err(|_| Error::Damaged("an entry has a negative size".to_owned()))?;
            match header.type_flag() {
                b'x' | b'X' => pax.read(&stream.read_extended(size)?)?,
                b'g' => {
                    let records = stream.read_extended(size)?;
                    self.global.read(&records)?;
                }
                b'L' => path = Some(header::until_nul(&stream.read_extended(size)?).to_vec()),
                b'K' => link = Some(header::until_nul(&stream.read_extended(size)?).to_vec()),
                // A volume label.
                b'V' => {
                    stream.begin(size)?;
                    self.entries += 1;
                    (pax, path, link) = (Pax::default(), None, None);
                }
                b'M' => {
                    let why = "it continues another volume; concatenate the volumes first";
                    return Err(Error::Refused(why.to_owned()));
                }
                _ => {
                    let pax = pax.over(&self.global);
                    let entry = entry(&header, size, &pax, path, link, &mut stream)?;
                    let entry = Entry {
                        index: self.entries,
                        ..entry
                    };
                    self.entries += 1;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Returns the content of the current entry, which can be opened now, and later if
    /// [`can_reopen`](crate::squashfs::writer::Source::can_reopen). Data of a compressed archive
    /// may be copied to a temporary file, which is created at the path `spool` and unlinked at
    /// once.
    pub(super) fn source(
        &mut self,
        entry: &Entry,
        label: String,
        spool: &Path,
    ) -> Result<FileSource> {
        let mut stream = self.stream();
        let data = match &stream.input {
            Input::Plain(file, at, _) => Data::File(file.clone(), *at),
            Input::Compressed(_) if stream.data <= IN_MEMORY => {
                let mut bytes = vec![0; usize::try_from(stream.data).unwrap_or(0)];
                let mut filled = 0;
                while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                    filled += stream.read_data(rest)?;
                }
                Data::Memory(bytes.into())
            }
            Input::Compressed(_) if stream.data <= MAX_SPOOLED => {
                Data::File(Arc::new(spool_data(&mut stream, spool)?), 0)
            }
            Input::Compressed(_) => Data::Stream(self.stream.clone()),
        };
        Ok(FileSource {
            label,
            map: entry.map.clone(),
            data,
        })
    }

    /// Returns the content of the current entry, to be read once, before the next entry is read.
    pub(super) fn once(&self, entry: &Entry, label: String) -> FileSource {
        FileSource {
            label,
            map: entry.map.clone(),
            data: Data::Stream(self.stream.clone()),
        }
    }
}

/// Copies the data of the current entry to an unlinked file. Zeros become holes.
fn spool_data(stream: &mut Stream, path: &Path) -> Result<File> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    std::fs::remove_file(path)?;
    let len = stream.data;
    let mut part = vec![0; 128 << 10];
    while stream.data > 0 {
        let read = stream.read_data(&mut part)?;
        let bytes = part.get(..read).unwrap_or_default();
        match bytes.iter().all(|byte| *byte == 0) {
            true => {
                file.seek(SeekFrom::Current(read as i64))?;
            }
            false => file.write_all(bytes)?,
        }
    }
    file.set_len(len)?;
    Ok(file)
}

fn entry(
    header: &Header,
    size: u64,
    pax: &Pax,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    stream: &mut Stream,
) -> Result<Entry> {
    let path = match pax.get("path") {
        Some(path) => path.to_vec(),
        None => path.unwrap_or_else(|| header.path()),
    };
    let link = match pax.get("linkpath") {
        Some(link) => link.to_vec(),
        None => link.unwrap_or_else(|| header.link().to_vec()),
    };
    let kind = match header.type_flag() {
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' | b'D' => Kind::Directory,
        b'6' => Kind::Fifo,
        // v7 marks directories by a trailing slash. POSIX: an unknown type is a regular file.
        b'S' => Kind::File,
        _ if path.ends_with(b"/") => Kind::Directory,
        _ => Kind::File,
    };
    // A directory of an incremental backup is followed by a list of names. Other entries that are
    // not files have no data, even if their size is not 0.
    let has_data = kind == Kind::File || header.type_flag() == b'D';
    let mut stored = match has_data {
        true => pax.number("size")?.unwrap_or(size),
        false => 0,
    };
    let mut path = path;
    let map = match kind {
        Kind::File => {
            let mut next = || {
                let block = stream.block()?;
                block.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into())
            };
            let sparse = match header.type_flag() {
                b'S' => Some(sparse::of_header(header, stored, &mut next)?),
                _ => sparse::of_pax(pax, &mut stored, &mut next)?,
            };
            if sparse.is_some()
                && let Some(name) = pax.get("GNU.sparse.name")
            {
                path = name.to_vec();
            }
            sparse.unwrap_or_else(|| Map::dense(stored))
        }
        _ => Map::dense(0),
    };
    stream.begin(stored)?;
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => {
            let number =
                |field| Ok::<_, Error>(u64::try_from(header.number(field)?).unwrap_or(u64::MAX));
            (number(header::MAJOR)?, number(header::MINOR)?)
        }
        _ => (0, 0),
    };
    let id = |key, field| match pax.number(key)? {
        Some(id) => Ok(id),
        None => Ok::<_, Error>(u64::try_from(header.number(field)?).unwrap_or(u64::MAX)),
    };
    let mtime = match pax.seconds("mtime")? {
        Some(mtime) => mtime,
        None => header.number(header::MTIME)?,
    };
    let xattrs = pax.xattrs();
    Ok(Entry {
        index: 0,
        kind,
        link,
        mode: (header.number(header::MODE)? & 0o7777) as u16,
        uid: id("uid", header::UID)?,
        gid: id("gid", header::GID)?,
        mtime,
        xattrs: xattrs
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect(),
        device,
        map: Arc::new(map),
        path,
    })
}
