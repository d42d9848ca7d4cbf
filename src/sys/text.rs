//! Names and values of the system, which need not be UTF-8, written as JSON and read back.
//!
//! A string where that is possible, else the array of its bytes: exact in every case, and
//! ordinary in ordinary ones.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path or value of the system that can be written as JSON without loss.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub OsString);

impl Text {
    /// Returns it as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Returns its bytes.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
}
