-- Retries, groups on hold, tasks that expire, and the permissions that agents ask for. Moments that
-- outlive a restart are stored as JSON, by both clocks.

ALTER TABLE heads ADD COLUMN unspoken INTEGER NOT NULL DEFAULT 0;
ALTER TABLE heads ADD COLUMN held TEXT;
ALTER TABLE heads ADD COLUMN interruptions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE heads ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE heads ADD COLUMN launch_due TEXT;

ALTER TABLE tasks ADD COLUMN expires TEXT;
ALTER TABLE tasks ADD COLUMN retry_at TEXT;
ALTER TABLE tasks ADD COLUMN retry_of BLOB;

DROP INDEX tasks_waiting;
CREATE INDEX tasks_waiting ON tasks (key)
    WHERE state IN ('queued', 'retrying') AND claimed_at IS NULL;
DROP INDEX tasks_one_at_a_time;
CREATE UNIQUE INDEX tasks_one_at_a_time ON tasks (key >> 36)
    WHERE claimed_at IS NOT NULL AND state IN ('queued', 'retrying', 'running');

-- Keyed by the seq of the frame that opened it.
CREATE TABLE permissions (
    key          INTEGER PRIMARY KEY,
    id           BLOB    NOT NULL UNIQUE,
    task         BLOB,
    record       TEXT    NOT NULL,
    tool_call    TEXT    NOT NULL,
    options      TEXT    NOT NULL,
    opened_at    INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    state        TEXT    NOT NULL DEFAULT 'pending',
    selected     TEXT,
    resolved_by  TEXT,
    resolved_at  INTEGER
) STRICT;

CREATE INDEX permissions_pending ON permissions (key) WHERE state = 'pending';
