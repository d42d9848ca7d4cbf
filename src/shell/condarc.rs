//! Conda's settings, as far as activation depends on them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::plan::Variables;

/// Returns whether conda's setting NAME is on in its configuration files or in the variable
/// `CONDA_NAME`, which takes precedence; `None` if neither sets it.
///
/// Reads the files that conda reads, in its order; later ones take precedence. Only top-level keys
/// with a plain value are recognized.
pub fn setting(name: &str, variables: &Variables, prefix: &Path) -> Option<bool> {
    let variable = format!("CONDA_{}", name.to_ascii_uppercase());
    let from_variable = variables
        .get(OsStr::new(&variable))
        .and_then(|value| value.to_str())
        .and_then(boolean);
    from_variable.or_else(|| {
        files(variables, prefix)
            .into_iter()
            .filter_map(|file| fs::read_to_string(file).ok())
            .filter_map(|text| in_text(&text, name))
            .next_back()
    })
}

/// Returns the directories in which conda looks for environments by name: those of its setting
/// `envs_dirs`, and its default for a user. The directory of its own installation is left out.
///
/// Lists are recognized as a line per path below a top-level key, or in brackets on its line.
pub fn envs_dirs(variables: &Variables) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in ["CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"] {
        let value = variables.get(OsStr::new(name));
        found.extend(value.into_iter().flat_map(std::env::split_paths));
    }
    for file in files(variables, Path::new("")) {
        let text = fs::read_to_string(file).unwrap_or_default();
        let words = list_in_text(&text, &["envs_dirs", "envs_path"]);
        found.extend(words.iter().map(|word| expanded(word, variables)));
    }
    if let Some(home) = variables.get(OsStr::new("HOME")) {
        found.push(Path::new(home).join(".conda/envs"));
    }
    found.retain(|dir| !dir.as_os_str().is_empty());
    found
}

/// Returns the words of a list with one of these names.
fn list_in_text<'a>(text: &'a str, names: &[&str]) -> Vec<&'a str> {
    let plain = |word: &'a str| {
        let word = word.split(" #").next().unwrap_or_default();
        word.trim().trim_matches(['"', '\''])
    };
    let mut found = Vec::new();
    let mut is_in_list = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(word) = trimmed.strip_prefix("- ") {
            if is_in_list {
                found.push(plain(word));
            }
        } else if !line.starts_with([' ', '\t', '#']) && !trimmed.is_empty() {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            is_in_list = names.contains(&plain(key));
            let within = value.trim().strip_prefix('[');
            let within = within.and_then(|words| words.split(']').next());
            if is_in_list && let Some(words) = within {
                found.extend(words.split(',').map(plain));
            }
        }
    }
    found.retain(|word| !word.is_empty());
    found
}

/// Replaces `~` and variables at the beginning of a path, as conda does.
fn expanded(word: &str, variables: &Variables) -> PathBuf {
    let (first, rest) = word.split_once('/').unwrap_or((word, ""));
    let name = match first {
        "~" => Some("HOME"),
        first => first
            .strip_prefix('$')
            .map(|name| name.trim_matches(['{', '}'])),
    };
    match name.and_then(|name| variables.get(OsStr::new(name))) {
        Some(value) => Path::new(value).join(rest),
        None => PathBuf::from(word),
    }
}

/// Returns the paths where conda looks for its configuration, lowest precedence first.
fn files(variables: &Variables, prefix: &Path) -> Vec<PathBuf> {
    let path = |name: &str| {
        let value = variables.get(OsStr::new(name))?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    };
    let mut found = Vec::new();
    let mut both = |dir: PathBuf| {
        found.push(dir.join(".condarc"));
        found.push(dir.join("condarc"));
        let mut parts: Vec<PathBuf> = fs::read_dir(dir.join("condarc.d"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        parts.retain(|path| {
            let extension = path.extension().unwrap_or_default();
            extension == "yml" || extension == "yaml"
        });
        parts.sort();
        found.extend(parts);
    };
    both(PathBuf::from("/etc/conda"));
    both(PathBuf::from("/var/lib/conda"));
    let of_program = || path("CONDA_EXE")?.parent()?.parent().map(Path::to_path_buf);
    if let Some(root) = path("CONDA_ROOT").or_else(of_program) {
        both(root);
    }
    if let Some(config) = path("XDG_CONFIG_HOME") {
        both(config.join("conda"));
    }
    if let Some(home) = path("HOME") {
        both(home.join(".config/conda"));
        both(home.join(".conda"));
        found.push(home.join(".condarc"));
    }
    found.push(prefix.join(".condarc"));
    found.push(prefix.join("condarc"));
    found.extend(path("CONDARC"));
    found
}

fn in_text(text: &str, name: &str) -> Option<bool> {
    let mut values = text.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        let key = key.trim_end().trim_matches(['"', '\'']);
        let value = value.split(" #").next().unwrap_or_default().trim();
        (key == name).then(|| boolean(value)).flatten()
    });
    values.next_back()
}

/// Reads a truth value as YAML 1.1 and conda do.
fn boolean(value: &str) -> Option<bool> {
    let value = value.trim().trim_matches(['"', '\'']).to_ascii_lowercase();
    match value.as_str() {
        "true" | "yes" | "on" | "y" | "1" => Some(true),
        "false" | "no" | "off" | "n" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_are_read_as_conda_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("prefix");
        fs::create_dir_all(&prefix).unwrap();
        let mut variables: Variables = [("HOME".into(), dir.path().into())].into();
        let get = |variables: &Variables| setting("changeps1", variables, &prefix);
        assert_eq!(get(&variables), None);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            ".condarc",
            "channels:\n  - changeps1: true\nchangeps1: no # mine\n",
        );
        assert_eq!(get(&variables), Some(false));
        write("prefix/.condarc", "\"changeps1\" : \"On\"\n");
        assert_eq!(get(&variables), Some(true));
        write("other", "changeps1: False\n");
        variables.insert("CONDARC".into(), dir.path().join("other").into());
        assert_eq!(get(&variables), Some(false));
        variables.insert("CONDA_CHANGEPS1".into(), "1".into());
        assert_eq!(get(&variables), Some(true));
        variables.insert("CONDA_CHANGEPS1".into(), "perhaps".into());
        assert_eq!(get(&variables), Some(false));
    }

    #[test]
    fn directories_of_environments_are_read_as_conda_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path();
        let mut variables: Variables = [("HOME".into(), home.into())].into();
        assert_eq!(envs_dirs(&variables), [home.join(".conda/envs")]);
        let text = "channels:\n  - /no\nenvs_dirs:\n# mine\n  - ~/a # b\n- '/c d'\nother: [/no]\n";
        fs::write(home.join(".condarc"), text).unwrap();
        fs::create_dir(home.join(".conda")).unwrap();
        let inline = "envs_path: [\"$HOME/e\", ${HOME}/f]\npkgs_dirs:\n  - /no\n";
        fs::write(home.join(".conda/condarc"), inline).unwrap();
        variables.insert("CONDA_ENVS_DIRS".into(), "/g:/h".into());
        let mut expected: Vec<PathBuf> = vec!["/g".into(), "/h".into()];
        expected.extend(["e", "f", "a"].map(|name| home.join(name)));
        expected.extend(["/c d".into(), home.join(".conda/envs")]);
        assert_eq!(envs_dirs(&variables), expected);
    }
}
