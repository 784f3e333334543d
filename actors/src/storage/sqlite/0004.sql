-- Digests: written with the frames that they sum up. A group without a row here, or with one of
-- another form, has them made again from its frames.

CREATE TABLE digests (
    no             INTEGER PRIMARY KEY,
    schema_version INTEGER NOT NULL,
    watermark_seq  INTEGER NOT NULL,
    digest         TEXT    NOT NULL,
    run            TEXT,
    carry          TEXT    NOT NULL
) STRICT;

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
