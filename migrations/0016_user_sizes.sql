-- What the log holds of each session and of each user, in bytes, so that a user's share has a bound.
CREATE TABLE session_sizes (
    session_id TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    -- What its rows have written, all together.
    bytes      INTEGER NOT NULL,
    -- Its policy's last state, which replaces the one before.
    state      INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE user_sizes (
    user_id TEXT PRIMARY KEY,
    bytes   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER session_sizes_added AFTER INSERT ON session_sizes BEGIN
    INSERT INTO user_sizes (user_id, bytes) VALUES (new.user_id, new.bytes + new.state)
        ON CONFLICT (user_id) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER session_sizes_changed AFTER UPDATE ON session_sizes BEGIN
    UPDATE user_sizes SET bytes = bytes + new.bytes + new.state - old.bytes - old.state
        WHERE user_id = new.user_id;
END;
CREATE TRIGGER session_sizes_removed AFTER DELETE ON session_sizes BEGIN
    UPDATE user_sizes SET bytes = bytes - old.bytes - old.state WHERE user_id = old.user_id;
END;
-- Sessions whose chat was deleted, and that are over: their log is being deleted.
CREATE INDEX sessions_discarded ON sessions (id) WHERE discarded AND status = 'ended';
-- What is there already. `octet_length` does not read the values.
INSERT INTO session_sizes (session_id, user_id, bytes, state)
    SELECT id, user_id,
        octet_length(task)
        + (SELECT coalesce(sum(512 + coalesce(octet_length(inputs), 0) + coalesce(octet_length(commands), 0)
            + octet_length(frames)), 0) FROM steps WHERE session_id = id)
        + (SELECT coalesce(sum(octet_length(message)), 0) FROM transcript WHERE session_id = id)
        + (SELECT coalesce(sum(octet_length(text)), 0) FROM texts WHERE session_id = id)
        + (SELECT coalesce(sum(octet_length(content) + coalesce(octet_length(metadata_json), 0)), 0)
            FROM chat_messages WHERE session_id = chat_id),
        coalesce(octet_length(state), 0)
    FROM sessions;
