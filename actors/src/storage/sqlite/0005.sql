-- The trusted time, by which keys and transcripts are deleted, at a moment since a boot; and for how
-- long, and by how much at least, the wall clock has been ahead of it. Times are milliseconds.
CREATE TABLE clock (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    at            INTEGER NOT NULL,
    boot          TEXT    NOT NULL,
    up_ms         INTEGER NOT NULL,
    ahead_ms      INTEGER NOT NULL,
    confirmed_ms  INTEGER NOT NULL
) STRICT;
