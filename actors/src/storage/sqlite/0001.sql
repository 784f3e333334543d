-- A group's rows have its number. Frames and tasks have one integer as their key,
-- number << 36 | seq (or ordinal): one tree, in order, without a second index.

CREATE TABLE groups (
    no          INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    settings    TEXT    NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

-- The columns that every commit of a group writes; those of `groups` seldom change.
CREATE TABLE heads (
    no            INTEGER PRIMARY KEY,
    epoch         INTEGER NOT NULL,
    last_seq      INTEGER NOT NULL,
    tasks         INTEGER NOT NULL,
    session       TEXT,
    segment       INTEGER NOT NULL,
    usage         TEXT,
    paused        INTEGER NOT NULL,
    archived      INTEGER NOT NULL,
    purging       INTEGER NOT NULL DEFAULT 0,
    provenance    TEXT,
    compacting    TEXT    NOT NULL DEFAULT '{"count":0,"measured":false,"streak":0}',
    lead_in       TEXT,
    status        TEXT    NOT NULL,
    blocked_by    TEXT,
    queue_length  INTEGER NOT NULL,
    current_task  BLOB,
    current_run   BLOB,
    is_compacting INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE tasks (
    key               INTEGER PRIMARY KEY,
    id                BLOB    NOT NULL,
    kind              TEXT    NOT NULL,
    origin            TEXT    NOT NULL,
    prompt            TEXT    NOT NULL,
    focus             TEXT,
    strategy          TEXT,
    metadata          TEXT,
    deadline_ms       INTEGER,
    created_at        INTEGER NOT NULL,
    state             TEXT    NOT NULL,
    claimed_at        INTEGER,
    attempt           INTEGER NOT NULL DEFAULT 0,
    cancel_requested  INTEGER NOT NULL DEFAULT 0,
    started_at        INTEGER,
    ended_at          INTEGER,
    run               BLOB,
    segment           INTEGER,
    seq_first         INTEGER,
    seq_last          INTEGER,
    stop_reason       TEXT,
    error             TEXT,
    interrupted       TEXT,
    text              TEXT    NOT NULL DEFAULT '',
    text_truncated    INTEGER NOT NULL DEFAULT 0,
    usage             TEXT,
    tokens            TEXT,
    findings          TEXT
) STRICT;

CREATE UNIQUE INDEX tasks_by_id ON tasks (id);
-- A task that starts in the commit that accepts it is never in this index, which saves two pages a
-- turn.
CREATE INDEX tasks_waiting ON tasks (key) WHERE state = 'queued' AND claimed_at IS NULL;
-- I1, independent of the actor: a group has one task between claim and end.
CREATE UNIQUE INDEX tasks_one_at_a_time ON tasks (key >> 36)
    WHERE claimed_at IS NOT NULL AND state IN ('queued', 'running');

CREATE TABLE runs (
    id              BLOB    PRIMARY KEY,
    no              INTEGER NOT NULL,
    agent           TEXT    NOT NULL,
    pid             INTEGER,
    session         TEXT,
    continuity      TEXT,
    started_at      INTEGER NOT NULL,
    ready_at        INTEGER,
    ended_at        INTEGER,
    code            INTEGER,
    signal          INTEGER,
    reason          TEXT,
    detail          TEXT,
    stderr_tail     TEXT,
    stderr_dropped  INTEGER
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX runs_one_at_a_time ON runs (no) WHERE ended_at IS NULL;
CREATE INDEX runs_by_group ON runs (no, id);

CREATE TABLE segments (
    no          INTEGER NOT NULL,
    segment     INTEGER NOT NULL,
    parent      INTEGER,
    session     TEXT    NOT NULL,
    provenance  TEXT,
    opened_seq  INTEGER NOT NULL,
    opened_at   INTEGER NOT NULL,
    closed_seq  INTEGER,
    closed_at   INTEGER,
    end_reason  TEXT,
    PRIMARY KEY (no, segment)
) STRICT, WITHOUT ROWID;

-- I4: exactly one segment of a group is open.
CREATE UNIQUE INDEX segments_one_open ON segments (no) WHERE closed_seq IS NULL;
-- A segment has one successor at most, even if the lock was bypassed.
CREATE UNIQUE INDEX segments_one_child ON segments (no, parent);

-- Keyed by the seq of its first frame.
CREATE TABLE compactions (
    key         INTEGER PRIMARY KEY,
    id          BLOB    NOT NULL UNIQUE,
    status      TEXT    NOT NULL,
    started_at  INTEGER NOT NULL,
    ended_at    INTEGER,
    record      TEXT    NOT NULL
) STRICT;

CREATE UNIQUE INDEX compactions_one_active ON compactions (key >> 36) WHERE status = 'in_progress';

-- The compaction lock. A token is never reused. Leases expire by the clock since the boot, which
-- cannot be set; `acquired_at` is only shown.
CREATE TABLE locks (
    token            INTEGER PRIMARY KEY AUTOINCREMENT,
    key              TEXT    NOT NULL UNIQUE,
    holder           TEXT    NOT NULL,
    group_no         INTEGER,
    ttl_ms           INTEGER NOT NULL,
    acquired_at      INTEGER NOT NULL,
    expires_boot_ms  INTEGER NOT NULL,
    boot             TEXT    NOT NULL
) STRICT;

CREATE INDEX locks_by_group ON locks (group_no) WHERE group_no IS NOT NULL;

-- A row is a block of frames; `kinds` has one kind for all of them, or one a line.
CREATE TABLE blocks (
    key      INTEGER PRIMARY KEY,
    count    INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    segment  INTEGER NOT NULL,
    run      BLOB,
    task     BLOB,
    kinds    TEXT    NOT NULL,
    text     BLOB    NOT NULL
) STRICT;

CREATE TABLE idempotency (
    key   BLOB    PRIMARY KEY,
    body  BLOB    NOT NULL,
    task  BLOB    NOT NULL,
    at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_age ON idempotency (at);
