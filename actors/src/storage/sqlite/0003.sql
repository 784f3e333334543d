-- Checkpoints. A group's log is kept after the frame `seq`; `state` is the projected state at that
-- frame. No reader sees the frames up to it, and they are deleted in small steps.
CREATE TABLE bases (
    no     INTEGER PRIMARY KEY,
    seq    INTEGER NOT NULL,
    state  TEXT    NOT NULL
) STRICT;
