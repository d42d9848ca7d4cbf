//! Trials: layers that take changes which are kept or dropped afterwards.
//!
//! A trial has a layer of its own, above a copy of the stack of that time. Its rows are in a
//! database of its own, since another process writes them. The layer has a row here from the
//! beginning, so that keeping the changes is one transaction: it puts the layer into the stack.
//!
//! The layers below a trial stay frozen while it lasts ([`StateDb::is_recorded`]) and are not
//! removed ([`StateDb::below_trials`]). Its new objects have ids of a range that was reserved for
//! it: no other object of the environment ever has one of them.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::counters::set_counter;
use super::error::Result;
use super::history::NewRevision;
use super::ids::{ImageId, LayerId, OperationId, RevisionId};
use super::images::NewImage;
use super::operations::{NewOperation, OperationKind, RecordedLayer, recorded_of};
use super::rows::queries::apply_one;
use super::stack::{LayerRole, StackPart};
use super::{LayerRows, LinksIn, RowChange, StateDb, StateError, valid};

/// The number of object ids that are reserved for a trial.
const IDS: u64 = 1 << 24;

/// A trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The layer that takes its changes.
    pub layer: LayerId,
    /// The name of its directory.
    pub token: String,
    /// The revision that was current when it began.
    pub head: RevisionId,
    /// The ids of its new objects.
    pub inos: Range<u64>,
    /// The layers below it, top first.
    pub base: Vec<RecordedLayer>,
}

impl Trial {
    /// Returns its layer and those below it, top first.
    pub fn layers(&self) -> Vec<RecordedLayer> {
        let own = RecordedLayer::Upper(self.layer);
        std::iter::once(own)
            .chain(self.base.iter().copied())
            .collect()
    }
}

/// What becomes of the changes of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialEnd {
    /// They become uncommitted changes of the environment. The new writable layer is as in
    /// [`StateDb::rotate`].
    Keep(LayerId),
    /// They go to the trash.
    SetAside,
}

impl StateDb {
    /// Returns the trials that have not ended.
    pub fn trials(&self) -> Result<Vec<Trial>> {
        const DOING: &str = "read the trials";
        self.read(DOING, |conn| self.trials_in(conn, DOING))
    }

    /// Returns the uppers and the images below trials, and the revisions on which trials are based.
    pub fn below_trials(&self) -> Result<(HashSet<RecordedLayer>, HashSet<RevisionId>)> {
        let trials = self.trials()?;
        let layers = trials.iter().flat_map(|trial| trial.base.iter().copied());
        let heads = trials.iter().map(|trial| trial.head);
        Ok((layers.collect(), heads.collect()))
    }

    /// Begins a trial: freezes the writable layer unless it is empty, as
    /// [`checkpoint_layer`](Self::checkpoint_layer), and notes the layers below the trial. Its
    /// layer comes from [`reserve_layer`](Self::reserve_layer) and its directory exists.
    pub fn begin_trial(
        &self,
        expected: LayerId,
        fresh: Option<LayerId>,
        layer: LayerId,
        token: &str,
    ) -> Result<Trial> {
        const DOING: &str = "begin a trial";
        self.write(DOING, |conn| {
            let fail = |e| self.sql(DOING, e);
            valid::token(token).map_err(|what| self.conflict(DOING, what))?;
            if let Some(fresh) = fresh {
                self.rotate_in(conn, expected, fresh, DOING)?;
            }
            let Some(head) = self.head_in(conn, DOING)? else {
                return Err(self.conflict(DOING, "the environment is not initialised"));
            };
            let stack = self.stack_in(conn, DOING)?;
            let base = recorded_of(stack.get(1..).unwrap_or_default());
            let inos = self.take(conn, "ino", IDS, DOING)?;
            conn.execute(
                "INSERT INTO layer (id, kind, role) VALUES (?1, 'upper', 'trial')",
                [layer.0],
            )
            .map_err(fail)?;
            let trial = Trial {
                layer,
                token: token.to_owned(),
                head,
                inos,
                base,
            };
            self.insert_trial(conn, &trial, DOING)?;
            Ok(trial)
        })
    }

    fn insert_trial(&self, conn: &Connection, trial: &Trial, doing: &'static str) -> Result<()> {
        let fail = |e| self.sql(doing, e);
        conn.execute(
            "INSERT INTO trial (layer, token, head, first_ino, end_ino) VALUES (?1,?2,?3,?4,?5)",
            params![
                trial.layer.0,
                trial.token,
                trial.head.0,
                trial.inos.start as i64,
                trial.inos.end as i64
            ],
        )
        .map_err(fail)?;
        for (position, layer) in trial.base.iter().enumerate() {
            let (upper, image) = layer.columns();
            conn.execute(
                "INSERT INTO trial_layer VALUES (?1,?2,?3,?4)",
                params![trial.layer.0, position as i64, upper, image],
            )
            .map_err(fail)?;
        }
        Ok(())
    }

    /// Creates the database of a trial at `path`: its stack is the layer of the trial over those
    /// below it, with their rows.
    pub fn create_of_trial(&self, trial: &Trial, path: &Path) -> Result<()> {
        const DOING: &str = "create the database of a trial";
        let missing = |what: &str| self.conflict(DOING, format!("the database lacks {what}"));
        let mut images = Vec::new();
        let mut uppers = Vec::new();
        for layer in &trial.base {
            match layer {
                RecordedLayer::Upper(layer) => uppers.push((*layer, self.load_layer(*layer)?)),
                RecordedLayer::Image(id) => images.push((
                    self.stored_image(*id)?.ok_or_else(|| missing("an image"))?,
                    self.link_counts(LinksIn::Image(*id))?,
                )),
            }
        }
        let links = self.link_counts(LinksIn::Stack)?;
        let uuid = self.uuid()?.ok_or_else(|| missing("its identity"))?;
        let origin = self.origin()?;
        let prefix = self.prefix()?.ok_or_else(|| missing("its prefix"))?;
        let (owner, home) = (self.image_owner()?, self.home_id()?);

        let db = StateDb::create(path)?;
        db.write(DOING, |conn| {
            let fail = |e| db.sql(DOING, e);
            db.set_identity_in(conn, &uuid, origin.as_deref(), &prefix, DOING)?;
            set_counter(conn, "ino", trial.inos.start).map_err(fail)?;
            let above = trial.layers().into_iter().filter_map(|layer| match layer {
                RecordedLayer::Upper(layer) => Some(layer.0),
                RecordedLayer::Image(_) => None,
            });
            let highest = above.max().unwrap_or_default().unsigned_abs();
            let images_below = images.len() as u64;
            db.raise(conn, "layer", highest + images_below + 1, DOING)?;
            db.insert_upper(conn, trial.layer, 0, DOING)?;
            for (image, _) in &images {
                db.insert_image(conn, image, DOING)?;
            }
            let mut next_image = highest;
            for (layer, position) in trial.base.iter().zip(1..) {
                match layer {
                    RecordedLayer::Upper(layer) => conn
                        .execute(
                            "INSERT INTO layer (id, kind, role, position) \
                             VALUES (?1, 'upper', 'frozen', ?2)",
                            params![layer.0, position],
                        )
                        .map(drop)
                        .map_err(fail)?,
                    RecordedLayer::Image(image) => {
                        next_image += 1;
                        let id = LayerId(next_image as i64);
                        db.insert_image_layer(conn, id, *image, position, DOING)?;
                    }
                }
            }
            for (layer, rows) in &uppers {
                db.insert_rows(conn, *layer, rows, DOING)?;
            }
            db.insert_trial(conn, trial, DOING)
        })?;
        for (image, counts) in &images {
            if !counts.is_empty() {
                db.set_link_counts(LinksIn::Image(image.id), counts)?;
            }
        }
        if !links.is_empty() {
            db.set_link_counts(LinksIn::Stack, &links)?;
        }
        if let Some((uid, gid)) = owner {
            db.set_image_owner(uid, gid)?;
        }
        if let Some(home) = home {
            db.set_home_id(home)?;
        }
        db.close()
    }

    /// Returns an image as it was inserted, without its digests.
    fn stored_image(&self, id: ImageId) -> Result<Option<NewImage>> {
        let (Some(row), Some(id_map)) = (self.image(id)?, self.id_map(id)?) else {
            return Ok(None);
        };
        Ok(Some(row.to_new(id_map, None)))
    }

    fn insert_rows(
        &self,
        conn: &Connection,
        layer: LayerId,
        rows: &LayerRows,
        doing: &'static str,
    ) -> Result<()> {
        let inodes = rows.inodes.iter();
        let inodes = inodes.map(|(ino, row)| RowChange::put_inode(*ino, row));
        let entries = rows.entries.iter();
        let entries = entries.map(|(dir, name, to)| RowChange::put_entry(*dir, &**name, *to));
        let xattrs = rows.xattrs.iter();
        let xattrs = xattrs.map(|(ino, name, value)| RowChange::put_xattr(*ino, &**name, &**value));
        inodes
            .chain(entries)
            .chain(xattrs)
            .try_for_each(|change| apply_one(conn, layer, &change))
            .map_err(|e| self.sql(doing, e))
    }

    /// Copies the rows of a trial's layer from the database of the trial, which no process has
    /// open. The layer does not belong to the stack yet. Can be repeated.
    pub fn copy_trial(&self, trial: &Trial, path: &Path) -> Result<()> {
        const DOING: &str = "copy the rows of a trial";
        let rows = StateDb::open(path)?.load_layer(trial.layer)?;
        self.write(DOING, |conn| {
            while self.drop_rows_in(conn, trial.layer, 1000, DOING)? == 1000 {}
            self.insert_rows(conn, trial.layer, &rows, DOING)
        })
    }

    /// Returns whether the environment has not changed since the trial began: the same revision and
    /// layers, and no changes in the writable layer.
    pub fn is_as_before_trial(&self, trial: &Trial) -> Result<bool> {
        const DOING: &str = "compare the layers with those of a trial";
        self.read_rows(DOING, |conn| self.is_as_before_trial_in(conn, trial, DOING))
    }

    fn is_as_before_trial_in(
        &self,
        conn: &Connection,
        trial: &Trial,
        doing: &'static str,
    ) -> Result<bool> {
        let stack = self.stack_in(conn, doing)?;
        let Some((top, below)) = stack.split_first() else {
            return Ok(false);
        };
        Ok(top.part == StackPart::Writable
            && recorded_of(below) == trial.base
            && self.head_in(conn, doing)? == Some(trial.head)
            && self.layer_is_empty_in(conn, top.id, doing)?)
    }

    /// Ends a trial whose rows were copied. Keeping its changes fails unless the environment is as
    /// it was when the trial began.
    pub fn end_trial(
        &self,
        trial: &Trial,
        end: TrialEnd,
        note: &NewRevision,
    ) -> Result<OperationId> {
        const DOING: &str = "end a trial";
        self.write(DOING, |conn| {
            let stack = self.stack_in(conn, DOING)?;
            if !self.trials_in(conn, DOING)?.contains(trial) {
                return Err(self.conflict(DOING, "it has ended already"));
            }
            let layers = trial.layers();
            let head = self.head_in(conn, DOING)?.unwrap_or(trial.head);
            let below = recorded_of(stack.get(1..).unwrap_or_default());
            self.give_ids_back(conn, trial, DOING)?;
            self.delete_trial(conn, trial, DOING)?;
            let mut new = NewOperation {
                before: &layers,
                after: &below,
                ..NewOperation::of(OperationKind::SetAside, trial.head, note)
            };
            match end {
                TrialEnd::SetAside => {
                    self.set_role(conn, trial.layer, LayerRole::Trash, DOING)?;
                }
                TrialEnd::Keep(fresh) => {
                    if !self.is_as_before_trial_in(conn, trial, DOING)? {
                        return Err(self.conflict(DOING, "the layers have changed meanwhile"));
                    }
                    (new.kind, new.before, new.after) = (OperationKind::Keep, &below, &layers);
                    new.head_before = head;
                    if let Some(top) = stack.first() {
                        self.leave_stack(conn, *top, LayerRole::Retired, DOING)?;
                    }
                    let mut order = self.place_recorded(conn, &stack, &layers, DOING)?;
                    self.push_writable(conn, fresh, &mut order, DOING)?;
                }
            }
            self.record(conn, &new, DOING)
        })
    }

    /// Forgets a trial whose changes were dropped, with its layer. The caller has removed the
    /// directory of the layer.
    pub fn forget_trial(&self, trial: &Trial) -> Result<()> {
        const DOING: &str = "forget a trial";
        self.write_without_room(DOING, |conn| {
            self.give_ids_back(conn, trial, DOING)?;
            self.delete_trial(conn, trial, DOING)?;
            self.set_role(conn, trial.layer, LayerRole::Retired, DOING)
        })?;
        self.forget_layer(trial.layer)
    }

    fn delete_trial(&self, conn: &Connection, trial: &Trial, doing: &'static str) -> Result<()> {
        conn.execute("DELETE FROM trial WHERE layer = ?1", [trial.layer.0])
            .map(drop)
            .map_err(|e| self.sql(doing, e))
    }

    /// Gives the ids back that a trial has not used, if no later one was given away.
    fn give_ids_back(&self, conn: &Connection, trial: &Trial, doing: &'static str) -> Result<()> {
        let used: Option<i64> = conn
            .query_row(
                "SELECT max(ino) FROM inode WHERE layer = ?1",
                [trial.layer.0],
                |row| row.get(0),
            )
            .map_err(|e| self.sql(doing, e))?;
        let used = used.map_or(0, |ino| ino.unsigned_abs() + 1);
        let next = used.clamp(trial.inos.start, trial.inos.end);
        conn.execute(
            "UPDATE counter SET next = ?1 WHERE name = 'ino' AND next = ?2",
            params![next as i64, trial.inos.end as i64],
        )
        .map(drop)
        .map_err(|e| self.sql(doing, e))
    }

    /// Returns the end of the ids of a trial in the database of the trial.
    pub(super) fn end_of_trial_in(
        &self,
        conn: &Connection,
        doing: &'static str,
    ) -> Result<Option<u64>> {
        conn.prepare_cached(
            "SELECT end_ino FROM trial JOIN layer ON layer.id = trial.layer \
             WHERE layer.role = 'writable'",
        )
        .and_then(|mut statement| {
            let end = statement.query_row([], |row| row.get::<_, i64>(0));
            end.optional()
        })
        .map(|end| end.map(i64::unsigned_abs))
        .map_err(|e| self.sql(doing, e))
    }

    /// Returns true if a trial needs a layer to stay as it is.
    pub(super) fn is_below_trial_in(
        &self,
        conn: &Connection,
        layer: LayerId,
        doing: &'static str,
    ) -> Result<bool> {
        conn.query_row(
            "SELECT EXISTS (SELECT 1 FROM trial_layer WHERE layer = ?1)",
            [layer.0],
            |row| row.get(0),
        )
        .map_err(|e| self.sql(doing, e))
    }

    fn trials_in(&self, conn: &Connection, doing: &'static str) -> Result<Vec<Trial>> {
        let fail = |e| self.sql(doing, e);
        let mut trials = Vec::new();
        let mut statement = conn
            .prepare_cached(
                "SELECT layer, token, head, first_ino, end_ino FROM trial ORDER BY layer",
            )
            .map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        while let Some(row) = rows.next().map_err(fail)? {
            let read = || -> rusqlite::Result<Trial> {
                let (first, end): (i64, i64) = (row.get(3)?, row.get(4)?);
                Ok(Trial {
                    layer: LayerId(row.get(0)?),
                    token: row.get(1)?,
                    head: RevisionId(row.get(2)?),
                    inos: first.unsigned_abs()..end.unsigned_abs(),
                    base: Vec::new(),
                })
            };
            let trial = read().map_err(fail)?;
            valid::layer(trial.layer)
                .and_then(|()| valid::token(&trial.token))
                .map_err(|what| self.bad_row("trial", what))?;
            trials.push(trial);
        }
        for trial in &mut trials {
            trial.base = self.base_in(conn, trial.layer, doing)?;
        }
        Ok(trials)
    }

    fn base_in(
        &self,
        conn: &Connection,
        trial: LayerId,
        doing: &'static str,
    ) -> Result<Vec<RecordedLayer>> {
        let fail = |e| self.sql(doing, e);
        let mut statement = conn
            .prepare_cached(
                "SELECT layer, image FROM trial_layer WHERE trial = ?1 ORDER BY position",
            )
            .map_err(fail)?;
        let mut rows = statement.query([trial.0]).map_err(fail)?;
        let (mut layers, mut seen): (Vec<RecordedLayer>, HashSet<_>) = Default::default();
        let bad = |what: &str| -> StateError { self.bad_row("trial_layer", what.to_owned()) };
        while let Some(row) = rows.next().map_err(fail)? {
            let layer = match (row.get(0).map_err(fail)?, row.get(1).map_err(fail)?) {
                (Some(layer), None) => RecordedLayer::Upper(LayerId(layer)),
                (None, Some(image)) => RecordedLayer::Image(ImageId(image)),
                _ => return Err(bad("layer and image")),
            };
            if let RecordedLayer::Upper(layer) = layer {
                valid::layer(layer).map_err(|what| bad(&what))?;
                let is_below_an_image =
                    |above: &RecordedLayer| matches!(above, RecordedLayer::Image(_));
                if layer == trial || layers.iter().any(is_below_an_image) {
                    return Err(bad("order of layers"));
                }
            }
            if !seen.insert(layer) {
                return Err(bad("layer that occurs twice"));
            }
            layers.push(layer);
        }
        Ok(layers)
    }
}
