//! Names and values that need not be UTF-8, in JSON and in text for people.
//!
//! In JSON a name is a string if it is UTF-8, otherwise an array of bytes, so no name loses
//! information. For people, [`quoted`] quotes a name as git does, and [`printable`] makes any other
//! text safe to print.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path or other value that is written as JSON without loss.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub OsString);

impl Text {
    /// Returns the value as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Returns the bytes of the value.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl From<&OsStr> for Text {
    fn from(value: &OsStr) -> Text {
        Text(value.to_owned())
    }
}

impl From<OsString> for Text {
    fn from(value: OsString) -> Text {
        Text(value)
    }
}

impl From<PathBuf> for Text {
    fn from(value: PathBuf) -> Text {
        Text(value.into_os_string())
    }
}

impl From<&Path> for Text {
    fn from(value: &Path) -> Text {
        Text(value.as_os_str().to_owned())
    }
}

impl From<&str> for Text {
    fn from(value: &str) -> Text {
        Text(OsString::from(value))
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => self.0.as_bytes().serialize(serializer),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        Ok(Text(match Form::deserialize(deserializer)? {
            Form::Text(text) => OsString::from(text),
            Form::Bytes(bytes) => OsString::from_vec(bytes),
        }))
    }
}

/// Serializes names that are kept as bytes like [`Text`]: `#[serde(with = "as_text")]`.
pub mod as_text {
    use super::{OsString, OsStringExt, Text};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Serializes bytes as [`Text`].
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        Text(OsString::from_vec(bytes.to_vec())).serialize(serializer)
    }

    /// Deserializes bytes from [`Text`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(Text::deserialize(deserializer)?.0.into_vec())
    }

    /// The same for names that may be absent.
    pub mod option {
        use super::{OsString, OsStringExt, Text};
        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        /// Serializes bytes as [`Text`], if there are any.
        pub fn serialize<S: Serializer>(
            bytes: &Option<Vec<u8>>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            let text = bytes.clone().map(|bytes| Text(OsString::from_vec(bytes)));
            text.serialize(serializer)
        }

        /// Deserializes bytes from [`Text`], if there are any.
        pub fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Vec<u8>>, D::Error> {
            let text = Option::<Text>::deserialize(deserializer)?;
            Ok(text.map(|text| text.0.into_vec()))
        }
    }
}

/// Returns a name for people: unchanged if it is unambiguous, otherwise in double quotes with C
/// escapes, as git writes it (`"a\\nb\\033"`). UTF-8 is not escaped.
///
/// Names are quoted if they contain control characters, quotes, backslashes, bytes that are not
/// UTF-8, spaces at either end, or the arrow that separates the two names of a rename.
pub fn quoted(name: impl AsRef<OsStr>) -> String {
    let bytes = name.as_ref().as_bytes();
    let mut out = String::with_capacity(bytes.len() + 2);
    let mut is_plain = !bytes.starts_with(b" ")
        && !bytes.ends_with(b" ")
        && !bytes.windows(4).any(|window| window == b" -> ");
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if matches!(character, '"' | '\\') || is_unsafe(character) {
                is_plain = false;
                escape(character, &mut out);
            } else {
                out.push(character);
            }
        }
        is_plain &= chunk.invalid().is_empty();
        escape_bytes(chunk.invalid(), &mut out);
    }
    if is_plain {
        out.remove(0);
    } else {
        out.push('"');
    }
    out
}

/// Returns text that is safe on a terminal: control characters except tabs are replaced by C
/// escapes, without quotes.
pub fn printable(text: impl AsRef<[u8]>) -> String {
    let bytes = text.as_ref();
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character != '\t' && is_unsafe(character) {
                escape(character, &mut out);
            } else {
                out.push(character);
            }
        }
        escape_bytes(chunk.invalid(), &mut out);
    }
    out
}

/// Shortens text of more than `limit` bytes in the middle, and says there how much is left out.
pub fn shortened(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let head = (0..=limit / 2).rev().find(is_boundary).unwrap_or(0);
    let tail = (text.len() - limit / 2..=text.len()).find(is_boundary);
    let start = text.get(..head).unwrap_or_default();
    let end = tail.and_then(|tail| text.get(tail..)).unwrap_or_default();
    let left_out = text.len() - start.len() - end.len();
    Cow::Owned(format!("{start}[… {left_out} bytes …]{end}"))
}

/// Returns whether a terminal may interpret a character instead of showing it: control characters,
/// line separators, and characters that change the direction of text.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

fn escape(character: char, out: &mut String) {
    match character {
        '\u{7}' => out.push_str("\\a"),
        '\u{8}' => out.push_str("\\b"),
        '\t' => out.push_str("\\t"),
        '\n' => out.push_str("\\n"),
        '\u{b}' => out.push_str("\\v"),
        '\u{c}' => out.push_str("\\f"),
        '\r' => out.push_str("\\r"),
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        other => escape_bytes(other.encode_utf8(&mut [0; 4]).as_bytes(), out),
    }
}

fn escape_bytes(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        out.push_str(&format!("\\{byte:03o}"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn long_text_is_shortened_in_the_middle_between_characters() {
        assert_eq!(shortened("short", 5), "short");
        assert_eq!(shortened("abcdefghij", 4), "ab[… 6 bytes …]ij");
        assert_eq!(shortened(&"ü".repeat(50), 7), "ü[… 96 bytes …]ü");
        assert_eq!(shortened("", 0), "");
    }

    #[test]
    fn every_name_survives_json() {
        for bytes in [
            b"plain".as_slice(),
            b"",
            b"a\nb\"c",
            b"\xff\xfe/x",
            "ü".as_bytes(),
        ] {
            let text = Text::from(OsStr::from_bytes(bytes));
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text);
        }
        assert_eq!(
            serde_json::to_string(&Text::from("a/b")).unwrap(),
            "\"a/b\""
        );
    }

    #[test]
    fn names_are_quoted_as_git_does() {
        for (name, shown) in [
            (b"plain".as_slice(), "plain"),
            (b"", ""),
            ("a b/\u{fc}".as_bytes(), "a b/\u{fc}"),
            (b"a\nb", r#""a\nb""#),
            (b"\x1b[31mred\x07\x7f", r#""\033[31mred\a\177""#),
            (b"say \"x\" \\", r#""say \"x\" \\""#),
            (b"\xff\xfe\t", r#""\377\376\t""#),
            // C1 controls and direction overrides have several bytes.
            ("\u{9b}31m".as_bytes(), r#""\302\23331m""#),
            ("\u{202e}gpj.exe".as_bytes(), r#""\342\200\256gpj.exe""#),
            (b" a", r#"" a""#),
            (b"a -> b", r#""a -> b""#),
        ] {
            assert_eq!(quoted(OsStr::from_bytes(name)), shown);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            printable("say \"x\"\t\\ \u{fc}\n\r\x1b[2J\u{85}"),
            "say \"x\"\t\\ \u{fc}\\n\\r\\033[2J\\302\\205"
        );
        assert_eq!(printable(b"\xff"), "\\377");
    }
}
