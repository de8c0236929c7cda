-- A round of a session that is at work is one row of `steps`. What else it changes is in that row, until the
-- session pauses or some seconds have passed: then it is put into the other tables, all at once, and
-- `sessions.next_row` says how far. Rows from there on are read together with those tables.

-- What the round changes elsewhere, as JSON; NULL where that was written with the row.
ALTER TABLE steps ADD COLUMN pending TEXT;
-- The policy's state after such a round.
ALTER TABLE steps ADD COLUMN state BLOB;

-- One index for both: a user's sessions, and the session of a user's chat.
DROP INDEX sessions_of_chat;
DROP INDEX sessions_of_user;
CREATE INDEX sessions_of_user ON sessions (user_id, chat_id);
