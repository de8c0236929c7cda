-- Users' accounts at git providers, with their tokens, for a Supabase project.
--
-- What always holds: a token is here only as the application encrypted it; a user has one account at
-- a provider; the file may be run again at any time, also where another application made the table
-- (the file before this one fits its columns in).

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

ALTER TABLE public.integrations
    ADD COLUMN IF NOT EXISTS label             text,
    ADD COLUMN IF NOT EXISTS external_username text,
    ADD COLUMN IF NOT EXISTS scopes            text,
    ADD COLUMN IF NOT EXISTS created_at        timestamptz NOT NULL DEFAULT now();

DO $$
DECLARE
    me   text;
    verb record;
BEGIN
    -- Saving an account replaces the user's other one of that provider, which takes a unique index.
    IF NOT EXISTS (
        SELECT 1 FROM pg_catalog.pg_index i
        WHERE i.indrelid = 'public.integrations'::regclass AND i.indisunique AND i.indpred IS NULL
            AND i.indnkeyatts = 2 AND (
                SELECT array_agg(a.attname::text ORDER BY a.attname)
                FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
            ) = ARRAY['provider', 'user_id']
    ) THEN
        IF EXISTS (
            SELECT 1 FROM public.integrations GROUP BY user_id, provider HAVING count(*) > 1
        ) THEN
            RAISE EXCEPTION 'a user has two accounts at one provider in public.integrations, and can have one here'
                USING HINT = 'Delete the row that is not wanted, and run this file again.';
        END IF;
        CREATE UNIQUE INDEX IF NOT EXISTS integrations_of_user_and_provider
            ON public.integrations (user_id, provider);
    END IF;

    SELECT CASE WHEN atttypid = 'uuid'::regtype
        THEN '(SELECT auth.uid())' ELSE '(SELECT auth.uid()::text)' END
    INTO me
    FROM pg_catalog.pg_attribute
    WHERE attrelid = 'public.integrations'::regclass AND attname = 'user_id';
    FOR verb IN
        SELECT * FROM (VALUES
            ('select', 'USING (user_id = %1$s)'), ('insert', 'WITH CHECK (user_id = %1$s)'),
            ('update', 'USING (user_id = %1$s) WITH CHECK (user_id = %1$s)'),
            ('delete', 'USING (user_id = %1$s)')
        ) AS list (name, clauses)
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON public.integrations', 'integrations_' || verb.name);
        EXECUTE format('CREATE POLICY %I ON public.integrations FOR %s TO authenticated ',
            'integrations_' || verb.name, verb.name) || format(verb.clauses, me);
    END LOOP;

    FOR verb IN
        SELECT policyname AS name FROM pg_catalog.pg_policies
        WHERE schemaname = 'public' AND tablename = 'integrations'
            AND permissive = 'PERMISSIVE' AND roles && '{public,anon,authenticated}'::name[]
            AND policyname NOT IN ('integrations_select', 'integrations_insert',
                'integrations_update', 'integrations_delete')
    LOOP
        RAISE WARNING 'the policy "%" on public.integrations is not this file''s and stays: whatever it allows is allowed',
            verb.name;
    END LOOP;
END;
$$;

REVOKE ALL ON public.integrations FROM anon, authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.integrations TO authenticated, service_role;

ALTER TABLE public.integrations ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.integrations FORCE ROW LEVEL SECURITY;

-- PostgREST keeps the schema in memory; Supabase's reads it again when it hears of this.
NOTIFY pgrst, 'reload schema';

COMMIT;
