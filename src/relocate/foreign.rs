//! Lists files that refer to a prefix other than that of their environment.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;
use super::detect;
use super::items::{contains, is_bytecode, is_unpacker, list, of_root, read, reading};
use super::planner::{Conda, ordinary};
use super::search::{Bounds, Encoding, Pattern};
use super::shebang::Head;
use super::tree::Tree;
use crate::object::Kind;
use crate::progress::{Progress, Report};
use crate::sys::text::as_text;

/// Files that refer to another prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// The path that they contain.
    #[serde(with = "as_text")]
    pub prefix: Vec<u8>,
    /// How.
    pub kind: ForeignKind,
    /// The files.
    pub paths: Vec<FilePath>,
}

/// A path in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FilePath(#[serde(with = "as_text")] pub Vec<u8>);

/// How a file refers to another prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForeignKind {
    /// Scripts whose interpreter is in another environment.
    Interpreter,
    /// Files with a placeholder of conda that was never replaced.
    Placeholder,
    /// Files that contain an earlier prefix of the environment.
    OldPrefix,
    /// Symbolic links to programs and files outside the environment.
    Link,
}

/// Searches a tree whose prefix is `own` for references to others. `more` are further paths to
/// search for.
pub fn foreign(
    tree: &dyn Tree,
    own: &Path,
    more: &[&Path],
    progress: &dyn Progress,
) -> Result<Vec<Foreign>, Error> {
    let own = own.as_os_str().as_bytes();
    let evidence = detect::examine(tree).map_err(of_root)?;
    let items = list(tree, progress)?;
    let conda = Conda::read(tree, &items, evidence.table)?;
    let more = more.iter().map(|path| path.as_os_str().as_bytes().to_vec());
    let mut olds: Vec<Vec<u8>> = evidence.prefixes.into_iter().chain(more).collect();
    olds.retain(|old| old != own && !conda.placeholders.contains(old));
    olds.sort_unstable();
    olds.dedup();
    let patterns = ordinary(&olds, own);
    let mut found: BTreeMap<(ForeignKind, Vec<u8>), Vec<FilePath>> = BTreeMap::new();
    let mut report = Report {
        phase: "searching".to_owned(),
        files_done: 0,
        files_total: items.len() as u64,
        bytes_done: 0,
        bytes_total: 0,
    };
    for item in &items {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        report.files_done += 1;
        report.bytes_done += item.size;
        progress.report(&report);
        let path = &item.node.path;
        let mut add = |kind, prefix: &[u8]| {
            let paths = found.entry((kind, prefix.to_vec())).or_default();
            paths.push(FilePath(path.clone()));
        };
        if item.kind == Kind::Symlink {
            let target = tree.read_link(&item.node).map_err(reading(&item.node))?;
            let is_own = Path::new(std::ffi::OsStr::from_bytes(&target))
                .starts_with(std::ffi::OsStr::from_bytes(own));
            if let Some(prefix) = outside(&target).filter(|_| !is_own) {
                add(ForeignKind::Link, &prefix);
            }
            continue;
        }
        if item.kind != Kind::File || item.size == 0 || is_bytecode(path) || is_unpacker(path) {
            continue;
        }
        if path.starts_with(b"bin/") {
            let head = tree.read(&item.node, 0, 1024);
            let head = Head::parse(&head.map_err(reading(&item.node))?);
            let prefix = head.and_then(|head| {
                let (prefix, _) = detect::interpreter_prefix(&head.interpreter)?;
                (prefix != own).then_some(prefix)
            });
            if let Some(prefix) = prefix {
                let kind = match conda.placeholders.contains(&prefix) {
                    true => ForeignKind::Placeholder,
                    false => ForeignKind::Interpreter,
                };
                add(kind, &prefix);
                continue;
            }
        }
        if let Some(listed) = conda.listed.get(path)
            && listed.placeholder != own
            && !olds.contains(&listed.placeholder)
        {
            let placeholder = &listed.placeholder;
            let pattern = Pattern::new(placeholder, own, Encoding::Utf8, Bounds::Any, 0);
            if contains(tree, item, pattern.as_slice())? {
                add(ForeignKind::Placeholder, placeholder);
                continue;
            }
        }
        if olds.is_empty() || !contains(tree, item, &patterns)? {
            continue;
        }
        // Which of them: the beginning and the end of a piece may look like those of a path.
        let data = read(tree, item)?;
        if let Some(pattern) = patterns.iter().find(|pattern| pattern.is_in(&data)) {
            add(ForeignKind::OldPrefix, &pattern.old);
        }
    }
    let found = found.into_iter();
    Ok(found
        .map(|((kind, prefix), paths)| Foreign {
            prefix,
            kind,
            paths,
        })
        .collect())
}

/// Returns where an absolute link leads that is not to a directory of the system.
fn outside(target: &[u8]) -> Option<Vec<u8>> {
    const SYSTEM: [&[u8]; 9] = [
        b"/usr/", b"/lib", b"/bin/", b"/sbin/", b"/etc/", b"/dev/", b"/proc/", b"/var/", b"/run/",
    ];
    let is_outside = target.starts_with(b"/") && !SYSTEM.iter().any(|dir| target.starts_with(dir));
    is_outside.then(|| match detect::interpreter_prefix(target) {
        Some((prefix, _)) => prefix,
        None => target.to_vec(),
    })
}
