-- What of the record of chats is still to be sent to the store that keeps it, where that is another
-- one than this database. The rows themselves are those of `chat_sessions` and `chat_messages`; here is
-- how far each chat's were sent. A chat leaves both when its session is over and all of it is there.
CREATE TABLE outbox (
    chat_id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    -- Whether the chat itself is there.
    made    INTEGER NOT NULL DEFAULT 0,
    -- The `n` of the last message that is there, and its time there, in microseconds since 1970.
    sent    INTEGER NOT NULL DEFAULT 0,
    sent_at INTEGER NOT NULL DEFAULT 0,
    -- How often the chat's row changed, and how many of those changes are there.
    changed INTEGER NOT NULL DEFAULT 0,
    told    INTEGER NOT NULL DEFAULT 0,
    -- Why it is not sent any more: the store will not take it.
    refused TEXT
) WITHOUT ROWID;
