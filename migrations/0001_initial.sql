-- The state of one environment. docs/state.md explains every table and column.
-- Once this file is released, do not edit it: add 0002_*.sql instead.

CREATE TABLE environment (
    one                INTEGER PRIMARY KEY CHECK (one = 1),
    uuid               TEXT,
    origin             TEXT,
    prefix             BLOB,
    clean              INTEGER NOT NULL DEFAULT 1 CHECK (clean IN (0, 1)),
    relocating         INTEGER NOT NULL DEFAULT 0 CHECK (relocating IN (0, 1)),
    redo               INTEGER NOT NULL DEFAULT 0,
    serial             INTEGER NOT NULL DEFAULT 0,
    home_ino           INTEGER,
    home_born          INTEGER,
    image_uid          INTEGER,
    image_gid          INTEGER,
    image_fingerprint  BLOB,
    skipped_image      INTEGER NOT NULL DEFAULT 0,
    skipped_image_end  INTEGER NOT NULL DEFAULT 0,
    skipped_layer      INTEGER NOT NULL DEFAULT 0,
    skipped_layer_end  INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO environment (one) VALUES (1);

CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL CHECK (next > 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE image (
    id              INTEGER PRIMARY KEY,
    file            TEXT    NOT NULL UNIQUE,
    size            INTEGER NOT NULL,
    inodes          INTEGER NOT NULL,
    block_size      INTEGER NOT NULL,
    compression     TEXT    NOT NULL,
    root_number     INTEGER NOT NULL,
    id_map          BLOB    NOT NULL,
    digests         BLOB,
    dead_bytes      INTEGER NOT NULL DEFAULT 0,
    tables_appended INTEGER,
    offset          INTEGER
) STRICT;

CREATE TABLE link_count (
    image INTEGER NOT NULL,
    ino   INTEGER NOT NULL,
    nlink INTEGER NOT NULL,
    PRIMARY KEY (image, ino)
) STRICT, WITHOUT ROWID;

CREATE TABLE layer (
    id       INTEGER PRIMARY KEY,
    kind     TEXT    NOT NULL CHECK (kind IN ('upper', 'image')),
    role     TEXT    NOT NULL CHECK (role IN ('writable', 'frozen', 'retired', 'trash', 'trial')),
    position INTEGER UNIQUE,
    image    INTEGER REFERENCES image (id),
    CHECK ((position IS NULL) = (role IN ('retired', 'trash', 'trial'))),
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
    packages    TEXT
) STRICT;
CREATE INDEX revision_by_image ON revision (image);

CREATE TABLE head (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL REFERENCES revision (id)
) STRICT;

CREATE TABLE tag (
    name     TEXT PRIMARY KEY,
    revision INTEGER NOT NULL REFERENCES revision (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX tag_by_revision ON tag (revision);

-- What undo takes back: the operations that changed the stack or the current revision, with the
-- layers before and after. A layer may no longer exist; then the operation cannot be undone.

CREATE TABLE operation (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT    NOT NULL CHECK (kind IN
               ('commit', 'relocate', 'discard', 'discard-paths', 'restore-paths',
                'rollback', 'checkpoint', 'keep', 'set-aside', 'import',
                'repair', 'undo')),
    undoes     INTEGER,
    shows_same INTEGER NOT NULL CHECK (shows_same IN (0, 1)),
    has_newer  INTEGER NOT NULL CHECK (has_newer IN (0, 1)),
    before     INTEGER NOT NULL,
    after      INTEGER NOT NULL,
    prefix     BLOB,
    message    TEXT    NOT NULL,
    time       INTEGER NOT NULL,
    user       TEXT    NOT NULL,
    host       TEXT    NOT NULL,
    command    TEXT    NOT NULL
) STRICT;

CREATE TABLE operation_layer (
    operation INTEGER NOT NULL,
    side      TEXT    NOT NULL CHECK (side IN ('before', 'after')),
    position  INTEGER NOT NULL,
    layer     INTEGER,
    image     INTEGER,
    PRIMARY KEY (operation, side, position),
    CHECK ((layer IS NULL) <> (image IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX operation_layer_by_layer ON operation_layer (layer) WHERE layer IS NOT NULL;

-- Trials (envfs try): the layer that takes the changes of each, and the layers below it. The database
-- of a trial has a row for itself here, too.

CREATE TABLE trial (
    layer     INTEGER PRIMARY KEY REFERENCES layer (id) ON DELETE CASCADE,
    token     TEXT    NOT NULL UNIQUE,
    head      INTEGER NOT NULL,
    first_ino INTEGER NOT NULL,
    end_ino   INTEGER NOT NULL,
    CHECK (first_ino > 0 AND first_ino < end_ino)
) STRICT;

CREATE TABLE trial_layer (
    trial    INTEGER NOT NULL REFERENCES trial (layer) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    layer    INTEGER,
    image    INTEGER,
    PRIMARY KEY (trial, position),
    CHECK ((layer IS NULL) <> (image IS NULL))
) STRICT, WITHOUT ROWID;

-- Space that a transaction frees for itself when the disk is full.
CREATE TABLE reserve (
    room BLOB NOT NULL
) STRICT;
INSERT INTO reserve VALUES (zeroblob(65536));

-- The rows of the upper layers. They change with every operation of a program, so they have no
-- foreign keys and no second index.

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

-- What makes the comparison of rows and files unnecessary when an upper layer is opened.
CREATE TABLE checked (
    layer       INTEGER PRIMARY KEY REFERENCES layer (id) ON DELETE CASCADE,
    directories BLOB NOT NULL
) STRICT;
