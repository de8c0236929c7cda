-- The git accounts that users connected, one of each provider. Columns and forms are a frontend's, who
-- reads and writes the same rows where the store is shared.
CREATE TABLE integrations (
    id                     TEXT PRIMARY KEY,
    user_id                TEXT NOT NULL,
    -- GITHUB, GITLAB
    provider               TEXT NOT NULL,
    label                  TEXT,
    -- AES-256-CBC in lower-case hex, see `integrations/cipher`.
    access_token_encrypted TEXT NOT NULL,
    iv                     TEXT NOT NULL,
    external_username      TEXT,
    -- What the token may do, and behind `||` the address of a server of one's own.
    scopes                 TEXT,
    created_at             INTEGER NOT NULL,
    UNIQUE (user_id, provider)
);
