//! Prints the tree of an image, or verifies the image: `inspect_image IMAGE [--verify]`.

use std::io::{self, Write};

use anyhow::{Context, Result};
use envfs::squashfs::{
    format::InodeBody,
    reader::{Image, ReaderOptions, verify},
};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let path = arguments
        .next()
        .context("usage: inspect_image IMAGE [--verify]")?;
    let image = Image::open(path, ReaderOptions::default())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    writeln!(out, "{:#?}", image.superblock())?;
    if arguments
        .next()
        .is_some_and(|argument| argument == "--verify")
    {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        writeln!(out, "{:#?}", verify(&image, threads, |_| true)?)?;
        return Ok(());
    }
    let mut pending = vec![(String::new(), image.inode(image.root())?)];
    while let Some((path, inode)) = pending.pop() {
        let (kind, size) = (inode.kind(), inode.size());
        write!(
            out,
            "{:>8} {:04o} {kind:?} {size:>10} {path}",
            inode.number, inode.mode
        )?;
        match &inode.body {
            InodeBody::Symlink(target) => write!(out, " -> {}", String::from_utf8_lossy(target))?,
            InodeBody::File(_) => {
                let layout = image.file_layout(&inode)?;
                let blocks = layout.blocks().len();
                write!(
                    out,
                    " ({blocks} blocks at {:#x}, {:?})",
                    layout.start(),
                    layout.fragment()
                )?;
            }
            InodeBody::Directory(_) => {
                for (name, entry) in image.read_dir(&inode)?.iter() {
                    let child = format!("{path}/{}", String::from_utf8_lossy(name));
                    pending.push((child, image.entry_inode(&entry)?));
                }
            }
            _ => {}
        }
        for (name, value) in image.xattrs(&inode)? {
            write!(
                out,
                " {}={:?}",
                String::from_utf8_lossy(&name),
                String::from_utf8_lossy(&value)
            )?;
        }
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}
