-- Set where the session's chat was deleted while the session lived: its log goes when it ends.
ALTER TABLE sessions ADD COLUMN discarded INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sessions_of_chat ON sessions (chat_id);
