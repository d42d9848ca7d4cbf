//! The map of the space as one HTML file.
//!
//! The page has all it needs: it makes no request, and its policy forbids any. The data are JSON in
//! an element that is no script. Names may come from anyone: they are quoted as on the terminal,
//! `<`, `>` and `&` are escaped in the JSON, and the script of the page only makes text of them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Found;
use super::tree::{ROOT, Totals, Tree};
use crate::cli::error::{CommandError, Result};
use crate::daemon::failure::Kind as FailureKind;
use crate::object::Kind;
use crate::squashfs::reader::Parts;
use crate::sys::text::{printable, quoted};

/// The page, with marks for the nonce of its policy and for the data.
const PAGE: &str = include_str!("map.html");
const NONCE: &str = "@NONCE@";
const DATA: &str = "@DATA@";
/// The most files and directories in a page. Smaller ones are shown as one.
const MOST_NODES: usize = 20_000;

#[derive(Serialize)]
struct Data {
    environment: String,
    revision: i64,
    path: String,
    parts: Parts,
    uncommitted: u64,
    packages: Vec<(String, &'static str, Sizes)>,
    unpackaged: Sizes,
    /// Parent, name, whether it is a directory, package, sizes. The parent of each comes before it.
    nodes: Vec<(usize, String, u8, i64, Sizes)>,
}

/// Files, bytes of content, in the image, and uncommitted.
type Sizes = [u64; 4];

fn sizes(totals: &Totals) -> Sizes {
    let Totals {
        files,
        bytes,
        image_bytes,
        uncommitted_bytes,
    } = *totals;
    [files, bytes, image_bytes, uncommitted_bytes]
}

/// Returns the page.
pub(super) fn page(found: &Found) -> Result<String> {
    let tree = &found.tree;
    let packages = tree.packages.iter().map(|(package, totals)| {
        let label = printable(format!("{} {}", package.name, package.version));
        (label, package.ecosystem.as_str(), sizes(totals))
    });
    let data = Data {
        environment: printable(&found.name),
        revision: found.revision,
        path: quoted(OsStr::from_bytes(&found.path)),
        parts: found.parts,
        uncommitted: found.uncommitted,
        packages: packages.collect(),
        unpackaged: sizes(&tree.unpackaged),
        nodes: nodes(tree),
    };
    let json = serde_json::to_string(&data)
        .map_err(|error| CommandError::new(FailureKind::Internal, error.to_string()))?;
    let json = json
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026");
    // A name cannot contain the digest of all names.
    let digest = Sha256::digest(&json);
    let nonce: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let page = PAGE.replace(NONCE, &nonce);
    let (head, tail) = page.split_once(DATA).unwrap_or((&page, ""));
    Ok([head, &json, tail].concat())
}

/// Returns the largest files and directories.
fn nodes(tree: &Tree) -> Vec<(usize, String, u8, i64, Sizes)> {
    let weight = |totals: &Totals| totals.disk().max(totals.bytes);
    let mut weights: Vec<u64> = tree.nodes.iter().map(|one| weight(&one.totals)).collect();
    weights.sort_unstable_by(|a, b| b.cmp(a));
    // A directory is at least as large as what is in it.
    let least = weights.get(MOST_NODES).map_or(1, |least| least + 1);
    let mut nodes = Vec::new();
    // Siblings in order, each after the directory that it is in.
    let mut pending = vec![(ROOT, ROOT)];
    while let Some((at, parent)) = pending.pop() {
        let Some(node) = tree.nodes.get(at) else {
            continue;
        };
        if at != ROOT && weight(&node.totals) < least {
            continue;
        }
        let place = nodes.len();
        nodes.push((
            parent,
            quoted(OsStr::from_bytes(&node.name)),
            u8::from(node.kind == Kind::Directory),
            node.package.map_or(-1, |package| package as i64),
            sizes(&node.totals),
        ));
        pending.extend(node.children.iter().rev().map(|child| (*child, place)));
    }
    nodes
}
