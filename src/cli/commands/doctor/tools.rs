//! How conda, Jupyter and development environments find an environment.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Finding, Level};
use crate::cli::conda_list;
use crate::cli::context::Env;
use crate::cli::program;
use crate::daemon::lifecycle::State;
use crate::environment::{Store, real_path};
use crate::object::Kind;
use crate::relocate::{Entry, Node, Tree};
use crate::shell::condarc;
use crate::shell::plan::Variables;
use crate::shell::render::word;
use crate::sys::text::quoted;

/// What an environment contains that other tools care about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    is_conda: bool,
    has_python: bool,
    /// Jupyter can start kernels in it.
    has_kernel: bool,
    /// It has a Jupyter of its own, which finds the kernel without help.
    has_jupyter: bool,
}

impl Content {
    /// Looks into a tree. What cannot be read is treated as missing.
    pub(super) fn of(tree: &dyn Tree) -> Content {
        let root = Node::root();
        let entries = |path: &[&str]| {
            let mut dir = root.clone();
            for name in path {
                let Some(below) = find(tree, &dir, name) else {
                    return Vec::new();
                };
                dir = dir.child(name.as_bytes(), below.id);
            }
            tree.list(&dir).unwrap_or_default()
        };
        let has = |entries: &[Entry], name: &str| {
            let mut names = entries.iter().map(|entry| entry.name.as_slice());
            names.any(|found| found == name.as_bytes())
        };
        let bin = entries(&["bin"]);
        let mut content = Content {
            is_conda: has(&entries(&["conda-meta"]), "history"),
            has_python: has(&bin, "python"),
            has_jupyter: has(&bin, "jupyter"),
            ..Content::default()
        };
        for lib in entries(&["lib"]) {
            let name = String::from_utf8_lossy(&lib.name);
            if lib.kind == Kind::Directory && name.starts_with("python") {
                let packages = entries(&["lib", name.as_ref(), "site-packages"]);
                content.has_kernel |= has(&packages, "ipykernel");
            }
        }
        content
    }
}

fn find(tree: &dyn Tree, dir: &Node, name: &str) -> Option<Entry> {
    let entries = tree.list(dir).ok()?;
    let is_it = |entry: &Entry| entry.name == name.as_bytes() && entry.kind == Kind::Directory;
    entries.into_iter().find(is_it)
}

fn variables() -> Variables {
    std::env::vars_os().collect()
}

/// Returns a variable that names a path.
fn path_of(variables: &Variables, name: &str) -> Option<PathBuf> {
    let value = variables.get(std::ffi::OsStr::new(name))?;
    (!value.is_empty()).then(|| value.into())
}

/// Returns whether the user has conda or a program like it.
fn has_conda(variables: &Variables) -> bool {
    let home = path_of(variables, "HOME");
    let has_file = |name| home.as_ref().is_some_and(|home| home.join(name).exists());
    path_of(variables, "CONDA_EXE").is_some()
        || [".conda", ".condarc"].into_iter().any(has_file)
        || ["conda", "mamba", "micromamba"]
            .into_iter()
            .any(program::is_in_path)
}

/// Returns whether conda finds the environments in a directory by name.
fn is_envs_dir(dir: &Path, variables: &Variables) -> bool {
    let real = |path: &Path| real_path(path).unwrap_or_else(|_| path.to_owned());
    let own = real(dir);
    let mut all = condarc::envs_dirs(variables).into_iter();
    // Also the directory of an installation of conda.
    all.any(|found| real(&found) == own)
        || dir
            .parent()
            .is_some_and(|root| dir.ends_with("envs") && root.join("conda-meta").is_dir())
}

/// Says how conda learns to find environments in a directory by name.
fn append(dir: &Path) -> String {
    format!("conda config --append envs_dirs {}", word(dir))
}

/// Says whether conda finds the environments of a store by name. `None` without conda.
pub(super) fn of_store(store: &Store) -> Option<Finding> {
    let variables = variables();
    if !has_conda(&variables) {
        return None;
    }
    let dir = store.layout().prefixes();
    Some(match is_envs_dir(&dir, &variables) {
        true => {
            let message = format!("finds environments in {} by name", quoted(&dir));
            Finding::new("conda", Level::Ok, message)
        }
        false => {
            let message = format!("{} is not one of its envs_dirs", quoted(&dir));
            let hint = format!("to conda activate by name: {}", append(&dir));
            Finding::new("conda", Level::Info, message).hint(hint)
        }
    })
}

/// Says how other tools find an environment.
pub(super) fn of_environment(env: &Env, content: &Content) -> Vec<Finding> {
    let variables = variables();
    let mut findings = Vec::new();
    if content.is_conda && has_conda(&variables) {
        findings.push(by_conda(env, &variables));
    }
    if content.has_kernel {
        findings.push(by_jupyter(env, content, &variables));
    }
    if content.has_python {
        findings.push(by_path(env));
    }
    findings
}

fn by_conda(env: &Env, variables: &Variables) -> Finding {
    let prefix = &env.target.prefix;
    let name = prefix.file_name().unwrap_or_default();
    let dir = prefix.parent().unwrap_or(Path::new("/"));
    if is_envs_dir(dir, variables) {
        let message = format!("finds it by name: conda activate {}", quoted(name));
        return Finding::new("conda", Level::Ok, message);
    }
    let by_path = format!("conda activate {} works while it is mounted", word(prefix));
    let message = match conda_list::has(prefix) {
        true => "lists it, as it is in ~/.conda/environments.txt; finds it by path only",
        false => "does not list it: it is not in ~/.conda/environments.txt",
    };
    let mut finding = Finding::new("conda", Level::Info, message).hint(by_path);
    if !conda_list::has(prefix) {
        let why = match condarc::setting("register_envs", variables, Path::new("")) {
            Some(false) => "conda's setting register_envs is off",
            _ => "envfs mount adds it, if ~/.conda exists",
        };
        finding = finding.hint(why);
    }
    finding.hint(format!("to find it by name: {}", append(dir)))
}

/// Returns the directories in which Jupyter looks for kernels.
fn kernel_dirs(variables: &Variables) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    if let Some(paths) = variables.get(std::ffi::OsStr::new("JUPYTER_PATH")) {
        roots.extend(std::env::split_paths(paths));
    }
    roots.extend(user_dir(variables));
    roots.extend(["/usr/local/share/jupyter", "/usr/share/jupyter"].map(PathBuf::from));
    roots.iter().map(|root| root.join("kernels")).collect()
}

/// Returns Jupyter's directory of the user.
fn user_dir(variables: &Variables) -> Option<PathBuf> {
    let data = || path_of(variables, "XDG_DATA_HOME").map(|dir| dir.join("jupyter"));
    let home = || path_of(variables, "HOME").map(|dir| dir.join(".local/share/jupyter"));
    path_of(variables, "JUPYTER_DATA_DIR")
        .or_else(data)
        .or_else(home)
}

/// How a registered kernel starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Through envfs, which mounts the environment.
    Mounts,
    /// With the interpreter, if the environment is mounted.
    Path,
}

/// Returns the name of a registered kernel of an environment, and how it starts.
fn kernel(env: &Env, variables: &Variables) -> Option<(String, Start)> {
    let kernels = kernel_dirs(variables).into_iter().flat_map(|dir| {
        let entries = fs::read_dir(dir).into_iter().flatten();
        entries.flatten().map(|entry| entry.path())
    });
    let mut found: Vec<(String, Start)> = kernels
        .filter_map(|dir| {
            let text = fs::read(dir.join("kernel.json")).ok()?;
            let spec: Value = serde_json::from_slice(&text).ok()?;
            let argv: Vec<&str> = spec["argv"]
                .as_array()?
                .iter()
                .flat_map(Value::as_str)
                .collect();
            let start = start_of(env, &argv)?;
            Some((dir.file_name()?.to_string_lossy().into_owned(), start))
        })
        .collect();
    // The one that always works comes first.
    found.sort_by_key(|(_, start)| *start == Start::Path);
    found.into_iter().next()
}

fn start_of(env: &Env, argv: &[&str]) -> Option<Start> {
    let (program, rest) = argv.split_first()?;
    if Path::new(program).starts_with(&env.target.prefix) {
        return Some(Start::Path);
    }
    let is_envfs = Path::new(program).file_name()? == "envfs" && rest.contains(&"run");
    let names = [env.name(), env.target.prefix.to_str().unwrap_or_default()];
    (is_envfs && rest.iter().any(|word| names.contains(word))).then_some(Start::Mounts)
}

fn by_jupyter(env: &Env, content: &Content, variables: &Variables) -> Finding {
    let name = env.name();
    match kernel(env, variables) {
        Some((kernel, Start::Mounts)) => {
            let message = format!("its kernel {} starts with envfs run", quoted(&kernel));
            return Finding::new("Jupyter", Level::Ok, message);
        }
        Some((kernel, Start::Path)) => {
            let message = format!("its kernel {} starts while it is mounted", quoted(&kernel));
            return Finding::new("Jupyter", Level::Ok, message);
        }
        None if content.has_jupyter => {
            let message = format!("finds the kernel: envfs run {name} jupyter lab");
            return Finding::new("Jupyter", Level::Ok, message);
        }
        None => {}
    }
    let message = "ipykernel is installed, but no kernel of this environment is registered";
    let python = ["-m", "ipykernel_launcher", "-f", "{connection_file}"];
    let start = [&["envfs", "run", name, "--", "python"][..], &python].concat();
    let spec = json!({"display_name": name, "language": "python", "argv": start});
    let mut finding = Finding::new("Jupyter", Level::Info, message);
    if let Some(dir) = user_dir(variables) {
        let file = dir.join("kernels").join(name).join("kernel.json");
        finding = finding
            .hint(format!(
                "write this to {}, so that a kernel mounts it:",
                quoted(&file)
            ))
            .hint(spec.to_string());
    }
    finding.hint(format!(
        "or, if it is always mounted: envfs run {name} -- python -m ipykernel install --user --name {name}"
    ))
}

fn by_path(env: &Env) -> Finding {
    let prefix = &env.target.prefix;
    let python = prefix.join("bin/python");
    let message = format!("VS Code and PyCharm take {}", quoted(&python));
    let finding = Finding::new("interpreter", Level::Info, message);
    match env.state() {
        Ok(State::Unmounted | State::Dead(_) | State::Copy(_)) => finding.hint(format!(
            "it exists while the environment is mounted: envfs mount {}",
            env.name()
        )),
        _ => finding,
    }
}
