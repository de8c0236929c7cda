-- A keyed digest of a git account's user, provider, server, token and IV, for a Supabase project. May be
-- run again at any time.
--
-- Whoever may write a row could otherwise choose where the token in it is sent. Only the server can make
-- the digest; the token of a row without the right one, such as another application writes, is sent to no
-- server but the deployment's own, and nowhere if the row names another.

BEGIN;

ALTER TABLE public.integrations
    ADD COLUMN IF NOT EXISTS lucid_mac text;

-- PostgREST keeps the schema in memory; Supabase's reads it again when it hears of this.
NOTIFY pgrst, 'reload schema';

COMMIT;
