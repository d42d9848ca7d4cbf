-- What makes the comparison of rows and files unnecessary when an upper layer is opened. See docs/state.md.

CREATE TABLE checked (
    layer       INTEGER PRIMARY KEY REFERENCES layer (id) ON DELETE CASCADE,
    directories BLOB NOT NULL
) STRICT;
