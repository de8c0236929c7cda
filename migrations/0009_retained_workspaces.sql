-- The workspaces of sessions that ended without anybody's wish, kept for a while.
CREATE TABLE retained_workspaces (
    session_id TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    -- The host's uptime since when it is kept, see 0008.
    uptime_ms  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX retained_workspaces_by_age ON retained_workspaces (uptime_ms);
