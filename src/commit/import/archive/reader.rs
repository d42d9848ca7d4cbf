//! Reads the entries of an archive in their order.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Packing;
use super::content::{Data, FileSource};
use super::error::{Error, Result};
use super::header::{self, BLOCK, Header};
use super::pax::Pax;
use super::sparse::{self, Map};

/// Extended headers and long names are at most this long.
const MAX_EXTENDED: u64 = 16 << 20;
/// Data up to this size waits in memory for its turn.
const IN_MEMORY: u64 = 1 << 20;
/// Data of a compressed archive up to this size is copied to a temporary file, so that it can be read twice.
/// Larger data is read once, and not compared with other files to find duplicates.
const MAX_SPOOLED: u64 = 1 << 30;

/// What an entry is.
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

/// One entry, as its headers describe it.
#[derive(Debug)]
pub(super) struct Entry {
    /// How many entries there were before it.
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
    /// Of a file: its parts.
    pub(super) map: Arc<Map>,
}

/// The bytes of an archive, uncompressed.
pub(super) struct Stream {
    input: Input,
    /// Data of the current entry that has not been read, and the padding after it.
    data: u64,
    padding: u64,
}

enum Input {
    /// The archive itself, with the position and the length.
    Plain(Arc<File>, u64, u64),
    Packed(Box<dyn Read + Send>),
}

impl Stream {
    /// Reads a block; `None` at the end of the archive.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => filled += read,
            }
        }
        Ok(Some(block))
    }

    /// Reads data of the current entry.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.data).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(len);
        let read = self
            .input
            .read(buffer.get_mut(..wanted).unwrap_or_default())?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        Ok(read)
    }

    /// Passes over data of the current entry.
    pub(super) fn skip_data(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = bytes.min(self.data);
        self.input.skip(bytes)?;
        self.data -= bytes;
        Ok(())
    }

    /// Passes over what is left of the current entry.
    fn finish(&mut self) -> io::Result<()> {
        self.input.skip(self.data.saturating_add(self.padding))?;
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// Begins the data of an entry.
    fn begin(&mut self, size: u64) -> Result<()> {
        let rest = size % BLOCK as u64;
        self.data = size;
        self.padding = if rest == 0 { 0 } else { BLOCK as u64 - rest };
        match self.input {
            Input::Plain(_, at, len) if len.saturating_sub(at) < size => {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            }
            _ => Ok(()),
        }
    }

    /// Reads the whole data of a header that describes others.
    fn whole(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENDED {
            let why = format!("an extended header has {size} bytes");
            return Err(Error::Damaged(why));
        }
        self.begin(size)?;
        let mut bytes = Vec::new();
        let mut part = [0; 8192];
        while self.data > 0 {
            let read = self.read_data(&mut part)?;
            bytes.extend_from_slice(part.get(..read).unwrap_or_default());
        }
        self.finish()?;
        Ok(bytes)
    }
}

impl Input {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = match self {
            Input::Plain(_, at, len) => {
                let skipped = bytes.min(len.saturating_sub(*at));
                *at += skipped;
                skipped
            }
            Input::Packed(reader) => io::copy(&mut reader.take(bytes), &mut io::sink())?,
        };
        match skipped == bytes {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::Plain(file, at, _) => {
                let read = std::os::unix::fs::FileExt::read_at(&**file, buffer, *at)?;
                *at += read as u64;
                Ok(read)
            }
            Input::Packed(reader) => loop {
                match reader.read(buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => return other,
                }
            },
        }
    }
}

/// An archive that is being read.
pub(super) struct Reader {
    stream: Arc<Mutex<Stream>>,
    global: Pax,
    entries: usize,
}

impl Reader {
    pub(super) fn open(source: &Path, packing: Packing) -> Result<Reader> {
        let file = File::open(source)?;
        let packed = |file| BufReader::with_capacity(64 << 10, file);
        let input = match packing {
            Packing::Plain => {
                let len = file.metadata()?.len();
                Input::Plain(Arc::new(file), 0, len)
            }
            Packing::Gzip => {
                let decoder = flate2::read::MultiGzDecoder::new(packed(file));
                Input::Packed(Box::new(BufReader::new(decoder)))
            }
            Packing::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(packed(file))?;
                Input::Packed(Box::new(BufReader::new(decoder)))
            }
            Packing::Xz => {
                let decoder = xz2::read::XzDecoder::new_multi_decoder(packed(file));
                Input::Packed(Box::new(BufReader::new(decoder)))
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
        // A position in a file; a thread that died reading it has failed the import.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on to the next entry; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let (mut pax, mut path, mut link) = (Pax::default(), None, None);
        let shared = self.stream.clone();
        let mut stream = shared.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            stream.finish()?;
            let Some(block) = stream.block()? else {
                // Old writers do not mark the end.
                return match self.entries {
                    0 => Err(Error::Damaged("there is no archive in it".to_owned())),
                    _ => Ok(None),
                };
            };
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::new(block).ok_or_else(|| {
                Error::Damaged(format!("no header follows entry {}", self.entries))
            })?;
            let size = header.number(header::SIZE)?;
            let size = u64::try_from(size)
                .map_err(|_| Error::Damaged("an entry has a negative size".to_owned()))?;
            match header.type_flag() {
                b'x' | b'X' => pax.read(&stream.whole(size)?)?,
                b'g' => {
                    let records = stream.whole(size)?;
                    self.global.read(&records)?;
                }
                b'L' => path = Some(header::until_nul(&stream.whole(size)?).to_vec()),
                b'K' => link = Some(header::until_nul(&stream.whole(size)?).to_vec()),
                // The name of the volume.
                b'V' => {
                    stream.begin(size)?;
                    self.entries += 1;
                    (pax, path, link) = (Pax::default(), None, None);
                }
                b'M' => {
                    let why = "it continues another volume; join the volumes first";
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

    /// Returns the content of the current entry, to be opened now and, if it can be, later. Data of a compressed
    /// archive may be copied to a file that is made at `spool` and loses its name at once.
    pub(super) fn source(
        &mut self,
        entry: &Entry,
        label: String,
        spool: &Path,
    ) -> Result<FileSource> {
        let mut stream = self.stream();
        let data = match &stream.input {
            Input::Plain(file, at, _) => Data::File(file.clone(), *at),
            Input::Packed(_) if stream.data <= IN_MEMORY => {
                let mut bytes = vec![0; usize::try_from(stream.data).unwrap_or(0)];
                let mut filled = 0;
                while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                    filled += stream.read_data(rest)?;
                }
                Data::Memory(bytes.into())
            }
            Input::Packed(_) if stream.data <= MAX_SPOOLED => {
                Data::File(Arc::new(copy(&mut stream, spool)?), 0)
            }
            Input::Packed(_) => Data::Stream(self.stream.clone()),
        };
        Ok(FileSource {
            label,
            map: entry.map.clone(),
            data,
        })
    }

    /// Returns the content of the current entry, to be read once before going on.
    pub(super) fn once(&self, entry: &Entry, label: String) -> FileSource {
        FileSource {
            label,
            map: entry.map.clone(),
            data: Data::Stream(self.stream.clone()),
        }
    }
}

/// Copies the data of the current entry to a file without a name. Zeros become holes.
fn copy(stream: &mut Stream, path: &Path) -> Result<File> {
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
        // As v7 writes a directory. What is not known is a file, as POSIX wants it.
        b'S' => Kind::File,
        _ if path.ends_with(b"/") => Kind::Directory,
        _ => Kind::File,
    };
    // A list of names follows a directory of an incremental backup. Other entries have no data, whatever
    // their size says.
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
