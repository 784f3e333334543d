-- The time by which keys and transcripts are deleted, at a moment since a boot; and for how long the
-- wall clock has been ahead of it, by how much at least. Times are milliseconds.
CREATE TABLE clock (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    at            INTEGER NOT NULL,
    boot          TEXT    NOT NULL,
    up_ms         INTEGER NOT NULL,
    ahead_ms      INTEGER NOT NULL,
    confirmed_ms  INTEGER NOT NULL
) STRICT;
