-- A group's log is kept from behind the frame `seq` on; `state` is what it came to up to there.
-- Frames up to it are as if they were gone, and are deleted little by little.
CREATE TABLE bases (
    no     INTEGER PRIMARY KEY,
    seq    INTEGER NOT NULL,
    state  TEXT    NOT NULL
) STRICT;
