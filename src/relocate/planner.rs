//! Computes the plan: which files contain a prefix, and what replaces it.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;

use super::conda::{self, Listed};
use super::contents::{Found, Rest, listed_file, other_file};
use super::detect::{self, Evidence};
use super::items::{
    Item, PIECE, contains, is_bytecode, is_conda_meta, is_record, is_unpacker, list, of_root,
    parent, read, reading, source_of,
};
use super::record;
use super::search::{Bounds, Encoding, Pattern, ends_component};
use super::shebang::Owner;
use super::splice::{self, Changed, Splice, apply};
use super::text::{self, Quoting};
use super::tree::Tree;
use super::{Action, Edit, EditKind, Error, Impossible, Plan, Request, Scope, Why};
use crate::object::Kind;
use crate::progress::{Progress, Report};

/// The largest file that is rewritten.
const LARGEST: u64 = 1 << 30;
/// The largest record of a package that is read.
const LARGEST_RECORD: u64 = 256 << 20;

pub(super) fn plan(
    tree: &dyn Tree,
    request: &Request,
    progress: &dyn Progress,
) -> Result<Plan, Error> {
    let new = request.new.as_os_str().as_bytes();
    let evidence = detect::examine(tree).map_err(of_root)?;
    if request.scope == Scope::Recognised && !evidence.is_environment {
        return Ok(Plan::default());
    }
    let items = list(tree, progress)?;
    let conda = Conda::read(tree, &items, evidence.table.clone())?;
    let olds = old_prefixes(request, &evidence, &conda);
    let mut planner = Planner {
        tree,
        new,
        patterns: ordinary(&olds, new),
        olds,
        conda,
        of_placeholder: HashMap::new(),
        changed: HashMap::new(),
        used: HashSet::new(),
        plan: Plan::default(),
    };
    planner.files(&items, progress)?;
    planner.links(&items)?;
    planner.bytecode(&items);
    let is_conda = |item: &&Item| is_conda_meta(&item.node.path);
    let paths = planner.paths_of_changed(&items);
    for item in items.iter().filter(|item| is_record(&item.node.path)) {
        planner.digests(item, &paths, DigestsOf::Python)?;
    }
    // Packages of conda list the files of Python packages.
    let paths = planner.paths_of_changed(&items);
    for item in items.iter().filter(is_conda) {
        planner.digests(item, &paths, DigestsOf::Conda)?;
    }
    if !planner.plan.edits.is_empty() {
        check_new(request)?;
    }
    let used = planner.used;
    let olds = planner.olds.into_iter();
    planner.plan.prefixes = olds.filter(|old| used.contains(old)).collect();
    Ok(planner.plan)
}

/// Fails if the new prefix has a meaning for shells or in JSON: the files that contain it would
/// not be valid.
fn check_new(request: &Request) -> Result<(), Error> {
    let bytes = request.new.as_os_str().as_bytes();
    let bad = bytes.iter().find(|byte| b"'\"$`\\!".contains(byte));
    match bad {
        Some(&byte) => Err(Error::Prefix {
            path: request.new.clone(),
            what: format!("'{}'", char::from(byte)),
        }),
        None => Ok(()),
    }
}

/// Returns the prefixes to search for, other than the new one.
fn old_prefixes(request: &Request, evidence: &Evidence, conda: &Conda) -> Vec<Vec<u8>> {
    let known = request.old.iter().map(|path| path.as_os_str().as_bytes());
    let found = evidence.prefixes.iter().map(Vec::as_slice);
    // A placeholder that no package has is the path of the environment that was packed. Those of
    // packages are in files that were not unpacked.
    let packed = evidence.table.iter().map(|listed| &listed.placeholder[..]);
    let mut olds = Vec::new();
    for path in known.chain(found).chain(packed).filter_map(detect::prefix) {
        if !conda.placeholders.contains(&path)
            && path != request.new.as_os_str().as_bytes()
            && !olds.contains(&path)
        {
            olds.push(path);
        }
    }
    olds
}

/// What the records of conda say about files.
pub(super) struct Conda {
    /// Files that contained a placeholder, by path.
    pub(super) listed: HashMap<Vec<u8>, Listed>,
    pub(super) placeholders: HashSet<Vec<u8>>,
    /// Other files in `bin`.
    scripts: HashSet<Vec<u8>>,
}

impl Conda {
    /// Reads `conda-meta` and adds the table of conda-pack.
    pub(super) fn read(
        tree: &dyn Tree,
        items: &[Item],
        table: Vec<Listed>,
    ) -> Result<Conda, Error> {
        let mut conda = Conda {
            listed: HashMap::new(),
            placeholders: HashSet::new(),
            scripts: HashSet::new(),
        };
        for item in items.iter().filter(|item| is_conda_meta(&item.node.path)) {
            if item.kind != Kind::File || item.size > LARGEST_RECORD {
                continue;
            }
            let data = read(tree, item)?;
            let Some(package) = conda::package(&data) else {
                continue;
            };
            for listed in package.listed {
                conda.placeholders.insert(listed.placeholder.clone());
                conda.listed.entry(listed.path.clone()).or_insert(listed);
            }
            let scripts = package.others.into_iter();
            let scripts = scripts.filter(|path| path.starts_with(b"bin/"));
            conda.scripts.extend(scripts);
        }
        for listed in table {
            conda.listed.entry(listed.path.clone()).or_insert(listed);
        }
        Ok(conda)
    }
}

struct Planner<'a> {
    tree: &'a dyn Tree,
    new: &'a [u8],
    olds: Vec<Vec<u8>>,
    /// Those of files that no record of conda names.
    patterns: Vec<Pattern>,
    conda: Conda,
    /// Those of files with a placeholder.
    of_placeholder: HashMap<Vec<u8>, Vec<Pattern>>,
    /// The files that are rewritten, by identity.
    changed: HashMap<u64, Changed>,
    /// Which of the old prefixes occur.
    used: HashSet<Vec<u8>>,
    plan: Plan,
}

impl Planner<'_> {
    /// Plans all files but those that contain digests of others.
    fn files(&mut self, items: &[Item], progress: &dyn Progress) -> Result<(), Error> {
        // Of several names of a file one that conda lists counts.
        let is_listed = |item: &&Item| self.conda.listed.contains_key(&item.node.path);
        let (listed, others): (Vec<&Item>, Vec<&Item>) = items
            .iter()
            .filter(|item| item.kind == Kind::File && item.size > 0)
            .partition(is_listed);
        let mut report = Report {
            phase: "searching".to_owned(),
            files_done: 0,
            files_total: (listed.len() + others.len()) as u64,
            bytes_done: 0,
            bytes_total: 0,
        };
        let mut seen = HashSet::new();
        for item in listed.into_iter().chain(others) {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            report.files_done += 1;
            report.bytes_done += item.size;
            progress.report(&report);
            let path = &item.node.path;
            if is_bytecode(path) || is_record(path) || is_conda_meta(path) || is_unpacker(path) {
                continue;
            }
            if seen.insert(item.node.id) {
                self.file(item)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, item: &Item) -> Result<(), Error> {
        let listed = self.conda.listed.get(&item.node.path).cloned();
        if let Some(listed) = &listed {
            self.add_patterns(listed);
        }
        let patterns = match &listed {
            Some(listed) => self.of_placeholder.get(&listed.placeholder),
            None => Some(&self.patterns),
        };
        let Some(patterns) = patterns else {
            return Ok(());
        };
        if item.size > PIECE as u64 && !contains(self.tree, item, patterns)? {
            return Ok(());
        }
        if item.size > LARGEST {
            self.fail(item, Why::TooLarge);
            return Ok(());
        }
        let data = read(self.tree, item)?;
        let found = match &listed {
            Some(listed) => listed_file(&data, listed, patterns, &self.olds, self.new),
            None => {
                let owner = match self.conda.scripts.contains(&item.node.path) {
                    true => Owner::Conda,
                    false => Owner::Pip,
                };
                other_file(&data, &item.node.path, patterns, owner)
            }
        };
        if !matches!(found, Found::Nothing) {
            self.note_used(&data);
        }
        match found {
            Found::Nothing => {}
            Found::TooLong(bytes) => self.fail(item, Why::TooLong(bytes)),
            Found::Unknown => self.plan.left.push(item.node.path.clone()),
            Found::Splices(kind, splices, rest) => {
                if rest == Rest::Left {
                    self.plan.left.push(item.node.path.clone());
                }
                self.rewrite(item, kind, &data, splices);
            }
        }
        Ok(())
    }

    /// Notes which old prefixes content has.
    fn note_used(&mut self, data: &[u8]) {
        for old in &self.olds {
            if !self.used.contains(old) && memchr::memmem::find(data, old).is_some() {
                self.used.insert(old.clone());
            }
        }
    }

    fn add_patterns(&mut self, listed: &Listed) {
        let placeholder = &listed.placeholder;
        if self.of_placeholder.contains_key(placeholder) {
            return;
        }
        let mut patterns = Vec::new();
        for encoding in Encoding::OF_CONDA {
            let mut add = |old: &[u8], slack| {
                let pattern = Pattern::new(old, self.new, encoding, Bounds::Any, slack);
                patterns.extend(pattern);
            };
            if placeholder != self.new {
                add(placeholder, 0);
            }
            for old in self.olds.iter().filter(|old| *old != placeholder) {
                add(old, placeholder.len().saturating_sub(old.len()));
            }
        }
        self.of_placeholder.insert(placeholder.clone(), patterns);
    }

    fn fail(&mut self, item: &Item, why: Why) {
        let path = item.node.path.clone();
        self.plan.impossible.push(Impossible { path, why });
    }

    fn rewrite(&mut self, item: &Item, kind: EditKind, data: &[u8], splices: Vec<Splice>) {
        let after = apply(data, &splices);
        if after == data {
            return;
        }
        let changed = Changed::of(data, &after);
        self.changed.insert(item.node.id, changed);
        self.plan.edits.push(Edit {
            node: item.node.clone(),
            action: Action::Rewrite { kind, splices },
        });
    }

    fn links(&mut self, items: &[Item]) -> Result<(), Error> {
        let links = items.iter().filter(|item| item.kind == Kind::Symlink);
        for item in links {
            let target = self.tree.read_link(&item.node);
            let target = target.map_err(reading(&item.node))?;
            let moved = self.olds.iter().find_map(|old| {
                let rest = target.strip_prefix(&old[..])?;
                let is_whole = rest.is_empty() || rest.starts_with(b"/");
                is_whole.then(|| [self.new, rest].concat())
            });
            let is_there = target.strip_prefix(self.new).is_some_and(ends_component);
            if let Some(moved) = moved.filter(|_| !is_there) {
                self.note_used(&target);
                self.plan.edits.push(Edit {
                    node: item.node.clone(),
                    action: Action::Retarget(moved),
                });
            }
        }
        Ok(())
    }

    /// Plans the removal of compiled modules whose source is rewritten: Python would use them if
    /// the time and the size of the source are the same.
    fn bytecode(&mut self, items: &[Item]) {
        let sources = items.iter().filter(|item| {
            item.node.path.ends_with(b".py") && self.changed.contains_key(&item.node.id)
        });
        let sources: HashSet<&[u8]> = sources
            .filter_map(|item| item.node.path.strip_suffix(b".py"))
            .collect();
        for item in items.iter().filter(|item| is_bytecode(&item.node.path)) {
            if sources.contains(&source_of(&item.node.path)[..]) {
                self.plan.edits.push(Edit {
                    node: item.node.clone(),
                    action: Action::Remove,
                });
            }
        }
    }

    /// Returns the identities of the rewritten files by path.
    fn paths_of_changed(&self, items: &[Item]) -> HashMap<Vec<u8>, u64> {
        let changed = items
            .iter()
            .filter(|item| self.changed.contains_key(&item.node.id));
        changed
            .map(|item| (item.node.path.clone(), item.node.id))
            .collect()
    }

    /// Plans a file that contains digests of others, and possibly a prefix.
    fn digests(
        &mut self,
        item: &Item,
        paths: &HashMap<Vec<u8>, u64>,
        of: DigestsOf,
    ) -> Result<(), Error> {
        if item.kind != Kind::File
            || item.size > LARGEST_RECORD
            || self.changed.contains_key(&item.node.id)
        {
            return Ok(());
        }
        let data = read(self.tree, item)?;
        let mut splices = text::replace(&data, &self.patterns, Owner::Conda, Quoting::None);
        let kind = match splices.is_empty() {
            true => EditKind::Digests,
            false => EditKind::Text,
        };
        if kind == EditKind::Text {
            self.note_used(&data);
        }
        let changed = |path: &[u8]| self.changed.get(paths.get(path)?);
        splices.extend(match of {
            DigestsOf::Python => record::digests(&data, parent(parent(&item.node.path)), changed),
            DigestsOf::Conda => conda::digests(&data, changed),
        });
        splice::sort(&mut splices);
        if !splices.is_empty() {
            self.rewrite(item, kind, &data, splices);
        }
        Ok(())
    }
}

/// The format of a file with digests.
#[derive(Clone, Copy)]
enum DigestsOf {
    /// `RECORD`.
    Python,
    /// `conda-meta/*.json`.
    Conda,
}

/// Returns the patterns for files without a placeholder.
pub(super) fn ordinary(olds: &[Vec<u8>], new: &[u8]) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for old in olds {
        let pattern = |encoding| Pattern::new(old, new, encoding, Bounds::Path, 0);
        patterns.extend(pattern(Encoding::Utf8));
        patterns.extend(pattern(Encoding::Percent).filter(|pattern| pattern.old != *old));
    }
    patterns
}
