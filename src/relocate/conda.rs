//! What conda and conda-pack record about prefixes.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::splice::{Changed, Splice, hex};

/// How a file contains a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Text,
    Binary,
}

/// What is recorded about a file that contained a placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) path: Vec<u8>,
    pub(super) placeholder: Vec<u8>,
    pub(super) mode: Mode,
    /// The digest of the file in its package, in hexadecimal.
    pub(super) sha256: Option<String>,
}

/// A file in `conda-meta` with the record of one package.
#[derive(Debug, Default)]
pub(super) struct Package {
    /// Files that contained a placeholder.
    pub(super) listed: Vec<Listed>,
    /// All other files.
    pub(super) others: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(default, borrow)]
    paths_data: Option<PathsData<'a>>,
    #[serde(default)]
    files: Vec<String>,
}

#[derive(Deserialize)]
struct PathsData<'a> {
    #[serde(default, borrow)]
    paths: Vec<PathRecord<'a>>,
}

#[derive(Deserialize)]
struct PathRecord<'a> {
    _path: String,
    #[serde(default)]
    prefix_placeholder: Option<String>,
    #[serde(default)]
    file_mode: Option<String>,
    #[serde(default, borrow)]
    sha256: Option<&'a RawValue>,
    #[serde(default, borrow)]
    sha256_in_prefix: Option<&'a RawValue>,
    #[serde(default, borrow)]
    size_in_bytes: Option<&'a RawValue>,
}

fn parse(data: &[u8]) -> Option<Record<'_>> {
    serde_json::from_slice(data).ok()
}

/// Reads the record of a package; `None` if it is none.
pub(super) fn package(data: &[u8]) -> Option<Package> {
    let record = parse(data)?;
    let mut package = Package::default();
    for path in record.paths_data.map(|data| data.paths).unwrap_or_default() {
        let mode = match path.file_mode.as_deref() {
            Some("binary") => Mode::Binary,
            _ => Mode::Text,
        };
        match path.prefix_placeholder {
            Some(placeholder) if placeholder.starts_with('/') => package.listed.push(Listed {
                path: path._path.into_bytes(),
                placeholder: placeholder.into_bytes(),
                mode,
                sha256: path
                    .sha256
                    .map(|raw| raw.get().trim_matches('"').to_owned()),
            }),
            _ => package.others.push(path._path.into_bytes()),
        }
    }
    let files = record.files.into_iter().map(String::into_bytes);
    package.others.extend(files);
    Some(package)
}

/// Returns the replacements of the digests of changed files in a record. One that did not fit the
/// file before belongs to a file that was edited, and stays.
pub(super) fn digests<'a>(
    data: &[u8],
    changed: impl Fn(&[u8]) -> Option<&'a Changed>,
) -> Vec<Splice> {
    let Some(record) = parse(data) else {
        return Vec::new();
    };
    let mut splices = Vec::new();
    for path in record.paths_data.map(|data| data.paths).unwrap_or_default() {
        let Some(changed) = changed(path._path.as_bytes()) else {
            continue;
        };
        let before = format!("\"{}\"", hex(&changed.before));
        let after = format!("\"{}\"", hex(&changed.after));
        let is_before = |raw: &&RawValue| raw.get() == before;
        let is_as_packaged = path.sha256.is_some_and(|raw| raw.get() == before);
        // In an archive of conda-pack files are as in their packages.
        let in_prefix = path.sha256_in_prefix;
        let in_prefix = in_prefix.filter(|raw| is_before(raw) || is_as_packaged);
        splices.extend(in_prefix.and_then(|raw| replacement(data, raw, &after)));
        let is_generated = path.prefix_placeholder.is_none() && is_as_packaged;
        if is_generated {
            // A script that the installer wrote.
            let digest = path.sha256.and_then(|raw| replacement(data, raw, &after));
            splices.extend(digest);
        }
        // conda records the size in the package, rattler the size of the installed file.
        if is_generated || !is_as_packaged {
            let size = path.size_in_bytes;
            let size = size.filter(|raw| raw.get() == changed.size_before.to_string());
            let after = changed.size_after.to_string();
            splices.extend(size.and_then(|raw| replacement(data, raw, &after)));
        }
    }
    splices
}

/// Returns the replacement of a value, which is a part of `data`.
fn replacement(data: &[u8], value: &RawValue, with: &str) -> Option<Splice> {
    let (at, len) = (value.get().as_ptr() as usize, value.get().len());
    let at = at.checked_sub(data.as_ptr() as usize)?;
    (at + len <= data.len()).then(|| Splice {
        at,
        len,
        with: with.as_bytes().to_vec(),
    })
}

/// Reads the table in `bin/conda-unpack`: path, placeholder and mode of each file. Empty if it is
/// not such a script.
pub(super) fn unpack_table(script: &[u8]) -> Vec<Listed> {
    const BEGIN: &[u8] = b"\n_prefix_records = [";
    let Some(at) = memchr::memmem::find(script, BEGIN) else {
        return Vec::new();
    };
    let mut rest = script.get(at + BEGIN.len()..).unwrap_or_default();
    let mut table = Vec::new();
    loop {
        rest = skip(rest, b" \t\r\n,");
        let Some(after) = rest.strip_prefix(b"(") else {
            return table;
        };
        rest = after;
        let mut fields = Vec::new();
        for _ in 0..3 {
            rest = skip(rest, b" \t\r\n,");
            let Some((text, after)) = python_string(rest) else {
                return table;
            };
            fields.push(text);
            rest = after;
        }
        rest = skip(rest, b" \t\r\n,)");
        if let Ok([path, placeholder, mode]) = <[Vec<u8>; 3]>::try_from(fields)
            && placeholder.starts_with(b"/")
        {
            table.push(Listed {
                path,
                placeholder,
                mode: match &mode[..] {
                    b"binary" => Mode::Binary,
                    _ => Mode::Text,
                },
                sha256: None,
            });
        }
    }
}

fn skip<'a>(text: &'a [u8], bytes: &[u8]) -> &'a [u8] {
    let len = text.iter().take_while(|byte| bytes.contains(byte)).count();
    text.get(len..).unwrap_or_default()
}

/// Parses a string as Python's `repr` writes it. Returns it and what follows.
fn python_string(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&quote, mut rest) = text.split_first()?;
    if quote != b'\'' && quote != b'"' {
        return None;
    }
    let mut out = Vec::new();
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        if byte == quote {
            return Some((out, rest));
        }
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        let digits = match escape {
            b'x' => 2,
            b'u' => 4,
            b'U' => 8,
            b'n' => {
                out.push(b'\n');
                continue;
            }
            other => {
                out.push(other);
                continue;
            }
        };
        let number = std::str::from_utf8(rest.get(..digits)?).ok()?;
        let character = char::from_u32(u32::from_str_radix(number, 16).ok()?)?;
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = rest.get(digits..)?;
    }
}

/// Returns the prefix that the last command in `conda-meta/history` names.
pub(super) fn prefix_of_history(history: &[u8]) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(history);
    let commands = text.lines().filter_map(|line| line.strip_prefix("# cmd: "));
    let mut named = commands.filter_map(|command| {
        let mut words = command.split_ascii_whitespace();
        words.find(|word| matches!(*word, "-p" | "--prefix"))?;
        let path = words.next()?.trim_end_matches('/');
        path.starts_with('/').then(|| path.as_bytes().to_vec())
    });
    named.next_back()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::splice::{apply, sha256};
    use super::*;

    #[test]
    fn a_record_names_placeholders_and_gets_new_digests() {
        let (before, after) = (sha256(b"before"), sha256(b"after"));
        let json = format!(
            r#"{{"name": "x", "files": ["bin/x", "bin/y"], "paths_data": {{"paths": [
              {{"_path": "bin/x", "file_mode": "binary", "prefix_placeholder": "/opt/p",
                "sha256": "00", "sha256_in_prefix": "{0}", "size_in_bytes": 6}},
              {{"_path": "bin/y", "sha256": "11", "sha256_in_prefix": "22"}},
              {{"_path": "bin/z", "sha256_in_prefix": null}},
              {{"_path": "bin/entry", "sha256": "{0}", "size_in_bytes": 6}}], "paths_version": 1}}}}"#,
            hex(&before)
        );
        let package = package(json.as_bytes()).unwrap();
        assert_eq!(package.listed.len(), 1);
        assert_eq!(package.listed[0].mode, Mode::Binary);
        assert!(package.others.contains(&b"bin/z".to_vec()));
        let changed = Changed {
            before,
            after,
            size_before: 6,
            size_after: 5,
        };
        // The digest of bin/y shows that it was edited.
        let splices = digests(json.as_bytes(), |_| Some(&changed));
        let new = String::from_utf8(apply(json.as_bytes(), &splices)).unwrap();
        let expected = json.replace(&hex(&before), &hex(&after));
        assert_eq!(new, expected.replace("bytes\": 6", "bytes\": 5"));
        assert!(super::package(b"{ no json").is_none());
        assert!(digests(b"[]", |_| Some(&changed)).is_empty());
    }

    #[test]
    fn the_table_of_conda_pack_is_read() {
        let script =
            b"#!/usr/bin/env python\nx = 1\n_prefix_records = [\n('bin/a', '/opt/p', 'text'),\n\
            (\"lib/it's\", '/opt/\\xe9', 'binary')\n]\nif True: pass\n";
        let table = unpack_table(script);
        assert_eq!(table.len(), 2);
        assert_eq!(table[0].path, b"bin/a");
        assert_eq!(table[1].path, b"lib/it's");
        assert_eq!(table[1].placeholder, "/opt/é".as_bytes());
        assert_eq!(table[1].mode, Mode::Binary);
        assert!(unpack_table(b"\n_prefix_records = [(1, 2)]").is_empty());
        assert!(unpack_table(b"\n_prefix_records = [('a").is_empty());
    }

    #[test]
    fn the_history_names_the_last_prefix() {
        let history =
            b"==> x <==\n# cmd: conda create -p /a/\n# cmd: conda install x\n# cmd: conda update --prefix /b y\n";
        assert_eq!(prefix_of_history(history), Some(b"/b".to_vec()));
        assert_eq!(prefix_of_history(b"# cmd: conda create -n x\n"), None);
    }
}
