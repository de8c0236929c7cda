-- Large texts of a session, each once. `steps`, `transcript` and `chat_messages` refer to them: there a
-- value of type BLOB is a list of parts, and a value of type TEXT is the text itself.
CREATE TABLE texts (
    session_id TEXT NOT NULL,
    -- The beginning of the text's SHA-256.
    digest     BLOB NOT NULL,
    -- As it stands in JSON, without the quotation marks.
    text       TEXT NOT NULL
);
CREATE UNIQUE INDEX texts_of_session ON texts (session_id, digest);
