//! Detects the kind of environment in a prefix.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Shell;

/// Variables reserved by conda; a state file must not set them.
const RESERVED: [&str; 5] = [
    "PATH",
    "CONDA_PREFIX",
    "CONDA_SHLVL",
    "CONDA_DEFAULT_ENV",
    "CONDA_PROMPT_MODIFIER",
];
/// The value with which conda marks a variable to unset.
pub(super) const UNSET: &str = "***unset***";

/// The facts about an environment that activation depends on, besides the shell's variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrefixFacts {
    /// Name of the environment.
    pub name: String,
    /// The path where it is mounted.
    pub prefix: PathBuf,
    /// The current revision, if there is one.
    pub revision: Option<i64>,
    /// Whether it was created by conda (or mamba, pixi, conda-pack): it has `conda-meta`.
    pub is_conda: bool,
    /// For a Python virtual environment (it has `pyvenv.cfg`): the prompt set there, else the name.
    pub venv_prompt: Option<String>,
    /// Whether it is a prefix of Node: npm installs its global packages into it.
    pub is_node: bool,
    /// Directories to put first in `PATH`, in order.
    pub path: Vec<PathBuf>,
    /// Variables that the environment sets, or unsets (`None`).
    pub variables: Vec<(OsString, Option<OsString>)>,
    /// Scripts to source after activation, in order, of all shells; a shell sources those with its
    /// extension.
    pub activate_scripts: Vec<PathBuf>,
    /// Scripts to source before deactivation, likewise.
    pub deactivate_scripts: Vec<PathBuf>,
}

impl PrefixFacts {
    /// Reads a prefix. Files that cannot be read are ignored: an environment with a broken file
    /// must remain usable.
    pub fn read(name: &str, prefix: &Path, revision: Option<i64>) -> PrefixFacts {
        let is_conda = prefix.join("conda-meta").is_dir();
        let pyvenv = fs::read_to_string(prefix.join("pyvenv.cfg")).ok();
        let mut path = Vec::new();
        let (bin, node) = (prefix.join("bin"), prefix.join("node_modules/.bin"));
        if node.is_dir() {
            path.push(node);
        }
        // Even if it does not exist yet: the first installation will create it.
        if bin.is_dir() || path.is_empty() {
            path.insert(0, bin);
        }
        // Only conda runs scripts and sets variables.
        let scripts = |dir| match is_conda {
            true => scripts(prefix, dir),
            false => Vec::new(),
        };
        let mut deactivate_scripts = scripts("deactivate.d");
        deactivate_scripts.reverse();
        PrefixFacts {
            name: name.to_owned(),
            prefix: prefix.to_path_buf(),
            revision,
            is_conda,
            venv_prompt: pyvenv.map(|text| venv_prompt(&text).unwrap_or_else(|| name.to_owned())),
            is_node: prefix.join("bin/node").exists() || prefix.join("lib/node_modules").is_dir(),
            path,
            variables: if is_conda {
                conda_variables(prefix)
            } else {
                Vec::new()
            },
            activate_scripts: scripts("activate.d"),
            deactivate_scripts,
        }
    }
}

/// Returns the prompt that `python -m venv --prompt` recorded.
fn venv_prompt(pyvenv: &str) -> Option<String> {
    let value = pyvenv.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "prompt").then(|| value.trim())
    })?;
    let bare = value.trim_matches(['"', '\'']);
    // The shell would evaluate these in a prompt.
    let is_safe = |c: char| !c.is_control() && !['$', '`', '\\', '%'].contains(&c);
    (!bare.is_empty() && bare.chars().all(is_safe)).then(|| bare.to_owned())
}

/// Returns the scripts in `etc/conda/DIR`, sorted by name.
fn scripts(prefix: &Path, dir: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(prefix.join("etc/conda").join(dir)) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().unwrap_or_default();
            Shell::ALL
                .iter()
                .any(|shell| extension == shell.script_extension())
        })
        .collect();
    found.sort();
    found
}

/// Returns the variables from `etc/conda/env_vars.d/*.json` and `conda-meta/state`. As in conda,
/// later files take precedence.
fn conda_variables(prefix: &Path) -> Vec<(OsString, Option<OsString>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(prefix.join("etc/conda/env_vars.d"))
        .map(|entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect()
        })
        .unwrap_or_default();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    files.sort();

    let mut variables: Vec<(OsString, Option<OsString>)> = Vec::new();
    let mut take = |value: Option<&Value>| {
        let Some(Value::Object(object)) = value else {
            return;
        };
        for (name, value) in object {
            let Some(value) = text(value) else { continue };
            if !is_variable_name(name) || RESERVED.contains(&name.as_str()) {
                continue;
            }
            let value = (value != UNSET).then(|| OsString::from(value));
            variables.retain(|(known, _)| known.as_os_str() != name.as_str());
            variables.push((OsString::from(name), value));
        }
    };
    for file in &files {
        take(read_json(file).as_ref());
    }
    take(
        read_json(&prefix.join("conda-meta/state"))
            .as_ref()
            .and_then(|state| state.get("env_vars")),
    );
    variables
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.contains('\0') => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Returns whether the name is a valid variable name in every shell.
pub fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
