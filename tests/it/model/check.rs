//! Whether the list of changes is right.

use std::collections::BTreeSet;

use envfs::object::{Ino, Kind};
use envfs::union::{Change, ChangeKind};

use super::tree::{Body, Entry, Tree, show};

/// Every difference must be reported, and every report must be a difference.
pub(super) fn check_changes(base: &Tree, now: &Tree, changes: &[Change]) {
    let base_entries: BTreeSet<Entry> = base.entries().into_iter().collect();
    let now_entries: BTreeSet<Entry> = now.entries().into_iter().collect();
    let (base_paths, now_paths) = (base.paths(), now.paths());
    let what = || format!("{changes:#?}");
    for (ino, then) in &base.nodes {
        match now.nodes.get(ino) {
            None => {
                let reported = changes
                    .iter()
                    .any(|c| c.ino == *ino && c.what == ChangeKind::Deleted)
                    || base_paths
                        .iter()
                        .any(|(path, at)| at == ino && changes.iter().any(|c| c.path == *path))
                    || changes.iter().any(|c| {
                        let name = c.path.rsplit(|b| *b == b'/').next().unwrap();
                        base_entries.iter().any(|(_, n, i)| i == ino && n == name)
                    });
                assert!(reported, "{ino} is gone, unreported: {}", what());
            }
            Some(node) => {
                let is_dir = node.kind() == Kind::Directory;
                let same = (is_dir || (node.body == then.body && node.mtime == then.mtime))
                    && (node.mode, node.owner) == (then.mode, then.owner)
                    && node.xattrs == then.xattrs;
                if !same {
                    assert!(
                        changes.iter().any(|c| c.ino == *ino),
                        "{ino} is changed, unreported: {}",
                        what()
                    );
                }
            }
        }
    }
    for (path, ino) in &now_paths {
        if !base.nodes.contains_key(ino) {
            let reported = changes.iter().any(|c| c.ino == *ino && c.path == *path);
            assert!(reported, "{} is new, unreported: {}", show(path), what());
        }
    }
    // Names of objects that are in both.
    for (path, ino) in &now_paths {
        let Some(entry) = entry_of(now, path) else {
            continue;
        };
        if base.nodes.contains_key(ino) && !base_entries.contains(&entry) {
            let reported = changes.iter().any(|c| c.ino == *ino && c.path == *path);
            assert!(
                reported,
                "{} is a new name, unreported: {}",
                show(path),
                what()
            );
        }
    }
    for change in changes {
        let (path, ino) = (&change.path, change.ino);
        let text = format!("{} {ino} {:?}: {}", show(path), change.what, what());
        if path.is_empty() {
            assert_eq!(
                change.what,
                ChangeKind::Modified { content: false },
                "{text}"
            );
            continue;
        }
        match &change.what {
            ChangeKind::Added => {
                assert_eq!(now_paths.get(path), Some(&ino), "{text}");
                let entry = entry_of(now, path).unwrap();
                assert!(!base_entries.contains(&entry), "{text}");
            }
            ChangeKind::Deleted => {
                assert!(base.nodes.contains_key(&ino), "{text}");
                assert_ne!(now_paths.get(path), Some(&ino), "{text}");
            }
            ChangeKind::Renamed { from } => {
                assert_eq!(now_paths.get(path), Some(&ino), "{text}");
                assert_eq!(base_paths.get(from), Some(&ino), "{text}");
                let (old, new) = (entry_of(base, from).unwrap(), entry_of(now, path).unwrap());
                assert_ne!(old, new, "{text}");
                assert!(!now_entries.contains(&old), "{text}");
            }
            ChangeKind::Modified { .. } => {
                assert_eq!(now_paths.get(path), Some(&ino), "{text}");
                assert!(
                    base.nodes.contains_key(&ino)
                        || base_paths.contains_key(path)
                        || entry_of(now, path).is_some(),
                    "{text}"
                );
            }
        }
    }
}

fn entry_of(tree: &Tree, path: &[u8]) -> Option<Entry> {
    let mut dir = Ino::ROOT;
    let mut components = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = components.next() {
        let ino = match &tree.nodes.get(&dir)?.body {
            Body::Directory(entries) => *entries.get(name)?,
            _ => return None,
        };
        if components.peek().is_none() {
            return Some((dir, name.to_vec(), ino));
        }
        dir = ino;
    }
    None
}
