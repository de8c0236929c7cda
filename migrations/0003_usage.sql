-- What model calls cost. Money is in millionths of a US dollar.

-- One row for each model call that was answered.
CREATE TABLE model_calls (
    session_id         TEXT NOT NULL,
    -- The row of `steps` that holds the answer.
    row                INTEGER NOT NULL,
    effect_id          TEXT NOT NULL,
    provider           TEXT NOT NULL,
    model              TEXT NOT NULL,
    input_tokens       INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cache_read_tokens  INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    -- NULL where nobody knows the model's prices.
    cost               INTEGER,
    tries              INTEGER NOT NULL
);
CREATE INDEX model_calls_of_session ON model_calls (session_id, row);

-- Their sums, and what a session may use at the most.
ALTER TABLE sessions ADD COLUMN model_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN cache_read_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN cache_write_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN cost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN token_limit INTEGER;
ALTER TABLE sessions ADD COLUMN cost_limit INTEGER;

-- A chat outlives its session, and so do its sums.
ALTER TABLE chat_sessions ADD COLUMN model_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chat_sessions ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chat_sessions ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chat_sessions ADD COLUMN cache_read_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chat_sessions ADD COLUMN cache_write_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chat_sessions ADD COLUMN cost INTEGER NOT NULL DEFAULT 0;
