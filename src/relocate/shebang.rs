//! The first lines of scripts, which name the interpreter.
//!
//! Kernels accept 127 bytes and no spaces in the path. Installers of Python packages then write a
//! script that is one for `/bin/sh` and for Python, which this module calls a trampoline. For other
//! interpreters conda writes `#!/usr/bin/env NAME`. A trampoline becomes a plain line again where
//! it fits.

use super::search::{Pattern, find};

/// The longest first line that every kernel accepts, without its newline.
const LIMIT: usize = 127;

/// How the interpreter is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `#!/prefix/bin/python -s`
    Plain,
    /// As conda writes it: two lines.
    Conda,
    /// As pip, distlib and uv write it: three lines.
    Pip,
}

/// Which rules apply to a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Those of conda.
    Conda,
    /// Those of pip.
    Pip,
}

/// The lines that name the interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) style: Style,
    /// The space between `#!` and the path.
    gap: Vec<u8>,
    pub(super) interpreter: Vec<u8>,
    /// What follows the path, with the space before it.
    pub(super) options: Vec<u8>,
    /// The length, without the last newline.
    pub(super) len: usize,
}

impl Head {
    /// Parses the beginning of a script; `None` if it is not one.
    pub(super) fn parse(data: &[u8]) -> Option<Head> {
        let line = first_line(data);
        let rest = line.strip_prefix(b"#!")?;
        if line == b"#!/bin/sh"
            && let Some(head) = trampoline(data, line.len() + 1)
        {
            return Some(head);
        }
        let path = rest.trim_ascii_start();
        let gap = rest.get(..rest.len() - path.len())?.to_vec();
        let len = path
            .iter()
            .position(|byte| b" \t\r".contains(byte))
            .unwrap_or(path.len());
        let (interpreter, options) = path.split_at(len);
        if !interpreter.starts_with(b"/") {
            return None;
        }
        Some(Head {
            style: Style::Plain,
            gap,
            interpreter: interpreter.to_vec(),
            options: options.to_vec(),
            len: line.len(),
        })
    }

    /// Returns the name that `/usr/bin/env` is to find.
    pub(super) fn env_name(&self) -> Option<(&[u8], &[u8])> {
        if self.interpreter != b"/usr/bin/env" {
            return None;
        }
        let words = self.options.strip_prefix(b" ")?;
        let len = words
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(words.len());
        let (name, options) = words.split_at(len);
        let is_name = !name.is_empty() && !name.starts_with(b"-") && !name.contains(&b'/');
        is_name.then_some((name, options))
    }

    /// Returns the lines with prefixes replaced; `None` if there is none.
    pub(super) fn replaced(&self, patterns: &[Pattern], owner: Owner) -> Option<Vec<u8>> {
        let interpreter = substitute(&self.interpreter, patterns);
        let options = substitute(&self.options, patterns);
        if interpreter.is_none() && options.is_none() {
            return None;
        }
        Some(self.with(
            &interpreter.unwrap_or_else(|| self.interpreter.clone()),
            &options.unwrap_or_else(|| self.options.clone()),
            owner,
        ))
    }

    /// Returns the lines for another interpreter.
    pub(super) fn with(&self, interpreter: &[u8], options: &[u8], owner: Owner) -> Vec<u8> {
        let plain = [b"#!", &self.gap[..], interpreter, options].concat();
        if plain.len() <= LIMIT && !interpreter.contains(&b' ') {
            return plain;
        }
        let name = interpreter.rsplit(|&byte| byte == b'/').next();
        let name = name.unwrap_or_default();
        if !is_python(name) {
            return [b"#!/usr/bin/env ", name, options].concat();
        }
        let conda = match self.style {
            Style::Plain => owner == Owner::Conda,
            style => style == Style::Conda,
        };
        let mut new = b"#!/bin/sh\n'''exec' ".to_vec();
        let quote: &[u8] = match conda || interpreter.contains(&b' ') {
            true => b"\"",
            false => b"",
        };
        for part in [quote, interpreter, quote, options, b" \"$0\" \"$@\""] {
            new.extend_from_slice(part);
        }
        new.extend_from_slice(if conda { b" #'''" } else { b"\n' '''" });
        new
    }
}

/// Parses the rest of a trampoline, which begins at `from`.
fn trampoline(data: &[u8], from: usize) -> Option<Head> {
    const ARGUMENTS: &[u8] = b" \"$0\" \"$@\"";
    let line = first_line(data.get(from..)?);
    let command = line.strip_prefix(b"'''exec' ")?;
    let (interpreter, rest) = match command.strip_prefix(b"\"") {
        Some(quoted) => {
            let len = quoted.iter().position(|&byte| byte == b'"')?;
            (quoted.get(..len)?, quoted.get(len + 1..)?)
        }
        None => command.split_at(command.iter().position(|&byte| byte == b' ')?),
    };
    let (style, options, len) = match rest.strip_suffix(b" #'''") {
        Some(rest) => (Style::Conda, rest.strip_suffix(ARGUMENTS)?, line.len()),
        None => {
            const END: &[u8] = b"\n' '''";
            data.get(from + line.len()..)?.strip_prefix(END)?;
            let options = rest.strip_suffix(ARGUMENTS)?;
            (Style::Pip, options, line.len() + END.len())
        }
    };
    interpreter.starts_with(b"/").then(|| Head {
        style,
        gap: Vec::new(),
        interpreter: interpreter.to_vec(),
        options: options.to_vec(),
        len: from + len,
    })
}

fn first_line(data: &[u8]) -> &[u8] {
    data.split(|&byte| byte == b'\n').next().unwrap_or_default()
}

/// Returns whether conda counts a program as Python: `python`, `python3`, `python3.12`.
fn is_python(name: &[u8]) -> bool {
    let Some(version) = name.strip_prefix(b"python") else {
        return false;
    };
    let mut parts = version.split(|&byte| byte == b'.');
    let is_number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    version.is_empty() || (parts.clone().count() <= 2 && parts.all(is_number))
}

/// Replaces all prefixes in a word; `None` if there is none.
fn substitute(text: &[u8], patterns: &[Pattern]) -> Option<Vec<u8>> {
    let hits = find(text, patterns);
    if hits.is_empty() {
        return None;
    }
    let mut out = Vec::new();
    let mut from = 0;
    for hit in hits {
        out.extend_from_slice(text.get(from..hit.at).unwrap_or_default());
        out.extend_from_slice(&hit.pattern.new);
        from = hit.end();
    }
    out.extend_from_slice(text.get(from..).unwrap_or_default());
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::search::{Bounds, Encoding};
    use super::*;

    fn moved(script: &str, old: &str, new: &str, owner: Owner) -> String {
        let (old, new) = (old.as_bytes(), new.as_bytes());
        let pattern = Pattern::new(old, new, Encoding::Utf8, Bounds::Path, 0).unwrap();
        let head = Head::parse(script.as_bytes()).unwrap();
        let new = head.replaced(&[pattern], owner).unwrap();
        let rest = &script.as_bytes()[head.len..];
        String::from_utf8([&new[..], rest].concat()).unwrap()
    }

    #[test]
    fn a_line_that_fits_stays_plain() {
        for owner in [Owner::Conda, Owner::Pip] {
            let new = moved("#! /a/bin/perl -w\nx\n", "/a", "/b/c", owner);
            assert_eq!(new, "#! /b/c/bin/perl -w\nx\n");
        }
        assert_eq!(Head::parse(b"#!python\n"), None);
        assert_eq!(Head::parse(b"no script"), None);
    }

    #[test]
    fn long_lines_and_spaces_become_trampolines_and_back() {
        let script = "#!/a/bin/python3.12 -E\nimport x\n";
        let long = format!("/{}", "x".repeat(110));
        for new in [&long[..], "/with space"] {
            let conda = moved(script, "/a", new, Owner::Conda);
            let expected = format!(
                "#!/bin/sh\n'''exec' \"{new}/bin/python3.12\" -E \"$0\" \"$@\" #'''\nimport x\n"
            );
            assert_eq!(conda, expected);
            assert_eq!(moved(&conda, new, "/a", Owner::Conda), script);
            let pip = moved(script, "/a", new, Owner::Pip);
            assert!(pip.contains("\"$0\" \"$@\"\n' '''\nimport x\n"), "{pip}");
            assert_eq!(moved(&pip, new, "/a", Owner::Pip), script);
            // A trampoline stays of its kind.
            let further = moved(&conda, new, &format!("{new}y"), Owner::Pip);
            assert!(further.contains("#'''"), "{further}");
        }
        let other = moved("#!/a/bin/perl -w\n", "/a", "/with space", Owner::Conda);
        assert_eq!(other, "#!/usr/bin/env perl -w\n");
        let head = Head::parse(other.as_bytes()).unwrap();
        assert_eq!(head.env_name(), Some((&b"perl"[..], &b" -w"[..])));
    }

    #[test]
    fn the_limit_is_that_of_the_kernel() {
        let tail = "/bin/tool";
        let most = format!("/{}", "x".repeat(LIMIT - 3 - tail.len()));
        let new = moved("#!/a/bin/tool\n", "/a", &most, Owner::Conda);
        assert_eq!(new.len(), LIMIT + 1);
        assert!(new.starts_with("#!/xx"));
        let new = moved("#!/a/bin/tool\n", "/a", &format!("{most}x"), Owner::Conda);
        assert_eq!(new, "#!/usr/bin/env tool\n");
    }
}
