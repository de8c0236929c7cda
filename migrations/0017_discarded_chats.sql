-- Chats that were deleted and had many messages, which are being deleted. Their rows in `chat_sessions` are
-- gone already, so nobody sees them; no chat of the same id is made until their messages are gone too.
CREATE TABLE discarded_chats (
    id      TEXT PRIMARY KEY,
    user_id TEXT NOT NULL
) WITHOUT ROWID;
