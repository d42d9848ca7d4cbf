//! Plans for whole trees, applied to a directory.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::splice::{base64, hex, sha256};
use super::*;
use crate::progress::NoProgress;

const PLACEHOLDER: &str = "/opt/conda_placehold_placehold_placehold_placehold_placehold";

struct Sample {
    dir: tempfile::TempDir,
}

impl Sample {
    fn new(files: &[(&str, &str)]) -> Sample {
        let sample = Sample {
            dir: tempfile::tempdir().unwrap(),
        };
        for (path, content) in files {
            sample.write(path, content.as_bytes());
        }
        sample
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(path)).unwrap()).into_owned()
    }

    fn plan(&self, old: &[&str], new: &str, scope: Scope) -> Result<Plan, Error> {
        let request = Request {
            old: old.iter().map(PathBuf::from).collect(),
            new: PathBuf::from(new),
            scope,
        };
        plan(&DirTree::new(self.dir.path()), &request, &NoProgress)
    }

    /// Moves it to another prefix and returns the plan.
    fn relocate(&self, old: &[&str], new: &str) -> Plan {
        let plan = self.plan(old, new, Scope::Recognised).unwrap();
        for edit in &plan.edits {
            let path = self.dir.path().join(OsStr::from_bytes(&edit.node.path));
            match &edit.action {
                Action::Rewrite { splices, .. } => {
                    let data = fs::read(&path).unwrap();
                    fs::write(&path, apply(&data, splices)).unwrap();
                }
                Action::Retarget(target) => {
                    fs::remove_file(&path).unwrap();
                    symlink(OsStr::from_bytes(target), &path).unwrap();
                }
                Action::Remove => fs::remove_file(&path).unwrap(),
            }
        }
        plan
    }

    fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut tree = BTreeMap::new();
        for entry in walkdir::WalkDir::new(self.dir.path()) {
            let entry = entry.unwrap();
            let content = match entry.file_type() {
                kind if kind.is_symlink() => {
                    let target = fs::read_link(entry.path()).unwrap();
                    target.as_os_str().as_bytes().to_vec()
                }
                kind if kind.is_file() => fs::read(entry.path()).unwrap(),
                _ => continue,
            };
            tree.insert(entry.into_path(), content);
        }
        tree
    }
}

fn venv() -> Sample {
    let script = "#!/old/v/bin/python\nimport pip\n";
    let record = format!(
        "../../../bin/pip,sha256={},{}\npip/x.py,sha256={},1\npip-1.dist-info/RECORD,,\n",
        base64(&sha256(script.as_bytes())),
        script.len(),
        base64(&sha256(b"x")),
    );
    let sample = Sample::new(&[
        (
            "pyvenv.cfg",
            "home = /usr/bin\ncommand = python -m venv /old/v\n",
        ),
        ("bin/activate", "VIRTUAL_ENV=/old/v\nexport VIRTUAL_ENV\n"),
        ("bin/pip", script),
        ("bin/tool", "#!/bin/sh\nexec /old/v2/bin/x\n"),
        ("lib/p3/site/pip/x.py", "x"),
        ("lib/p3/site/pip-1.dist-info/RECORD", &record),
        (
            "lib/p3/site/pip-1.dist-info/direct_url.json",
            "{\"url\": \"file:///old/v/src\"}",
        ),
        ("lib/p3/site/own.pth", "/old/v/src\n"),
        ("lib/p3/site/conf.py", "PREFIX = '/old/v'\n"),
        ("lib/p3/site/other.py", "x = 1\n"),
    ]);
    sample.write("lib/p3/site/__pycache__/conf.cpython-312.pyc", b"\0/old/v");
    sample.write("lib/p3/site/__pycache__/other.cpython-312.pyc", b"\0/old/v");
    sample.write("lib/data.bin", b"\0\x06/old/v");
    symlink("/old/v/lib", sample.path("lib64")).unwrap();
    symlink("/usr/bin/python3", sample.path("bin/python")).unwrap();
    sample
}

#[test]
fn a_virtual_environment_is_moved_and_moved_back() {
    let sample = venv();
    fs::hard_link(sample.path("bin/pip"), sample.path("bin/pip3")).unwrap();
    let before = sample.tree();
    let plan = sample.relocate(&[], "/new/place");
    assert_eq!(plan.prefixes, [b"/old/v"]);
    assert_eq!(plan.impossible, []);
    assert_eq!(plan.left, [b"lib/data.bin"]);
    let expected = Counts {
        scripts: 1,
        texts: 5,
        binaries: 0,
        digests: 1,
        links: 1,
        bytecode: 1,
    };
    assert_eq!(plan.counts(), expected, "{plan:?}");
    assert_eq!(
        sample.read("bin/activate"),
        "VIRTUAL_ENV=/new/place\nexport VIRTUAL_ENV\n"
    );
    assert_eq!(
        sample.read("bin/pip3"),
        "#!/new/place/bin/python\nimport pip\n"
    );
    assert_eq!(sample.read("bin/tool"), "#!/bin/sh\nexec /old/v2/bin/x\n");
    let record = sample.read("lib/p3/site/pip-1.dist-info/RECORD");
    let script = sample.read("bin/pip");
    let line = format!(
        "bin/pip,sha256={},{}\n",
        base64(&sha256(script.as_bytes())),
        script.len()
    );
    assert!(record.contains(&line), "{record}");
    let url = sample.read("lib/p3/site/pip-1.dist-info/direct_url.json");
    assert_eq!(url, "{\"url\": \"file:///new/place/src\"}");
    assert_eq!(
        fs::read_link(sample.path("lib64")).unwrap(),
        Path::new("/new/place/lib")
    );
    assert_eq!(
        fs::read_link(sample.path("bin/python")).unwrap(),
        Path::new("/usr/bin/python3")
    );
    // Bytecode of a source that was not rewritten stays.
    assert!(
        !sample
            .path("lib/p3/site/__pycache__/conf.cpython-312.pyc")
            .exists()
    );
    assert!(
        sample
            .path("lib/p3/site/__pycache__/other.cpython-312.pyc")
            .exists()
    );

    assert!(
        sample
            .plan(&[], "/new/place", Scope::Recognised)
            .unwrap()
            .edits
            .is_empty()
    );
    sample.relocate(&[], "/old/v");
    let mut after = sample.tree();
    for (path, content) in before {
        let is_gone = path.ends_with("conf.cpython-312.pyc");
        assert_eq!(
            after.remove(&path),
            (!is_gone).then_some(content),
            "{path:?}"
        );
    }
    assert!(after.is_empty());
}

/// A package as it is installed at a prefix.
fn conda(prefix: &str) -> Sample {
    let binary = |prefix: &str| {
        let mut data = b"\x7fELF\0".to_vec();
        let string = format!("{prefix}/share/x");
        data.extend_from_slice(string.as_bytes());
        let room = PLACEHOLDER.len() + "/share/x".len() + 1;
        data.resize(data.len() + room - string.len(), 0);
        data.extend_from_slice(b"end\0");
        data
    };
    let script = |prefix: &str| format!("#!{prefix}/bin/wrap -x\nroot={prefix}\n");
    let entry = |path: &str, mode: &str, packaged: &[u8], installed: &[u8]| {
        format!(
            r#"{{"_path": "{path}", "file_mode": "{mode}", "prefix_placeholder": "{PLACEHOLDER}",
                "sha256": "{}", "sha256_in_prefix": "{}"}}"#,
            hex(&sha256(packaged)),
            hex(&sha256(installed))
        )
    };
    let json = format!(
        r#"{{"name": "x", "files": ["bin/hello"], "paths_data": {{"paths": [{}, {}]}}}}"#,
        entry("bin/x", "binary", &binary(PLACEHOLDER), &binary(prefix)),
        entry(
            "bin/s",
            "text",
            script(PLACEHOLDER).as_bytes(),
            script(prefix).as_bytes()
        ),
    );
    let hello = format!("#!{prefix}/bin/python3.12\nimport hello\n");
    let history = format!("# cmd: conda create -p {prefix}\n");
    let sample = Sample::new(&[
        ("conda-meta/x-1-0.json", &json),
        ("conda-meta/history", &history),
        ("bin/s", &script(prefix)),
        ("bin/hello", &hello),
        ("bin/python3.12", ""),
        ("bin/wrap", "#!/bin/sh\n"),
    ]);
    sample.write("bin/x", &binary(prefix));
    sample
}

fn content(sample: &Sample) -> Vec<(PathBuf, Vec<u8>)> {
    let root = sample.dir.path().to_owned();
    let tree = sample.tree().into_iter();
    tree.map(|(path, content)| (path.strip_prefix(&root).unwrap().to_owned(), content))
        .collect()
}

#[test]
fn a_moved_package_is_as_one_installed_there() {
    let (short, long) = ("/a/b", "/a/much/longer/prefix/than/that");
    let sample = conda(short);
    let plan = sample.relocate(&[], long);
    assert_eq!(plan.prefixes, [short.as_bytes()]);
    assert_eq!(plan.counts().binaries, 1);
    assert_eq!(content(&sample), content(&conda(long)));
    sample.relocate(&[], short);
    assert_eq!(content(&sample), content(&conda(short)));
}

#[test]
fn a_first_line_that_lost_its_path_gets_it_back() {
    let sample = conda("/a/b");
    let spaced = "/a b";
    let plan = sample.relocate(&[], spaced);
    assert_eq!(plan.counts().scripts, 2, "{plan:?}");
    let script = sample.read("bin/s");
    assert_eq!(script, "#!/usr/bin/env wrap -x\nroot=/a b\n");
    let hello = "#!/bin/sh\n'''exec' \"/a b/bin/python3.12\" \"$0\" \"$@\" #'''\nimport hello\n";
    assert_eq!(sample.read("bin/hello"), hello);
    sample.relocate(&[], "/c");
    assert_eq!(content(&sample), content(&conda("/c")));
}

#[test]
fn a_file_without_space_is_named_and_the_others_are_planned() {
    let sample = conda("/a/b");
    let long = format!("/{}", "x".repeat(PLACEHOLDER.len() + 2));
    let plan = sample.plan(&[], &long, Scope::Recognised).unwrap();
    let expected = Impossible {
        path: b"bin/x".to_vec(),
        why: Why::TooLong(3),
    };
    assert_eq!(plan.impossible, [expected]);
    assert!(plan.edits.iter().all(|edit| edit.node.path != b"bin/x"));
    let text = plan.impossible[0].to_string();
    assert!(text.contains("bin/x") && text.contains("3 bytes"), "{text}");
}

#[test]
fn a_packed_environment_gets_what_conda_unpack_would_give() {
    let sample = conda("/packer/env");
    // As conda-pack leaves it: placeholders in managed files, the prefix in others.
    let packed = conda(PLACEHOLDER);
    for path in ["bin/x", "bin/s"] {
        sample.write(path, &fs::read(packed.path(path)).unwrap());
    }
    sample.write("bin/hello", b"#!/usr/bin/env python3.12\nimport hello\n");
    sample.write("etc/own.conf", b"root=/packer/env/etc\n");
    fs::remove_file(sample.path("conda-meta/history")).unwrap();
    let table = format!(
        "#!/usr/bin/env python\n_prefix_records = [\n('bin/x', '{PLACEHOLDER}', 'binary'),\n\
         ('bin/s', '{PLACEHOLDER}', 'text'),\n('etc/own.conf', '/packer/env', 'text')\n]\n"
    );
    sample.write("bin/conda-unpack", table.as_bytes());
    let plan = sample.relocate(&[], "/new");
    assert_eq!(plan.prefixes, [b"/packer/env"]);
    let installed = conda("/new");
    for path in ["bin/x", "bin/s", "conda-meta/x-1-0.json"] {
        let same = fs::read(sample.path(path)).unwrap() == fs::read(installed.path(path)).unwrap();
        assert!(same, "{path}: {}", sample.read(path));
    }
    assert_eq!(sample.read("etc/own.conf"), "root=/new/etc\n");
    assert_eq!(sample.read("bin/conda-unpack"), table);
    // It can be moved again.
    sample.relocate(&[], "/newer");
    assert_eq!(sample.read("etc/own.conf"), "root=/newer/etc\n");
}

#[test]
fn a_tree_that_is_no_environment_is_left_alone() {
    let sample = Sample::new(&[
        ("notes.txt", "see /old/v/bin\n"),
        ("bin/tool", "#!/bin/sh\necho /old/v\n"),
    ]);
    let found = sample.plan(&["/old/v"], "/new", Scope::Recognised).unwrap();
    assert!(found.edits.is_empty());
    let found = sample.plan(&["/old/v"], "/new", Scope::All).unwrap();
    assert_eq!(found.counts().texts, 2);
    let found = sample.plan(&["/usr", "/"], "/new", Scope::All).unwrap();
    assert!(found.edits.is_empty(), "a directory of the system");
}

#[test]
fn a_prefix_that_scripts_cannot_contain_is_refused() {
    for (new, what) in [("/a'b", "'''"), ("/a$b", "'$'"), ("/a\"b", "'\"'")] {
        let refused = venv().plan(&[], new, Scope::Recognised).unwrap_err();
        assert!(refused.to_string().contains(what), "{refused}");
    }
}

#[test]
fn scripts_of_another_environment_do_not_make_it_the_old_prefix() {
    let sample = Sample::new(&[
        ("bin/a", "#!/other/env/bin/python3\n"),
        ("bin/b", "#!/old/bin/tool\n"),
        ("bin/tool", "#!/bin/sh\n"),
    ]);
    let plan = sample.plan(&[], "/new", Scope::Recognised).unwrap();
    assert_eq!(plan.prefixes, [b"/old"]);
}

#[test]
fn records_that_are_hostile_are_data() {
    let sample = venv();
    sample.write("conda-meta/a.json", b"{\"paths_data\": 7}");
    sample.write("conda-meta/b.json", b"{\"paths_data\": {\"paths\": [{\"_path\": \"../../x\", \
        \"prefix_placeholder\": \"\"}, {\"_path\": \"/etc/passwd\", \"prefix_placeholder\": \"/\"}]}}");
    sample.write("conda-meta/c.json", &[0xff; 100]);
    sample.write(
        "lib/p3/site/y-1.dist-info/RECORD",
        b"\"unterminated,sha256=,\n,,,,\n\xff",
    );
    sample.write("bin/conda-unpack", b"\n_prefix_records = [('\\x");
    let plan = sample.plan(&[], "/new", Scope::Recognised).unwrap();
    assert_eq!(plan.counts().scripts, 1, "{plan:?}");
}

#[test]
fn references_to_other_prefixes_are_listed() {
    let sample = venv();
    sample.write("bin/foreign", b"#!/other/env/bin/python\n");
    symlink("/home/u/base/bin/python3", sample.path("bin/base")).unwrap();
    let tree = DirTree::new(sample.dir.path());
    let kinds = |own: &str, more: &[&Path]| {
        let found = foreign(&tree, Path::new(own), more, &NoProgress).unwrap();
        let kinds = found.into_iter();
        kinds
            .map(|one| {
                (
                    one.kind,
                    String::from_utf8(one.prefix).unwrap(),
                    one.paths.len(),
                )
            })
            .collect::<Vec<_>>()
    };
    let at_home = kinds("/old/v", &[]);
    let foreign = (ForeignKind::Interpreter, "/other/env".to_owned(), 1);
    let base = (ForeignKind::Link, "/home/u/base".to_owned(), 1);
    assert_eq!(at_home, [foreign, base]);
    let moved = kinds("/new", &[]);
    assert!(
        moved.contains(&(ForeignKind::OldPrefix, "/old/v".to_owned(), 6)),
        "{moved:?}"
    );
    let more = kinds("/old/v", &[Path::new("/old/v2")]);
    assert!(
        more.contains(&(ForeignKind::OldPrefix, "/old/v2".to_owned(), 1)),
        "{more:?}"
    );
}
