//! The manifest of an archive: everything about a history except the bytes of its images.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::tar;
use crate::environment::EnvName;
use crate::packages::PackageChanges;
use crate::state::{ImageId, Revision, RevisionId, RevisionKind, check_origin, check_prefix};
use crate::sys::text::Text;

/// The name of the manifest in the archive.
pub(super) const MANIFEST: &str = "envfs-history.json";
/// The name of the member after it.
pub(super) const CHECKSUM: &str = "envfs-history.sha256";
/// The length of its content, in bytes.
pub(super) const CHECKSUM_LEN: u64 = 64 + 2 + MANIFEST.len() as u64 + 1;
/// The largest manifest that is read, in bytes.
pub(super) const MAX_MANIFEST: u64 = 64 << 20;

const FORMAT: &str = "envfs-history";
const VERSION: u32 = 1;
/// The largest number of a revision: JSON has no larger ones in all programs.
const MAX_REVISION: i64 = 1 << 53;
/// The last second of the year 9999.
const MAX_TIME: i64 = 253_402_300_799;
/// The largest map of inode numbers, in bytes.
const MAX_IDS: u64 = 256 << 20;

/// The manifest. `docs/history-archive.md` explains the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: String,
    pub(super) version: u32,
    /// Identity of the history.
    pub(super) origin: String,
    /// Name of the environment.
    pub(super) name: String,
    /// The path where it was mounted.
    pub(super) prefix: Text,
    /// User and group of the root of the first image.
    pub(super) owner: Option<(u32, u32)>,
    /// The current revision.
    pub(super) current: i64,
    /// Oldest first.
    pub(super) revisions: Vec<RevisionEntry>,
    /// Revisions by tag.
    pub(super) tags: BTreeMap<String, i64>,
    /// In the order of their first revisions.
    pub(super) images: Vec<ImageEntry>,
    /// In the order in which the archive has them.
    pub(super) blobs: Vec<Blob>,
}

/// A revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevisionEntry {
    /// Its number.
    pub(super) revision: i64,
    /// The revision before it, which the archive need not have.
    pub(super) parent: Option<i64>,
    pub(super) kind: RevisionKind,
    /// For a rollback, the revision that was restored.
    pub(super) of: Option<i64>,
    pub(super) message: String,
    /// Seconds since 1970.
    pub(super) time: i64,
    pub(super) user: String,
    pub(super) host: String,
    pub(super) command: String,
    /// The changed packages, if there are any.
    pub(super) packages: Option<PackageChanges>,
    /// The position of its image in the list.
    pub(super) image: usize,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageEntry {
    pub(super) size: u64,
    /// BLAKE3 of the BLAKE3 digests of each MiB.
    pub(super) digest: String,
    /// Codec and level.
    pub(super) compression: String,
    pub(super) dead_bytes: u64,
    pub(super) tables_appended: Option<u64>,
    /// Objects whose link counts in the image are wrong, with the right ones.
    pub(super) link_counts: Vec<(u64, u32)>,
    /// The blob with the map of its inode numbers.
    pub(super) ids: String,
    /// The blobs that make up the file, one after another.
    pub(super) blobs: Vec<String>,
}

/// A member of the archive: a part of images, or a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Blob {
    pub(super) sha256: String,
    pub(super) size: u64,
}

/// What every version of the format has.
#[derive(Deserialize)]
struct AnyVersion {
    format: String,
    version: u32,
}

/// What a new manifest says of the environment.
pub(super) struct About {
    pub(super) origin: String,
    pub(super) name: String,
    pub(super) prefix: Text,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) current: RevisionId,
}

/// Returns lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the digest of a manifest as `sha256sum` writes and checks it. Blobs are named by theirs,
/// so that every byte of a history has one.
pub(super) fn checksum(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", hex(&Sha256::digest(manifest)))
}

impl Manifest {
    pub(super) fn new(about: About) -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            origin: about.origin,
            name: about.name,
            prefix: about.prefix,
            owner: about.owner,
            current: about.current.0,
            revisions: Vec::new(),
            tags: BTreeMap::new(),
            images: Vec::new(),
            blobs: Vec::new(),
        }
    }

    /// Reads and checks a manifest. The error says what is wrong.
    pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let invalid = |error: serde_json::Error| format!("the manifest is invalid: {error}");
        let any: AnyVersion = serde_json::from_slice(bytes).map_err(invalid)?;
        if any.format != FORMAT {
            return Err("the manifest has another format".to_owned());
        }
        if any.version > VERSION {
            return Err(format!(
                "version {} of the format is newer than this envfs, which reads version {VERSION}",
                any.version
            ));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(invalid)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Returns where the content of each blob begins in an archive whose manifest has `size` bytes,
    /// and the length of the archive. `None` if that exceeds 64 bits.
    pub(super) fn places(&self, size: u64) -> Option<(Vec<u64>, u64)> {
        let mut at = tar::member(size)?.checked_add(tar::member(CHECKSUM_LEN)?)?;
        let mut places = Vec::new();
        for blob in &self.blobs {
            places.push(at.checked_add(tar::BLOCK)?);
            at = at.checked_add(tar::member(blob.size)?)?;
        }
        Some((places, at.checked_add(tar::END)?))
    }

    /// Returns a revision.
    pub(super) fn revision(&self, number: i64) -> Option<&RevisionEntry> {
        let found = self
            .revisions
            .binary_search_by_key(&number, |entry| entry.revision);
        self.revisions.get(found.ok()?)
    }

    /// Returns the number of the newest revision with an image.
    pub(super) fn revision_of(&self, image: usize) -> i64 {
        let entries = self.revisions.iter().rev();
        let mut with_it = entries.filter(|entry| entry.image == image);
        with_it.next().map_or(0, |entry| entry.revision)
    }

    /// Returns the total size of the images.
    pub(super) fn image_bytes(&self) -> u64 {
        self.images.iter().map(|image| image.size).sum()
    }

    fn check(&self) -> Result<(), String> {
        check_origin(&self.origin)?;
        check_prefix(self.prefix.as_path())?;
        EnvName::new(&self.name).map_err(|error| error.to_string())?;
        self.check_revisions()?;
        for (tag, number) in &self.tags {
            let is_name = EnvName::new(tag).is_ok() && tag.parse::<i64>().is_err();
            if !is_name || self.revision(*number).is_none() {
                return Err(format!("tag \"{}\"", tag.escape_debug()));
            }
        }
        self.check_images()
    }

    fn check_revisions(&self) -> Result<(), String> {
        let mut last = 0;
        for entry in &self.revisions {
            let number = entry.revision;
            let is_before = |other: i64| (1..number).contains(&other);
            if number <= last || number > MAX_REVISION {
                return Err(format!("number {number} of a revision after {last}"));
            }
            // So parents cannot lead in a circle.
            if !entry.parent.is_none_or(is_before) || !entry.of.is_none_or(is_before) {
                return Err(format!("parent or source of revision {number}"));
            }
            if !(0..=MAX_TIME).contains(&entry.time) {
                return Err(format!("time of revision {number}"));
            }
            if entry.image >= self.images.len() {
                return Err(format!("image of revision {number}"));
            }
            last = number;
        }
        match self.revision(self.current) {
            Some(_) => Ok(()),
            None => Err(format!("there is no current revision {}", self.current)),
        }
    }

    fn check_images(&self) -> Result<(), String> {
        let mut sizes: HashMap<&str, u64> = HashMap::new();
        for blob in &self.blobs {
            let digits = blob.sha256.bytes();
            let is_hex = digits
                .clone()
                .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
            if digits.len() != 64 || !is_hex || blob.size == 0 {
                return Err("a blob has no SHA-256 or no content".to_owned());
            }
            if sizes.insert(&blob.sha256, blob.size).is_some() {
                return Err(format!("blob {} is listed twice", blob.sha256));
            }
        }
        let mut used: HashSet<&str> = HashSet::new();
        let with_images: HashSet<usize> = self.revisions.iter().map(|entry| entry.image).collect();
        if with_images.len() != self.images.len() {
            return Err("an image belongs to no revision".to_owned());
        }
        for (index, image) in self.images.iter().enumerate() {
            let of = format!("of the image of revision {}", self.revision_of(index));
            let (mut size, mut own): (u64, HashSet<&str>) = (0, HashSet::new());
            for blob in &image.blobs {
                let len = sizes.get(blob.as_str());
                let len = len.ok_or_else(|| format!("a blob {of} is not listed"))?;
                // An image is then no larger than the archive, whatever the manifest says.
                if !own.insert(blob) {
                    return Err(format!("blob {blob} {of} occurs twice"));
                }
                size = size.checked_add(*len).ok_or_else(|| format!("size {of}"))?;
            }
            used.extend(own);
            used.insert(&image.ids);
            let ids = sizes.get(image.ids.as_str()).copied();
            if size != image.size || size == 0 {
                return Err(format!("size {of}: {} bytes, its blobs {size}", image.size));
            }
            if ids.is_none_or(|bytes| bytes > MAX_IDS) {
                return Err(format!("map {of}"));
            }
            let appended = image.tables_appended.unwrap_or(0);
            if image.dead_bytes > size || appended > size {
                return Err(format!("numbers {of}"));
            }
        }
        match used.len() == self.blobs.len() {
            true => Ok(()),
            false => Err("a blob belongs to no image".to_owned()),
        }
    }
}

impl Blob {
    /// Returns its name in the archive.
    pub(super) fn member(&self) -> String {
        format!("blobs/sha256/{}", self.sha256)
    }
}

impl RevisionEntry {
    pub(super) fn of(revision: &Revision, image: usize) -> RevisionEntry {
        let packages = revision.packages.as_deref();
        RevisionEntry {
            revision: revision.id.0,
            parent: revision.parent.map(|id| id.0),
            kind: revision.kind,
            of: revision.source.map(|id| id.0),
            message: revision.message.clone(),
            time: revision.time,
            user: revision.user.clone(),
            host: revision.host.clone(),
            command: revision.command.clone(),
            packages: packages.and_then(PackageChanges::from_record),
            image,
        }
    }

    pub(super) fn to_revision(&self, image: ImageId) -> Revision {
        Revision {
            id: RevisionId(self.revision),
            parent: self.parent.map(RevisionId),
            image,
            kind: self.kind,
            source: self.of.map(RevisionId),
            message: self.message.clone(),
            time: self.time,
            user: self.user.clone(),
            host: self.host.clone(),
            command: self.command.clone(),
            packages: self.packages.as_ref().and_then(PackageChanges::record),
        }
    }

    /// Returns whether this is a revision of an environment whose image has the digest. The message
    /// does not count: it can be amended.
    pub(super) fn is(&self, revision: &Revision, digest: &str, manifest: &Manifest) -> bool {
        let image = manifest.images.get(self.image);
        RevisionId(self.revision) == revision.id
            && self.parent.map(RevisionId) == revision.parent
            && self.kind == revision.kind
            && self.time == revision.time
            && (&self.user, &self.host) == (&revision.user, &revision.host)
            && image.is_some_and(|image| image.digest == digest)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A manifest with three revisions, of which the last restored the first.
    fn sample() -> Manifest {
        let mut manifest = Manifest::new(About {
            origin: "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned(),
            name: "science".to_owned(),
            prefix: Text::from("/home/me/science"),
            owner: None,
            current: RevisionId(4),
        });
        let digest = |digit: &str| digit.repeat(64);
        let blob = |digit: &str| Blob {
            sha256: digest(digit),
            size: 10,
        };
        manifest.blobs = ["a", "b", "c", "d"].map(blob).to_vec();
        let image = |digits: &[&str]| ImageEntry {
            size: 10 * digits.len() as u64,
            digest: digest("e"),
            compression: "zstd:3".to_owned(),
            dead_bytes: 0,
            tables_appended: Some(0),
            link_counts: Vec::new(),
            ids: digest("d"),
            blobs: digits.iter().map(|digit| digest(digit)).collect(),
        };
        manifest.images = vec![image(&["a", "b"]), image(&["a", "c"])];
        let revision = |number: i64, parent, kind, of, image| Revision {
            id: RevisionId(number),
            parent,
            image: ImageId(image),
            kind,
            source: of,
            message: "a\nmessage".to_owned(),
            time: 1_700_000_000,
            user: "me".to_owned(),
            host: "here".to_owned(),
            command: "envfs commit".to_owned(),
            packages: None,
        };
        let (one, three) = (Some(RevisionId(1)), Some(RevisionId(3)));
        for new in [
            revision(1, None, RevisionKind::Import, None, 0),
            // The second revision was removed.
            revision(3, Some(RevisionId(2)), RevisionKind::Commit, None, 1),
            revision(4, three, RevisionKind::Rollback, one, 0),
        ] {
            let image = new.image.0 as usize;
            let entry = RevisionEntry::of(&new, image);
            assert_eq!(entry.to_revision(new.image), new);
            manifest.revisions.push(entry);
        }
        manifest.tags.insert("paper".to_owned(), 3);
        manifest
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let manifest = sample();
        let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
        assert_eq!(serde_json::to_vec_pretty(&manifest).unwrap(), bytes);
        assert_eq!(manifest.image_bytes(), 40);
        assert_eq!((manifest.revision_of(0), manifest.revision_of(1)), (4, 3));
        for cut in 0..bytes.len() {
            Manifest::parse(&bytes[..cut]).unwrap_err();
        }
    }

    #[test]
    fn a_revision_is_the_same_if_only_its_message_differs() {
        let manifest = sample();
        let entry = manifest.revision(3).unwrap();
        let digest = &manifest.images[1].digest;
        let mut revision = entry.to_revision(ImageId(9));
        revision.message = "amended".to_owned();
        assert!(entry.is(&revision, digest, &manifest));
        assert!(!entry.is(&revision, "00", &manifest));
        revision.time += 1;
        assert!(!entry.is(&revision, digest, &manifest));
    }
}
