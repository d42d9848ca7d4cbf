//! Opening, closing and verifying the view of an environment, layer by layer from the bottom.
//!
//! The database records whether the last close was clean. If it was not, or if the files were
//! copied since, rows and files are reconciled before the view is used.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use super::checked;
use super::delta::Delta;
use super::file_check::compare_files;
use super::limit::{Space, SpaceLimit};
use super::overlay;
use super::paths::Paths;
use super::reconcile::{HostInodes, Reconciled, reconcile};
use super::stack::StackBuilder;
use super::{Error, FrozenLayer, ImageLayer, Nodes, Result, State, Union, dir_check};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{DataPlace, ImageId, LayerId, StackPart, StateDb};
use crate::sys::medium::network_file_system;
use crate::sys::regular;
use crate::upper::UpperDir;

/// Options for opening a view.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The cache sizes of each image.
    pub reader: ReaderOptions,
    /// The limit of the space for changes.
    pub limit: Option<SpaceLimit>,
}

impl Union {
    /// Opens the writable view of an environment, and returns what was repaired. The cost is
    /// proportional to the changes, not to the image; for a large layer that was not changed since
    /// its last close, to the number of its directories.
    ///
    /// Rows and files are reconciled if the last close was not clean, if the environment was copied
    /// since, or if a file is missing or has no row.
    ///
    /// The caller holds the environment's lock, so that there is one view at a time.
    pub fn open(
        db: Arc<StateDb>,
        paths: Paths,
        options: &OpenOptions,
    ) -> Result<(Union, Reconciled)> {
        db.keep_redo_log()?;
        let unclean = !db.was_clean()?;
        let home = paths.identity()?;
        let known = db.home_id()?;
        let host_inodes = match &known {
            Some(known) if *known != home => HostInodes::Copied,
            _ => HostInodes::Valid,
        };
        // Even if the original was closed cleanly: its host inode numbers are those of other files
        // here, and the next close may not be clean.
        let to_reconcile = unclean || host_inodes == HostInodes::Copied;
        let mut done = Reconciled::default();
        let mut lower = StackBuilder::default();
        let mut top = None;
        let stack = db.stack()?;
        let images = stack
            .iter()
            .filter(|layer| matches!(layer.part, StackPart::Image(_)));
        let links = match images.count() {
            0 | 1 => None,
            _ => Some(Arc::new(overlay::links(&db)?)),
        };
        // From the bottom: the paths of an upper's directories depend on the layers below it.
        for part in stack.into_iter().rev() {
            match part.part {
                StackPart::Image(image) => {
                    let mut layer = open_image(&db, &paths, image, options)?;
                    if let Some(links) = &links {
                        layer = layer.in_stack(links.clone());
                    }
                    lower.push_image(layer)?;
                }
                StackPart::Frozen | StackPart::Writable => {
                    let below = lower.stack()?;
                    if part.part == StackPart::Writable
                        && below.frozen().is_empty()
                        && !to_reconcile
                        && let Some((delta, upper)) = checked::open(&db, &paths, part.id, &below)?
                    {
                        top = Some((part.id, delta, Arc::new(upper), below));
                        continue;
                    }
                    let mut delta = Delta::from_rows(db.load_layer(part.id)?);
                    dir_check::check(&delta, &below)?;
                    let upper = open_upper(&db, &paths, part.id, &delta)?;
                    // Checked even after a clean close: files may have been removed or added since.
                    if to_reconcile || !compare_files(&delta, &upper, &below)?.is_empty() {
                        done.add(reconcile(
                            &db,
                            part.id,
                            &mut delta,
                            &upper,
                            &below,
                            host_inodes,
                        )?);
                    }
                    if to_reconcile {
                        upper.unsynced().note_everything();
                    }
                    let upper = Arc::new(upper);
                    if part.part == StackPart::Writable {
                        top = Some((part.id, delta, upper, below));
                    } else {
                        lower.push_frozen(FrozenLayer::new(part.id, delta, upper, below))?;
                    }
                }
            }
        }
        let Some((layer, delta, upper, lower)) = top else {
            return Err(Error::Inconsistent(
                "the stack has no writable layer".to_owned(),
            ));
        };
        // Only after the rows have the inode numbers of this copy: a crash in between must not
        // leave the old ones.
        if known.as_ref() != Some(&home) {
            db.set_home_id(home)?;
        }
        db.mark_unclean()?;
        db.restore_reserve();
        // Syncing files one by one is correct everywhere, but slower if there are many.
        let syncs_singly = network_file_system(&paths.layers).map_or(true, |name| name.is_some());
        let union = Union {
            db,
            paths,
            gate: RwLock::new(()),
            copy_ups: std::array::from_fn(|_| Mutex::new(())),
            state: RwLock::new(State {
                layer,
                delta,
                upper,
                lower,
                orphans: HashMap::new(),
                epoch: 0,
                old_orders: Default::default(),
            }),
            nodes: Nodes::default(),
            inos: Mutex::new(0..0),
            syncing_dirs: Mutex::new(()),
            removals: Default::default(),
            space: options.limit.clone().map(Space::new),
            syncs_singly,
            lower_names: Default::default(),
            needs_repair: AtomicBool::new(false),
            was_discarded: AtomicBool::new(false),
        };
        union.create_spare_upper();
        // If nothing was changed after an interrupted commit began, the commit is undone.
        union.unrotate()?;
        Ok((union, done))
    }

    /// Makes everything durable and records a clean close, unless rows and files are known to
    /// differ. The view must not be changed afterwards.
    pub fn close(&self) -> Result<()> {
        // The disk may have free space again.
        self.create_spare_upper();
        self.db.restore_reserve();
        self.sync_all()?;
        self.finish_removals()?;
        match self.needs_repair.load(Ordering::Relaxed) {
            false => {
                self.note_checked();
                self.db.end_clean()?;
            }
            true => self.db.end_unclean()?,
        }
        Ok(())
    }

    /// Returns the files of the environment.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }
}

/// Opens the directory of a layer. If no row has content, it is created if it does not exist:
/// before the first mount there is none, and some copying tools omit empty directories.
pub(super) fn open_upper(
    db: &StateDb,
    paths: &Paths,
    layer: LayerId,
    delta: &Delta,
) -> Result<UpperDir> {
    let path = paths.layer(layer);
    if !has_content(delta) {
        let created = UpperDir::create(&path, &paths.strays);
        return Ok(created.map_err(|e| {
            std::io::Error::new(e.kind(), format!("cannot create {}: {e}", path.display()))
        })?);
    }
    match UpperDir::open(&path, &paths.strays) {
        Err(e)
            if e.kind() == std::io::ErrorKind::NotFound
                || regular::as_not_regular(&e).is_some() =>
        {
            // The next open must compare rows and files even if the directory exists then.
            db.mark_unclean()?;
            let upper = path.join("upper");
            let what = match regular::as_not_regular(&e) {
                Some(found) => format!("{}: {found}", upper.display()),
                None => format!("{} does not exist", upper.display()),
            };
            Err(Error::Inconsistent(format!(
                "{what}; it must be the directory with the content of changed files. Restore it, or \
                 give that content up: envfs verify --repair",
            )))
        }
        opened => Ok(opened?),
    }
}

fn has_content(delta: &Delta) -> bool {
    let mut rows = delta.loaded_inodes();
    rows.any(|(_, row)| row.data == DataPlace::Upper)
}

/// Describes the differences between the rows of an environment and the files of its uppers, and
/// changes nothing. The environment must not be in use.
pub(crate) fn verify_uppers(
    db: &StateDb,
    paths: &Paths,
    options: &OpenOptions,
) -> Result<Vec<String>> {
    let mut lower = StackBuilder::default();
    let mut problems = Vec::new();
    for part in db.stack()?.into_iter().rev() {
        if let StackPart::Image(image) = part.part {
            lower.push_image(open_image(db, paths, image, options)?)?;
            continue;
        }
        let below = lower.stack()?;
        let delta = Delta::from_rows(db.load_layer(part.id)?);
        dir_check::check(&delta, &below)?;
        let path = paths.layer(part.id);
        let upper = match UpperDir::open_read_only(&path, &paths.strays) {
            Ok(upper) => upper,
            Err(e) => {
                if has_content(&delta) {
                    problems.push(format!(
                        "{}: the content of changed files is missing: {e}",
                        path.display()
                    ));
                }
                continue;
            }
        };
        let differences = compare_files(&delta, &upper, &below)?;
        for (path, found) in differences.missing {
            problems.push(match found {
                None => format!("{}: its content is missing", path.display()),
                Some(_) => format!(
                    "{}: its content is missing, and another object is at its path",
                    path.display()
                ),
            });
        }
        for found in differences.unknown {
            problems.push(format!(
                "{}: no changed file has this content",
                path.join("upper").join(found).display()
            ));
        }
        lower.push_frozen(FrozenLayer::new(part.id, delta, upper.into(), below))?;
    }
    Ok(problems)
}

/// Opens an image as a layer.
pub(crate) fn open_image(
    db: &StateDb,
    paths: &Paths,
    image: ImageId,
    options: &OpenOptions,
) -> Result<ImageLayer> {
    let missing = || {
        Error::Inconsistent(format!(
            "image {image} is in the stack but not in the table of images"
        ))
    };
    let row = db.image(image)?.ok_or_else(missing)?;
    let id_map = db.id_map(image)?.ok_or_else(missing)?;
    let path = paths.images.join(&row.file);
    let file = match (paths.images_are_links, row.offset) {
        (true, Some(at)) => Image::open_at(path, at, options.reader.clone())?,
        (true, None) => Image::open(path, options.reader.clone())?,
        (false, _) => {
            let file = regular::open(&path).map_err(|e| crate::squashfs::Error::Io {
                what: "opening an image",
                error: std::io::Error::new(e.kind(), format!("{}: {e}", path.display())),
            })?;
            Image::open_file(file, options.reader.clone())?
        }
    };
    let links = Arc::new(overlay::counted_links(db, image)?);
    let layer = ImageLayer::new(file, id_map).with_links(links);
    // Link counts are correct in images that envfs wrote or whose import checked them.
    Ok(match row.tables_appended {
        Some(_) => layer,
        None => layer.counting_subdirectories(),
    })
}

/// Records the offset of an image in its file, or that it has none.
pub(crate) fn set_offset(db: &StateDb, image: ImageId, offset: Option<u64>) -> Result<()> {
    if db.image(image)?.and_then(|row| row.offset) != offset {
        db.set_image_offset(image, offset)?;
    }
    Ok(())
}
