//! Makes an environment of a revision of another one. Both share the image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::copy::{Sharing, copy_file};
use super::error::{CommitError, Context, Result};
use super::relocate::{Relocate, Relocated, relocate_unfinished};
use super::workspace::{command_line, new_revision};
use super::{Unfinished, creation, rename_into_place};
use crate::environment::{Environment, Layout, NewEnvironment};
use crate::fault;
use crate::progress::Progress;
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{InitEnvironment, LinksIn, NewImage, Revision, RevisionKind, StateDb};
use crate::sys::{durable, regular};
use crate::union;

/// What was made.
#[derive(Debug)]
pub struct Cloned {
    /// The new environment.
    pub environment: Environment,
    /// How the image is shared.
    pub sharing: Sharing,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// How files were rewritten, if they contained another prefix.
    pub relocated: Option<Relocated>,
}

/// The options of a clone.
#[derive(Debug, Clone)]
pub struct CloneOptions {
    /// The path where it will be mounted.
    pub prefix: PathBuf,
    /// The message of the first revision.
    pub message: String,
    /// What happens to the prefix that files contain.
    pub relocate: Relocate,
}

/// Makes an environment that begins with a revision of another. `db` is the database of `source`.
/// If files contain another prefix, a second revision has the right one.
pub fn clone(
    source: &Layout,
    db: &StateDb,
    revision: &Revision,
    new: NewEnvironment,
    options: &CloneOptions,
    progress: &dyn Progress,
) -> Result<Cloned> {
    let CloneOptions {
        prefix, message, ..
    } = options;
    let (sharing, image_bytes) = fill(source, db, revision, &new, prefix, message, progress)?;
    let relocated = match &options.relocate {
        Relocate::No => None,
        Relocate::Yes { old, force } => {
            relocate_unfinished(&new, prefix, old, *force, progress, |_| Ok(()))?
        }
    };
    Ok(Cloned {
        environment: new.finish()?,
        sharing,
        image_bytes,
        relocated: relocated.map(|(relocated, ())| relocated),
    })
}

/// Links the image into a new environment and initialises it. Returns how the image is shared, and
/// its size.
pub(super) fn fill(
    source: &Layout,
    db: &StateDb,
    revision: &Revision,
    new: &NewEnvironment,
    prefix: &Path,
    message: &str,
    progress: &dyn Progress,
) -> Result<(Sharing, u64)> {
    let row = db
        .image(revision.image)?
        .ok_or(CommitError::NoRevision(revision.id.0))?;
    let no_map = || CommitError::Check(format!("the map of image {} is missing", row.id));
    let id_map = db.id_map(row.id)?.ok_or_else(no_map)?;
    let layout = new.layout();
    let own = StateDb::create(&layout.state_db())?;
    let id = own.reserve_image()?;
    let path = layout.image(&Layout::image_file_name(id));
    let sharing = share(
        &source.image(&row.file),
        &layout.unfinished_image(id),
        &path,
        progress,
    )?;
    durable::sync_name(&path).context("sync the directory of", &path)?;
    fault::point("clone.linked");
    let image = Image::open(&path, ReaderOptions::default())?;
    let size = fs::metadata(&path).context("look at", &path)?.len();
    if image.superblock().inodes != row.inodes || size < row.size {
        return Err(CommitError::ImageLost(source.image(&row.file)));
    }
    union::count_links(&own, id, db.link_counts(LinksIn::Image(row.id))?)?;
    own.init_environment(&InitEnvironment {
        uuid: creation::new_uuid(&layout)?,
        origin: db.origin()?,
        prefix: prefix.to_owned(),
        images: vec![NewImage {
            id,
            file: Layout::image_file_name(id),
            ..row.to_new(id_map, db.image_digests(row.id)?)
        }],
        kind: RevisionKind::Import,
        revision: new_revision(message, &command_line()),
    })?;
    if let Some((user, group)) = db.image_owner()? {
        own.set_image_owner(user, group)?;
    }
    fault::point("clone.initialised");
    creation::complete(new, own)?;
    Ok((sharing, row.size))
}

/// Gives an image another name, or else makes a copy that shares its blocks if possible. Images do
/// not change, and each environment removes only its own name.
fn share(from: &Path, unfinished: &Path, to: &Path, progress: &dyn Progress) -> Result<Sharing> {
    let file = regular::open(from).context("open", from)?;
    match fs::hard_link(from, to) {
        Ok(()) => return Ok(Sharing::HardLink),
        Err(error) => tracing::debug!(%error, "an image cannot be linked"),
    }
    let unfinished = Unfinished(unfinished.to_owned());
    let copy = File::create_new(&unfinished.0).context("make", &unfinished.0)?;
    let sharing = copy_file((&file, from), (&copy, &unfinished.0), progress)?;
    let named = rename_into_place(&unfinished, to)?;
    durable::sync_file(&named).context("sync", to)?;
    Ok(sharing)
}
