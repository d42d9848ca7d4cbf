#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use super::tree::{Stat, Tree};
use super::{Differences, Owner, differences};
use crate::object::{Ino, Kind, Timestamp};
use crate::union::{Aspect, Change, ChangeKind};

/// A tree of files in memory. A content that begins with `->` is that of a symbolic link.
#[derive(Clone, Default)]
struct Memory(BTreeMap<Vec<u8>, (Vec<u8>, i64)>);

impl Memory {
    fn put(&mut self, path: &str, content: impl AsRef<[u8]>) -> &mut Memory {
        let content = content.as_ref().to_vec();
        self.0.insert(path.as_bytes().to_vec(), (content, 1));
        self
    }

    fn put_later(&mut self, path: &str, content: &str) {
        self.put(path, content);
        self.0.get_mut(path.as_bytes()).unwrap().1 = 2;
    }

    fn remove(&mut self, below: &str) -> &mut Memory {
        let dir = [below.as_bytes(), b"/"].concat();
        self.0
            .retain(|path, _| path != below.as_bytes() && !path.starts_with(&dir));
        self
    }

    /// Installs a Python package with a RECORD, as pip does.
    fn wheel(&mut self, name: &str, version: &str, files: &[(&str, &str)]) -> &mut Memory {
        let site = "lib/python3.12/site-packages";
        let info = format!("{name}-{version}.dist-info");
        let mut record = String::new();
        for (path, content) in files {
            let hash = base64(&Sha256::digest(content));
            record.push_str(&format!("{path},sha256={hash},{}\n", content.len()));
            let path = super::normal(format!("{site}/{path}").as_bytes()).unwrap();
            self.put(std::str::from_utf8(&path).unwrap(), content);
        }
        record.push_str(&format!("{info}/METADATA,,\n{info}/RECORD,,\n"));
        let headers = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText");
        self.put(&format!("{site}/{info}/METADATA"), headers);
        self.put(&format!("{site}/{info}/RECORD"), record)
    }

    fn conda(&mut self, stem: &str, files: &[(&str, &str)]) -> &mut Memory {
        let mut paths = Vec::new();
        for (path, content) in files {
            let hash: String = Sha256::digest(content)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let entry = serde_json::json!({
                "_path": path, "sha256_in_prefix": hash, "size_in_bytes": content.len()
            });
            paths.push(entry);
            self.put(path, content);
        }
        let names: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
        let json = serde_json::json!({"files": names, "paths_data": {"paths": paths}});
        self.put(&format!("conda-meta/{stem}.json"), json.to_string())
    }

    fn node(&mut self, dir: &str, name: &str, version: &str) -> &mut Memory {
        let json = serde_json::json!({"name": name, "version": version});
        self.put(&format!("{dir}/package.json"), json.to_string());
        self.put(&format!("{dir}/index.js"), version)
    }

    fn kind(&self, path: &[u8]) -> Option<Kind> {
        match self.0.get(path) {
            Some((content, _)) if content.starts_with(b"->") => Some(Kind::Symlink),
            Some(_) => Some(Kind::File),
            None => {
                let dir = [path, b"/"].concat();
                let is_dir = self.0.keys().any(|file| file.starts_with(&dir));
                is_dir.then_some(Kind::Directory)
            }
        }
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        let mut paths: Vec<Vec<u8>> = self.0.keys().cloned().collect();
        for file in self.0.keys() {
            let mut dir = super::split(file).0;
            while !dir.is_empty() {
                paths.push(dir.to_vec());
                dir = super::split(dir).0;
            }
        }
        paths
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut bits = 0u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(chunk.get(at).copied().unwrap_or(0));
        }
        for at in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text
}

impl Tree for Memory {
    fn stat(&self, path: &[u8]) -> Option<Stat> {
        let (size, secs) = self
            .0
            .get(path)
            .map_or((0, 0), |(content, secs)| (content.len() as u64, *secs));
        Some(Stat {
            kind: self.kind(path)?,
            size,
            mtime: Timestamp { secs, nanos: 0 },
        })
    }

    fn each_chunk(&self, path: &[u8], take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> bool {
        match self.0.get(path) {
            Some((content, _)) => content.chunks(7).all(|chunk| take(chunk).is_continue()),
            None => false,
        }
    }

    fn names(&self, dir: &[u8]) -> Vec<Box<[u8]>> {
        let above = [dir, b"/"].concat();
        let below = self
            .0
            .keys()
            .filter_map(|path| path.strip_prefix(&above[..]));
        let mut names: Vec<Box<[u8]>> = below
            .filter_map(|rest| rest.split(|byte| *byte == b'/').next())
            .map(Box::from)
            .collect();
        names.dedup();
        names
    }

    fn target(&self, path: &[u8]) -> Option<Box<[u8]>> {
        let (content, _) = self.0.get(path)?;
        content.strip_prefix(b"->").map(Box::from)
    }
}

/// Lists the changes from one tree to another.
fn changes(before: &Memory, after: &Memory) -> Vec<Change> {
    let mut paths = before.paths();
    paths.extend(after.paths());
    paths.sort();
    paths.dedup();
    let change = |path: Vec<u8>| {
        let (was, is) = (before.kind(&path), after.kind(&path));
        let aspect = Aspect::Content;
        let content = |tree: &Memory| tree.0.get(&path).map(|(content, _)| content.clone());
        let what = match (was, is) {
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Removed,
            _ if content(before) == content(after) => return None,
            _ => ChangeKind::Modified { aspect },
        };
        let size = content(after)
            .or(content(before))
            .map_or(0, |all| all.len());
        Some(Change {
            what,
            kind: is.or(was)?,
            size: size as u64,
            ino: Ino(7),
            committed: was.map(|_| path.clone()),
            path,
        })
    };
    paths.into_iter().filter_map(change).collect()
}

/// Describes differences in lines.
fn lines(found: &Differences) -> Vec<String> {
    let mut lines = Vec::new();
    let packages = &found.packages;
    for one in &packages.upgraded {
        let build = |build: &Option<String>| match build {
            Some(build) => format!("/{build}"),
            None => String::new(),
        };
        lines.push(format!(
            "{} {}{} -> {}{}",
            one.package.name,
            one.from,
            build(&one.from_build),
            one.package.version,
            build(&one.package.build)
        ));
    }
    for (sign, list) in [
        ('+', &packages.installed),
        ('-', &packages.removed),
        ('=', &packages.reinstalled),
    ] {
        for one in list {
            let ecosystem = one.ecosystem.as_str();
            lines.push(format!("{sign} {} {} {ecosystem}", one.name, one.version));
        }
    }
    for one in &packages.edited {
        lines.push(format!(
            "~ {} {} {} {}",
            one.package.name, one.edited, one.removed, one.restored
        ));
    }
    if packages.bytecode.entries > 0 {
        lines.push(format!("bytecode {}", packages.bytecode.entries));
    }
    for one in found.changes.iter().filter(|one| one.owner == Owner::Other) {
        let path = String::from_utf8_lossy(&one.change.path).into_owned();
        lines.push(format!("{} {path}", one.change.what.letter()));
    }
    lines
}

#[track_caller]
fn check(before: &Memory, after: &Memory, expected: &[&str]) {
    let found = differences(changes(before, after), before, after);
    assert_eq!(lines(&found), expected);
}

const SIX: &[(&str, &str)] = &[("six.py", "six"), ("../../../bin/six", "#!x")];

#[test]
fn python_packages_are_installed_removed_and_upgraded() {
    let mut before = Memory::default();
    before.put("bin/python", "p").wheel("six", "1.0", SIX);
    before.wheel("Gone_Pkg", "3", &[("gone/__init__.py", "")]);
    let mut after = Memory::default();
    after.put("bin/python", "p");
    after.wheel("Six", "1.1", &[("six.py", "new")]);
    after.wheel(
        "idna",
        "3.7",
        &[("idna/__init__.py", "i"), ("idna/core.py", "c")],
    );
    after.put(
        "lib/python3.12/site-packages/idna/__pycache__/core.cpython-312.pyc",
        "b",
    );
    after.put("lib/python3.12/__pycache__/os.cpython-312.pyc", "b");
    after.put("etc/own", "");
    check(
        &before,
        &after,
        &[
            "Six 1.0 -> 1.1",
            "+ idna 3.7 python",
            "- Gone_Pkg 3 python",
            "bytecode 1",
            "A etc/",
            "A etc/own",
        ]
        .map(|line| line.trim_end_matches('/')),
    );
    check(&before, &before, &[]);
    // Limited to paths.
    let found = differences(changes(&before, &after), &before, &after);
    let some = found
        .clone()
        .among(&[b"lib/python3.12/site-packages/idna".to_vec()]);
    assert_eq!(lines(&some), ["+ idna 3.7 python"]);
    let some = found.among(&[b"etc".to_vec()]);
    assert_eq!(lines(&some), ["A etc", "A etc/own"]);
}

#[test]
fn an_edit_differs_from_what_the_package_recorded() {
    let mut before = Memory::default();
    before.wheel("six", "1.0", SIX);
    before.wheel(
        "PyYAML",
        "6",
        &[("yaml/__init__.py", "yaml"), ("_yaml.py", "old")],
    );
    before.put("lib/python3.12/site-packages/yaml/__init__.py", "damaged");
    let mut after = before.clone();
    after.put("lib/python3.12/site-packages/six.py", "mine");
    after.remove("bin/six");
    after.put("lib/python3.12/site-packages/yaml/__init__.py", "yaml");
    after.put("lib/python3.12/site-packages/yaml/new.py", "n");
    check(
        &before,
        &after,
        &[
            "~ PyYAML 0 0 1",
            "~ six 1 1 0",
            "A lib/python3.12/site-packages/yaml/new.py",
        ],
    );
    // What is in no package stays a change of a file.
    let mut after = before.clone();
    before.put("etc/x", "1");
    after.put("etc/x", "2");
    check(&before, &after, &["M etc/x"]);
}

#[test]
fn a_file_that_was_edited_after_its_installation_is_an_edit() {
    let before = Memory::default();
    let mut after = Memory::default();
    after.wheel(
        "six",
        "1.0",
        &[("six.py", "six"), ("other.py", "other"), ("third.py", "3")],
    );
    let site = "lib/python3.12/site-packages";
    after.put_later(&format!("{site}/six.py"), "xis");
    after.put(&format!("{site}/other.py"), "longer");
    // Touched only.
    after.put_later(&format!("{site}/third.py"), "3");
    check(&before, &after, &["+ six 1.0 python", "~ six 2 0 0"]);
}

#[test]
fn a_reinstalled_package_of_the_same_version_has_other_files() {
    let mut before = Memory::default();
    before.wheel("six", "1.0", SIX);
    let mut after = Memory::default();
    after.wheel("six", "1.0", &[("six.py", "built again")]);
    check(&before, &after, &["= six 1.0 python"]);
    let mut after = before.clone();
    after.put(
        "lib/python3.12/site-packages/six-1.0.dist-info/REQUESTED",
        "",
    );
    check(
        &before,
        &after,
        &["A lib/python3.12/site-packages/six-1.0.dist-info/REQUESTED"],
    );
}

#[test]
fn what_conda_has_installed_is_reported_once() {
    let numpy = |version: &'static str| {
        let mut tree = Memory::default();
        let info = format!("lib/python3.12/site-packages/numpy-{version}.dist-info");
        let metadata = format!("Name: numpy\nVersion: {version}\n");
        tree.conda("python-3.12-0", &[("bin/python", "p"), ("lib/a.so", "a")]);
        tree.conda(
            &format!("numpy-{version}-py312_0"),
            &[
                ("lib/python3.12/site-packages/numpy/core.py", version),
                (&format!("{info}/METADATA"), &metadata),
                (&format!("{info}/RECORD"), "numpy/core.py,,\n"),
            ],
        );
        tree
    };
    let (old, new) = (numpy("1.26.4"), numpy("2.1.0"));
    check(&old, &new, &["numpy 1.26.4/py312_0 -> 2.1.0/py312_0"]);
    let mut gone = old.clone();
    gone.remove("conda-meta/numpy-1.26.4-py312_0.json");
    gone.remove("lib/python3.12");
    check(&old, &gone, &["- numpy 1.26.4 conda"]);
    // pip replaces a package of conda: conda's record stays.
    let mut piped = old.clone();
    piped.remove("lib/python3.12/site-packages/numpy-1.26.4.dist-info");
    piped.wheel("numpy", "2.1.0", &[("numpy/core.py", "2.1.0")]);
    check(&old, &piped, &["numpy 1.26.4 -> 2.1.0"]);
    // conda's package is replaced by pip's of the same version.
    let mut both = gone.clone();
    both.wheel("numpy", "1.26.4", &[("numpy/core.py", "1.26.4")]);
    check(
        &old,
        &both,
        &["+ numpy 1.26.4 python", "- numpy 1.26.4 conda"],
    );
    // Files of unchanged packages.
    let mut edited = old.clone();
    edited.put("lib/python3.12/site-packages/numpy/core.py", "mine");
    edited.put("lib/a.so", "b");
    check(&old, &edited, &["~ numpy 1 0 0", "~ python 1 0 0"]);
    // Another build.
    let mut built = old.clone();
    built.remove("conda-meta/python-3.12-0.json");
    built.conda("python-3.12-1", &[("bin/python", "p"), ("lib/a.so", "c")]);
    check(&old, &built, &["python 3.12/0 -> 3.12/1"]);
}

#[test]
fn node_packages_own_their_directories_and_programs() {
    let mut before = Memory::default();
    before.node("node_modules/left", "left", "1.0.0");
    before.node("node_modules/left/node_modules/in", "in", "1.0.0");
    let mut after = before.clone();
    after.node("node_modules/left", "left", "1.1.0");
    after.node("node_modules/@s/p", "@s/p", "2.0.0");
    after.put("node_modules/@s/p/bin/p.js", "run");
    after.put("node_modules/.bin/p", "->../@s/p/bin/p.js");
    after.put("node_modules/.package-lock.json", "{}");
    check(
        &before,
        &after,
        &[
            "left 1.0.0 -> 1.1.0",
            "+ @s/p 2.0.0 node",
            "A node_modules/.package-lock.json",
        ],
    );
    let mut after = before.clone();
    after.put("node_modules/left/node_modules/in/index.js", "mine");
    check(&before, &after, &["~ in 1 0 0"]);
    let after = Memory::default();
    check(&before, &after, &["- in 1.0.0 node", "- left 1.0.0 node"]);
    let pnpm = |version: &str| {
        let mut tree = Memory::default();
        tree.node(
            &format!("node_modules/.pnpm/a@{version}/node_modules/a"),
            "a",
            version,
        );
        tree
    };
    check(&pnpm("1.0.0"), &pnpm("1.0.1"), &["a 1.0.0 -> 1.0.1"]);
}

#[test]
fn hostile_metadata_hide_no_change() {
    let before = Memory::default();
    let mut after = Memory::default();
    after.put(
        "conda-meta/x-1-0.json",
        "{\"files\": [1, 2], \"paths_data\": 5}",
    );
    after.put("node_modules/bad/package.json", "[");
    let site = "lib/python3.12/site-packages";
    after.put(
        &format!("{site}/y-1.dist-info/METADATA"),
        b"Name: y\x1b[31m\nVersion: 1",
    );
    after.put(
        &format!("{site}/y-1.dist-info/RECORD"),
        "../../../../../etc/passwd,,\n\"",
    );
    after.put(&format!("{site}/y.py"), "");
    let found = differences(changes(&before, &after), &before, &after);
    let lines = lines(&found);
    for line in [
        "+ x 1 conda",
        "A node_modules/bad/package.json",
        "A lib/python3.12/site-packages/y.py",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}: {lines:?}");
    }
}

#[test]
fn a_record_is_limited_to_a_number_of_packages() {
    let mut after = Memory::default();
    for number in 0..10 {
        after.wheel(&format!("p{number}"), "1", &[]);
    }
    let before = Memory::default();
    let found = differences(changes(&before, &after), &before, &after);
    let some = found.packages.at_most(4);
    assert_eq!((some.installed.len(), some.omitted), (4, 6));
}
