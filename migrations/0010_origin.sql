-- Where the database was last used, so that a copy of it, or one that was restored, does not run all sessions
-- on by itself.
CREATE TABLE host_origin (
    machine   TEXT,
    folder    TEXT NOT NULL,
    -- A file beside the workspaces, and when its inode last changed.
    marker    TEXT NOT NULL,
    marked_ns INTEGER NOT NULL
);
-- The session goes on when its user comes back, and not by itself.
ALTER TABLE sessions ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
