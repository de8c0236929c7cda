-- Limits count time that the wall clock does not decide about.

-- What the open task has used, in milliseconds.
ALTER TABLE sessions ADD COLUMN task_used_ms INTEGER NOT NULL DEFAULT 0;
UPDATE sessions SET task_used_ms = max(0, updated_at - task_started_at) WHERE task_open AND status <> 'ended';

-- How long hosts have run on this database, all together; it begins at an older host's wall clock, so that
-- what that host wrote has its place.
ALTER TABLE sessions ADD COLUMN uptime_ms INTEGER NOT NULL DEFAULT 0;
UPDATE sessions SET uptime_ms = updated_at WHERE status <> 'ended';
CREATE TABLE host_uptime (uptime_ms INTEGER NOT NULL);
INSERT INTO host_uptime VALUES (CAST(strftime('%s', 'now') AS INTEGER) * 1000);

-- A timer's delay: after a restart it is waited for no longer than that, whatever the wall clock says.
ALTER TABLE effects ADD COLUMN delay_ms INTEGER;
