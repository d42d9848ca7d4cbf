-- Every operation has one publishing transaction; what comes before it can be thrown away, and what
-- comes after it can be repeated (docs/commit.md). Nothing was ever written here.

DROP TABLE journal;
