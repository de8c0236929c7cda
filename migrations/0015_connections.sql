-- The servers that a session's programs asked the proxy for, each with what came of it.
CREATE TABLE connections (
    session_id TEXT NOT NULL,
    -- Empty for all that came after the most that are kept apart.
    host       TEXT NOT NULL,
    port       INTEGER NOT NULL,
    -- connected, refused (an address that sandboxes may not reach) or failed.
    outcome    TEXT NOT NULL,
    count      INTEGER NOT NULL,
    -- Bytes.
    sent       INTEGER NOT NULL,
    received   INTEGER NOT NULL,
    -- Milliseconds since 1970, of the ends of the first and the last connection.
    first_at   INTEGER NOT NULL,
    last_at    INTEGER NOT NULL,
    PRIMARY KEY (session_id, host, port, outcome)
) WITHOUT ROWID;
