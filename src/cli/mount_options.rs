//! The options after `-o`: those of envfs, and those that `mount(8)` and fstab pass to every file
//! system.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::cli::error::{CommandError, Result};
use crate::sys::mount::MountFlags;

/// Options that are accepted and ignored: envfs always or never behaves so, or they concern
/// `mount(8)` alone.
const ADVICE: &[&str] = &[
    "",
    "defaults",
    "default_permissions",
    // For mount(8): which users may mount, and when.
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    // Reading never changes an access time.
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    // Meaningless on FUSE.
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
];

/// Options with a value that are accepted and ignored.
const ADVICE_WITH_VALUE: &[&str] = &["user", "comment", "uhelper", "helper"];

/// Options of a FUSE mount in the mount table, which `mount -o remount` passes on. They cannot be
/// changed.
const OF_A_MOUNT: &[&str] = &[
    "user_id", "group_id", "rootmode", "fd", "max_read", "blksize",
];

/// The parsed options.
#[derive(Debug)]
pub(super) struct Options {
    /// The images, top first.
    pub images: Vec<PathBuf>,
    /// Where the one image begins in its file, if it is inside another and not found.
    pub offset: Option<u64>,
    /// The directory of changes.
    pub upper: Option<PathBuf>,
    /// The state of the changes.
    pub state: Option<PathBuf>,
    /// The source in the mount table.
    pub source: Option<String>,
    /// The part of the file system type after `fuse.`.
    pub subtype: String,
    /// The flags for the kernel.
    pub flags: MountFlags,
    /// Whether other users may access the mount.
    pub allow_other: bool,
    /// Whether the user who mounts has root's rights there.
    pub fakeroot: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            images: Vec::new(),
            offset: None,
            upper: None,
            state: None,
            source: None,
            subtype: String::from("envfs"),
            flags: MountFlags::default(),
            allow_other: false,
            fakeroot: false,
        }
    }
}

/// Splits lists of options at commas.
pub(super) fn words(lists: &[OsString]) -> impl Iterator<Item = &[u8]> {
    lists
        .iter()
        .flat_map(|list| list.as_bytes().split(|byte| *byte == b','))
}

/// Returns whether the options change an existing mount.
pub(super) fn is_remount(lists: &[OsString]) -> bool {
    words(lists).any(|word| word == b"remount")
}

/// What options are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A new mount.
    Mount,
    /// An existing mount, which they change.
    Remount,
}

impl Options {
    /// Applies lists of options in order.
    pub(super) fn apply_all(&mut self, lists: &[OsString]) -> Result<()> {
        let purpose = match is_remount(lists) {
            true => Purpose::Remount,
            false => Purpose::Mount,
        };
        words(lists).try_for_each(|word| self.apply(word, purpose))
    }

    fn apply(&mut self, word: &[u8], purpose: Purpose) -> Result<()> {
        let (key, value) = match word.iter().position(|b| *b == b'=') {
            Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..)),
            None => (word, None),
        };
        let path = |value: &[u8]| PathBuf::from(OsStr::from_bytes(value));
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let is_in = |list: &[&str]| list.iter().any(|one| one.as_bytes() == key);
        match (key, value) {
            (b"image", Some(value)) => self.images = vec![path(value)],
            (b"lowerdir", Some(value)) => {
                self.images = split_list(value).iter().map(|one| path(one)).collect();
            }
            (b"offset", Some(value)) => {
                let offset = String::from_utf8_lossy(value).parse();
                self.offset = Some(
                    offset.map_err(|_| CommandError::usage("offset= needs a number of bytes"))?,
                );
            }
            (b"upper", Some(value)) => self.upper = Some(path(value)),
            (b"state", Some(value)) => self.state = Some(path(value)),
            (b"fsname", Some(value)) => self.source = Some(text(value)),
            (b"subtype", Some(value)) => self.subtype = text(value),
            (b"allow_other", None) => self.allow_other = true,
            (b"fakeroot", None) => self.fakeroot = true,
            (b"remount", None) if purpose == Purpose::Remount => {}
            (key, None) if self.flags.apply(key) => {}
            (_, None) if is_in(ADVICE) => {}
            (_, Some(_)) if is_in(ADVICE_WITH_VALUE) => {}
            (_, Some(_)) if purpose == Purpose::Remount && is_in(OF_A_MOUNT) => {}
            (key, _) if key.starts_with(b"x-") || key.starts_with(b"X-") => {}
            _ => {
                return Err(CommandError::usage(format!(
                    "unknown mount option {}",
                    String::from_utf8_lossy(word)
                ))
                .hint("see envfs mount --help for the options"));
            }
        }
        Ok(())
    }
}

/// Splits a list at colons, except those after a backslash, as overlayfs does.
fn split_list(list: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    let mut bytes = list.iter();
    while let Some(&byte) = bytes.next() {
        let escaped = if byte == b'\\' { bytes.next() } else { None };
        match (byte, all.last_mut()) {
            (b':', _) => all.push(Vec::new()),
            (_, Some(last)) => last.push(*escaped.unwrap_or(&byte)),
            (_, None) => {}
        }
    }
    all
}

/// Translates a call as `mount.envfs SOURCE DIR [-sfnv] [-t TYPE] [-o OPTIONS]`, which is how
/// mount(8) calls helpers, into a call of `envfs mount`. Returns other calls unchanged.
pub(super) fn translate_helper(words: Vec<OsString>) -> Vec<OsString> {
    let called = words.first().map(|word| Path::new(word).to_path_buf());
    let called = called.as_deref().and_then(Path::file_name);
    if !called.is_some_and(|name| name == "mount.envfs" || name == "mount.fuse.envfs") {
        return words;
    }
    let mut out: Vec<OsString> = vec!["envfs".into(), "mount".into()];
    let mut operands = Vec::new();
    let mut rest = words.into_iter().skip(1);
    while let Some(word) = rest.next() {
        match word.as_bytes() {
            b"-o" => {
                out.push(word);
                out.extend(rest.next());
            }
            // A type or a namespace, for mount(8).
            b"-t" | b"-N" => drop(rest.next()),
            b"-r" => out.extend(["-o".into(), "ro".into()]),
            b"-s" | b"-f" | b"-n" | b"-v" | b"-w" => {}
            _ => operands.push(word),
        }
    }
    let mut operands = operands.into_iter();
    if let (Some(source), Some(dir)) = (operands.next(), operands.next()) {
        // Put before the options, so that an image= among them takes precedence.
        let at = 2;
        if source != "none" && source != "envfs" {
            let mut first = b"image=".to_vec();
            first.extend_from_slice(source.as_bytes());
            out.splice(at..at, ["-o".into(), OsString::from_vec(first)]);
        }
        out.push("--".into());
        out.push(dir);
    }
    out.extend(operands);
    out
}
