//! Where packages are recorded: which paths belong to the metadata of a package, and which package
//! they describe.

use super::metadata::{self, Recordeds};
use super::tree::Tree;
use super::{Ecosystem, Package, join, split};
use crate::object::Kind;

/// Sizes above which metadata are not read.
const MAX_JSON: usize = 32 << 20;
const MAX_RECORD: usize = 16 << 20;
const MAX_NODE: usize = 1 << 20;
/// METADATA has the long description of a package after its headers.
const HEADERS: usize = 32 << 10;

/// A place where a package may be recorded: `conda-meta/NAME.json`, a directory `*.dist-info`, a
/// directory or file `*.egg-info`, or a package directory in `node_modules`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Unit {
    pub(super) ecosystem: Ecosystem,
    pub(super) path: Vec<u8>,
}

/// What the root of a tree is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Root {
    #[default]
    Other,
    /// A directory `node_modules`, whose name is not part of the paths.
    NodeModules,
}

impl Root {
    /// Returns what the root of trees is. npm, pnpm and yarn leave a file in `node_modules`.
    pub(super) fn of(trees: &[&dyn Tree]) -> Root {
        const MARKS: [&[u8]; 4] = [
            b".package-lock.json",
            b".modules.yaml",
            b".yarn-integrity",
            b".yarn-state.yml",
        ];
        let has_mark = |tree: &&dyn Tree| MARKS.iter().any(|mark| tree.stat(mark).is_some());
        match trees.iter().any(has_mark) {
            true => Root::NodeModules,
            false => Root::Other,
        }
    }
}

impl Unit {
    /// Returns the place that a path belongs to, if it belongs to metadata. In `node_modules` only
    /// the directory itself and its `package.json` do.
    pub(super) fn of(path: &[u8], root: Root) -> Option<Unit> {
        let unit = |ecosystem, path: &[u8]| {
            let path = path.to_vec();
            Some(Unit { ecosystem, path })
        };
        let (above, name) = split(path);
        if name.ends_with(b".json") && split(above).1 == b"conda-meta" {
            return unit(Ecosystem::Conda, path);
        }
        if let Some(dir) = node_directory(path, root)
            && (dir == path || (above == dir && name == b"package.json"))
        {
            return unit(Ecosystem::Node, dir);
        }
        let mut end = 0;
        for name in path.split(|byte| *byte == b'/') {
            end += name.len();
            if is_python(name) {
                return unit(Ecosystem::Python, path.get(..end)?);
            }
            end += 1;
        }
        None
    }

    /// Returns the directory that the package is installed into: of conda, the environment.
    pub(super) fn location(&self) -> &[u8] {
        let (above, _) = split(&self.path);
        match self.ecosystem {
            Ecosystem::Conda => split(above).0,
            Ecosystem::Python => above,
            Ecosystem::Node => &self.path,
        }
    }

    /// Returns the package that is recorded here in a tree.
    pub(super) fn package(&self, tree: &dyn Tree) -> Option<Package> {
        let (name, version, build) = match self.ecosystem {
            Ecosystem::Conda => self.conda(tree)?,
            Ecosystem::Python => self.python(tree)?,
            Ecosystem::Node => self.node(tree)?,
        };
        Some(Package {
            ecosystem: self.ecosystem,
            name,
            version,
            build,
            location: super::text(self.location()),
        })
    }

    fn conda(&self, tree: &dyn Tree) -> Option<(String, String, Option<String>)> {
        tree.stat(&self.path)
            .filter(|stat| stat.kind == Kind::File)?;
        let stem = split(&self.path).1.strip_suffix(b".json")?;
        let (name, version, build) = metadata::conda_stem(std::str::from_utf8(stem).ok()?)?;
        Some((name, version, Some(build)))
    }

    fn python(&self, tree: &dyn Tree) -> Option<(String, String, Option<String>)> {
        let own = String::from_utf8_lossy(split(&self.path).1).into_owned();
        let (stem_name, stem_version) = metadata::python_directory(&own);
        let headers = match tree.stat(&self.path)?.kind {
            Kind::File => tree.head(&self.path, HEADERS),
            Kind::Directory => ["METADATA", "PKG-INFO"]
                .iter()
                .find_map(|file| tree.head(&join(&self.path, file.as_bytes()), HEADERS)),
            _ => None,
        };
        // Without it, the directory is what an uninstaller left.
        let (name, version) = metadata::python_headers(&headers?);
        Some((
            name.or(stem_name)?,
            version.or(stem_version).unwrap_or_else(|| "?".to_owned()),
            None,
        ))
    }

    fn node(&self, tree: &dyn Tree) -> Option<(String, String, Option<String>)> {
        let json = tree.read(&join(&self.path, b"package.json"), MAX_NODE)?;
        let (name, version) = metadata::node(&json)?;
        let own = || metadata::word(&String::from_utf8_lossy(node_name(&self.path)));
        Some((
            name.or_else(own)?,
            version.unwrap_or_else(|| "?".to_owned()),
            None,
        ))
    }

    /// Returns the file that lists the files of the package.
    pub(super) fn list(&self) -> Option<Vec<u8>> {
        match self.ecosystem {
            Ecosystem::Conda => Some(self.path.clone()),
            Ecosystem::Python => Some(join(&self.path, b"RECORD")),
            Ecosystem::Node => None,
        }
    }

    /// Reads [`Unit::list`].
    pub(super) fn read_list(&self, tree: &dyn Tree) -> Option<Vec<u8>> {
        let limit = match self.ecosystem {
            Ecosystem::Conda => MAX_JSON,
            _ => MAX_RECORD,
        };
        tree.read(&self.list()?, limit)
    }

    /// Returns the recorded files of the package. Node packages have no list.
    pub(super) fn recorded(&self, tree: &dyn Tree) -> Recordeds {
        let Some(list) = self.read_list(tree) else {
            return Recordeds::new();
        };
        match self.ecosystem {
            Ecosystem::Conda => metadata::conda_recorded(&list, self.location()),
            _ => metadata::record(&list, self.location()),
        }
    }

    /// Returns whether a path is the place itself or below it.
    pub(super) fn contains(&self, path: &[u8]) -> bool {
        path.strip_prefix(&self.path[..])
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }
}

/// Returns whether a name is that of metadata of a Python package.
pub(super) fn is_python(name: &[u8]) -> bool {
    [&b".dist-info"[..], b".egg-info"]
        .iter()
        .any(|end| name.len() > end.len() && name.ends_with(end))
}

/// Returns the package directory in `node_modules` that a path belongs to, the innermost one.
pub(super) fn node_directory(path: &[u8], root: Root) -> Option<&[u8]> {
    let of_root = || match root {
        Root::NodeModules => path.get(..node_end(path, 0)?),
        Root::Other => None,
    };
    inner_directory(path).or_else(of_root)
}

/// Likewise, if `node_modules` is in the path.
fn inner_directory(path: &[u8]) -> Option<&[u8]> {
    const DIR: &[u8] = b"node_modules/";
    let starts = |at: usize| {
        path.get(at..).is_some_and(|rest| {
            rest.starts_with(DIR) && (at == 0 || path.get(at - 1) == Some(&b'/'))
        })
    };
    // Directories between do not count: the innermost one is what a package manager put there.
    let mut at = path.len().checked_sub(DIR.len())?;
    loop {
        if starts(at)
            && let Some(end) = node_end(path, at + DIR.len())
        {
            return path.get(..end);
        }
        at = at.checked_sub(1)?;
    }
}

/// Returns the end of a name `x` or `@scope/x` that begins at `start`. Names that begin with a dot
/// are no packages.
fn node_end(path: &[u8], start: usize) -> Option<usize> {
    let rest = path.get(start..)?;
    let len = |rest: &[u8]| {
        rest.iter()
            .position(|byte| *byte == b'/')
            .unwrap_or(rest.len())
    };
    let first = len(rest);
    if rest
        .first()
        .is_none_or(|byte| *byte == b'.' || *byte == b'/')
    {
        return None;
    }
    if rest.first() != Some(&b'@') {
        return Some(start + first);
    }
    let second = rest.get(first + 1..)?;
    let second = len(second);
    (second > 0).then_some(start + first + 1 + second)
}

fn node_name(dir: &[u8]) -> &[u8] {
    let (above, name) = split(dir);
    let scope = split(above).1;
    match scope.starts_with(b"@") {
        true => dir
            .get(dir.len() - scope.len() - 1 - name.len()..)
            .unwrap_or(name),
        false => name,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metadata_are_recognised_by_their_paths() {
        for (path, unit) in [
            ("conda-meta/x-1-0.json", Some("conda-meta/x-1-0.json")),
            (
                "envs/a/conda-meta/x-1-0.json",
                Some("envs/a/conda-meta/x-1-0.json"),
            ),
            ("conda-meta/history", None),
            ("other/x.json", None),
            ("s/six-1.dist-info/METADATA", Some("s/six-1.dist-info")),
            ("s/six-1.dist-info/sub/x", Some("s/six-1.dist-info")),
            ("s/six-1.dist-info", Some("s/six-1.dist-info")),
            ("s/six.egg-info", Some("s/six.egg-info")),
            ("s/.dist-info", None),
            ("node_modules/a/package.json", Some("node_modules/a")),
            ("node_modules/a", Some("node_modules/a")),
            ("node_modules/a/lib/package.json", None),
            (
                "x/node_modules/@s/a/package.json",
                Some("x/node_modules/@s/a"),
            ),
            ("node_modules/@s", None),
            (
                "node_modules/a/node_modules/b/package.json",
                Some("node_modules/a/node_modules/b"),
            ),
            ("node_modules/.cache/package.json", None),
            ("node_modules", None),
            ("my_node_modules/a/package.json", None),
        ] {
            let found = Unit::of(path.as_bytes(), Root::Other).map(|unit| unit.path);
            assert_eq!(found.as_deref(), unit.map(str::as_bytes), "{path}");
        }
    }

    #[test]
    fn a_file_belongs_to_the_innermost_package_directory() {
        for (path, dir) in [
            ("node_modules/a/x/y", Some("node_modules/a")),
            (
                "node_modules/a/node_modules/b/y",
                Some("node_modules/a/node_modules/b"),
            ),
            ("node_modules/a/node_modules/.bin/y", Some("node_modules/a")),
            ("lib/node_modules/@s/p/y", Some("lib/node_modules/@s/p")),
            ("lib/y", None),
        ] {
            let found = node_directory(path.as_bytes(), Root::Other);
            assert_eq!(found, dir.map(str::as_bytes), "{path}");
        }
        for (path, dir) in [
            ("a/x/y", Some("a")),
            ("@s/a/package.json", Some("@s/a")),
            ("@s", None),
            (".bin/a", None),
            (".package-lock.json", None),
            ("a/node_modules/b/y", Some("a/node_modules/b")),
            ("a/node_modules/.bin/b", Some("a")),
            (
                ".pnpm/a@1/node_modules/a/y",
                Some(".pnpm/a@1/node_modules/a"),
            ),
        ] {
            let found = node_directory(path.as_bytes(), Root::NodeModules);
            assert_eq!(found, dir.map(str::as_bytes), "{path} in node_modules");
        }
        assert_eq!(node_name(b"x/node_modules/@s/p"), b"@s/p");
        assert_eq!(node_name(b"node_modules/p"), b"p");
    }
}
