-- What the model calls of a chat's session used, for a Supabase project. Money is in millionths of a
-- US dollar. May be run again at any time.

BEGIN;

ALTER TABLE public.chat_sessions
    ADD COLUMN IF NOT EXISTS model_calls        bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS input_tokens       bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS output_tokens      bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cache_read_tokens  bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cache_write_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cost               bigint NOT NULL DEFAULT 0;

-- PostgREST keeps the schema in memory; Supabase's reads it again when it hears of this.
NOTIFY pgrst, 'reload schema';

COMMIT;
