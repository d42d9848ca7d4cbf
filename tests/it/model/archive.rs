//! Histories that are exported and imported elsewhere.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use envfs::commit::{
    self, CommitOptions, HistoryArchive, HistoryExport, ImportHistoryOptions, Relation, Relocate,
    Workspace,
};
use envfs::environment::Store;
use envfs::progress::NoProgress;
use envfs::state::{ImageId, Revision, RevisionId};
use envfs::union::DiscardMode;

use super::bench::{Bench, name, noise};
use super::machine::Machine;
use super::random;
use super::tree::Tree;

/// Everything about a history but the names of its files.
#[derive(Debug, PartialEq)]
struct Past {
    origin: Option<String>,
    current: RevisionId,
    revisions: Vec<Revision>,
    tags: Vec<(String, RevisionId)>,
    /// For each revision, the bytes of the image and of the map of its identities.
    images: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Past {
    fn of(workspace: &Workspace) -> Past {
        let (db, layout) = (workspace.db(), workspace.env().layout());
        let mut past = Past {
            origin: db.origin().unwrap(),
            current: db.current_revision().unwrap().unwrap().id,
            revisions: db.revisions().unwrap(),
            tags: Vec::new(),
            images: Vec::new(),
        };
        let tags = db.tags().unwrap().into_iter();
        past.tags = tags.map(|tag| (tag.name, tag.revision)).collect();
        for revision in &mut past.revisions {
            let row = db.image(revision.image).unwrap().unwrap();
            let bytes = fs::read(layout.image(&row.file)).unwrap();
            let ids = db.id_map(row.id).unwrap().unwrap().to_bytes();
            past.images.push((bytes, ids));
            revision.image = ImageId(0);
        }
        past
    }
}

/// Writes the history of an environment to a file.
fn export(workspace: &Workspace, to: &Path) {
    let (db, layout) = (workspace.db(), workspace.env().layout());
    let history = HistoryExport::of(db, layout, &name(), None, &NoProgress).unwrap();
    let mut file = fs::File::create(to).unwrap();
    history.write(&mut file, to, &NoProgress).unwrap();
}

/// Makes an environment of an archive in a store.
fn import(archive: &Path, store: &Path) -> commit::Result<()> {
    let archive = HistoryArchive::open(archive)?;
    let new = Store::new(store).create(&name())?;
    let options = ImportHistoryOptions {
        prefix: PathBuf::from("/nowhere"),
        relocate: Relocate::No,
        threads: NonZeroUsize::MIN,
    };
    commit::import_history(&archive, new, &options, &NoProgress)?;
    Ok(())
}

impl Machine {
    /// Brings the history into another environment, and compares all revisions.
    pub(super) fn transfer(&mut self) {
        if !self.commits || self.bench.trial.is_some() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("archive");
        export(self.bench.workspace(), &file);
        let past = Past::of(self.bench.workspace());
        match &mut self.elsewhere {
            None => {
                let received = Bench::received(|store| import(&file, store).unwrap());
                assert_eq!(Past::of(received.workspace()), past);
                self.elsewhere = Some(received);
            }
            Some(other) => {
                let archive = HistoryArchive::open(&file).unwrap();
                let relation = commit::relation(other.workspace(), &archive, &NoProgress).unwrap();
                let current = match relation {
                    Relation::Newer(_) => {
                        commit::forward(other.workspace(), &archive, "", &NoProgress).unwrap();
                        past.current
                    }
                    // An undo may have made an older one current here.
                    Relation::Contained => Past::of(other.workspace()).current,
                    other => panic!("{other:?}"),
                };
                other.remount();
                assert_eq!(Past::of(other.workspace()), Past { current, ..past });
            }
        }
        let mut copy = self.elsewhere.as_ref().unwrap().copy();
        for (id, tree) in &self.revisions {
            commit::rollback(copy.workspace(), Some(*id), DiscardMode::Always, "").unwrap();
            tree.assert_is(&Tree::read(copy.union()));
        }
        copy.close();
    }
}

#[test]
fn histories_of_random_operations_are_the_same_elsewhere() {
    random::run_each(16, |ops| {
        let mut machine = Machine::new(Bench::imported());
        for (done, op) in ops.iter().enumerate() {
            machine.step(*op);
            if done % 12 == 11 {
                machine.transfer();
            }
        }
        machine.transfer();
    });
}

/// Returns the archive of a history with a branch, a tag and a removed revision.
fn archive(dir: &Path) -> (Vec<u8>, Past) {
    let bench = Bench::empty();
    let workspace = bench.workspace();
    let commit = |seed: u64| {
        let name = format!("file {seed}");
        bench.make_file(name.as_bytes(), &noise(seed, 3000));
        let options = CommitOptions {
            message: format!("with {name}"),
            ..CommitOptions::default()
        };
        bench.commit(&options).unwrap().revision
    };
    let first = commit(1);
    commit(2);
    workspace.db().set_tag("tag", first).unwrap();
    commit::rollback(workspace, Some(first), DiscardMode::Always, "").unwrap();
    commit(3);
    let file = dir.join("good");
    export(workspace, &file);
    (fs::read(file).unwrap(), Past::of(workspace))
}

#[test]
fn changed_archives_are_refused_or_have_the_same_content() {
    // In memory if possible: nothing here needs to be durable.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.unwrap();
    let (good, past) = archive(dir.path());
    let file = dir.path().join("changed");
    let (mut refused, mut accepted) = (0, 0);
    let mut attempt = |bytes: &[u8], what: &str| {
        fs::write(&file, bytes).unwrap();
        let store = dir.path().join("store");
        match import(&file, &store) {
            Ok(()) => {
                let env = Store::new(&store).open(&name()).unwrap();
                let (workspace, _) = Workspace::open(env, &super::bench::config()).unwrap();
                assert_eq!(Past::of(&workspace), past, "{what}");
                workspace.close().unwrap();
                accepted += 1;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("changed: "), "{what}: {text}");
                refused += 1;
                if let Ok(mut left) = fs::read_dir(store.join("store")) {
                    assert!(left.next().is_none(), "{what}: {text}");
                }
            }
        }
        fs::remove_dir_all(&store).ok();
    };
    attempt(&good, "nothing changed");
    // Every byte of a header, some of each content.
    for at in (0..good.len()).step_by(53).chain(0..512) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        attempt(&bytes, &format!("byte {at} of {} flipped", good.len()));
    }
    for cut in (0..good.len())
        .step_by(509)
        .chain((0..=good.len()).step_by(512))
    {
        if cut < good.len() {
            attempt(&good[..cut], &format!("the first {cut} bytes"));
        }
    }
    for at in (0..good.len()).step_by(997) {
        let mut bytes = good.clone();
        let end = (at + 512).min(bytes.len());
        bytes[at..end].fill(0);
        attempt(&bytes, &format!("zeros from {at} on"));
        bytes = good.clone();
        bytes.splice(at..at, [0; 512]);
        attempt(&bytes, &format!("more from {at} on"));
    }
    println!(
        "{} bytes: {refused} refused, {accepted} with the same content",
        good.len()
    );
    // Bytes between the members have no meaning.
    assert!(
        accepted > 0 && refused > 4 * accepted,
        "{refused} {accepted}"
    );
}
