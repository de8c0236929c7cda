-- Changes (pull requests, merge requests) that are opened of what a session pushed.

-- Whether its user wants one: ready, draft; NULL for no.
ALTER TABLE sessions ADD COLUMN open_change TEXT;
-- The branch that its last task pushed.
ALTER TABLE sessions ADD COLUMN pushed_branch TEXT;
