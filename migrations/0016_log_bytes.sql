-- What the log holds of each session, in bytes, so that a user's share has a bound: what its rows have
-- written, all together, without its task and its policy's state.
ALTER TABLE sessions ADD COLUMN log_bytes INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sessions_of_user ON sessions (user_id);
-- Sessions whose chat was deleted, and that are over: their log is being deleted.
CREATE INDEX sessions_discarded ON sessions (id) WHERE discarded AND status = 'ended';
-- What is there already. `octet_length` does not read the values.
UPDATE sessions SET log_bytes =
    (SELECT coalesce(sum(512 + coalesce(octet_length(inputs), 0) + coalesce(octet_length(commands), 0)
        + octet_length(frames)), 0) FROM steps WHERE session_id = sessions.id)
    + (SELECT coalesce(sum(octet_length(message)), 0) FROM transcript WHERE session_id = sessions.id)
    + (SELECT coalesce(sum(octet_length(text)), 0) FROM texts WHERE session_id = sessions.id)
    + (SELECT coalesce(sum(octet_length(content) + coalesce(octet_length(metadata_json), 0)), 0)
        FROM chat_messages WHERE session_id = sessions.chat_id);
