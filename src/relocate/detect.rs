//! Determines the prefix that an environment was made for.

use std::collections::{BTreeMap, HashSet};
use std::io;

use super::conda;
use super::shebang::Head;
use super::tree::{Entry, Node, Tree};
use crate::object::Kind;

/// The bytes of a file that are searched for what it says about its environment.
const HEAD: usize = 64 << 10;

/// The largest table of conda-pack that is read.
const TABLE: u64 = 64 << 20;

/// Directories that are not the prefix of an environment.
const SYSTEM: [&str; 22] = [
    "/",
    "/bin",
    "/boot",
    "/data",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
];

/// What a tree says about itself.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Whether a known tool has made it.
    pub(super) is_environment: bool,
    /// Prefixes that it was made for.
    pub(super) prefixes: Vec<Vec<u8>>,
    /// The table of conda-pack.
    pub(super) table: Vec<conda::Listed>,
}

/// Returns a path that may be a prefix, without a trailing slash.
pub(super) fn prefix(path: &[u8]) -> Option<Vec<u8>> {
    let len = path.len() - path.iter().rev().take_while(|&&byte| byte == b'/').count();
    let path = path.get(..len)?;
    let is_one = path.starts_with(b"/")
        && path.len() > 1
        && !path.iter().any(u8::is_ascii_control)
        && !SYSTEM.iter().any(|system| system.as_bytes() == path);
    is_one.then(|| path.to_vec())
}

/// Examines `pyvenv.cfg`, `conda-meta` and `bin`.
pub(super) fn examine(tree: &dyn Tree) -> io::Result<Evidence> {
    let mut evidence = Evidence::default();
    let root = tree.list(&Node::root())?;
    let entry = |name: &[u8], kind| root.iter().find(|e| e.name == name && e.kind == kind);
    let dir = |name: &[u8]| entry(name, Kind::Directory).map(|e| Node::root().child(name, e.id));
    let has_venv = entry(b"pyvenv.cfg", Kind::File).is_some();
    let meta = dir(b"conda-meta");
    evidence.is_environment = has_venv || meta.is_some();
    let bin = dir(b"bin");
    let names = match &bin {
        Some(bin) => tree.list(bin)?,
        None => Vec::new(),
    };
    let file = |name: &[u8]| -> io::Result<Option<(Vec<u8>, u64)>> {
        let found = names
            .iter()
            .find(|e| e.name == name && e.kind == Kind::File);
        let (Some(bin), Some(entry)) = (&bin, found) else {
            return Ok(None);
        };
        let node = bin.child(name, entry.id);
        Ok(Some((tree.read(&node, 0, HEAD)?, entry.size)))
    };
    let mut add = |path: Option<Vec<u8>>| {
        if let Some(path) = path
            && !evidence.prefixes.contains(&path)
        {
            evidence.prefixes.push(path);
        }
    };
    for name in [&b"activate"[..], b"activate.csh", b"activate.fish"] {
        if let Some((script, _)) = file(name)? {
            add(virtual_env(&script));
        }
    }
    if let Some(meta) = &meta {
        for entry in tree.list(meta)? {
            if entry.name == b"pixi_env_prefix" && entry.kind == Kind::File {
                let node = meta.child(&entry.name, entry.id);
                add(prefix(tree.read(&node, 0, HEAD)?.trim_ascii()));
            }
        }
    }
    let is_known = !evidence.prefixes.is_empty();
    if let Some((_, size)) = file(b"conda-unpack")?
        && let Some(bin) = &bin
        && let Some(entry) = names.iter().find(|e| e.name == b"conda-unpack")
        && size <= TABLE
    {
        let node = bin.child(&entry.name, entry.id);
        evidence.table = conda::unpack_table(&tree.read(&node, 0, size as usize)?);
        evidence.is_environment |= !evidence.table.is_empty();
    }
    if !is_known && let Some(bin) = &bin {
        let most = interpreters(tree, bin, &names)?;
        evidence.is_environment |= most.is_some();
        evidence.prefixes.extend(most);
    }
    if evidence.prefixes.is_empty()
        && let Some(meta) = &meta
    {
        for entry in tree.list(meta)? {
            if entry.name == b"history" && entry.kind == Kind::File && entry.size <= TABLE {
                let node = meta.child(&entry.name, entry.id);
                let history = tree.read(&node, 0, entry.size as usize)?;
                let named = conda::prefix_of_history(&history);
                evidence.prefixes.extend(named.as_deref().and_then(prefix));
            }
        }
    }
    Ok(evidence)
}

/// Returns the prefix whose programs most scripts in `bin` are run by. The program must also be in
/// this `bin`: otherwise the scripts belong to another environment.
fn interpreters(tree: &dyn Tree, bin: &Node, names: &[Entry]) -> io::Result<Option<Vec<u8>>> {
    let here: HashSet<&[u8]> = names.iter().map(|entry| &entry.name[..]).collect();
    let mut counts: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for entry in names.iter().filter(|entry| entry.kind == Kind::File) {
        let head = tree.read(&bin.child(&entry.name, entry.id), 0, 1024)?;
        let Some(found) = Head::parse(&head) else {
            continue;
        };
        if let Some((path, name)) = interpreter_prefix(&found.interpreter)
            && here.contains(name)
        {
            *counts.entry(path).or_default() += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    Ok(most.map(|(path, _)| path))
}

/// Splits `/p/bin/NAME` into `/p` and `NAME`, unless `/p` belongs to the system.
pub(super) fn interpreter_prefix(interpreter: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let at = interpreter.iter().rposition(|&byte| byte == b'/')?;
    let (dir, name) = (interpreter.get(..at)?, interpreter.get(at + 1..)?);
    Some((prefix(dir.strip_suffix(b"/bin")?)?, name))
}

/// Returns the value of `VIRTUAL_ENV` in an activation script.
pub(super) fn virtual_env(script: &[u8]) -> Option<Vec<u8>> {
    const BEFORE: [&[u8]; 4] = [
        b"VIRTUAL_ENV=",
        b"export VIRTUAL_ENV=",
        b"setenv VIRTUAL_ENV ",
        b"set -gx VIRTUAL_ENV ",
    ];
    let mut lines = script.split(|&byte| byte == b'\n');
    lines.find_map(|line| {
        let line = line.trim_ascii();
        let value = BEFORE
            .iter()
            .find_map(|before| line.strip_prefix(*before))?;
        let value = match value.first()? {
            quote @ (b'\'' | b'"') => value.strip_prefix(&[*quote])?.strip_suffix(&[*quote])?,
            _ => value,
        };
        prefix(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activation_scripts_of_all_shells_name_the_prefix() {
        let some = Some(b"/a b/c".to_vec());
        for script in [
            "x\nVIRTUAL_ENV='/a b/c'\nexport VIRTUAL_ENV\n",
            "if x; then\n    VIRTUAL_ENV=\"/a b/c\"\nfi",
            "setenv VIRTUAL_ENV '/a b/c'",
            "set -gx VIRTUAL_ENV '/a b/c'\r\n",
        ] {
            assert_eq!(virtual_env(script.as_bytes()), some, "{script}");
        }
        for script in [
            "VIRTUAL_ENV=$(cygpath x)",
            "VIRTUAL_ENV=",
            "",
            "VIRTUAL_ENV=/usr",
        ] {
            assert_eq!(virtual_env(script.as_bytes()), None, "{script}");
        }
    }

    #[test]
    fn directories_of_the_system_are_no_prefixes() {
        assert_eq!(prefix(b"/opt/x//"), Some(b"/opt/x".to_vec()));
        for path in ["/", "//", "", "/usr/", "relative", "/a\nb"] {
            assert_eq!(prefix(path.as_bytes()), None, "{path}");
        }
        let found = interpreter_prefix(b"/opt/x/bin/python3");
        assert_eq!(found, Some((b"/opt/x".to_vec(), &b"python3"[..])));
        assert_eq!(interpreter_prefix(b"/usr/bin/python3"), None);
    }
}
