-- Digests: written with the frames that they sum up. A group without them, or with those of another
-- form, has them made again from its frames. They stand behind what lists show of a group, in the
-- row that each commit writes anyway: a row of their own is a page more a commit.

ALTER TABLE heads ADD COLUMN digest_version INTEGER;
ALTER TABLE heads ADD COLUMN digest TEXT;
-- That of the last run, and what has to be known to fold on.
ALTER TABLE heads ADD COLUMN run_digest TEXT;
ALTER TABLE heads ADD COLUMN carry TEXT;

-- Of a run that is over.
ALTER TABLE runs ADD COLUMN digest TEXT;

-- Of each task that was started and is over, in the order of the ends; `key` is the task's.
CREATE TABLE turns (
    ended_at  INTEGER NOT NULL,
    key       INTEGER NOT NULL,
    agent     TEXT,
    digest    TEXT    NOT NULL,
    PRIMARY KEY (ended_at, key)
) STRICT, WITHOUT ROWID;

-- How far ended tasks were handed on to somebody outside, by whom that is.
CREATE TABLE exports (
    name      TEXT    PRIMARY KEY,
    ended_at  INTEGER NOT NULL,
    key       INTEGER NOT NULL
) STRICT;
