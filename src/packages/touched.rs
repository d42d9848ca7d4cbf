//! The packages whose records are among the changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::metadata::Recorded;
use super::tree::Tree;
use super::unit::{self, Root, Unit};
use super::{Ecosystem, Package, PackageChanges, Upgraded, join, normal, split};
use crate::object::Timestamp;
use crate::union::{Change, ChangeKind};

/// A file that a changed package lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    /// The package, by its place in [`Touched::packages`].
    pub(super) package: usize,
    /// Whether a package listed it before.
    was: bool,
    /// What the package says about it, if it is installed now.
    pub(super) now: Option<(Recorded, Timestamp)>,
}

/// Packages whose records are among the changes, and their files.
#[derive(Debug, Default)]
pub(super) struct Touched {
    root: Root,
    pub(super) packages: Vec<Package>,
    /// The records of these packages.
    pub(super) units: HashMap<Vec<u8>, usize>,
    pub(super) files: HashMap<Vec<u8>, Listed>,
}

/// A package with its record and the tree that has it.
struct Found {
    unit: Unit,
    package: Package,
}

/// Packages of one name at one place, before and after.
#[derive(Default)]
struct Pair {
    gone: Vec<Found>,
    new: Vec<Found>,
}

/// Returns the records that are among the changes.
pub(super) fn units(changes: &[Change], root: Root) -> BTreeSet<Unit> {
    let changed = changes.iter().filter(|change| !change.is_touched());
    let paths = changed.flat_map(|change| {
        let from = match &change.what {
            ChangeKind::Renamed { from } => Some(from),
            _ => None,
        };
        [Some(&change.path), change.committed.as_ref(), from]
    });
    units_of(paths.flatten().map(Vec::as_slice), root)
}

/// Returns the records that paths belong to.
pub(super) fn units_of<'a>(paths: impl Iterator<Item = &'a [u8]>, root: Root) -> BTreeSet<Unit> {
    paths.filter_map(|path| Unit::of(path, root)).collect()
}

impl Touched {
    /// Compares records before and after, and adds what they say to `found`.
    pub(super) fn of(
        units: &BTreeSet<Unit>,
        before: &dyn Tree,
        after: &dyn Tree,
        found: &mut PackageChanges,
    ) -> Touched {
        let mut touched = Touched {
            root: Root::of(&[before, after]),
            ..Touched::default()
        };
        let (conda, others): (Vec<&Unit>, Vec<&Unit>) = units
            .iter()
            .partition(|unit| unit.ecosystem == Ecosystem::Conda);
        let none = HashSet::new();
        touched.compare(conda, [&none, &none], [before, after], found);
        // A package of conda has the records of the others among its files.
        let theirs = |is_listed: &dyn Fn(&Listed) -> bool| {
            let is_theirs = |unit: &&&Unit| {
                let marks = unit.marks();
                let mut listed = marks.iter().filter_map(|mark| touched.files.get(mark));
                listed.any(is_listed)
            };
            others.iter().filter(is_theirs).copied().collect()
        };
        let hidden: [HashSet<&Unit>; 2] =
            [theirs(&|file| file.was), theirs(&|file| file.now.is_some())];
        let [was, is] = &hidden;
        touched.compare(others, [was, is], [before, after], found);
        touched
    }

    /// Compares records. Those that are `hidden`, before or after, count as absent.
    fn compare(
        &mut self,
        units: Vec<&Unit>,
        hidden: [&HashSet<&Unit>; 2],
        [before, after]: [&dyn Tree; 2],
        found: &mut PackageChanges,
    ) {
        let mut pairs: BTreeMap<_, Pair> = BTreeMap::new();
        for unit in units {
            let [was_hidden, is_hidden] = hidden.map(|hidden| hidden.contains(unit));
            let was = unit.package(before).filter(|_| !was_hidden);
            let is = unit.package(after).filter(|_| !is_hidden);
            if was == is {
                if let Some(package) = is
                    && unit.has_other_files(before, after)
                {
                    let at = self.add(unit, package.clone());
                    self.list_before(unit, at, before);
                    self.list_now(unit, at, after);
                    found.reinstalled.push(package);
                }
                continue;
            }
            if let Some(package) = was {
                let pair = pairs.entry(key(unit, &package)).or_default();
                let unit = unit.clone();
                pair.gone.push(Found { unit, package });
            }
            if let Some(package) = is {
                let pair = pairs.entry(key(unit, &package)).or_default();
                let unit = unit.clone();
                pair.new.push(Found { unit, package });
            }
        }
        for pair in pairs.into_values() {
            self.pair(pair, before, after, found);
        }
    }

    fn pair(
        &mut self,
        pair: Pair,
        before: &dyn Tree,
        after: &dyn Tree,
        found: &mut PackageChanges,
    ) {
        let mut gone = pair.gone.into_iter();
        for new in pair.new {
            let at = self.add(&new.unit, new.package.clone());
            let old = gone.next();
            if let Some(old) = &old {
                self.units.insert(old.unit.path.clone(), at);
                self.list_before(&old.unit, at, before);
            }
            self.list_now(&new.unit, at, after);
            match old {
                Some(old)
                    if (&old.package.version, &old.package.build)
                        == (&new.package.version, &new.package.build) =>
                {
                    // It moved, or its record has another name.
                    found.reinstalled.push(new.package);
                }
                Some(old) => found.upgraded.push(Upgraded {
                    package: new.package,
                    from: old.package.version,
                    from_build: old.package.build,
                }),
                None => found.installed.push(new.package),
            }
        }
        for old in gone {
            let at = self.add(&old.unit, old.package.clone());
            self.list_before(&old.unit, at, before);
            found.removed.push(old.package);
        }
    }

    fn add(&mut self, unit: &Unit, package: Package) -> usize {
        let at = self.packages.len();
        self.packages.push(package);
        self.units.insert(unit.path.clone(), at);
        at
    }

    /// Adds the files that a record listed before.
    fn list_before(&mut self, unit: &Unit, package: usize, tree: &dyn Tree) {
        for (path, _) in unit.recorded(tree) {
            self.file(path, package).was = true;
        }
    }

    /// Adds the files that a record lists now.
    fn list_now(&mut self, unit: &Unit, package: usize, tree: &dyn Tree) {
        let Some(written) = unit.list().and_then(|list| tree.stat(&list)) else {
            return;
        };
        for (path, recorded) in unit.recorded(tree) {
            let file = self.file(path, package);
            // Packages of conda come first, and their records count.
            if file.package == package {
                file.now = Some((recorded, written.mtime));
            }
        }
    }

    /// Returns the package whose record or package directory a path lies in.
    pub(super) fn package_of(&self, path: &[u8]) -> Option<usize> {
        if self.units.is_empty() {
            return None;
        }
        let node = unit::node_directory(path, self.root).and_then(|dir| self.units.get(dir));
        let record = || self.units.get(&Unit::of(path, self.root)?.path);
        node.or_else(record).copied()
    }

    /// Returns the package that a link leads to, as those in `node_modules/.bin`.
    pub(super) fn package_of_target(&self, link: &[u8], tree: &dyn Tree) -> Option<usize> {
        if self.units.is_empty() {
            return None;
        }
        let target = tree.target(link)?;
        let path = normal(&join(split(link).0, &target))?;
        let listed = self.files.get(&path);
        let listed = listed.map(|listed| listed.package);
        listed.or_else(|| self.package_of(&path))
    }

    /// Returns the package that has the source of a file of bytecode.
    pub(super) fn package_of_source(&self, bytecode: &[u8]) -> Option<usize> {
        let source = source_of(bytecode).filter(|_| is_bytecode(bytecode))?;
        self.files.get(&source).map(|listed| listed.package)
    }

    fn file(&mut self, path: Vec<u8>, package: usize) -> &mut Listed {
        self.files.entry(path).or_insert(Listed {
            package,
            was: false,
            now: None,
        })
    }
}

/// Returns whether a path is that of compiled Python.
pub(super) fn is_bytecode(path: &[u8]) -> bool {
    let (dir, name) = split(path);
    name.ends_with(b".pyc") || split(dir).1 == b"__pycache__"
}

/// Returns the source of a file of bytecode: `x.py` of `__pycache__/x.cpython-312.pyc`.
fn source_of(path: &[u8]) -> Option<Vec<u8>> {
    let (dir, name) = split(path);
    let (above, cache) = split(dir);
    let stem = name.split(|byte| *byte == b'.').next()?;
    let source = [stem, b".py"].concat();
    match cache {
        b"__pycache__" => Some(join(above, &source)),
        _ => Some(join(dir, &source)),
    }
}

/// Packages with the same key are versions of one.
fn key(unit: &Unit, package: &Package) -> (Ecosystem, String, Vec<u8>) {
    let name = match unit.ecosystem {
        Ecosystem::Python => python_name(&package.name),
        _ => package.name.clone(),
    };
    let location = unit.location();
    // pnpm has a directory for each version.
    let store = b".pnpm/";
    let at = location.windows(store.len()).position(|part| part == store);
    let location = match at.filter(|_| unit.ecosystem == Ecosystem::Node) {
        Some(at) => location.get(..at + store.len()).unwrap_or(location),
        None => location,
    };
    (unit.ecosystem, name, location.to_vec())
}

/// Normalizes the name of a Python package (PEP 503).
pub(super) fn python_name(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '-' | '_' | '.' => {
                if !normal.ends_with('-') {
                    normal.push('-');
                }
            }
            _ => normal.extend(character.to_lowercase()),
        }
    }
    normal
}

impl Unit {
    /// Returns files of a record, one of which another package manager lists if it has installed
    /// the package.
    fn marks(&self) -> Vec<Vec<u8>> {
        let file = |name: &[u8]| super::join(&self.path, name);
        match self.ecosystem {
            Ecosystem::Conda => Vec::new(),
            Ecosystem::Python => vec![file(b"METADATA"), file(b"PKG-INFO"), self.path.clone()],
            Ecosystem::Node => vec![file(b"package.json")],
        }
    }

    /// Returns whether a record of the same package lists other files, or files with other content.
    fn has_other_files(&self, before: &dyn Tree, after: &dyn Tree) -> bool {
        let Some(list) = self.list() else {
            return false;
        };
        let stat = |tree: &dyn Tree| tree.stat(&list);
        if stat(before).is_none() || stat(after).is_none() {
            return false;
        }
        let is_bytecode = |path: &[u8]| split(path).1.ends_with(b".pyc");
        let mut was = self.recorded(before);
        let mut is = self.recorded(after);
        // A record of the installation itself is not part of the package.
        for files in [&mut was, &mut is] {
            files.retain(|path, _| !is_bytecode(path) && !self.contains(path));
        }
        was != is
    }
}
