-- What users said and no round has taken yet: it survives a crash of the host.
CREATE TABLE inbox (
    n          INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL,
    text       TEXT NOT NULL
);
CREATE INDEX inbox_of_session ON inbox (session_id, n);
