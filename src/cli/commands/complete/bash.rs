//! Completion in bash, which passes the words of a line as they were typed, in pieces at `@`, `:`
//! and `=`, and inserts what it gets as it is.
//!
//! So the line is parsed here as bash parses it, and the completions are quoted as what was typed.

use crate::sys::text;

/// The quotes around the end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quote {
    None,
    Single,
    Double,
}

/// A line up to the cursor.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The words without quotes; the last one is to be completed.
    pub(super) words: Vec<String>,
    /// The quotes that are open at its end.
    quote: Quote,
    /// Bytes of the last word that bash does not replace.
    kept: usize,
}

impl Line {
    /// Parses a line. `breaks` are the characters at which bash begins another word to complete.
    pub(super) fn parse(line: &str, breaks: &str) -> Line {
        let mut words = Vec::new();
        let (mut word, mut is_word) = (String::new(), false);
        let (mut quote, mut kept) = (Quote::None, 0);
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match (quote, character) {
                (Quote::None, ' ' | '\t' | '\n') => {
                    if is_word {
                        words.push(std::mem::take(&mut word));
                    }
                    (is_word, kept) = (false, 0);
                    continue;
                }
                (Quote::None, '\'' | '"') => {
                    quote = if character == '"' {
                        Quote::Double
                    } else {
                        Quote::Single
                    };
                    kept = word.len();
                }
                (Quote::Single, '\'') | (Quote::Double, '"') => quote = Quote::None,
                (Quote::None, '\\') => word.extend(characters.next()),
                (Quote::Double, '\\') => match characters.next() {
                    Some(next @ ('"' | '\\' | '$' | '`')) => word.push(next),
                    next => {
                        word.push('\\');
                        word.extend(next);
                    }
                },
                (Quote::None, _) if breaks.contains(character) => {
                    // An @ belongs to the word that it begins: bash completes names of hosts.
                    kept = word.len() + usize::from(character != '@');
                    word.push(character);
                }
                _ => word.push(character),
            }
            is_word = true;
        }
        words.push(word);
        // Assignments before the program.
        let is_assignment = |word: &String| word.contains('=') && !word.starts_with('-');
        let start = words.iter().position(|word| !is_assignment(word));
        words.drain(..start.unwrap_or(0).min(words.len() - 1));
        Line { words, quote, kept }
    }

    /// Returns what bash inserts for a completion of the last word. None if it cannot be typed.
    pub(super) fn inserted(&self, found: &str) -> Option<String> {
        let rest = found.get(self.kept..)?;
        let mut out = String::with_capacity(rest.len());
        for character in rest.chars() {
            if character.is_control()
                || text::printable(character.to_string()).len() != character.len_utf8()
            {
                return None;
            }
            match (self.quote, character) {
                (Quote::Single, '\'') => out.push_str("'\\''"),
                (Quote::Double, '"' | '\\' | '$' | '`') => out.extend(['\\', character]),
                (Quote::None, _) if !is_plain(character) => out.extend(['\\', character]),
                _ => out.push(character),
            }
        }
        // At the start of a word these have a meaning.
        if self.quote == Quote::None && self.kept == 0 && out.starts_with(['~', '#']) {
            out.insert(0, '\\');
        }
        Some(out)
    }
}

/// Returns whether a character stands for itself in a line.
fn is_plain(character: char) -> bool {
    character.is_alphanumeric() || !character.is_ascii() || "@:=/.,_+-%~#^".contains(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BREAKS: &str = " \t\n\"'@><=;|&(:";

    #[test]
    fn a_line_is_parsed_and_completions_are_quoted_as_bash_does() {
        for (typed, last, found, inserted) in [
            (
                "envfs discard e etc/n",
                "etc/n",
                "etc/new file",
                "etc/new\\ file",
            ),
            (
                "envfs discard e etc/new\\ f",
                "etc/new f",
                "etc/new file",
                "etc/new\\ file",
            ),
            (
                "envfs discard e \"etc/new f",
                "etc/new f",
                "etc/new $file",
                "etc/new \\$file",
            ),
            (
                "envfs discard e 'etc/n",
                "etc/n",
                "etc/new 'x",
                "etc/new '\\''x",
            ),
            ("envfs show sci@", "sci@", "sci@12", "@12"),
            ("envfs show sci@1", "sci@1", "sci@12", "@12"),
            ("envfs cat sci@1:li", "sci@1:li", "sci@1:lib/", "lib/"),
            ("A=1 envfs st", "st", "status", "status"),
            ("envfs mount ", "", "~x", "\\~x"),
            ("envfs discard e a\\@b", "a@b", "a@bc*", "a@bc\\*"),
            ("envfs run e -- x\"y z\"w", "xy zw", "xy zw", ""),
        ] {
            let line = Line::parse(typed, BREAKS);
            assert_eq!(line.words.last().map(String::as_str), Some(last), "{typed}");
            assert_eq!(line.words[0], "envfs", "{typed}");
            if !inserted.is_empty() {
                assert_eq!(line.inserted(found).as_deref(), Some(inserted), "{typed}");
            }
        }
        let line = Line::parse("envfs discard e ", BREAKS);
        assert_eq!(line.inserted("a\tb"), None);
        assert_eq!(line.inserted("a\u{1b}[31m"), None);
    }
}
