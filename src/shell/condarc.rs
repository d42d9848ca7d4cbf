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
}
