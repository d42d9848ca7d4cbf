//! Finds the packages that own given files, among the packages that did not change.
//!
//! There may be hundreds of packages with long lists of files, so lists are read only as far as
//! needed: first those of packages named like the directory of a file, then the others, until the
//! owner of each file is known. The bytes that are read have a limit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::metadata::{self, Recorded};
use super::touched::python_name;
use super::tree::Tree;
use super::unit::{self, Root, Unit};
use super::{Ecosystem, Package, join, split};

/// The most bytes of lists that are read; for some thousand packages.
const BUDGET: usize = 256 << 20;

/// Finds owners of committed files.
pub(super) struct Owners<'a> {
    tree: &'a dyn Tree,
    root: Root,
    /// Packages that changed.
    touched: &'a dyn Fn(&Unit) -> bool,
    budget: usize,
    found: BTreeMap<Vec<u8>, Owned>,
    packages: HashMap<Unit, Option<Package>>,
}

/// A file with its owner.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    pub(super) package: Package,
    /// What the package says about the file.
    pub(super) recorded: Recorded,
}

impl<'a> Owners<'a> {
    pub(super) fn new(tree: &'a dyn Tree, touched: &'a dyn Fn(&Unit) -> bool) -> Owners<'a> {
        Owners {
            tree,
            root: Root::of(&[tree]),
            touched,
            budget: BUDGET,
            found: BTreeMap::new(),
            packages: HashMap::new(),
        }
    }

    /// Returns the owners of files, by committed path.
    pub(super) fn find(mut self, paths: BTreeSet<Vec<u8>>) -> BTreeMap<Vec<u8>, Owned> {
        let mut wanted = paths;
        wanted.retain(|path| !self.is_of_node(path));
        self.conda(&mut wanted);
        self.python(&mut wanted);
        self.found
    }

    fn package(&mut self, unit: &Unit) -> Option<Package> {
        if (self.touched)(unit) {
            return None;
        }
        let tree = self.tree;
        let known = self.packages.entry(unit.clone());
        known.or_insert_with(|| unit.package(tree)).clone()
    }

    fn is_of_node(&mut self, path: &[u8]) -> bool {
        let Some(dir) = unit::node_directory(path, self.root) else {
            return false;
        };
        let unit = Unit {
            ecosystem: Ecosystem::Node,
            path: dir.to_vec(),
        };
        let Some(package) = self.package(&unit) else {
            return false;
        };
        let recorded = Recorded::default();
        self.found
            .insert(path.to_vec(), Owned { package, recorded });
        true
    }

    /// Reads the list of a package within the budget.
    fn list(&mut self, unit: &Unit) -> Option<Vec<u8>> {
        let list = unit.read_list(self.tree)?;
        self.budget = self.budget.checked_sub(list.len())?;
        Some(list)
    }

    /// Records the owner of some files.
    fn own(&mut self, unit: &Unit, paths: Vec<Vec<u8>>) {
        let Some(package) = self.package(unit) else {
            return;
        };
        let recorded = unit.recorded(self.tree);
        for path in paths {
            let recorded = recorded.get(&path).copied().unwrap_or_default();
            let package = package.clone();
            self.found.insert(path, Owned { package, recorded });
        }
    }

    fn conda(&mut self, wanted: &mut BTreeSet<Vec<u8>>) {
        let names = self.tree.names(b"conda-meta");
        let mut units = Vec::new();
        for name in names.iter().filter(|name| name.ends_with(b".json")) {
            let unit = Unit {
                ecosystem: Ecosystem::Conda,
                path: join(b"conda-meta", name),
            };
            let stem = std::str::from_utf8(name.get(..name.len() - 5).unwrap_or_default());
            let package = stem.ok().and_then(metadata::conda_stem);
            units.push((package.map(|(name, ..)| python_name(&name)), unit));
        }
        let tops: BTreeSet<String> = wanted.iter().filter_map(|path| likely_name(path)).collect();
        let is_likely =
            |name: &Option<String>| name.as_ref().is_some_and(|name| tops.contains(name));
        units.sort_by_key(|(name, _)| !is_likely(name));
        for (_, unit) in units {
            if wanted.is_empty() {
                return;
            }
            if (self.touched)(&unit) {
                continue;
            }
            let Some(list) = self.list(&unit) else {
                continue;
            };
            let files = metadata::conda_files(&list);
            let has = |path: &str| wanted.take(path.as_bytes());
            let mine: Vec<Vec<u8>> = {
                let mut has = has;
                files.iter().filter_map(|path| has(path)).collect()
            };
            if !mine.is_empty() {
                self.own(&unit, mine);
            }
        }
    }

    fn python(&mut self, wanted: &mut BTreeSet<Vec<u8>>) {
        let mut dirs: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut is_elsewhere = false;
        for path in wanted.iter() {
            match site_packages(path) {
                Some(dir) => drop(dirs.insert(dir.to_vec())),
                None => is_elsewhere = true,
            }
        }
        if is_elsewhere {
            // Programs and data are listed in the package's RECORD too.
            for lib in [&b"lib"[..], b"lib64"] {
                let names = self.tree.names(lib);
                let versions = names.iter().filter(|name| name.starts_with(b"python"));
                dirs.extend(versions.map(|name| join(&join(lib, name), b"site-packages")));
            }
        }
        for dir in dirs {
            self.site(&dir, wanted);
        }
    }

    /// Finds owners among the packages in one `site-packages`.
    fn site(&mut self, dir: &[u8], wanted: &mut BTreeSet<Vec<u8>>) {
        let tops: BTreeSet<String> = wanted.iter().filter_map(|path| likely_name(path)).collect();
        let names = self.tree.names(dir);
        let mut units: Vec<(bool, Unit)> = names
            .iter()
            .filter(|name| unit::is_python(name))
            .map(|name| {
                let (own, _) = metadata::python_directory(&String::from_utf8_lossy(name));
                let is_likely = own.is_some_and(|own| tops.contains(&python_name(&own)));
                let unit = Unit {
                    ecosystem: Ecosystem::Python,
                    path: join(dir, name),
                };
                (!is_likely, unit)
            })
            .collect();
        units.sort_by_key(|(is_unlikely, _)| *is_unlikely);
        for (_, unit) in units {
            let below = wanted.iter().filter(|path| unit.contains(path));
            let below: Vec<Vec<u8>> = below.cloned().collect();
            let is_known = wanted.len() == below.len();
            if wanted.is_empty() {
                return;
            }
            if (self.touched)(&unit) {
                continue;
            }
            let mut mine = below;
            if !is_known && let Some(list) = self.list(&unit) {
                let lines = list.split(|byte| *byte == b'\n');
                let paths = lines.filter_map(metadata::record_path);
                let listed = paths.filter_map(|path| metadata::join_normal(dir, &path));
                mine.extend(listed.filter(|path| wanted.contains(path)));
            }
            for path in &mine {
                wanted.remove(path);
            }
            if !mine.is_empty() {
                self.own(&unit, mine);
            }
        }
    }
}

/// Returns the directory of Python packages that a path lies in.
fn site_packages(path: &[u8]) -> Option<&[u8]> {
    let mut above = split(path).0;
    while !above.is_empty() {
        let (next, name) = split(above);
        if name == b"site-packages" || name == b"dist-packages" {
            return Some(above);
        }
        above = next;
    }
    None
}

/// Returns the normalized name of the package that a path in `site-packages` probably belongs to:
/// that of its first directory or module.
fn likely_name(path: &[u8]) -> Option<String> {
    let dir = site_packages(path)?;
    let rest = path.get(dir.len() + 1..)?;
    let first = rest.split(|byte| *byte == b'/').next()?;
    let stem = first.split(|byte| *byte == b'.').next()?;
    Some(python_name(&String::from_utf8_lossy(stem)))
}
