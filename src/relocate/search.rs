//! Finds prefixes in content.
//!
//! A placeholder of conda is unique, so it is replaced wherever it occurs. An ordinary path must
//! be a whole path there, or the beginning of one: `/opt/env` is not in `/opt/env2/bin` or in
//! `/data/opt/env`.

use memchr::memmem;

/// How text is encoded. Packages of conda contain prefixes in each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Utf16Le,
    Utf16Be,
    Utf32Le,
    Utf32Be,
    /// As in a URL: bytes that are not allowed there are `%XX`.
    Percent,
}

impl Encoding {
    pub(super) const OF_CONDA: [Encoding; 5] = [
        Encoding::Utf8,
        Encoding::Utf16Le,
        Encoding::Utf16Be,
        Encoding::Utf32Le,
        Encoding::Utf32Be,
    ];

    /// The length of a terminating NUL.
    pub(super) fn unit(self) -> usize {
        match self {
            Encoding::Utf8 | Encoding::Percent => 1,
            Encoding::Utf16Le | Encoding::Utf16Be => 2,
            Encoding::Utf32Le | Encoding::Utf32Be => 4,
        }
    }

    /// Encodes a path; `None` if it is not UTF-8 and has to be for this encoding.
    pub(super) fn encode(self, path: &[u8]) -> Option<Vec<u8>> {
        match self {
            Encoding::Utf8 => return Some(path.to_vec()),
            Encoding::Percent => return Some(percent_encoded(path)),
            _ => {}
        }
        let text = std::str::from_utf8(path).ok()?;
        Some(match self {
            Encoding::Utf16Le => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            Encoding::Utf16Be => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            Encoding::Utf32Le => text
                .chars()
                .flat_map(|c| (c as u32).to_le_bytes())
                .collect(),
            _ => text
                .chars()
                .flat_map(|c| (c as u32).to_be_bytes())
                .collect(),
        })
    }
}

fn percent_encoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"/-._~@+=,".contains(&byte) {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    out
}

/// What must be around a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    /// Nothing.
    Any,
    /// The ends of a path, as described above.
    Path,
}

/// Something to find, and what replaces it.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    find: memmem::Finder<'static>,
    pub(super) old: Vec<u8>,
    pub(super) new: Vec<u8>,
    pub(super) encoding: Encoding,
    pub(super) bounds: Bounds,
    /// The bytes by which the place of one occurrence is longer than the occurrence: the
    /// placeholder was longer than what has replaced it.
    pub(super) slack: usize,
}

impl Pattern {
    /// Returns a pattern; `None` if a path cannot be encoded so.
    pub(super) fn new(
        old: &[u8],
        new: &[u8],
        encoding: Encoding,
        bounds: Bounds,
        slack: usize,
    ) -> Option<Pattern> {
        let (old, new) = (encoding.encode(old)?, encoding.encode(new)?);
        Some(Pattern {
            find: memmem::Finder::new(&old).into_owned(),
            old,
            new,
            encoding,
            bounds,
            slack: slack * encoding.unit(),
        })
    }

    fn fits(&self, data: &[u8], at: usize) -> bool {
        let rest = data.get(at..).unwrap_or_default();
        // A new prefix inside the old one is not replaced again.
        if self.new.len() > self.old.len()
            && self.new.starts_with(&self.old)
            && rest.strip_prefix(&self.new[..]).is_some_and(ends_component)
        {
            return false;
        }
        match self.bounds {
            Bounds::Any => true,
            Bounds::Path => {
                let after = rest.get(self.old.len()..).unwrap_or_default();
                ends_component(after) && begins_path(data.get(..at).unwrap_or_default())
            }
        }
    }

    /// Returns whether the content contains it.
    pub(super) fn is_in(&self, data: &[u8]) -> bool {
        let mut found = self.find.find_iter(data);
        found.any(|at| self.fits(data, at))
    }
}

/// An occurrence of a pattern.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit<'a> {
    pub(super) at: usize,
    pub(super) pattern: &'a Pattern,
}

impl Hit<'_> {
    pub(super) fn end(&self) -> usize {
        self.at + self.pattern.old.len()
    }
}

/// Returns all occurrences in order, without overlaps: where several begin, the longest.
pub(super) fn find<'a>(data: &[u8], patterns: &'a [Pattern]) -> Vec<Hit<'a>> {
    let mut hits = Vec::new();
    for pattern in patterns {
        let found = pattern.find.find_iter(data);
        let fitting = found.filter(|at| pattern.fits(data, *at));
        hits.extend(fitting.map(|at| Hit { at, pattern }));
    }
    hits.sort_by_key(|hit| (hit.at, usize::MAX - hit.pattern.old.len()));
    let mut end = 0;
    hits.retain(|hit| {
        let is_apart = hit.at >= end;
        if is_apart {
            end = hit.end();
        }
        is_apart
    });
    hits
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-+~@".contains(&byte) || byte >= 0x80
}

/// Returns whether a component of a path ends before these bytes.
pub(super) fn ends_component(after: &[u8]) -> bool {
    match after {
        [b'.', next, ..] => !next.is_ascii_alphanumeric() && *next != b'.',
        [b'%', one, two, ..] => !(one.is_ascii_hexdigit() && two.is_ascii_hexdigit()),
        [first, ..] => !is_name_byte(*first),
        [] => true,
    }
}

/// Returns whether an absolute path can begin after these bytes: not in `../opt/env`,
/// `/data/opt/env` or `$ROOT/opt/env`, but in `-I/opt/env` and `file:///opt/env`.
fn begins_path(before: &[u8]) -> bool {
    if before.ends_with(b"://") || before.ends_with(b"://localhost") {
        return true;
    }
    let run = before
        .iter()
        .rev()
        .take_while(|&&byte| is_name_byte(byte) || byte == b'.')
        .count();
    let (rest, run) = before.split_at(before.len() - run);
    match (rest.last(), run) {
        (Some(b'}' | b')'), []) => false,
        // A double slash, as in `a//opt/env` and `"//opt/env"`.
        (Some(b'/'), []) => match rest.strip_suffix(b"/").and_then(<[u8]>::last) {
            Some(&byte) => !is_name_byte(byte) && byte != b'/' && byte != b'.',
            None => true,
        },
        (_, []) => true,
        (Some(b'/' | b'$' | b'}'), _) => false,
        (_, run) => !run.iter().all(|&byte| byte == b'.'),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn path(old: &str, new: &str) -> Pattern {
        Pattern::new(
            old.as_bytes(),
            new.as_bytes(),
            Encoding::Utf8,
            Bounds::Path,
            0,
        )
        .unwrap()
    }

    #[test]
    fn a_path_is_found_whole_or_as_the_beginning_of_one() {
        let pattern = path("/opt/env", "/new");
        for text in [
            "/opt/env",
            "/opt/env/bin",
            "x=/opt/env:/usr",
            "-I/opt/env/include",
            "\"/opt/env\"",
            "file:///opt/env/x",
            "file://localhost/opt/env",
            "in /opt/env.",
            "\0/opt/env\0",
            "//opt/env",
        ] {
            assert!(pattern.is_in(text.as_bytes()), "{text}");
        }
        for text in [
            "/opt/env2",
            "/opt/env-old/x",
            "/opt/env.bak",
            "/data/opt/env",
            "a//opt/env",
            "../opt/env",
            "./opt/env",
            "${ROOT}/opt/env",
            "$ROOT/opt/env",
            "/opt/env%20x",
            "/opt/en",
        ] {
            assert!(!pattern.is_in(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_new_prefix_inside_the_old_one_is_not_found_again() {
        let pattern = path("/opt/env", "/opt/env/inner");
        assert!(!pattern.is_in(b"/opt/env/inner/bin"));
        assert!(pattern.is_in(b"/opt/env/inner2/bin"));
        assert!(pattern.is_in(b"/opt/env/inner/bin:/opt/env/bin"));
    }

    #[test]
    fn the_longest_of_several_patterns_counts() {
        let patterns = [path("/a/b", "/short"), path("/a/b/c", "/long")];
        let hits = find(b"/a/b/c/d /a/b/d", &patterns);
        let lengths: Vec<_> = hits.iter().map(|hit| hit.pattern.old.len()).collect();
        assert_eq!(lengths, [6, 4]);
    }

    #[test]
    fn paths_are_encoded_as_in_urls_and_wide_characters() {
        assert_eq!(
            Encoding::Percent.encode(b"/a b/c~d").unwrap(),
            b"/a%20b/c~d"
        );
        assert_eq!(Encoding::Utf16Le.encode(b"/a").unwrap(), b"/\0a\0");
        assert_eq!(Encoding::Utf32Be.encode(b"/").unwrap(), b"\0\0\0/");
        assert_eq!(Encoding::Utf16Le.encode(b"/\xff"), None);
    }
}
