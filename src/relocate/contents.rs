//! Examines the content of one file: what replaces the prefixes in it.

use super::EditKind;
use super::binary;
use super::conda::{Listed, Mode};
use super::items::parent;
use super::search::{Bounds, Encoding, Pattern, find};
use super::shebang::{Head, Owner};
use super::splice::{self, Splice, apply, hex, sha256};
use super::text::{self, Quoting};

/// What a file contains.
pub(super) enum Found {
    Nothing,
    Splices(EditKind, Vec<Splice>, Rest),
    TooLong(usize),
    /// A prefix, in a format that is unknown.
    Unknown,
}

/// What happens to the prefixes that are not replaced.
#[derive(PartialEq, Eq)]
pub(super) enum Rest {
    None,
    Left,
}

/// Examines a file that contained a placeholder.
pub(super) fn listed_file(
    data: &[u8],
    listed: &Listed,
    patterns: &[Pattern],
    olds: &[Vec<u8>],
    new: &[u8],
) -> Found {
    if listed.mode == Mode::Binary {
        return binary_file(data, patterns);
    }
    let mut splices = text::replace(data, patterns, Owner::Conda, Quoting::None);
    if let Some(head) = Head::parse(data)
        && let Some(with) = restored(data, &head, listed, olds, new)
    {
        splices.retain(|splice| splice.at >= head.len);
        splices.push(Splice {
            at: 0,
            len: head.len,
            with,
        });
        splice::sort(&mut splices);
    }
    text_file(splices)
}

/// Returns the first line of a script that names no path, because the old prefix was too long for
/// it. The digest of the packaged file tells whether a path that it may have had is right.
fn restored(
    data: &[u8],
    head: &Head,
    listed: &Listed,
    olds: &[Vec<u8>],
    new: &[u8],
) -> Option<Vec<u8>> {
    let (name, options) = head.env_name()?;
    let wanted = listed.sha256.as_deref()?;
    let rest = data.get(head.len..)?;
    let own = parent(&listed.path);
    let mut dirs = vec![&b"bin"[..], own];
    dirs.dedup();
    for old in olds.iter().map(Some).chain([None]) {
        let rest = match old {
            Some(old) => {
                let back = Pattern::new(old, &listed.placeholder, Encoding::Utf8, Bounds::Any, 0)?;
                let splices: Vec<Splice> = find(rest, &[back])
                    .iter()
                    .map(|hit| Splice {
                        at: hit.at,
                        len: old.len(),
                        with: listed.placeholder.clone(),
                    })
                    .collect();
                apply(rest, &splices)
            }
            None => rest.to_vec(),
        };
        for dir in &dirs {
            let line = [
                b"#!",
                &listed.placeholder[..],
                b"/",
                dir,
                b"/",
                name,
                options,
            ]
            .concat();
            if hex(&sha256(&[&line[..], &rest[..]].concat())) == wanted {
                let interpreter = [new, b"/", dir, b"/", name].concat();
                return Some(head.with(&interpreter, options, Owner::Conda));
            }
        }
    }
    None
}

/// Examines a file of which nothing is known.
pub(super) fn other_file(data: &[u8], path: &[u8], patterns: &[Pattern], owner: Owner) -> Found {
    if !patterns.iter().any(|pattern| pattern.is_in(data)) {
        return Found::Nothing;
    }
    if !data.contains(&0) {
        let name = path.strip_prefix(b"bin/").unwrap_or_default();
        let quoting = match name.starts_with(b"activate") || name.starts_with(b"deactivate") {
            true => Quoting::Shell,
            false => Quoting::None,
        };
        return text_file(text::replace(data, patterns, owner, quoting));
    }
    if data.starts_with(b"\x7fELF") || data.starts_with(b"!<arch>\n") {
        return binary_file(data, patterns);
    }
    // A program in a zip archive, whose first line can be changed.
    let head = Head::parse(data);
    match head.and_then(|head| Some((head.len, head.replaced(patterns, owner)?))) {
        Some((len, with)) => {
            let rest = data.get(len..).unwrap_or_default();
            let rest = match patterns.iter().any(|pattern| pattern.is_in(rest)) {
                true => Rest::Left,
                false => Rest::None,
            };
            Found::Splices(EditKind::Script, vec![Splice { at: 0, len, with }], rest)
        }
        None => Found::Unknown,
    }
}

fn text_file(splices: Vec<Splice>) -> Found {
    let is_script = splices
        .first()
        .is_some_and(|splice| splice.at == 0 && splice.with.starts_with(b"#!"));
    match (splices.is_empty(), is_script) {
        (true, _) => Found::Nothing,
        (_, true) => Found::Splices(EditKind::Script, splices, Rest::None),
        (_, false) => Found::Splices(EditKind::Text, splices, Rest::None),
    }
}

fn binary_file(data: &[u8], patterns: &[Pattern]) -> Found {
    match binary::replace(data, patterns) {
        Ok(splices) if splices.is_empty() => Found::Nothing,
        Ok(splices) => Found::Splices(EditKind::Binary, splices, Rest::None),
        Err(binary::TooLong(bytes)) => Found::TooLong(bytes),
    }
}
