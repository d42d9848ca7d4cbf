-- Room that is given up when changes are discarded or garbage is collected on a full disk (docs/state.md).

CREATE TABLE reserve (
    room BLOB NOT NULL
) STRICT;
INSERT INTO reserve VALUES (zeroblob(65536));
