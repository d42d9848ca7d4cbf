-- The state of one environment. Every table and column is explained in docs/state.md.
-- Never edit this file once released: add 0002_*.sql instead.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL CHECK (next > 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE image (
    id          INTEGER PRIMARY KEY,
    file        TEXT    NOT NULL UNIQUE,
    size        INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    inodes      INTEGER NOT NULL,
    block_size  INTEGER NOT NULL,
    compression TEXT    NOT NULL,
    root_number INTEGER NOT NULL,
    id_map      BLOB    NOT NULL,
    digest      BLOB,
    digests     BLOB,
    dead_bytes  INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE layer (
    id       INTEGER PRIMARY KEY,
    kind     TEXT    NOT NULL CHECK (kind IN ('upper', 'image')),
    role     TEXT    NOT NULL CHECK (role IN ('writable', 'frozen', 'retired', 'trash')),
    position INTEGER UNIQUE,
    image    INTEGER REFERENCES image (id),
    created  INTEGER NOT NULL,
    changed  INTEGER NOT NULL,
    CHECK ((position IS NULL) = (role IN ('retired', 'trash'))),
    CHECK ((kind = 'image') = (image IS NOT NULL)),
    CHECK (kind = 'upper' OR role = 'frozen')
) STRICT;
CREATE UNIQUE INDEX layer_one_writable ON layer (role) WHERE role = 'writable';
CREATE INDEX layer_by_image ON layer (image) WHERE image IS NOT NULL;

CREATE TABLE revision (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    parent      INTEGER,
    image       INTEGER NOT NULL REFERENCES image (id),
    kind        TEXT    NOT NULL CHECK (kind IN ('import', 'create', 'commit', 'rollback')),
    source      INTEGER,
    message     TEXT    NOT NULL,
    time        INTEGER NOT NULL,
    user        TEXT    NOT NULL,
    host        TEXT    NOT NULL,
    command     TEXT    NOT NULL,
    summary     TEXT,
    tree_digest BLOB
) STRICT;
CREATE INDEX revision_by_image ON revision (image);

CREATE TABLE head (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL REFERENCES revision (id)
) STRICT;

CREATE TABLE tag (
    name     TEXT PRIMARY KEY,
    revision INTEGER NOT NULL REFERENCES revision (id),
    message  TEXT    NOT NULL DEFAULT '',
    created  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tag_by_revision ON tag (revision);

CREATE TABLE journal (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    operation TEXT    NOT NULL,
    state     TEXT    NOT NULL,
    started   INTEGER NOT NULL,
    updated   INTEGER NOT NULL
) STRICT;

-- The rows of the upper layers. They are written on the hot path, one transaction for each
-- operation of a program, so they carry no foreign keys and no second index.

CREATE TABLE inode (
    layer       INTEGER NOT NULL,
    ino         INTEGER NOT NULL,
    kind        INTEGER NOT NULL,
    mode        INTEGER NOT NULL,
    uid         INTEGER NOT NULL,
    gid         INTEGER NOT NULL,
    rdev        INTEGER NOT NULL,
    nlink       INTEGER NOT NULL,
    atime       INTEGER NOT NULL,
    atime_ns    INTEGER NOT NULL,
    mtime       INTEGER NOT NULL,
    mtime_ns    INTEGER NOT NULL,
    ctime       INTEGER NOT NULL,
    ctime_ns    INTEGER NOT NULL,
    data        INTEGER NOT NULL,
    target      BLOB,
    place_dir   INTEGER,
    place_name  BLOB,
    backing_ino INTEGER NOT NULL,
    owns_xattrs INTEGER NOT NULL,
    PRIMARY KEY (layer, ino)
) STRICT, WITHOUT ROWID;

CREATE TABLE dentry (
    layer INTEGER NOT NULL,
    dir   INTEGER NOT NULL,
    name  BLOB    NOT NULL,
    ino   INTEGER,
    PRIMARY KEY (layer, dir, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE xattr (
    layer INTEGER NOT NULL,
    ino   INTEGER NOT NULL,
    name  BLOB    NOT NULL,
    value BLOB    NOT NULL,
    PRIMARY KEY (layer, ino, name)
) STRICT, WITHOUT ROWID;
