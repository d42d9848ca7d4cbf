//! Verifies a whole image: reads every inode and decompresses every block.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use super::Image;
use crate::squashfs::{
    Error, Result,
    format::{BlockSize, Inode, InodeBody, InodeKind},
};

/// The progress of a verification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Inodes read.
    pub inodes: u64,
    /// Stored bytes decompressed.
    pub stored_bytes: u64,
    /// All stored bytes, including dead ones: an upper bound.
    pub total_bytes: u64,
}

/// The result for an image that can be read completely.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Inodes reached from the root.
    pub inodes: u64,
    /// Inodes that the superblock counts but no directory names.
    pub unreached: u64,
    /// Directories among them.
    pub directories: u64,
    /// Regular files among them.
    pub files: u64,
    /// Bytes in the regular files, holes included, each file once.
    pub bytes: u64,
    /// Distinct data blocks decompressed.
    pub blocks: u64,
    /// Fragment blocks decompressed.
    pub fragments: u64,
    /// Stored bytes of those blocks.
    pub stored_bytes: u64,
    /// Objects other than directories whose link count is wrong: by inode number, the number of
    /// their names. Some writers do not count links.
    pub wrong_links: BTreeMap<u32, u32>,
    /// Directories whose link count is wrong: by inode number, the right count, which is the number
    /// of subdirectories + 2. Some writers count all entries.
    pub wrong_directory_links: BTreeMap<u32, u32>,
}

struct Job {
    what: &'static str,
    start: u64,
    size: BlockSize,
    /// Exact decompressed length; `None` for fragment blocks, which have `at_least` bytes.
    expected: Option<usize>,
    at_least: usize,
}

#[derive(Default)]
struct Walk {
    /// By inode number: its position, its link count, and the names found so far.
    seen: HashMap<u32, Seen>,
    blocks: HashSet<(u64, u32)>,
    /// By fragment: the end of the last tail in it.
    fragments: HashMap<u32, usize>,
    report: VerifyReport,
}

struct Seen {
    place: u64,
    nlink: u32,
    names: u32,
    directory: bool,
}

/// Walks the whole tree and decompresses every block, with `threads` threads (at least one).
/// `progress` is called regularly from this thread. It returns false to stop, and the result is
/// then [`Error::Cancelled`].
pub fn verify(
    image: &Image,
    threads: usize,
    mut progress: impl FnMut(VerifyProgress) -> bool,
) -> Result<VerifyReport> {
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let decompressed = AtomicU64::new(0);
    let (send, receive) = crossbeam_channel::bounded::<Job>(256);
    let area = image.data_area();
    let total_bytes = area.end.saturating_sub(area.start);

    let walked = thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let receive = receive.clone();
            let (stop, failure, decompressed) = (&stop, &failure, &decompressed);
            scope.spawn(move || {
                for job in receive {
                    if stop.load(Ordering::Relaxed) {
                        // Keep emptying the channel: the walk may be waiting to send.
                        continue;
                    }
                    match run(image, &job) {
                        Ok(()) => {
                            decompressed.fetch_add(u64::from(job.size.stored()), Ordering::Relaxed);
                        }
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                            first.get_or_insert(error);
                        }
                    }
                }
            });
        }
        drop(receive);
        let mut tick = |inodes: u64| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let stored_bytes = decompressed.load(Ordering::Relaxed);
            if progress(VerifyProgress {
                inodes,
                stored_bytes,
                total_bytes,
            }) {
                Ok(())
            } else {
                stop.store(true, Ordering::Relaxed);
                Err(Error::Cancelled)
            }
        };
        let mut submit = |job: Job| {
            // Fails only if all threads have ended, which happens later.
            send.send(job).map_err(|_| Error::Cancelled)
        };
        let result = walk(image, &mut tick, &mut submit);
        if result.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        drop(send);
        result
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut report = walked?;
    report.stored_bytes = decompressed.into_inner();
    Ok(report)
}

fn run(image: &Image, job: &Job) -> Result<()> {
    let bytes = image
        .blocks()
        .load(job.what, job.start, job.size, job.expected)?;
    if bytes.len() < job.at_least {
        let detail = format!(
            "{} bytes, of which {} are in use",
            bytes.len(),
            job.at_least
        );
        return Err(Error::corrupt(job.what, job.start, detail));
    }
    Ok(())
}

fn walk(
    image: &Image,
    tick: &mut impl FnMut(u64) -> Result<()>,
    submit: &mut impl FnMut(Job) -> Result<()>,
) -> Result<VerifyReport> {
    let mut walk = Walk::default();
    let root = image.inode(image.root())?;
    if root.kind() != InodeKind::Directory {
        return Err(Error::corrupt(
            "root inode",
            image.root().0,
            "not a directory",
        ));
    }
    // Directories still to be read. Each is added once, so the walk ends.
    walk.check_inode(image, &root, image.root().0, submit)?;
    let mut pending = vec![root];
    while let Some(directory) = pending.pop() {
        let InodeBody::Directory(body) = &directory.body else {
            continue;
        };
        let listing = image.parse_dir(body)?;
        image.check_index(body)?;
        let mut subdirectories: u32 = 0;
        for (name, entry) in listing.iter() {
            if let Some(seen) = walk.seen.get_mut(&entry.number) {
                if seen.place != entry.inode.0 {
                    let detail = format!("number {} is at two positions", entry.number);
                    return Err(Error::corrupt("inode", entry.inode.0, detail));
                }
                if seen.directory || entry.kind == InodeKind::Directory {
                    let name = String::from_utf8_lossy(name);
                    let detail = format!("directory {} reached again by {name:?}", entry.number);
                    return Err(Error::corrupt("directory", entry.inode.0, detail));
                }
                seen.names = seen.names.saturating_add(1);
                continue;
            }
            let inode = image.entry_inode(&entry)?;
            walk.check_inode(image, &inode, entry.inode.0, submit)?;
            if let InodeBody::Directory(body) = &inode.body {
                subdirectories += 1;
                if body.parent != directory.number {
                    let detail = format!("parent {} instead of {}", body.parent, directory.number);
                    return Err(Error::corrupt("inode", entry.inode.0, detail));
                }
                pending.push(inode);
            }
            if walk.report.inodes % 1024 == 0 {
                tick(walk.report.inodes)?;
            }
        }
        let links = subdirectories.saturating_add(2);
        if directory.nlink != links {
            let wrong = &mut walk.report.wrong_directory_links;
            wrong.insert(directory.number, links);
        }
        tick(walk.report.inodes)?;
    }
    for index in 0..image.fragment_count() {
        let entry = image.fragment(index)?;
        let at_least = walk.fragments.get(&index).copied().unwrap_or(0);
        let (start, size) = (entry.start, entry.size);
        submit(Job {
            what: "fragment block",
            start,
            size,
            expected: None,
            at_least,
        })?;
        walk.report.fragments += 1;
        tick(walk.report.inodes)?;
    }
    let mut report = walk.report;
    report.wrong_links = walk
        .seen
        .iter()
        .filter(|(_, seen)| !seen.directory && seen.names != seen.nlink)
        .map(|(number, seen)| (*number, seen.names))
        .collect();
    report.unreached = u64::from(image.superblock().inodes).saturating_sub(report.inodes);
    Ok(report)
}

impl Walk {
    /// Checks an inode that was not seen before.
    fn check_inode(
        &mut self,
        image: &Image,
        inode: &Inode,
        place: u64,
        submit: &mut impl FnMut(Job) -> Result<()>,
    ) -> Result<()> {
        let directory = inode.kind() == InodeKind::Directory;
        self.seen.insert(
            inode.number,
            Seen {
                place,
                nlink: inode.nlink,
                names: 1,
                directory,
            },
        );
        self.report.inodes += 1;
        self.report.directories += u64::from(directory);
        image.xattrs(inode)?;
        if image.superblock().export_at().is_some() && image.inode_ref(inode.number)?.0 != place {
            let detail = format!("inode number {} is elsewhere", inode.number);
            return Err(Error::corrupt("export table", place, detail));
        }
        if inode.kind() != InodeKind::File {
            return Ok(());
        }
        self.report.files += 1;
        let layout = image.file_layout(inode)?;
        self.report.bytes = self.report.bytes.saturating_add(layout.size());
        let mut start = layout.start();
        for (index, &size) in layout.blocks().iter().enumerate() {
            if !size.is_hole() && self.blocks.insert((start, size.0)) {
                let expected = Some(layout.block_len(index as u64));
                submit(Job {
                    what: "data block",
                    start,
                    size,
                    expected,
                    at_least: 0,
                })?;
                self.report.blocks += 1;
            }
            // Checked by `file_layout`.
            start = start.saturating_add(u64::from(size.stored()));
        }
        if let Some(fragment) = layout.fragment() {
            let end = fragment.offset as usize + layout.block_len(layout.blocks().len() as u64);
            let used = self.fragments.entry(fragment.index).or_default();
            *used = end.max(*used);
        }
        Ok(())
    }
}
