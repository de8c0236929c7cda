-- How far clients came that do not count frames themselves, so that they are continued there after a
-- restart.
CREATE TABLE client_positions (
    session_id TEXT NOT NULL,
    -- What the client asked for, by which it is known again.
    features   TEXT NOT NULL,
    -- The last frame that it has.
    taken      INTEGER NOT NULL
);
