//! Parsers of package metadata. The files are untrusted: sizes are limited, and what cannot be
//! parsed counts as absent.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

use super::{join, normal};

/// The longest name or version that is shown, in characters.
const LONGEST_WORD: usize = 100;
/// The longest path in a list of files.
const LONGEST_PATH: usize = 4096;
/// The most files of a package.
const MOST_FILES: usize = 1 << 20;

/// What the metadata of a package say about one of its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Recorded {
    /// SHA-256 of the content.
    pub(super) sha256: Option<[u8; 32]>,
    /// Size in bytes.
    pub(super) size: Option<u64>,
}

/// The files of a package, by path from the root.
pub(super) type Recordeds = HashMap<Vec<u8>, Recorded>;

/// A name or version, shortened if it is too long. `None` if it is empty.
pub(super) fn word(text: &str) -> Option<String> {
    let text = text.trim();
    let short: String = text.chars().take(LONGEST_WORD).collect();
    (!short.is_empty()).then_some(short)
}

/// Returns the name and the version in the headers of METADATA or PKG-INFO.
pub(super) fn python_headers(text: &[u8]) -> (Option<String>, Option<String>) {
    let (mut name, mut version) = (None, None);
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii_end();
        if line.is_empty() {
            break;
        }
        let value = |key: &[u8]| {
            let (start, rest) = line.split_at_checked(key.len())?;
            let value = rest.strip_prefix(b":")?;
            let is_it = start.eq_ignore_ascii_case(key);
            is_it.then(|| word(&String::from_utf8_lossy(value)))?
        };
        name = name.or_else(|| value(b"Name"));
        version = version.or_else(|| value(b"Version"));
    }
    (name, version)
}

/// Splits the name of a directory `name-version.dist-info`, or `name-version-py3.12.egg-info`.
pub(super) fn python_directory(name: &str) -> (Option<String>, Option<String>) {
    let stem = name
        .strip_suffix(".dist-info")
        .or_else(|| name.strip_suffix(".egg-info"))
        .unwrap_or(name);
    let mut parts = stem.split('-');
    (parts.next().and_then(word), parts.next().and_then(word))
}

/// Splits the stem of `conda-meta/name-version-build.json`.
pub(super) fn conda_stem(stem: &str) -> Option<(String, String, String)> {
    let mut parts = stem.rsplitn(3, '-');
    let (build, version, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some((word(name)?, word(version)?, word(build)?))
}

#[derive(Deserialize)]
struct CondaFiles<'a> {
    #[serde(default, borrow)]
    files: Vec<Cow<'a, str>>,
}

/// Returns the list of files of a conda package, without hashes, which take much longer to read.
pub(super) fn conda_files(json: &[u8]) -> Vec<Cow<'_, str>> {
    let parsed = serde_json::from_slice::<CondaFiles<'_>>(json);
    parsed.map_or_else(|_| Vec::new(), |record| record.files)
}

#[derive(Deserialize)]
struct CondaRecord {
    #[serde(default)]
    files: Vec<String>,
    #[serde(default)]
    paths_data: CondaPaths,
}

#[derive(Deserialize, Default)]
struct CondaPaths {
    #[serde(default)]
    paths: Vec<CondaPath>,
}

#[derive(Deserialize)]
struct CondaPath {
    #[serde(rename = "_path")]
    path: String,
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    sha256_in_prefix: Option<String>,
    #[serde(default)]
    size_in_bytes: Option<u64>,
    #[serde(default)]
    prefix_placeholder: Option<serde::de::IgnoredAny>,
}

/// Returns the files of a conda package whose environment is at `root`.
pub(super) fn conda_recorded(json: &[u8], root: &[u8]) -> Recordeds {
    let Ok(record) = serde_json::from_slice::<CondaRecord>(json) else {
        return Recordeds::new();
    };
    let plain = record.files.into_iter().map(|path| CondaPath {
        path,
        sha256: None,
        sha256_in_prefix: None,
        size_in_bytes: None,
        prefix_placeholder: None,
    });
    let mut recorded = Recordeds::new();
    // The entries with hashes come last and count.
    for entry in plain.chain(record.paths_data.paths).take(MOST_FILES) {
        // Hash and size are those in the package, before the prefix was written into the file.
        let is_rewritten = entry.prefix_placeholder.is_some();
        let hash = match (entry.sha256_in_prefix, is_rewritten) {
            (Some(hash), _) => Some(hash),
            (None, false) => entry.sha256,
            (None, true) => None,
        };
        if let Some(path) = join_normal(root, entry.path.as_bytes()) {
            let file = Recorded {
                sha256: hash.and_then(|hash| from_hex(&hash)),
                size: entry.size_in_bytes.filter(|_| !is_rewritten),
            };
            recorded.insert(path, file);
        }
    }
    recorded
}

/// Returns the files in a RECORD of a Python package that was installed into `location`.
pub(super) fn record(text: &[u8], location: &[u8]) -> Recordeds {
    let mut recorded = Recordeds::new();
    for line in text.split(|byte| *byte == b'\n').take(MOST_FILES) {
        let mut fields = fields(line.trim_ascii_end()).into_iter();
        let Some(path) = fields.next().and_then(|path| join_normal(location, &path)) else {
            continue;
        };
        let hash = fields.next().unwrap_or_default();
        let size = fields.next().unwrap_or_default();
        let file = Recorded {
            sha256: hash.strip_prefix(b"sha256=").and_then(from_base64),
            size: std::str::from_utf8(&size)
                .ok()
                .and_then(|text| text.parse().ok()),
        };
        recorded.insert(path, file);
    }
    recorded
}

/// Returns the path in a line of a RECORD.
pub(super) fn record_path(line: &[u8]) -> Option<Cow<'_, [u8]>> {
    if line.first() == Some(&b'"') {
        return fields(line).into_iter().next().map(Cow::Owned);
    }
    let path = line.split(|byte| *byte == b',').next()?;
    (!path.is_empty()).then_some(Cow::Borrowed(path))
}

/// Splits a line of CSV.
fn fields(line: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::with_capacity(3);
    let mut field = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    let mut is_quoted = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if is_quoted && bytes.peek() == Some(&b'"') => {
                bytes.next();
                field.push(b'"');
            }
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => all.push(std::mem::take(&mut field)),
            _ => field.push(byte),
        }
    }
    if !(all.is_empty() && field.is_empty()) {
        all.push(field);
    }
    all
}

/// Joins a path of a package to a directory and resolves `.` and `..`. `None` if the result is not
/// in the environment.
pub(super) fn join_normal(above: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let is_sane = !path.is_empty() && !path.starts_with(b"/") && path.len() <= LONGEST_PATH;
    if !is_sane {
        return None;
    }
    normal(&join(above, path))
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(hash)
}

/// Decodes a hash in the URL-safe base64 of RECORD, which has no padding.
fn from_base64(text: &[u8]) -> Option<[u8; 32]> {
    let text = text.strip_suffix(b"=").unwrap_or(text);
    if text.len() != 43 {
        return None;
    }
    let mut hash = [0; 32];
    let mut out = hash.iter_mut();
    let (mut bits, mut held) = (0u32, 0u32);
    for character in text {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            *out.next()? = (bits >> held) as u8;
            bits &= (1 << held) - 1;
        }
    }
    Some(hash)
}

#[derive(Deserialize)]
struct NodePackage {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    version: Option<String>,
}

/// Returns the name and the version in a package.json.
pub(super) fn node(json: &[u8]) -> Option<(Option<String>, Option<String>)> {
    let parsed: NodePackage = serde_json::from_slice(json).ok()?;
    Some((
        parsed.name.and_then(|text| word(&text)),
        parsed.version.and_then(|text| word(&text)),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_are_parsed_as_csv_with_paths_outside_of_the_directory() {
        let hash = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU";
        let text = format!(
            "six.py,sha256={hash},0\r\n\"od\"\"d, name.py\",,\n../../../bin/six,sha256=bad,12\n\
             ../../../../etc/passwd,,\n/etc/passwd,,\n__pycache__/six.cpython-312.pyc,,\n\n"
        );
        let files = record(text.as_bytes(), b"lib/python3.12/site-packages");
        let at = |path: &str| files.get(path.as_bytes()).copied();
        let six = at("lib/python3.12/site-packages/six.py").unwrap();
        assert_eq!(six.size, Some(0));
        // The hash of nothing.
        assert_eq!(six.sha256.unwrap()[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        assert_eq!(
            at("lib/python3.12/site-packages/od\"d, name.py"),
            Some(Recorded::default())
        );
        assert_eq!(
            at("bin/six").unwrap(),
            Recorded {
                sha256: None,
                size: Some(12)
            }
        );
        assert!(at("lib/python3.12/site-packages/__pycache__/six.cpython-312.pyc").is_some());
        assert_eq!(files.len(), 4);
    }

    #[test]
    fn conda_hashes_are_those_in_the_prefix() {
        let (plain, inside) = ("ab".repeat(32), "cd".repeat(32));
        let json = format!(
            r#"{{"name": "x", "files": ["bin/x", "lib/y", "z"], "paths_data": {{"paths": [
                {{"_path": "bin/x", "sha256": "{plain}", "sha256_in_prefix": "{inside}", "size_in_bytes": 7,
                  "prefix_placeholder": "/opt/p", "file_mode": "text"}},
                {{"_path": "lib/y", "sha256": "{plain}", "size_in_bytes": 8}}]}}}}"#
        );
        let files = conda_recorded(json.as_bytes(), b"");
        let at = |path: &str| files.get(path.as_bytes()).copied().unwrap();
        let (plain, inside) = (Some([0xab; 32]), Some([0xcd; 32]));
        assert_eq!(
            at("bin/x"),
            Recorded {
                sha256: inside,
                size: None
            }
        );
        assert_eq!(
            at("lib/y"),
            Recorded {
                sha256: plain,
                size: Some(8)
            }
        );
        assert_eq!(at("z"), Recorded::default());
        assert_eq!(conda_files(json.as_bytes()), ["bin/x", "lib/y", "z"]);
    }

    #[test]
    fn names_and_versions_are_found() {
        let text = b"Metadata-Version: 2.1\nname: PyYAML \nVersion: 6.0.1\n\nVersion: no\n";
        let found = python_headers(text);
        assert_eq!(found, (Some("PyYAML".into()), Some("6.0.1".into())));
        assert_eq!(
            python_directory("ruamel.yaml-0.18.5.dist-info"),
            (Some("ruamel.yaml".into()), Some("0.18.5".into()))
        );
        assert_eq!(
            python_directory("six-1.16.0-py3.12.egg-info"),
            (Some("six".into()), Some("1.16.0".into()))
        );
        assert_eq!(python_directory("odd.egg-info"), (Some("odd".into()), None));
        assert_eq!(
            conda_stem("scikit-learn-1.4.0-py311h_0"),
            Some(("scikit-learn".into(), "1.4.0".into(), "py311h_0".into()))
        );
        assert_eq!(conda_stem("history"), None);
        assert_eq!(
            node(br#"{"name": "@s/p", "version": "1.2.3", "x": [1]}"#),
            Some((Some("@s/p".into()), Some("1.2.3".into())))
        );
        assert_eq!(node(b"1"), None);
        assert_eq!(word(&"x".repeat(5000)).unwrap().len(), LONGEST_WORD);
    }

    #[test]
    fn hostile_metadata_are_no_metadata() {
        for text in [
            &b""[..],
            b"\xff\xfe\0",
            b"{",
            b"[[[[",
            b"{\"files\": {}}",
            b"null",
        ] {
            assert!(conda_recorded(text, b"").is_empty());
            assert!(conda_files(text).is_empty());
            assert_eq!(python_headers(text), (None, None));
        }
        assert!(serde_json::from_str::<CondaRecord>(&"[".repeat(1 << 20)).is_err());
        assert!(record(b",,\n\"\n..\n../..,x", b"a").is_empty());
        assert_eq!(from_base64(b"47DEQpj8HBSa+"), None);
        assert_eq!(from_hex(&"é".repeat(32)), None);
    }
}
