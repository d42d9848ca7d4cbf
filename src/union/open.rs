//! Opening the view of an environment: its stack, layer by layer.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::UNIX_EPOCH;

use super::checked;
use super::delta::Delta;
use super::overlay;
use super::reconcile::{Reconciled, differences, reconcile};
use super::{Error, FrozenLayer, ImageLayer, LowerStack, Nodes, Result, State, Union, dir_check};
use crate::squashfs::{Image, ReaderOptions};
use crate::state::{DataPlace, HomeId, ImageId, LayerId, StackPart, StateDb};
use crate::sys::medium::network_file_system;
use crate::sys::regular;
use crate::upper::UpperDir;

/// Where an environment keeps its parts.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Directory of image files.
    pub images: PathBuf,
    /// Whether the names there are links to images elsewhere, which this process has made.
    pub images_are_links: bool,
    /// Directory of upper layers, one directory each, named by their number.
    pub layers: PathBuf,
    /// Directory for content that no row knows.
    pub strays: PathBuf,
}

impl Paths {
    /// The directory of an upper layer.
    pub fn layer(&self, layer: LayerId) -> PathBuf {
        self.layers.join(layer.to_string())
    }

    /// The directory of a layer that is kept for a full disk.
    pub(super) fn spare(&self) -> PathBuf {
        self.strays.with_file_name("spare")
    }

    /// What tells the directory of all this from a copy of it: no copy keeps when it was made.
    fn identity(&self) -> std::io::Result<HomeId> {
        let meta = self.layers.join("..").metadata();
        let meta = meta.map_err(|e| {
            std::io::Error::new(e.kind(), format!("{}: {e}", self.layers.display()))
        })?;
        let made = meta.created().ok();
        let made = made.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(HomeId {
            ino: meta.ino(),
            // Only compared: it need not be right after the year 2262.
            born: made.map_or(0, |since| since.as_nanos() as i64),
        })
    }
}

/// How a view is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Cache sizes of each image.
    pub reader: ReaderOptions,
}

impl Union {
    /// Opens the writable view of an environment. If it was not closed cleanly, or has been copied
    /// since, rows and files are reconciled first; what was found is returned. Cost follows the
    /// changes, not the image; where a large layer is as it was left, it follows the number of its
    /// directories.
    ///
    /// The caller holds the environment's lock: there is one view at a time.
    pub fn open(
        db: Arc<StateDb>,
        paths: Paths,
        options: &OpenOptions,
    ) -> Result<(Union, Reconciled)> {
        db.keep_redo_log()?;
        let unclean = !db.was_clean()?;
        let home = paths.identity()?;
        let known = db.home_id()?;
        let is_copy = known.as_ref().is_some_and(|known| *known != home);
        // However orderly the end of what was copied: its host inode numbers are other files' here,
        // and the next end may be less orderly.
        let to_reconcile = unclean || is_copy;
        let mut done = Reconciled::default();
        let (mut frozen, mut base) = (Vec::new(), Vec::new());
        let mut top = None;
        let stack = db.stack()?;
        let images = stack
            .iter()
            .filter(|layer| matches!(layer.part, StackPart::Image(_)));
        let links = match images.count() {
            0 | 1 => None,
            _ => Some(Arc::new(overlay::links(&db)?)),
        };
        // From the bottom up: an upper names its directories by what lies below it.
        for part in stack.into_iter().rev() {
            match part.part {
                StackPart::Image(image) => {
                    let mut layer = open_image(&db, &paths, image, options)?;
                    if let Some(links) = &links {
                        layer = layer.in_stack(links.clone());
                    }
                    base.insert(0, Arc::new(layer));
                }
                StackPart::Frozen | StackPart::Writable => {
                    if base.is_empty() {
                        return Err(Error::Inconsistent("the stack has no image".to_owned()));
                    }
                    let below = Arc::new(LowerStack::new(frozen.clone(), base.clone()));
                    if part.part == StackPart::Writable
                        && frozen.is_empty()
                        && !to_reconcile
                        && let Some((delta, upper)) = checked::open(&db, &paths, part.id, &below)?
                    {
                        top = Some((part.id, delta, Arc::new(upper), below));
                        continue;
                    }
                    let mut delta = Delta::from_rows(db.load_layer(part.id)?);
                    dir_check::check(&delta, &below)?;
                    let upper = open_upper(&db, &paths, part.id, &delta)?;
                    // However clean the end was: somebody may have removed files since, or put some
                    // there.
                    if to_reconcile || !differences(&delta, &upper, &below)?.is_none() {
                        let found = reconcile(&db, part.id, &mut delta, &upper, &below, is_copy)?;
                        done.add(found);
                    }
                    if to_reconcile {
                        upper.unsynced().note_everything();
                    }
                    let upper = Arc::new(upper);
                    if part.part == StackPart::Writable {
                        top = Some((part.id, delta, upper, below));
                    } else {
                        let layer = FrozenLayer::new(part.id, delta, upper, below);
                        frozen.insert(0, Arc::new(layer));
                    }
                }
            }
        }
        let Some((layer, delta, upper, lower)) = top else {
            return Err(Error::Inconsistent(
                "the stack has no writable layer".to_owned(),
            ));
        };
        // After the rows have the numbers of this copy: else an end between the two would leave the
        // old.
        if known.as_ref() != Some(&home) {
            db.set_home_id(home)?;
        }
        db.mark_unclean()?;
        db.restore_reserve();
        // Syncing singly is right everywhere, but slower where there is much.
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
            syncs_singly,
            lower_names: Default::default(),
            needs_repair: AtomicBool::new(false),
            was_discarded: AtomicBool::new(false),
        };
        union.keep_spare();
        // A commit that was interrupted before anything else was changed never began.
        union.unrotate()?;
        Ok((union, done))
    }

    /// Makes everything durable and notes that rows and files agree, if they do. Call when nothing
    /// changes the view any more.
    pub fn close(&self) -> Result<()> {
        // There may be room again.
        self.keep_spare();
        self.db.restore_reserve();
        self.sync_all()?;
        match self.needs_repair.load(Ordering::Relaxed) {
            false => {
                self.note_checked();
                self.db.end_clean()?;
            }
            true => self.db.end_unclean()?,
        }
        Ok(())
    }

    /// Where the parts of the environment are.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }
}

/// Opens the directory of a layer of the stack. It is made where no row says that it has content,
/// since nothing is missing then: the first mount comes here before there is one, and some who copy
/// trees leave empty directories out.
fn open_upper(db: &StateDb, paths: &Paths, layer: LayerId, delta: &Delta) -> Result<UpperDir> {
    let path = paths.layer(layer);
    if !has_content(delta) {
        let made = UpperDir::create(&path, &paths.strays);
        return Ok(made.map_err(|e| {
            std::io::Error::new(e.kind(), format!("cannot make {}: {e}", path.display()))
        })?);
    }
    match UpperDir::open(&path, &paths.strays) {
        Err(e)
            if e.kind() == std::io::ErrorKind::NotFound
                || regular::as_not_regular(&e).is_some() =>
        {
            // The next open must compare rows and files, whatever it finds.
            db.mark_unclean()?;
            let upper = path.join("upper");
            let what = match regular::as_not_regular(&e) {
                Some(found) => format!("{}: {found}, and not the place", upper.display()),
                None => format!("{} is not there,", upper.display()),
            };
            Err(Error::Inconsistent(format!(
                "{what} where the content of changed files is; put it back, or give that content up: \
                 envfs verify --repair",
            )))
        }
        opened => Ok(opened?),
    }
}

fn has_content(delta: &Delta) -> bool {
    let mut rows = delta.loaded_inodes();
    rows.any(|(_, row)| row.data == DataPlace::Upper)
}

/// Says what differs between the rows of an environment and the files of its uppers, in words, and
/// changes nothing. The environment is not in use.
pub fn verify_uppers(db: &StateDb, paths: &Paths, options: &OpenOptions) -> Result<Vec<String>> {
    let (mut frozen, mut base) = (Vec::new(), Vec::new());
    let mut problems = Vec::new();
    for part in db.stack()?.into_iter().rev() {
        if let StackPart::Image(image) = part.part {
            base.insert(0, Arc::new(open_image(db, paths, image, options)?));
            continue;
        }
        let below = Arc::new(LowerStack::new(frozen.clone(), base.clone()));
        let delta = Delta::from_rows(db.load_layer(part.id)?);
        dir_check::check(&delta, &below)?;
        let path = paths.layer(part.id);
        let upper = match UpperDir::open_read_only(&path, &paths.strays) {
            Ok(upper) => upper,
            Err(e) => {
                if has_content(&delta) {
                    problems.push(format!(
                        "{}: the content of changed files is not there: {e}",
                        path.display()
                    ));
                }
                continue;
            }
        };
        let wrong = differences(&delta, &upper, &below)?;
        for (path, found) in wrong.missing {
            problems.push(match found {
                None => format!("{}: its content is not there", path.display()),
                Some(_) => format!(
                    "{}: its content is not there, something else is in its place",
                    path.display()
                ),
            });
        }
        for found in wrong.unknown {
            problems.push(format!(
                "{}: belongs to nothing",
                path.join("upper").join(found).display()
            ));
        }
        frozen.insert(
            0,
            Arc::new(FrozenLayer::new(part.id, delta, upper.into(), below)),
        );
    }
    Ok(problems)
}

/// Opens an image of the history as a layer.
pub fn open_image(
    db: &StateDb,
    paths: &Paths,
    image: ImageId,
    options: &OpenOptions,
) -> Result<ImageLayer> {
    let missing = || {
        Error::Inconsistent(format!(
            "image {image} is in the stack but not in the history"
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
    // What envfs wrote, or an import has found to be right, needs no counting.
    Ok(match row.tables_appended {
        Some(_) => layer,
        None => layer.counting_subdirectories(),
    })
}

/// Notes where an image begins in its file, if it is inside another and cannot be found there.
pub fn set_offset(db: &StateDb, image: ImageId, offset: Option<u64>) -> Result<()> {
    if db.image(image)?.and_then(|row| row.offset) != offset {
        db.set_image_offset(image, offset)?;
    }
    Ok(())
}
