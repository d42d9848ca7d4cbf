//! Where commands meet the rooms below: each call is made here and nowhere else in `cli`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::{CommandError, Result};
use crate::daemon::failure::{Failure, Kind};
use crate::daemon::host::Mounted;
use crate::daemon::protocol::{Selection, Service};
use crate::environment::{
    EnvName, Environment, Garbage, Prefix, PrefixUse, Store, host_name, new_uuid, user_name,
};
use crate::progress::Progress;
use crate::state::{
    ImageRow, InitEnvironment, NewRevision, Revision, RevisionId, RevisionKind, StateDb,
};

/// What an environment's database says of it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Identity of the environment.
    pub id: String,
    /// Where it is mounted.
    pub prefix: PathBuf,
    /// The current revision.
    pub revision: Option<Revision>,
    /// Its image; none for an environment that is still empty.
    pub image: Option<ImageRow>,
}

/// Reads the database of an environment.
pub fn facts(environment: &Environment) -> Result<Facts> {
    let db = StateDb::open(&environment.layout().state_db())?;
    let missing = |what: &str| {
        CommandError::new(
            Kind::Damaged,
            format!("the database of {} does not say {what}", environment.name()),
        )
    };
    let revision = db.current_revision()?;
    let image = match revision.as_ref().and_then(|revision| revision.image) {
        Some(id) => db.image(id)?,
        None => None,
    };
    Ok(Facts {
        id: db.uuid()?.ok_or_else(|| missing("who it is"))?,
        prefix: db.prefix()?.ok_or_else(|| missing("where it is mounted"))?,
        revision,
        image,
    })
}

/// Opens an environment that is not mounted, to work on it in this process.
pub fn local(environment: &Environment) -> Result<Box<dyn Service>> {
    Err(not_built(&format!(
        "working on {} while it is not mounted",
        environment.name()
    )))
}

/// Opens and mounts an environment; called in its daemon.
pub fn mount(environment: &Environment) -> Result<Mounted, Failure> {
    Err(Failure::new(
        Kind::Internal,
        format!("mounting {} is not built yet", environment.name()),
    ))
}

fn not_built(what: &str) -> CommandError {
    CommandError::new(Kind::Internal, format!("{what} is not built yet"))
}

/// How a new environment is to be made.
#[derive(Debug, Clone, Default)]
pub struct NewOptions {
    /// Where it is to be mounted, if not at the default place.
    pub prefix: Option<PathBuf>,
    /// Codec and level (`zstd:3`), if not the configured one.
    pub compression: Option<String>,
    /// Block size in bytes, if not the configured one.
    pub block_size: Option<u32>,
    /// What the user says about it.
    pub message: String,
    /// Accept an image or archive whose content was not checked against a source.
    pub skip_verify: bool,
}

/// What an import did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Imported {
    /// Name of the environment.
    pub name: String,
    /// Where it will be mounted.
    pub prefix: PathBuf,
    /// Entries in the image.
    pub files: u64,
    /// Content of the files in bytes.
    pub content_bytes: u64,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// Whether every byte was compared with the source.
    pub is_verified: bool,
}

/// Packs a directory, an archive or an image into a new environment.
pub fn import(
    store: &Store,
    name: &EnvName,
    source: &Path,
    options: &NewOptions,
    progress: &dyn Progress,
) -> Result<Imported> {
    let _ = (store, name, source, options, progress.is_cancelled());
    Err(not_built("import"))
}

/// Makes an empty environment.
pub fn create(store: &Store, name: &EnvName, options: &NewOptions) -> Result<Environment> {
    let prefix = choose_prefix(store, name, options.prefix.as_deref())?;
    let new = store.create(name)?;
    let layout = new.layout();
    let db = StateDb::create(&layout.state_db())?;
    let begun = db.init_environment(&InitEnvironment {
        uuid: new_uuid().map_err(|error| CommandError::io("cannot make an id", &error))?,
        prefix: prefix.path,
        image: None,
        kind: RevisionKind::Create,
        revision: authorship(&options.message),
    })?;
    for directory in [layout.upper(begun.writable), layout.work(begun.writable)] {
        fs::create_dir_all(&directory).map_err(|error| {
            CommandError::io(format!("cannot create {}", directory.display()), &error)
        })?;
    }
    db.close()?;
    Ok(new.finish()?)
}

/// Checks the prefix of a new environment, which must be no other's.
pub fn choose_prefix(store: &Store, name: &EnvName, wanted: Option<&Path>) -> Result<Prefix> {
    let prefix = Prefix::choose(store.layout(), name, wanted, PrefixUse::New)?;
    for other in store.list()? {
        // A broken environment must not keep others from being made.
        let Ok(facts) = facts(&store.open(&other)?) else {
            continue;
        };
        if facts.prefix == prefix.path {
            return Err(CommandError::new(
                Kind::Conflict,
                format!("{} is the prefix of {other}", prefix.path.display()),
            )
            .hint("choose another with --prefix"));
        }
    }
    Ok(prefix)
}

/// Says who makes a revision.
pub fn authorship(message: &str) -> NewRevision {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    NewRevision {
        message: message.to_owned(),
        user: user_name(),
        host: host_name(),
        command: words.join(" "),
        ..NewRevision::default()
    }
}

/// Returns the history of an environment, oldest first.
pub fn history(environment: &Environment) -> Result<(Vec<Revision>, Vec<ImageRow>)> {
    let db = StateDb::open(&environment.layout().state_db())?;
    Ok((db.revisions()?, db.images()?))
}

/// Returns the image file of a revision, the current one if none is named.
pub fn image_file(environment: &Environment, revision: Option<i64>) -> Result<PathBuf> {
    let db = StateDb::open(&environment.layout().state_db())?;
    let found = match revision {
        Some(number) => db.revision(RevisionId(number))?.ok_or_else(|| {
            CommandError::new(
                Kind::NotFound,
                format!("{} has no revision {number}", environment.name()),
            )
            .hint(format!("envfs log {} shows them", environment.name()))
        })?,
        None => db.current_revision()?.ok_or_else(|| {
            CommandError::new(
                Kind::Damaged,
                format!("{} has no revision", environment.name()),
            )
        })?,
    };
    let Some(image) = found.image else {
        return Err(CommandError::new(
            Kind::NotFound,
            format!(
                "revision {} of {} is empty and has no image",
                found.id,
                environment.name()
            ),
        )
        .hint("commit something first"));
    };
    let row = db.image(image)?.ok_or_else(|| {
        CommandError::new(
            Kind::Damaged,
            format!("the image of revision {} is unknown", found.id),
        )
    })?;
    Ok(environment.layout().image(&row.file))
}

/// What `verify` found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// Images that were read through.
    pub images: u64,
    /// Bytes of images that were read.
    pub bytes: u64,
    /// What is wrong, one a line.
    pub problems: Vec<String>,
}

/// Reads through the database and all images of an environment.
pub fn verify(environment: &Environment, progress: &dyn Progress) -> Result<Verified> {
    let db = StateDb::open(&environment.layout().state_db())?;
    let mut verified = Verified {
        problems: db.integrity_check()?,
        ..Verified::default()
    };
    for image in db.images()? {
        if progress.is_cancelled() {
            return Err(CommandError::new(Kind::Cancelled, "stopped before the end"));
        }
        let path = environment.layout().image(&image.file);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == image.size => {}
            Ok(meta) => verified.problems.push(format!(
                "{}: {} bytes long, should be {}",
                path.display(),
                meta.len(),
                image.size
            )),
            Err(error) => verified
                .problems
                .push(format!("{}: {error}", path.display())),
        }
        verified.images += 1;
        verified.bytes += image.size;
    }
    Ok(verified)
}

/// What `gc` removed, or would remove.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Collected {
    /// Revisions that were forgotten.
    pub revisions: Vec<i64>,
    /// Images that were removed.
    pub images: Vec<PathBuf>,
    /// Space that became free, in bytes.
    pub bytes: u64,
}

/// Forgets old revisions and removes images that nothing needs any more.
///
/// The newest `keep` revisions stay, and the current one, and those with a tag.
pub fn gc(
    environment: &Environment,
    keep: usize,
    before: Option<i64>,
    dry_run: bool,
) -> Result<Collected> {
    let db = StateDb::open(&environment.layout().state_db())?;
    let revisions = db.revisions()?;
    let tags = db.tags()?;
    let current = db.current_revision()?.map(|revision| revision.id);
    let old = revisions.len().saturating_sub(keep.max(1));
    let goes = |revision: &Revision| {
        Some(revision.id) != current
            && before.is_none_or(|limit| revision.time < limit)
            && !tags.iter().any(|tag| tag.revision == revision.id)
    };
    let mut collected = Collected::default();
    let mut stay: Vec<&Revision> = Vec::new();
    for (place, revision) in revisions.iter().enumerate() {
        if place < old && goes(revision) {
            if !dry_run {
                db.forget_revision(revision.id)?;
            }
            collected.revisions.push(revision.id.0);
        } else {
            stay.push(revision);
        }
    }
    let stack = db.stack()?;
    for image in db.images()? {
        let is_used = stay.iter().any(|revision| revision.image == Some(image.id))
            || stack
                .iter()
                .any(|layer| layer.part == crate::state::StackPart::Image(image.id));
        if is_used {
            continue;
        }
        let path = environment.layout().image(&image.file);
        if !dry_run {
            db.forget_image(image.id)?;
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(CommandError::io(
                        format!("cannot remove {}", path.display()),
                        &error,
                    ));
                }
            }
        }
        collected.bytes += image.size;
        collected.images.push(path);
    }
    Ok(collected)
}

/// Returns what crashes have left in the store.
pub fn garbage(store: &Store) -> Result<Vec<Garbage>> {
    Ok(store.garbage()?)
}

/// Returns a file's content in the current revision, or `None` where it is no regular file there.
pub fn committed_content(environment: &Environment, path: &Path) -> Result<Option<Vec<u8>>> {
    let _ = (environment, path);
    Err(not_built("reading what was committed"))
}

/// Returns how much the upper directories of an environment hold: files and bytes on disk.
pub fn upper_use(environment: &Environment) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut files, mut bytes) = (0, 0);
    for entry in walkdir::WalkDir::new(environment.layout().layers())
        .into_iter()
        .flatten()
    {
        if let Ok(meta) = entry.metadata()
            && !meta.is_dir()
        {
            files += 1;
            bytes += meta.blocks() * 512;
        }
    }
    (files, bytes)
}

/// Returns whether anything differs from the current revision, where that can be told cheaply.
pub fn has_changes(service: &dyn Service) -> Result<bool> {
    Ok(!service.changes(&Selection::default())?.is_empty())
}
