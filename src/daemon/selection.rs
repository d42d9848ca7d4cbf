//! The paths that a request selects.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::failure::{Failure, Kind};
use super::protocol::Selection;
use crate::packages::Files;
use crate::sys::text::{Text, quoted};

/// The longest part of a path in a message, in bytes.
const LONGEST_SHOWN: usize = 1000;

/// Fails if a path is in none of the views.
pub(crate) fn refuse_unknown(paths: &[Vec<u8>], views: &[&Files<'_>]) -> Result<(), Failure> {
    let is_known = |path: &Vec<u8>| path.is_empty() || views.iter().any(|view| view.has(path));
    match paths.iter().find(|path| !is_known(path)) {
        Some(path) => {
            // It is as long as a request may be.
            let shown = quoted(OsStr::from_bytes(path.get(..LONGEST_SHOWN).unwrap_or(path)));
            let message = format!("'{shown}': no such path in the environment");
            Err(Failure::new(Kind::NotFound, message))
        }
        None => Ok(()),
    }
}

pub(crate) fn paths_of(selection: &Selection) -> Vec<Vec<u8>> {
    let trim = |path: &Text| {
        let bytes = path.as_bytes();
        let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
        bytes.strip_suffix(b"/").unwrap_or(bytes).to_vec()
    };
    selection
        .paths
        .iter()
        .map(trim)
        .map(|path| if path == b"." { Vec::new() } else { path })
        .collect()
}
