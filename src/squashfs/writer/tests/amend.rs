//! Repeated amending of the tables of an old image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::readers::*;
use super::support::*;
use crate::squashfs::Compression;
use crate::squashfs::format::{Inode, InodeKind, MAX_IDS, METADATA_SIZE};
use crate::squashfs::reader::{Image, verify};
use crate::squashfs::writer::nodes::Tree;
use crate::squashfs::writer::*;

const BLOCK: usize = 4096;

/// Amends an image to match the tree on the host, of which only the `changed` paths and the
/// directories above them differ.
struct Amending<'a> {
    old: &'a Image,
    tree: &'a Path,
    changed: &'a BTreeSet<PathBuf>,
    amender: ImageAmender,
    next_number: u32,
    linked: BTreeMap<u32, NodeId>,
}

fn amend(image: &Path, old: &Image, tree: &Path, changed: &[&str]) -> Result<WriteStats> {
    let changed: BTreeSet<PathBuf> = changed.iter().map(PathBuf::from).collect();
    let options = AmendOptions {
        threads: 2.try_into().unwrap(),
        mkfs_time: 1_700_000_000,
        ..AmendOptions::default()
    };
    let mut amending = Amending {
        old,
        tree,
        changed: &changed,
        amender: ImageAmender::create(image, old, options)?,
        next_number: old.superblock().inodes + 1,
        linked: BTreeMap::new(),
    };
    let root = old.inode(old.root()).unwrap();
    let root = amending.directory(Path::new(""), Some(&root))?;
    amending.amender.finish(root)
}

impl Amending<'_> {
    fn meta(&mut self, at: &Path, before: Option<&Inode>) -> Meta {
        let mut meta = host_meta(&self.tree.join(at));
        meta.number = before.map_or(self.next_number, |inode| inode.number);
        self.next_number += u32::from(before.is_none());
        if let Some((inode, index)) = before.and_then(|inode| Some((inode, inode.xattr?))) {
            let list = self.old.xattrs(inode).unwrap();
            self.amender.register_xattrs(&list, index);
        }
        meta
    }

    fn directory(&mut self, at: &Path, before: Option<&Inode>) -> Result<NodeId> {
        let meta = self.meta(at, before);
        let dir = self.amender.writer().add_directory(&meta)?;
        let mut names: Vec<_> = fs::read_dir(self.tree.join(at)).unwrap().collect();
        names.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
        for entry in names {
            let name = entry.unwrap().file_name();
            let path = at.join(&name);
            let bytes = name.as_encoded_bytes();
            let known = before.and_then(|dir| self.old.lookup(dir, bytes).unwrap());
            let inode = known.map(|entry| self.old.entry_inode(&entry).unwrap());
            let on_the_way = self
                .changed
                .iter()
                .any(|changed| changed.starts_with(&path));
            let stat = fs::symlink_metadata(self.tree.join(&path)).unwrap();
            let node = match known {
                Some(entry) if !on_the_way => match self.linked.get(&entry.number) {
                    Some(node) => *node,
                    None => self.amender.keep(entry.kind, entry.number, entry.inode)?,
                },
                _ if stat.is_dir() => self.directory(&path, inode.as_ref())?,
                _ => {
                    let meta = self.meta(&path, inode.as_ref());
                    let source = Box::new(self.tree.join(&path));
                    self.amender.writer().add_file(&meta, stat.len(), source)?
                }
            };
            if let Some(entry) = known {
                self.linked.insert(entry.number, node);
            }
            self.amender.writer().link(dir, bytes, node)?;
        }
        Ok(dir)
    }
}

/// Returns an image of the varied tree with a directory whose listing has several metadata blocks.
fn old_image(dir: &Path, compression: Compression) -> (PathBuf, PathBuf) {
    let (tree, image) = (dir.join("tree"), dir.join("old"));
    fs::create_dir(&tree).unwrap();
    varied_tree(&tree, BLOCK);
    fs::create_dir(tree.join("many")).unwrap();
    for i in 0..1500 {
        fs::write(tree.join(format!("many/a_rather_long_name_{i:05}")), b"").unwrap();
    }
    let options = WriterOptions {
        compression,
        ..options(BLOCK as u32, 2)
    };
    import(&image, options, &tree);
    (tree, image)
}

#[test]
fn amended_images_are_read_by_all_readers() {
    for compression in CODECS {
        let dir = tempfile::tempdir().unwrap();
        let (tree, mut image) = old_image(dir.path(), compression);
        let (mut carried, mut appended) = (0, 0);
        let rounds = 12;
        for round in 0..rounds {
            let old = open(&image);
            let inodes = old.superblock().inodes;
            let new_dir = format!("pkg/new{round}");
            let new_file = format!("{new_dir}/file");
            let content = format!("pkg/mod{:02}.py", 10 + round);
            let gone = format!("many/a_rather_long_name_{:05}", 100 * round);
            fs::create_dir(tree.join(&new_dir)).unwrap();
            fs::write(tree.join(&new_file), noise(round, 3 * BLOCK)).unwrap();
            fs::write(tree.join(&content), text(900 + round, 2 * BLOCK + 9)).unwrap();
            fs::remove_file(tree.join(&gone)).unwrap();
            let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_650_000_000 + round);
            fs::File::open(tree.join("copies"))
                .unwrap()
                .set_modified(now)
                .unwrap();

            let new = dir.path().join(format!("image{round}"));
            let changed = [&*new_dir, &*new_file, &*content, &*gone, "copies"];
            let stats = amend(&new, &old, &tree, &changed).unwrap();
            let image_now = open(&new);
            assert_eq!(image_now.superblock().inodes, inodes + 2);
            assert_eq!(image_now.data_area().start, old.data_area().start);
            let data = &stats.data;
            assert_eq!(data.fresh_bytes, (3 * BLOCK + 2 * BLOCK + 9) as u64);
            // Three blocks of noise, two of text, and an incompressible tail of nine bytes.
            assert_eq!(
                (data.blocks_compressed, data.blocks_stored_raw),
                // An uncompressed image has a codec in its superblock, which is used for new data.
                (2, 4)
            );
            carried = stats.tables_carried;
            appended += stats.tables_appended;
            assert!(carried > 0);
            assert_eq!(stats.image_size, fs::metadata(&new).unwrap().len());
            let expected = describe(&tree);
            compare("our reader", &describe_image(&image_now), &expected);
            let report = verify(&image_now, 2, |_| true).unwrap();
            assert_eq!(
                report.inodes as usize,
                walkdir::WalkDir::new(&tree).into_iter().count() - 2
            );
            // Two new inodes in each round, one of which is removed but still counted.
            assert_eq!(report.unreached, round + 1);
            assert_eq!(
                (report.wrong_links.len(), report.wrong_directory_links.len()),
                (0, 0)
            );
            if round % 5 == 0 || round + 1 == rounds {
                check_everywhere(&new, &expected);
                if let Some(lines) = by_rdsquashfs(&new) {
                    assert_eq!(lines.len(), expected.len());
                }
            }
            image = new;
        }
        // More than the rest of the last block, so new blocks were written.
        assert!(
            appended > METADATA_SIZE as u64 / 4,
            "{appended} after {carried}"
        );
    }
}

#[test]
fn mksquashfs_appends_to_amended_images() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = old_image(dir.path(), Compression::default());
    fs::write(tree.join("pkg/mod03.py"), b"changed").unwrap();
    xattr::remove(tree.join("pkg/mod03.py"), "user.short").unwrap();
    xattr::remove(tree.join("pkg/mod03.py"), "user.long").unwrap();
    let new = dir.path().join("new");
    amend(&new, &open(&image), &tree, &["pkg/mod03.py"]).unwrap();
    let more = dir.path().join("more");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("appended"), text(1, 3 * BLOCK)).unwrap();
    let mut command = Command::new("mksquashfs");
    command
        .arg(&more)
        .arg(&new)
        .args(["-no-progress", "-quiet", "-no-recovery"]);
    run(&mut command);
    fs::copy(more.join("appended"), tree.join("appended")).unwrap();
    let names = |lines: &[String]| -> Vec<String> {
        let first = |line: &String| line.split(" links ").next().unwrap().to_owned();
        lines.iter().skip(1).map(first).collect()
    };
    let set = |lines: Vec<String>| lines.into_iter().collect::<BTreeSet<String>>();
    let found = set(names(&describe_image(&open(&new))));
    let expected = set(names(&describe(&tree)));
    // Appended entries have the times and modes of the other directory.
    let odd: Vec<_> = found.symmetric_difference(&expected).collect();
    assert!(odd.iter().all(|line| line.contains("appended")), "{odd:?}");
}

#[test]
fn images_and_nodes_that_cannot_be_amended_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = old_image(dir.path(), Compression::default());
    let new = dir.path().join("new");
    // Xattrs that the old table does not contain.
    xattr::set(tree.join("pkg/mod05.py"), "user.new", b"1").unwrap();
    let refused = amend(&new, &open(&image), &tree, &["pkg/mod05.py"]);
    assert!(matches!(refused, Err(WriteError::Amend(_))), "{refused:?}");
    assert!(!new.exists());
    // An image without an export table.
    if have("mksquashfs") {
        let foreign = dir.path().join("foreign");
        let mut command = Command::new("mksquashfs");
        command
            .arg(&tree)
            .arg(&foreign)
            .args(["-no-exports", "-no-progress", "-quiet"]);
        run(&mut command);
        let refused = amend(&new, &open(&foreign), &tree, &[]);
        assert!(matches!(refused, Err(WriteError::Amend(_))), "{refused:?}");
    }
    // Numbers that do not continue those of the old image.
    let old = open(&image);
    for number in [0, 1, old.superblock().inodes + 2] {
        let mut amender = ImageAmender::create(&new, &old, AmendOptions::default()).unwrap();
        let writer = amender.writer();
        let root = old.inode(old.root()).unwrap();
        let numbered = |number| Meta {
            number,
            ..meta(0o755)
        };
        let root = writer.add_directory(&numbered(root.number)).unwrap();
        let node = writer.add_fifo(&numbered(number)).unwrap();
        writer.link(root, b"fifo", node).unwrap();
        let known = inode_at(&old, "one");
        let place = old.inode_ref(known.number).unwrap();
        let kept = amender.keep(known.kind(), 1, place).unwrap();
        amender.writer().link(root, b"kept", kept).unwrap();
        let refused = amender.finish(root);
        assert!(
            matches!(refused, Err(WriteError::Tree { .. })),
            "{number}: {refused:?}"
        );
    }
}

/// Images of other writers can be amended too.
#[test]
fn images_of_other_writers_are_amended() {
    if !have("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, _) = old_image(dir.path(), Compression::default());
    for options in [
        &["-comp", "zstd"][..],
        &["-comp", "gzip", "-noI"],
        &["-no-fragments"],
    ] {
        let (foreign, new) = (dir.path().join("foreign"), dir.path().join("new"));
        let mut command = Command::new("mksquashfs");
        command.arg(&tree).arg(&foreign);
        run(command
            .args(["-noappend", "-no-progress", "-quiet", "-b", "4096"])
            .args(options));
        fs::write(tree.join("pkg/mod07.py"), options.concat()).unwrap();
        let stats = amend(&new, &open(&foreign), &tree, &["pkg/mod07.py"]).unwrap();
        assert!(stats.tables_carried > 0);
        check_everywhere(&new, &describe(&tree));
    }
}

#[test]
fn a_full_id_table_is_rebuilt() {
    let owners: Vec<u32> = (0..MAX_IDS as u32).collect();
    let mut tree = Tree::amending(&owners, 1);
    let of = |uid| Meta { uid, ..meta(0o644) };
    tree.add(InodeKind::Fifo, &of(7), 0).unwrap();
    let refused = tree.add(InodeKind::Fifo, &of(MAX_IDS as u32), 0);
    assert!(matches!(refused, Err(WriteError::Amend(_))), "{refused:?}");
    // Writing all tables succeeds.
    let mut tree = Tree::default();
    for uid in owners {
        tree.add(InodeKind::Fifo, &of(uid), 0).unwrap();
    }
    let refused = tree.add(InodeKind::Fifo, &of(MAX_IDS as u32), 0);
    assert!(
        matches!(refused, Err(WriteError::Tree { .. })),
        "{refused:?}"
    );
}
