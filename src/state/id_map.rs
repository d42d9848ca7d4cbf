//! The map from the inode numbers of an image to objects.
//!
//! An image numbers its inodes 1..=n; an object keeps its id for life. The map between the two
//! is a list of runs of consecutive numbers with consecutive ids. A first import is one run (the
//! identity); each commit adds few, because new images number their inodes in the order of ids.
//!
//! The stored form is a version (1) and the runs, each as the gap before its first number, the step
//! from the id after the run before to its first id, and its length; serialised by postcard.

use crate::object::Ino;

const VERSION: u8 = 1;

type Stored = (u8, Vec<(u64, i64, u32)>);

/// Consecutive inode numbers whose objects have consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRun {
    /// First inode number of the run.
    pub first_number: u32,
    /// The object of that number.
    pub first_ino: u64,
    /// Length of the run, at least 1.
    pub count: u32,
}

/// Why bytes or runs are not a valid map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a map of inode numbers: {0}")]
pub struct BadIdMap(&'static str);

/// A one-to-one map between the inode numbers of an image and objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// By first number; runs do not overlap, and none can be joined with the next.
    runs: Vec<IdRun>,
    /// Indexes of `runs` by first id; ids do not overlap either.
    by_ino: Vec<u32>,
}

impl IdMap {
    /// Returns the map of an image that another tool wrote, with numbers 1..=`inodes`: each number
    /// is its own id, except that the root is object 1 and number 1 gets the root's number as its
    /// id.
    pub fn identity(inodes: u32, root_number: u32) -> Result<IdMap, BadIdMap> {
        if root_number == 0 || root_number > inodes {
            return Err(BadIdMap("the root's number is not among the numbers"));
        }
        let mut runs = Vec::with_capacity(4);
        let mut push = |first: u32, ino: u32, count: u32| {
            if count > 0 {
                runs.push(IdRun {
                    first_number: first,
                    first_ino: u64::from(ino),
                    count,
                });
            }
        };
        if root_number == 1 {
            push(1, 1, inodes);
        } else {
            push(1, root_number, 1);
            push(2, 2, root_number - 2);
            push(root_number, 1, 1);
            push(
                root_number.saturating_add(1),
                root_number.saturating_add(1),
                inodes - root_number,
            );
        }
        IdMap::from_runs(runs)
    }

    /// Returns the map of an image that numbers the objects `inos` 1, 2, 3, ... in that order.
    pub fn from_ascending(inos: impl IntoIterator<Item = Ino>) -> Result<IdMap, BadIdMap> {
        let mut runs: Vec<IdRun> = Vec::new();
        let mut number: u32 = 0;
        let mut last = 0;
        for ino in inos {
            if ino.0 <= last {
                return Err(BadIdMap("ids do not ascend from 1"));
            }
            last = ino.0;
            number = number
                .checked_add(1)
                .ok_or(BadIdMap("more inodes than numbers"))?;
            match runs.last_mut() {
                Some(run) if run.first_ino + u64::from(run.count) == ino.0 => run.count += 1,
                _ => runs.push(IdRun {
                    first_number: number,
                    first_ino: ino.0,
                    count: 1,
                }),
            }
        }
        IdMap::from_runs(runs)
    }

    /// Returns the map with these runs, which must ascend by number.
    pub fn from_runs(runs: impl IntoIterator<Item = IdRun>) -> Result<IdMap, BadIdMap> {
        let mut joined: Vec<IdRun> = Vec::new();
        // The number after the run before; u64 because the last number may be u32::MAX.
        let mut next_number: u64 = 1;
        for run in runs {
            if run.count == 0 || run.first_ino == 0 {
                return Err(BadIdMap("an empty run, or id 0"));
            }
            if u64::from(run.first_number) < next_number {
                return Err(BadIdMap("numbers do not ascend from 1"));
            }
            let end = u64::from(run.first_number) + u64::from(run.count);
            if end > u64::from(u32::MAX) + 1 {
                return Err(BadIdMap("numbers beyond 32 bits"));
            }
            // Rows store ids as signed 64-bit integers.
            let end_ino = run.first_ino.checked_add(u64::from(run.count));
            if end_ino.is_none_or(|end| end > i64::MAX as u64) {
                return Err(BadIdMap("ids beyond 63 bits"));
            }
            match joined.last_mut() {
                Some(before)
                    if next_number == u64::from(run.first_number)
                        && before.first_ino + u64::from(before.count) == run.first_ino =>
                {
                    before.count += run.count;
                }
                _ => joined.push(run),
            }
            next_number = end;
        }
        let count = u32::try_from(joined.len()).map_err(|_| BadIdMap("too many runs"))?;
        let mut by_ino: Vec<u32> = (0..count).collect();
        let run_at = |index: u32| joined.get(index as usize);
        by_ino.sort_unstable_by_key(|&index| run_at(index).map_or(0, |run| run.first_ino));
        let mut next_ino = 0;
        for run in by_ino.iter().filter_map(|&index| run_at(index)) {
            if run.first_ino < next_ino {
                return Err(BadIdMap("an id occurs twice"));
            }
            next_ino = run.first_ino + u64::from(run.count);
        }
        Ok(IdMap {
            runs: joined,
            by_ino,
        })
    }

    /// Returns the object with this inode number.
    pub fn ino_of(&self, number: u32) -> Option<Ino> {
        let after = self.runs.partition_point(|run| run.first_number <= number);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let offset = number - run.first_number;
        (offset < run.count).then(|| Ino(run.first_ino + u64::from(offset)))
    }

    /// Returns the inode number of this object, if it is in the image.
    pub fn number_of(&self, ino: Ino) -> Option<u32> {
        let after = self.by_ino.partition_point(|&index| {
            self.runs
                .get(index as usize)
                .is_some_and(|run| run.first_ino <= ino.0)
        });
        let index = *self.by_ino.get(after.checked_sub(1)?)?;
        let run = self.runs.get(index as usize)?;
        let offset = u32::try_from(ino.0 - run.first_ino).ok()?;
        (offset < run.count).then(|| run.first_number + offset)
    }

    /// Returns the number of objects in the map.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Returns true when no object is in the map.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns the largest id in the map.
    pub fn max_ino(&self) -> Option<Ino> {
        let run = self.runs.get(*self.by_ino.last()? as usize)?;
        Some(Ino(run.first_ino + u64::from(run.count) - 1))
    }

    /// Returns the runs of the map without the objects `gone`, which must ascend.
    pub fn runs_without(&self, gone: &[Ino]) -> Vec<IdRun> {
        let mut left = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let end = run.first_ino + u64::from(run.count);
            let from = gone.partition_point(|ino| ino.0 < run.first_ino);
            let within = gone.iter().skip(from).map(|ino| ino.0);
            let mut at = run.first_ino;
            for cut in within.take_while(|ino| *ino < end).chain([end]) {
                if cut > at {
                    left.push(IdRun {
                        first_number: run.first_number + (at - run.first_ino) as u32,
                        first_ino: at,
                        count: (cut - at) as u32,
                    });
                }
                at = cut + 1;
            }
        }
        left
    }

    /// Returns the runs, by number.
    pub fn runs(&self) -> &[IdRun] {
        &self.runs
    }

    /// Returns the stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (mut next_number, mut next_ino) = (1u64, 1u64);
        let runs = self.runs.iter().map(|run| {
            let gap = u64::from(run.first_number) - next_number;
            let step = (run.first_ino as i64).wrapping_sub(next_ino as i64);
            next_number = u64::from(run.first_number) + u64::from(run.count);
            next_ino = run.first_ino + u64::from(run.count);
            (gap, step, run.count)
        });
        let stored: Stored = (VERSION, runs.collect());
        // Only a value whose length is unknown cannot be serialised.
        postcard::to_stdvec(&stored).unwrap_or_default()
    }

    /// Reads the stored form. The bytes may be anything.
    pub fn from_bytes(bytes: &[u8]) -> Result<IdMap, BadIdMap> {
        match bytes.first() {
            None => return Err(BadIdMap("no bytes")),
            Some(&VERSION) => {}
            Some(_) => return Err(BadIdMap("unknown version")),
        }
        let ((_, stored), rest) = postcard::take_from_bytes::<Stored>(bytes)
            .map_err(|_| BadIdMap("cut short, or a number too large"))?;
        if !rest.is_empty() {
            return Err(BadIdMap("bytes after the last run"));
        }
        let mut runs = Vec::with_capacity(stored.len());
        let (mut next_number, mut next_ino) = (1u64, 1u64);
        for (gap, step, count) in stored {
            let number = next_number.checked_add(gap);
            let first_number = number
                .and_then(|number| u32::try_from(number).ok())
                .ok_or(BadIdMap("numbers beyond 32 bits"))?;
            let first_ino = next_ino
                .checked_add_signed(step)
                .ok_or(BadIdMap("ids beyond 63 bits"))?;
            next_number = u64::from(first_number) + u64::from(count);
            next_ino = first_ino
                .checked_add(u64::from(count))
                .ok_or(BadIdMap("ids beyond 63 bits"))?;
            runs.push(IdRun {
                first_number,
                first_ino,
                count,
            });
        }
        IdMap::from_runs(runs)
    }
}
