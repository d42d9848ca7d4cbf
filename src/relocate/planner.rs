//! Computes the plan: which files contain a prefix, and what replaces it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::binary;
use super::conda::{self, Listed, Mode};
use super::detect::{self, Evidence};
use super::record;
use super::search::{Bounds, Encoding, Pattern, ends_component, find};
use super::shebang::{Head, Owner};
use super::splice::{self, Changed, Splice, apply, hex, sha256};
use super::text::{self, Quoting};
use super::tree::{Node, Tree};
use super::{Action, Edit, EditKind, Error, Impossible, Plan, Request, Scope, Why};
use crate::object::Kind;
use crate::progress::{Progress, Report};

/// Larger files are searched in pieces before they are read as a whole.
const PIECE: usize = 8 << 20;
/// The largest file that is rewritten.
const LARGEST: u64 = 1 << 30;
/// The largest record of a package that is read.
const LARGEST_RECORD: u64 = 256 << 20;

/// An object of the tree.
pub(super) struct Item {
    pub(super) node: Node,
    pub(super) kind: Kind,
    pub(super) size: u64,
}

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

/// Lists the whole tree.
pub(super) fn list(tree: &dyn Tree, progress: &dyn Progress) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    let mut pending = vec![Node::root()];
    while let Some(dir) = pending.pop() {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        for entry in tree.list(&dir).map_err(reading(&dir))? {
            let node = dir.child(&entry.name, entry.id);
            match entry.kind {
                Kind::Directory => pending.push(node),
                kind => items.push(Item {
                    node,
                    kind,
                    size: entry.size,
                }),
            }
        }
    }
    Ok(items)
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

/// What a file contains.
enum Found {
    Nothing,
    Splices(EditKind, Vec<Splice>, Rest),
    TooLong(usize),
    /// A prefix, in a format that is unknown.
    Unknown,
}

/// What happens to the prefixes that are not replaced.
#[derive(PartialEq, Eq)]
enum Rest {
    None,
    Left,
}

/// Examines a file that contained a placeholder.
fn listed_file(
    data: &[u8],
    listed: &Listed,
    patterns: &[Pattern],
    olds: &[Vec<u8>],
    new: &[u8],
) -> Found {
    if listed.mode == Mode::Binary {
        return binary_file(data, patterns);
    }
    let mut splices = text::replace(data, patterns, Owner::Conda, Quoting::None);
    if let Some(head) = Head::parse(data)
        && let Some(with) = restored(data, &head, listed, olds, new)
    {
        splices.retain(|splice| splice.at >= head.len);
        splices.push(Splice {
            at: 0,
            len: head.len,
            with,
        });
        splice::sort(&mut splices);
    }
    text_file(splices)
}

/// Returns the first line of a script that names no path, because the old prefix was too long for
/// it. The digest of the packaged file tells whether a path that it may have had is right.
fn restored(
    data: &[u8],
    head: &Head,
    listed: &Listed,
    olds: &[Vec<u8>],
    new: &[u8],
) -> Option<Vec<u8>> {
    let (name, options) = head.env_name()?;
    let wanted = listed.sha256.as_deref()?;
    let rest = data.get(head.len..)?;
    let own = parent(&listed.path);
    let mut dirs = vec![&b"bin"[..], own];
    dirs.dedup();
    for old in olds.iter().map(Some).chain([None]) {
        let rest = match old {
            Some(old) => {
                let back = Pattern::new(old, &listed.placeholder, Encoding::Utf8, Bounds::Any, 0)?;
                let splices: Vec<Splice> = find(rest, &[back])
                    .iter()
                    .map(|hit| Splice {
                        at: hit.at,
                        len: old.len(),
                        with: listed.placeholder.clone(),
                    })
                    .collect();
                apply(rest, &splices)
            }
            None => rest.to_vec(),
        };
        for dir in &dirs {
            let line = [
                b"#!",
                &listed.placeholder[..],
                b"/",
                dir,
                b"/",
                name,
                options,
            ]
            .concat();
            if hex(&sha256(&[&line[..], &rest[..]].concat())) == wanted {
                let interpreter = [new, b"/", dir, b"/", name].concat();
                return Some(head.with(&interpreter, options, Owner::Conda));
            }
        }
    }
    None
}

/// Examines a file of which nothing is known.
fn other_file(data: &[u8], path: &[u8], patterns: &[Pattern], owner: Owner) -> Found {
    if !patterns.iter().any(|pattern| pattern.is_in(data)) {
        return Found::Nothing;
    }
    if !data.contains(&0) {
        let name = path.strip_prefix(b"bin/").unwrap_or_default();
        let quoting = match name.starts_with(b"activate") || name.starts_with(b"deactivate") {
            true => Quoting::Shell,
            false => Quoting::None,
        };
        return text_file(text::replace(data, patterns, owner, quoting));
    }
    if data.starts_with(b"\x7fELF") || data.starts_with(b"!<arch>\n") {
        return binary_file(data, patterns);
    }
    // A program in a zip archive, whose first line can be changed.
    let head = Head::parse(data);
    match head.and_then(|head| Some((head.len, head.replaced(patterns, owner)?))) {
        Some((len, with)) => {
            let rest = data.get(len..).unwrap_or_default();
            let rest = match patterns.iter().any(|pattern| pattern.is_in(rest)) {
                true => Rest::Left,
                false => Rest::None,
            };
            Found::Splices(EditKind::Script, vec![Splice { at: 0, len, with }], rest)
        }
        None => Found::Unknown,
    }
}

fn text_file(splices: Vec<Splice>) -> Found {
    let is_script = splices
        .first()
        .is_some_and(|splice| splice.at == 0 && splice.with.starts_with(b"#!"));
    match (splices.is_empty(), is_script) {
        (true, _) => Found::Nothing,
        (_, true) => Found::Splices(EditKind::Script, splices, Rest::None),
        (_, false) => Found::Splices(EditKind::Text, splices, Rest::None),
    }
}

fn binary_file(data: &[u8], patterns: &[Pattern]) -> Found {
    match binary::replace(data, patterns) {
        Ok(splices) if splices.is_empty() => Found::Nothing,
        Ok(splices) => Found::Splices(EditKind::Binary, splices, Rest::None),
        Err(binary::TooLong(bytes)) => Found::TooLong(bytes),
    }
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

/// Returns whether a large file contains a prefix, or may contain one.
pub(super) fn contains(tree: &dyn Tree, item: &Item, patterns: &[Pattern]) -> Result<bool, Error> {
    let longest = patterns.iter().map(|pattern| pattern.old.len()).max();
    let overlap = longest.unwrap_or(0) + 64;
    let mut offset = 0;
    loop {
        let read = tree.read(&item.node, offset, PIECE + overlap);
        let piece = read.map_err(reading(&item.node))?;
        if patterns.iter().any(|pattern| pattern.is_in(&piece)) {
            return Ok(true);
        }
        if piece.len() < PIECE + overlap {
            return Ok(false);
        }
        offset += PIECE as u64;
    }
}

/// Reads a whole file.
pub(super) fn read(tree: &dyn Tree, item: &Item) -> Result<Vec<u8>, Error> {
    let mut data = Vec::new();
    loop {
        let read = tree.read(&item.node, data.len() as u64, PIECE);
        let piece = read.map_err(reading(&item.node))?;
        if piece.is_empty() {
            return Ok(data);
        }
        data.extend_from_slice(&piece);
        if data.len() as u64 >= item.size {
            return Ok(data);
        }
    }
}

pub(super) fn reading(node: &Node) -> impl Fn(io::Error) -> Error + '_ {
    |error| Error::Read {
        path: Path::new(OsStr::from_bytes(&node.path)).to_owned(),
        error,
    }
}

pub(super) fn of_root(error: io::Error) -> Error {
    reading(&Node::root())(error)
}

fn parent(path: &[u8]) -> &[u8] {
    let at = path.iter().rposition(|&byte| byte == b'/');
    path.get(..at.unwrap_or(0)).unwrap_or_default()
}

fn is_record(path: &[u8]) -> bool {
    path.ends_with(b".dist-info/RECORD")
}

pub(super) fn is_conda_meta(path: &[u8]) -> bool {
    path.strip_prefix(b"conda-meta/")
        .is_some_and(|name| name.ends_with(b".json") && !name.contains(&b'/'))
}

/// The script of conda-pack, whose table must stay as it is.
pub(super) fn is_unpacker(path: &[u8]) -> bool {
    path == b"bin/conda-unpack" || path == b"bin/conda_unpack_progress.py"
}

pub(super) fn is_bytecode(path: &[u8]) -> bool {
    path.ends_with(b".pyc") || path.ends_with(b".pyo")
}

/// Returns the path of the source of a compiled module, without `.py`.
fn source_of(path: &[u8]) -> Vec<u8> {
    let (dir, name) = path.split_at(parent(path).len());
    let name = name.strip_prefix(b"/").unwrap_or(name);
    match dir.strip_suffix(b"__pycache__") {
        // `x.cpython-312.opt-1.pyc`
        Some(above) => {
            let stem = name.split(|&byte| byte == b'.').next().unwrap_or_default();
            [above, stem].concat()
        }
        None => path.get(..path.len() - 4).unwrap_or_default().to_vec(),
    }
}
