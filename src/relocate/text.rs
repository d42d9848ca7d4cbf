//! Replaces prefixes in text files.

use super::search::{Encoding, Hit, Pattern, find};
use super::shebang::{Head, Owner};
use super::splice::Splice;

/// How a path is written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    /// As it is.
    None,
    /// In quotes if a shell needs them, as in activation scripts.
    Shell,
}

/// Returns the replacements in a text file.
pub(super) fn replace(
    data: &[u8],
    patterns: &[Pattern],
    owner: Owner,
    quoting: Quoting,
) -> Vec<Splice> {
    let mut splices = Vec::new();
    let mut from = 0;
    if let Some(head) = Head::parse(data)
        && let Some(with) = head.replaced(patterns, owner)
    {
        from = head.len;
        splices.push(Splice {
            at: 0,
            len: head.len,
            with,
        });
    }
    for hit in find(data, patterns) {
        if hit.at >= from {
            splices.push(Splice {
                at: hit.at,
                len: hit.end() - hit.at,
                with: written(data, &hit, quoting),
            });
        }
    }
    splices
}

/// Returns the new path as it must be written at this place.
fn written(data: &[u8], hit: &Hit<'_>, quoting: Quoting) -> Vec<u8> {
    let new = &hit.pattern.new;
    if hit.pattern.encoding != Encoding::Utf8 {
        return new.clone();
    }
    let before = data.get(..hit.at).unwrap_or_default();
    if before.ends_with(b"file://") || before.ends_with(b"file://localhost") {
        return Encoding::Percent.encode(new).unwrap_or_else(|| new.clone());
    }
    match quoting == Quoting::Shell && needs_quotes(new) && !is_in_quotes(before) {
        true => [b"'", &new[..], b"'"].concat(),
        false => new.clone(),
    }
}

/// Returns whether a shell would split or expand a path.
fn needs_quotes(path: &[u8]) -> bool {
    let is_safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"@%+=:,./-_".contains(byte);
    !path.iter().all(is_safe)
}

/// Returns whether the line ends inside quotes.
fn is_in_quotes(before: &[u8]) -> bool {
    let line = before.rsplit(|&byte| byte == b'\n').next();
    let mut open = None;
    let mut is_escaped = false;
    for &byte in line.unwrap_or_default() {
        if is_escaped {
            is_escaped = false;
            continue;
        }
        match (open, byte) {
            (None | Some(b'"'), b'\\') => is_escaped = true,
            (None, b'\'' | b'"') => open = Some(byte),
            (Some(quote), byte) if quote == byte => open = None,
            _ => {}
        }
    }
    open.is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::search::Bounds;
    use super::super::splice::apply;
    use super::*;

    fn moved(text: &str, old: &str, new: &str, quoting: Quoting) -> String {
        let pattern = |encoding| {
            Pattern::new(old.as_bytes(), new.as_bytes(), encoding, Bounds::Path, 0).unwrap()
        };
        let patterns = [pattern(Encoding::Utf8), pattern(Encoding::Percent)];
        let splices = replace(text.as_bytes(), &patterns, Owner::Pip, quoting);
        String::from_utf8(apply(text.as_bytes(), &splices)).unwrap()
    }

    #[test]
    fn every_prefix_of_a_text_is_replaced() {
        let text = "#!/a/bin/sh\nPATH=/a/bin:/a/sbin:/ab\n# /a.\n";
        assert_eq!(
            moved(text, "/a", "/new", Quoting::None),
            "#!/new/bin/sh\nPATH=/new/bin:/new/sbin:/ab\n# /new.\n"
        );
    }

    #[test]
    fn urls_are_percent_encoded() {
        let json = r#"{"url": "file:///a/src", "path": "/a/src"}"#;
        let there = r#"{"url": "file:///b%20c/src", "path": "/b c/src"}"#;
        assert_eq!(moved(json, "/a", "/b c", Quoting::None), there);
        assert_eq!(moved(there, "/b c", "/a", Quoting::None), json);
    }

    #[test]
    fn activation_scripts_quote_a_path_with_a_space() {
        let quoted = |text: &str| moved(text, "/a", "/b c", Quoting::Shell);
        assert_eq!(quoted("VIRTUAL_ENV=/a\n"), "VIRTUAL_ENV='/b c'\n");
        assert_eq!(quoted("VIRTUAL_ENV='/a'\n"), "VIRTUAL_ENV='/b c'\n");
        assert_eq!(quoted("X=\"/a/bin\"\n"), "X=\"/b c/bin\"\n");
        assert_eq!(quoted("[ -d /a ]; x '/'"), "[ -d '/b c' ]; x '/'");
        let safe = moved("VIRTUAL_ENV=/a\n", "/a", "/b", Quoting::Shell);
        assert_eq!(safe, "VIRTUAL_ENV=/b\n");
    }
}
