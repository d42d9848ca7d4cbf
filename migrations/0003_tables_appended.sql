-- How much of an image's inode and directory tables was written behind older tables that were taken
-- over as they are (docs/commit.md). NULL: not known whether they can be; the next commit writes all.

ALTER TABLE image ADD COLUMN tables_appended INTEGER;
