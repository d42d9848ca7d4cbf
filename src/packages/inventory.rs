//! All packages of a tree, and the files that belong to each.

use std::ops::ControlFlow;

use super::touched::{Touched, units_of};
use super::tree::{Stat, Tree};
use super::unit::Root;
use super::{Package, PackageChanges};
use crate::object::Kind;

/// The packages of a tree, and the owners of the paths that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) packages: Vec<Package>,
    /// The package that each path belongs to, by its place in `packages`.
    pub(crate) owners: Vec<Option<usize>>,
}

/// Finds all packages of a tree. `paths` are all of its paths. Directories belong to no package.
pub(crate) fn inventory<'a>(
    paths: impl Iterator<Item = (&'a [u8], Kind)> + Clone,
    tree: &dyn Tree,
) -> Inventory {
    let units = units_of(paths.clone().map(|(path, _)| path), Root::of(&[tree]));
    // Compared with nothing, all packages are new.
    let touched = Touched::of(&units, &Nothing, tree, &mut PackageChanges::default());
    let owner = |(path, kind): (&[u8], Kind)| {
        if kind == Kind::Directory {
            return None;
        }
        let listed = touched.files.get(path).map(|listed| listed.package);
        let found = listed.or_else(|| touched.package_of(path));
        let found = found.or_else(|| match kind {
            Kind::Symlink => touched.package_of_target(path, tree),
            _ => None,
        });
        found.or_else(|| touched.package_of_source(path))
    };
    Inventory {
        owners: paths.map(owner).collect(),
        packages: touched.packages,
    }
}

/// A tree without files.
struct Nothing;

impl Tree for Nothing {
    fn stat(&self, _: &[u8]) -> Option<Stat> {
        None
    }

    fn each_chunk(&self, _: &[u8], _: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> bool {
        false
    }

    fn names(&self, _: &[u8]) -> Vec<Box<[u8]>> {
        Vec::new()
    }

    fn target(&self, _: &[u8]) -> Option<Box<[u8]>> {
        None
    }
}
