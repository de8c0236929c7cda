-- The log of sessions, and the record of chats. Times are milliseconds since 1970, UTC.

-- One row for each session that was ever made: what it was asked, its numbers, its last state.
CREATE TABLE sessions (
    id              TEXT PRIMARY KEY,
    user_id         TEXT NOT NULL,
    project_id      TEXT,
    task            TEXT NOT NULL,
    repo_url        TEXT,
    branch          TEXT,
    git_user_name   TEXT,
    git_user_email  TEXT,
    policy          TEXT NOT NULL,
    provider        TEXT NOT NULL,
    model           TEXT NOT NULL,
    chat_id         TEXT NOT NULL,
    api_key_sealed  BLOB,
    git_token_sealed BLOB,
    created_at      INTEGER NOT NULL,
    -- created, running, stopping, ended
    status          TEXT NOT NULL,
    end_reason      TEXT,
    -- The next policy step, the next row of `steps`, the next frame, the next entry.
    step            INTEGER NOT NULL,
    next_row        INTEGER NOT NULL,
    next_seq        INTEGER NOT NULL,
    next_entry      INTEGER NOT NULL,
    -- What the open task has used.
    task_open       INTEGER NOT NULL,
    task_started_at INTEGER NOT NULL,
    iterations      INTEGER NOT NULL,
    tokens          INTEGER NOT NULL,
    steps_alone     INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    state_schema    INTEGER,
    state           BLOB
);
-- Only what is alive is ever looked for by status.
CREATE INDEX sessions_alive ON sessions (created_at) WHERE status <> 'ended';

-- One row carries all that one round of a session did. A round that the policy had no part in
-- (the first frame, the last one) has no `step`.
CREATE TABLE steps (
    session_id   TEXT NOT NULL,
    row          INTEGER NOT NULL,
    first_seq    INTEGER NOT NULL,
    last_seq     INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    step         INTEGER,
    plugin       TEXT,
    state_digest BLOB,
    fuel         INTEGER,
    memory       INTEGER,
    micros       INTEGER,
    error        TEXT,
    context      TEXT,
    inputs       TEXT,
    commands     TEXT,
    frames       TEXT NOT NULL
);
CREATE UNIQUE INDEX steps_of_session ON steps (session_id, row);

-- What models read. Entries are dense within a session.
CREATE TABLE transcript (
    session_id TEXT NOT NULL,
    entry      INTEGER NOT NULL,
    message    TEXT NOT NULL
);
CREATE UNIQUE INDEX transcript_of_session ON transcript (session_id, entry);

-- Only effects without a result: the row goes in the transaction that writes the result.
CREATE TABLE effects (
    session_id TEXT NOT NULL,
    effect_id  TEXT NOT NULL,
    -- model, tool, ask, timer
    kind       TEXT NOT NULL,
    -- For a timer.
    due_at     INTEGER,
    PRIMARY KEY (session_id, effect_id)
) WITHOUT ROWID;

-- The record that people read. It outlives its session.
CREATE TABLE chat_sessions (
    id               TEXT PRIMARY KEY,
    user_id          TEXT NOT NULL,
    agent_session_id TEXT,
    project_id       TEXT,
    title            VARCHAR(255) NOT NULL,
    model_provider   TEXT,
    is_active        INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL
);
CREATE INDEX chat_sessions_of_user ON chat_sessions (user_id, updated_at);

CREATE TABLE chat_messages (
    -- Counts up over all chats, so it is the order of writing.
    n             INTEGER PRIMARY KEY,
    id            TEXT NOT NULL,
    session_id    TEXT NOT NULL,
    role          TEXT NOT NULL,
    content       TEXT NOT NULL,
    event_type    TEXT,
    metadata_json TEXT,
    created_at    INTEGER NOT NULL
);
CREATE INDEX chat_messages_of_chat ON chat_messages (session_id, n);
