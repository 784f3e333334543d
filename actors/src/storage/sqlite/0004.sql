-- Digests, written with the frames that they sum up. If a group has none, or none in this version's
-- form, greenroom rebuilds them from its frames. They are the last columns of the row that each
-- commit writes anyway: a row of their own would cost one more page a commit.

ALTER TABLE heads ADD COLUMN digest_version INTEGER;
ALTER TABLE heads ADD COLUMN digest TEXT;
-- The digest of the last run, and the projection's open state.
ALTER TABLE heads ADD COLUMN run_digest TEXT;
ALTER TABLE heads ADD COLUMN carry TEXT;

-- The digest of an ended run.
ALTER TABLE runs ADD COLUMN digest TEXT;

-- The digest of each task that was started and has ended, in the order of the ends; `key` is the
-- task's.
CREATE TABLE turns (
    ended_at  INTEGER NOT NULL,
    key       INTEGER NOT NULL,
    agent     TEXT,
    digest    TEXT    NOT NULL,
    PRIMARY KEY (ended_at, key)
) STRICT, WITHOUT ROWID;

-- The last ended task that each exporter has exported.
CREATE TABLE exports (
    name      TEXT    PRIMARY KEY,
    ended_at  INTEGER NOT NULL,
    key       INTEGER NOT NULL
) STRICT;
