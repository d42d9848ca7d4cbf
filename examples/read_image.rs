//! Reads an image without a mount and prints the number of bytes: `read_image IMAGE all THREADS`
//! reads all files, `read_image IMAGE random THREADS PATH READS` makes reads of 4 KiB at random
//! offsets of one file.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use envfs::squashfs::format::{Inode, InodeBody, InodeRef};
use envfs::squashfs::reader::{Image, ReaderOptions};

/// The number of files that a thread takes at a time: consecutive files share fragment blocks.
const BATCH: usize = 64;
const READ: usize = 4096;

fn main() -> Result<()> {
    const USAGE: &str = "usage: read_image IMAGE (all THREADS | random THREADS PATH READS)";
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let word = |at: usize| arguments.get(at).and_then(|word| word.to_str());
    let image = Image::open(arguments.first().context(USAGE)?, ReaderOptions::default())?;
    let threads: usize = word(2).context(USAGE)?.parse()?;
    let bytes = match word(1) {
        Some("all") => read_all(&image, threads)?,
        Some("random") => {
            let path = Path::new(arguments.get(3).context(USAGE)?);
            read_randomly(&image, threads, path, word(4).context(USAGE)?.parse()?)?
        }
        _ => bail!(USAGE),
    };
    println!("{bytes} bytes");
    Ok(())
}

/// Returns all regular files.
fn files(image: &Image) -> Result<Vec<InodeRef>> {
    let mut files = Vec::new();
    let mut pending = vec![image.inode(image.root())?];
    while let Some(dir) = pending.pop() {
        for (_, entry) in image.read_dir(&dir)?.iter() {
            let inode = image.entry_inode(&entry)?;
            match inode.body {
                InodeBody::Directory(_) => pending.push(inode),
                InodeBody::File(_) => files.push(entry.inode),
                _ => {}
            }
        }
    }
    Ok(files)
}

fn read_all(image: &Image, threads: usize) -> Result<u64> {
    let files = files(image)?;
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    in_threads(threads, |_| {
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = files.get(from..files.len().min(from + BATCH)) else {
                return Ok(());
            };
            for file in batch {
                let layout = image.file(*file)?;
                for index in 0..layout.block_count() {
                    let block = image.block(&layout, index)?;
                    bytes.fetch_add(block.len() as u64, Ordering::Relaxed);
                }
            }
        }
    })?;
    Ok(bytes.into_inner())
}

fn find(image: &Image, path: &Path) -> Result<Inode> {
    let mut inode = image.inode(image.root())?;
    for name in path {
        let entry = image.lookup(&inode, name.as_bytes())?;
        inode = image.entry_inode(&entry.with_context(|| format!("no {}", path.display()))?)?;
    }
    Ok(inode)
}

fn read_randomly(image: &Image, threads: usize, path: &Path, reads: u64) -> Result<u64> {
    let layout = image.file_layout(&find(image, path)?)?;
    let blocks = (layout.size() / READ as u64).max(1);
    let bytes = AtomicU64::new(0);
    in_threads(threads, |thread| {
        let mut buffer = [0; READ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ thread as u64;
        for _ in 0..reads / threads as u64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state % blocks * READ as u64;
            let got = image.read_at(&layout, at, &mut buffer)?;
            bytes.fetch_add(got as u64, Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok(bytes.into_inner())
}

fn in_threads(threads: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n))).collect();
        for thread in all {
            match thread.join() {
                Ok(done) => done?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}
