//! What the upper layers of a view say of names, beside what was committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Entry;
use super::view::View;
use crate::object::{Ino, Kind};
use crate::union::{LowerStack, Result};

/// What a name leads to, and the committed object that belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// The object now; `None` if there is none.
    pub target: Option<Ino>,
    /// The committed object.
    pub below: Option<Ino>,
}

/// The names in which a view may differ from the committed one.
///
/// A name is given by its directory as it is now. In a new directory that stands where a committed
/// one was, names belong to those of the committed directory; all of its names have rows here,
/// whether the upper layers mention them or not.
#[derive(Debug)]
pub(crate) struct Edits {
    rows: BTreeMap<Entry, Row>,
    /// New directories that stand where a committed one was, which is gone; and the reverse.
    past: HashMap<Ino, Ino>,
    heirs: HashMap<Ino, Ino>,
    /// Names that objects did not have, in order.
    links: HashMap<Ino, Vec<Entry>>,
    /// Committed names that objects have lost: in directories that are there, in order, then
    /// others.
    missing: HashMap<Ino, Vec<Entry>>,
    /// Committed directories that are gone and have no successor, and the names in them, each
    /// directory before what is in it.
    gone_dirs: HashSet<Ino>,
    gone: Vec<(Entry, Ino)>,
    /// A new name of a committed object stands for one that it has lost, as far as they go; and the
    /// reverse.
    renamed_from: HashMap<Entry, Entry>,
    renamed_to: HashMap<Entry, Entry>,
    /// Directories that were looked for, by whether names lead to them.
    reachable: HashMap<Ino, bool>,
}

impl Edits {
    /// Compares the names of a view with those of the committed one, on which it is built.
    pub(crate) fn of(view: &dyn View, base: &LowerStack) -> Result<Edits> {
        Edits::new(view, base, view.mentioned()?.names)
    }

    /// Compares these names.
    pub(in crate::union) fn new(
        view: &dyn View,
        base: &LowerStack,
        names: BTreeMap<Ino, BTreeSet<Box<[u8]>>>,
    ) -> Result<Edits> {
        let mut search = Search {
            view,
            base,
            reachable: HashMap::new(),
            past: HashMap::new(),
        };
        let mut rows = BTreeMap::new();
        for (dir, mut names) in names {
            if !search.is_reachable(dir)? {
                continue;
            }
            let before = search.past_of(dir)?;
            if let Some(before) = before.filter(|before| *before != dir) {
                let all = base.list(before)?;
                names.extend(all.iter().map(|(name, _, _)| Box::from(name)));
            }
            for name in names {
                let row = Row {
                    target: view.lookup(dir, &name)?,
                    below: match before {
                        Some(before) => base.lookup(before, &name)?,
                        None => None,
                    },
                };
                rows.insert((dir, name), row);
            }
        }
        let past: HashMap<Ino, Ino> = search
            .past
            .iter()
            .filter_map(|(dir, past)| Some((*dir, (*past)?)))
            .collect();
        let mut edits = Edits {
            rows,
            heirs: past.iter().map(|(dir, past)| (*past, *dir)).collect(),
            past,
            links: HashMap::new(),
            missing: HashMap::new(),
            gone_dirs: HashSet::new(),
            gone: Vec::new(),
            renamed_from: HashMap::new(),
            renamed_to: HashMap::new(),
            reachable: HashMap::new(),
        };
        edits.collect(&mut search)?;
        edits.reachable = search.reachable;
        edits.pair();
        Ok(edits)
    }

    /// Collects the names that objects have gained and lost.
    fn collect(&mut self, search: &mut Search<'_>) -> Result<()> {
        let mut pending = Vec::new();
        for (entry, row) in &self.rows {
            if row.target == row.below {
                continue;
            }
            if let Some(target) = row.target {
                self.links.entry(target).or_default().push(entry.clone());
            }
            if let Some(below) = row.below {
                self.missing.entry(below).or_default().push(entry.clone());
                pending.push(below);
            }
        }
        // The first is popped first.
        pending.reverse();
        while let Some(dir) = pending.pop() {
            if self.heirs.contains_key(&dir)
                || !is_committed_dir(search.base, dir)?
                || search.is_reachable(dir)?
                || !self.gone_dirs.insert(dir)
            {
                continue;
            }
            for (name, ino, kind) in search.base.list(dir)?.iter() {
                let entry = (dir, Box::from(name));
                self.missing.entry(ino).or_default().push(entry.clone());
                self.gone.push((entry, ino));
                if kind == Kind::Directory {
                    pending.push(ino);
                }
            }
        }
        Ok(())
    }

    fn pair(&mut self) {
        for (ino, links) in &self.links {
            let missing = self.missing.get(ino).into_iter().flatten();
            for (to, from) in links.iter().zip(missing) {
                self.renamed_from.insert(to.clone(), from.clone());
                self.renamed_to.insert(from.clone(), to.clone());
            }
        }
    }

    /// All names that may differ, in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&Entry, &Row)> {
        self.rows.iter()
    }

    /// Returns what is known of a name, if it may differ.
    pub(crate) fn row(&self, entry: &Entry) -> Option<&Row> {
        self.rows.get(entry)
    }

    /// The names of a directory that may differ.
    pub(crate) fn within(&self, dir: Ino) -> impl Iterator<Item = (&Entry, &Row)> {
        let first = (dir, Box::from(&b""[..]));
        self.rows
            .range(first..)
            .take_while(move |((at, _), _)| *at == dir)
    }

    /// Names that an object did not have.
    pub(crate) fn links_of(&self, ino: Ino) -> &[Entry] {
        self.links.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// The objects that have names which they did not have.
    pub(crate) fn linked(&self) -> impl Iterator<Item = Ino> {
        self.links.keys().copied()
    }

    /// Committed names that an object has lost.
    pub(crate) fn missing_of(&self, ino: Ino) -> &[Entry] {
        self.missing.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// The committed objects that have lost names.
    pub(crate) fn lost(&self) -> impl Iterator<Item = Ino> {
        self.missing.keys().copied()
    }

    /// Names in committed directories that are gone without a successor, each directory before what
    /// is in it.
    pub(crate) fn gone(&self) -> &[(Entry, Ino)] {
        &self.gone
    }

    /// Returns true for a committed directory that is gone without a successor.
    pub(crate) fn is_gone(&self, dir: Ino) -> bool {
        self.gone_dirs.contains(&dir)
    }

    /// Returns the lost name for which a new one stands.
    pub(crate) fn renamed_from(&self, entry: &Entry) -> Option<&Entry> {
        self.renamed_from.get(entry)
    }

    /// Returns the new name that stands for a lost one.
    pub(crate) fn renamed_to(&self, entry: &Entry) -> Option<&Entry> {
        self.renamed_to.get(entry)
    }

    /// Returns the committed directory in whose place a new one stands.
    pub(crate) fn past_of(&self, dir: Ino) -> Option<Ino> {
        self.past.get(&dir).copied()
    }

    /// Returns the new directory that stands in the place of a committed one that is gone.
    pub(crate) fn heir_of(&self, dir: Ino) -> Option<Ino> {
        self.heirs.get(&dir).copied()
    }

    /// Returns true if names lead to a directory that upper layers mention.
    pub(crate) fn is_reachable(&self, dir: Ino) -> bool {
        dir == Ino::ROOT || self.reachable.get(&dir).is_some_and(|found| *found)
    }

    /// Returns the committed object that belongs to a name.
    pub(in crate::union) fn committed(
        &self,
        base: &LowerStack,
        dir: Ino,
        name: &[u8],
    ) -> Result<Option<Ino>> {
        let dir = self.past_of(dir).unwrap_or(dir);
        if is_committed_dir(base, dir)? {
            base.lookup(dir, name)
        } else {
            Ok(None)
        }
    }
}

pub(in crate::union) fn is_committed_dir(base: &LowerStack, ino: Ino) -> Result<bool> {
    let attr = base.attr(ino)?;
    Ok(attr.is_some_and(|attr| attr.kind == Kind::Directory))
}

struct Search<'a> {
    view: &'a dyn View,
    base: &'a LowerStack,
    reachable: HashMap<Ino, bool>,
    /// New directories, with the committed ones in whose places they stand.
    past: HashMap<Ino, Option<Ino>>,
}

impl Search<'_> {
    /// Returns true if names lead from the root to a directory.
    fn is_reachable(&mut self, dir: Ino) -> Result<bool> {
        let mut climbed = Vec::new();
        let mut at = dir;
        let found = loop {
            if at == Ino::ROOT {
                break true;
            }
            if let Some(known) = self.reachable.get(&at) {
                break *known;
            }
            // Damaged rows may form a loop: a directory that is being looked for is not reached by
            // way of itself.
            self.reachable.insert(at, false);
            climbed.push(at);
            match self.view.parent(at)? {
                Some((above, name)) if self.view.lookup(above, &name)? == Some(at) => at = above,
                _ => break false,
            }
        };
        for ino in climbed {
            self.reachable.insert(ino, found);
        }
        Ok(found)
    }

    /// Returns the committed directory that a reachable directory is, or in whose place it stands.
    fn past_of(&mut self, dir: Ino) -> Result<Option<Ino>> {
        let mut climbed = Vec::new();
        let mut at = dir;
        let mut past = loop {
            if let Some(known) = self.past.get(&at) {
                break *known;
            }
            if is_committed_dir(self.base, at)? {
                break Some(at);
            }
            match self.view.parent(at)? {
                Some((above, name)) => {
                    climbed.push((at, name));
                    at = above;
                }
                None => break None,
            }
        };
        while let Some((ino, name)) = climbed.pop() {
            let before = match past {
                Some(above) => self.base.lookup(above, &name)?,
                None => None,
            };
            past = match before {
                Some(before)
                    if is_committed_dir(self.base, before)? && !self.is_reachable(before)? =>
                {
                    Some(before)
                }
                _ => None,
            };
            self.past.insert(ino, past);
        }
        Ok(past)
    }
}
