//! The arrows between modules, and between the files of a module.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// The modules that each module may use, as in `docs/architecture.md`.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "daemon",
            "commit",
            "packages",
            "relocate",
            "union",
            "squashfs",
            "state",
            "environment",
            "shell",
        ],
    ),
    (
        "daemon",
        &[
            "fuse",
            "commit",
            "packages",
            "relocate",
            "union",
            "squashfs",
            "state",
            "environment",
        ],
    ),
    ("fuse", &["union", "squashfs", "environment"]),
    (
        "commit",
        &[
            "packages",
            "relocate",
            "union",
            "squashfs",
            "upper",
            "state",
            "environment",
        ],
    ),
    ("packages", &["union"]),
    ("union", &["squashfs", "upper", "state"]),
    ("relocate", &[]),
    ("shell", &[]),
    ("squashfs", &[]),
    ("upper", &[]),
    ("state", &[]),
    ("environment", &[]),
    ("sys", &[]),
    ("object", &[]),
    ("progress", &[]),
    ("fault", &[]),
];

/// Modules that all others but [`FREE`] may use.
const COMMON: &[&str] = &["sys", "object", "progress", "fault"];
/// Uses no other module of envfs.
const FREE: &str = "squashfs";

/// Files that import each other for a reason: pairs of the circle that is left.
const CIRCLES: &[(&str, &str)] = &[
    // The rows of a frozen layer may be in the database only. When they have been read, they are
    // checked over the layers below, which may be frozen ones.
    ("union::stored", "union::stack"),
    ("union::delta", "union::stack"),
];

/// The path of a module, as in `union::stack`.
type Module = Vec<String>;

/// The imports of a source file.
struct File {
    /// Paths as written.
    paths: Vec<String>,
    /// Names that it imports, which its children can import from it, with their paths.
    names: Vec<(String, String)>,
}

/// Returns the text without comments, and without the module of tests at its end.
fn code_of(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next();
    let lines = code.unwrap_or_default().lines();
    let code = lines.map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// Expands the braces of a `use`.
fn expand(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        if !tree.is_empty() {
            found.push(format!("{prefix}{tree}"));
        }
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let inner = rest.trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    // Closing braces at the end are trimmed, even if they are nested: an open one ends there.
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &inner[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(&prefix, &inner[start..], found);
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl File {
    fn parse(text: &str) -> File {
        let code = code_of(text);
        let mut file = File {
            paths: Vec::new(),
            names: Vec::new(),
        };
        let mut rest = String::new();
        for statement in code.split_inclusive(';') {
            let at = statement.match_indices("use ").find(|(at, _)| {
                let line = statement[..*at].rsplit('\n').next().unwrap_or_default();
                let before = line.trim();
                before.is_empty() || before.starts_with("pub") && !before.contains("fn")
            });
            let Some((at, _)) = at else {
                rest.push_str(statement);
                continue;
            };
            rest.push_str(&statement[..at]);
            let mut found = Vec::new();
            expand("", statement[at + 4..].trim_end_matches(';'), &mut found);
            for path in found {
                let (path, name) = match path.split_once(" as ") {
                    Some((path, name)) => (path.to_owned(), name.to_owned()),
                    None => {
                        let name = path.rsplit("::").next().unwrap_or_default().to_owned();
                        (path, name)
                    }
                };
                let path = path.trim_end_matches("::self").to_owned();
                file.names.push((name, path.clone()));
                file.paths.push(path);
            }
        }
        for start in ["crate::", "super::", "self::"] {
            for (at, _) in rest.match_indices(start) {
                if rest[..at].ends_with(|c| is_word(c) || c == ':') {
                    continue;
                }
                let end = rest[at..].find(|c| !is_word(c) && c != ':');
                let path = &rest[at..end.map_or(rest.len(), |end| at + end)];
                file.paths.push(path.trim_end_matches(':').to_owned());
            }
        }
        file
    }
}

/// Returns the file that a path leads to, and the name in it.
fn resolve<'a>(
    files: &BTreeMap<Module, File>,
    from: &Module,
    path: &'a str,
) -> Option<(Module, Option<&'a str>)> {
    let mut parts = path.split("::").peekable();
    let mut at = match parts.peek()? {
        &"crate" => Module::new(),
        &"self" | &"super" => from.clone(),
        first => {
            let mut child = from.clone();
            child.push((*first).to_owned());
            files.get(&child)?;
            from.clone()
        }
    };
    while let Some(part) = parts.next_if(|part| matches!(*part, "crate" | "self" | "super")) {
        if part == "super" {
            at.pop();
        }
    }
    while let Some(part) = parts.peek() {
        at.push((*part).to_owned());
        if !files.contains_key(&at) {
            at.pop();
            break;
        }
        parts.next();
    }
    Some((at, parts.next()))
}

/// Like [`resolve`], through names that files import.
fn resolve_name(files: &BTreeMap<Module, File>, from: &Module, path: &str) -> Option<Module> {
    let (mut module, name) = resolve(files, from, path)?;
    let mut name = name.map(str::to_owned);
    for _ in 0..8 {
        let (Some(wanted), Some(file)) = (&name, files.get(&module)) else {
            break;
        };
        let Some((_, through)) = file.names.iter().find(|(own, _)| own == wanted) else {
            break;
        };
        let Some((next, rest)) = resolve(files, &module, through) else {
            break;
        };
        if next == module {
            break;
        }
        (module, name) = (next, rest.map(str::to_owned));
    }
    Some(module)
}

/// Returns the files of `src` that are no tests, by module.
fn files() -> BTreeMap<Module, File> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    for entry in walkdir::WalkDir::new(&src) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(&src).unwrap().with_extension("");
        let mut module: Module = path
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        if entry.path().extension().is_none_or(|ending| ending != "rs")
            || module.iter().any(|part| part == "tests")
            || matches!(module[0].as_str(), "lib" | "main")
        {
            continue;
        }
        if module.last().is_some_and(|part| part == "mod") {
            module.pop();
        }
        let text = fs::read_to_string(entry.path()).unwrap();
        files.insert(module, File::parse(&text));
    }
    files
}

/// Returns the arrows from file to file.
fn arrows(files: &BTreeMap<Module, File>) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut arrows: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, file) in files {
        let targets = file.paths.iter();
        let targets = targets.filter_map(|path| resolve_name(files, module, path));
        let targets = targets.filter(|target| !target.is_empty() && target != module);
        arrows.insert(module.clone(), targets.collect());
    }
    arrows
}

#[test]
fn imports_are_parsed() {
    let text = "use super::{a::A, b::{self, B as C}};\npub(super) use inner::D;\n\
                fn f() -> crate::x::Y { super::g() } // crate::not\nfn use_it() {}\n";
    let file = File::parse(text);
    let mut paths = file.paths.clone();
    paths.sort();
    assert_eq!(
        paths,
        [
            "crate::x::Y",
            "inner::D",
            "super::a::A",
            "super::b",
            "super::b::B",
            "super::g"
        ]
    );
    assert!(
        file.names
            .contains(&("C".to_owned(), "super::b::B".to_owned()))
    );
}

#[test]
fn modules_use_only_modules_below_them() {
    let files = files();
    let mut found = BTreeSet::new();
    for (from, targets) in arrows(&files) {
        for target in targets {
            if from[0] != target[0] {
                found.insert((from[0].clone(), target[0].clone()));
            }
        }
    }
    assert!(found.len() > 30, "{found:?}");
    let allowed: HashMap<_, _> = ARROWS.iter().copied().collect();
    let wrong: Vec<_> = found
        .iter()
        .filter(|(from, to)| {
            let listed = allowed.get(from.as_str());
            let is_common = from != FREE && COMMON.contains(&to.as_str());
            !is_common && listed.is_none_or(|listed| !listed.contains(&to.as_str()))
        })
        .collect();
    assert!(wrong.is_empty(), "these modules are not below: {wrong:#?}");
}

/// Returns the files that can be reached from one, which is among them if it is in a circle.
fn reachable(arrows: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<Module> {
    let is_own = |a: &Module, b: &Module| a.starts_with(b) || b.starts_with(a);
    let is_allowed =
        |a: &Module, b: &Module| CIRCLES.contains(&(a.join("::").as_str(), b.join("::").as_str()));
    let mut found = BTreeSet::new();
    let mut pending = vec![from.clone()];
    while let Some(at) = pending.pop() {
        for next in arrows.get(&at).into_iter().flatten() {
            // A file and those in its directory are one: parents re-export and children use it.
            if !is_own(&at, next) && !is_allowed(&at, next) && found.insert(next.clone()) {
                pending.push(next.clone());
            }
        }
    }
    found
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let files = files();
    assert!(files.len() > 200, "{}", files.len());
    let arrows = arrows(&files);
    let circle: Vec<_> = arrows
        .keys()
        .filter(|module| reachable(&arrows, module).contains(*module))
        .map(|module| module.join("::"))
        .collect();
    assert!(
        circle.is_empty(),
        "these files are in a circle: {circle:#?}"
    );
    for (from, to) in CIRCLES {
        let module = |path: &str| path.split("::").map(str::to_owned).collect::<Module>();
        let (from, to) = (module(from), module(to));
        assert!(
            arrows[&from].contains(&to),
            "{from:?} does not use {to:?} any more"
        );
    }
}
