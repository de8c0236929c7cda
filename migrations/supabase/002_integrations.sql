-- Users' accounts at git providers, with their tokens, for a Supabase project.
--
-- What always holds: a token is here only as the application encrypted it; a user has one account at
-- a provider; the file may be run again at any time.

BEGIN;

CREATE TABLE IF NOT EXISTS public.integrations (
    id                     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id                uuid NOT NULL REFERENCES public.users (id) ON DELETE CASCADE,
    -- In capitals, such as GITHUB.
    provider               text NOT NULL,
    label                  text,
    -- AES-256-CBC, in lower-case hex, and so is its IV.
    access_token_encrypted text NOT NULL,
    iv                     text NOT NULL,
    external_username      text,
    scopes                 text,
    created_at             timestamptz NOT NULL DEFAULT now(),
    -- Its index is the foreign key's too, since the user comes first.
    CONSTRAINT integrations_of_user UNIQUE (user_id, provider)
);

REVOKE ALL ON public.integrations FROM anon, authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.integrations TO authenticated, service_role;

ALTER TABLE public.integrations ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.integrations FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS integrations_select ON public.integrations;
CREATE POLICY integrations_select ON public.integrations
    FOR SELECT TO authenticated USING (user_id = (SELECT auth.uid()));
DROP POLICY IF EXISTS integrations_insert ON public.integrations;
CREATE POLICY integrations_insert ON public.integrations
    FOR INSERT TO authenticated WITH CHECK (user_id = (SELECT auth.uid()));
DROP POLICY IF EXISTS integrations_update ON public.integrations;
CREATE POLICY integrations_update ON public.integrations
    FOR UPDATE TO authenticated
    USING (user_id = (SELECT auth.uid())) WITH CHECK (user_id = (SELECT auth.uid()));
DROP POLICY IF EXISTS integrations_delete ON public.integrations;
CREATE POLICY integrations_delete ON public.integrations
    FOR DELETE TO authenticated USING (user_id = (SELECT auth.uid()));

COMMIT;
