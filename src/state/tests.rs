#![allow(clippy::unwrap_used, clippy::expect_used)]
//! The database as a whole: opening, durability, the stack, the history, the documents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::object::{Ino, Kind, Timestamp};

mod doubt_tests;
mod history_tests;
mod open_tests;
mod read_only_tests;
mod redo_tests;
mod rows_tests;

fn new_image(db: &StateDb, inos: impl IntoIterator<Item = u64>) -> NewImage {
    let id = db.reserve_image().unwrap();
    let id_map = IdMap::from_ascending(inos.into_iter().map(Ino)).unwrap();
    NewImage {
        id,
        file: format!("{id}.sqfs"),
        size: 4096,
        inodes: id_map.len() as u32,
        block_size: 131_072,
        compression: "zstd:3".to_owned(),
        root_number: 1,
        id_map,
        digests: None,
        dead_bytes: 0,
        tables_appended: Some(0),
    }
}

fn new_revision(message: &str) -> NewRevision {
    NewRevision {
        message: message.to_owned(),
        user: "someone".to_owned(),
        host: "somewhere".to_owned(),
        command: "envfs".to_owned(),
        packages: None,
    }
}

fn init(db: &StateDb, image: Option<NewImage>) -> Initialised {
    db.init_environment(&InitEnvironment {
        uuid: "an-identity".to_owned(),
        origin: None,
        prefix: PathBuf::from("/home/someone/env"),
        kind: match image {
            Some(_) => RevisionKind::Import,
            None => RevisionKind::Create,
        },
        images: vec![image.unwrap_or_else(|| new_image(db, [1]))],
        revision: new_revision("first"),
    })
    .unwrap()
}

fn inode_row() -> InodeRow {
    InodeRow {
        kind: Kind::File,
        mode: 0o644,
        uid: 1000,
        gid: u32::MAX,
        rdev: 0,
        nlink: 1,
        atime: Timestamp {
            secs: -1,
            nanos: 999_999_999,
        },
        mtime: Timestamp {
            secs: i64::MAX,
            nanos: 0,
        },
        ctime: Timestamp { secs: 1, nanos: 2 },
        data: DataPlace::Upper,
        target: None,
        place: Some((Ino(1), b"na\xffme".as_slice().into())),
        backing_ino: u64::MAX,
        owns_xattrs: false,
    }
}
