-- Users, chats and their messages, for a Supabase project (PostgreSQL 15 or later).
--
-- What always holds: a user reaches their own rows and no others, whatever is asked through the
-- REST API; what is said in a chat is added to and never changed; the file may be run again at any
-- time. `(select auth.uid())` stands in a subquery so that it is evaluated once for a query and not
-- once for a row.
--
-- It runs on an empty project, on one that has tables of these names already (another application's
-- frontend reads them), and on one that ran an earlier version of this file. Rows are kept, and so are
-- columns, types of ids, policies and triggers under other names, and functions: those of this file have
-- names that no other application's have.

BEGIN;

-- What the application knows of a user. The identity provider has the rest.
CREATE TABLE IF NOT EXISTS public.users (
    id         uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
    -- Not everybody has one: people also sign up by telephone.
    email      text,
    name       text,
    avatar_url text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- A chat: the record of one agent session's work. It outlives the session.
CREATE TABLE IF NOT EXISTS public.chat_sessions (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id          uuid NOT NULL REFERENCES public.users (id) ON DELETE CASCADE,
    agent_session_id text,
    project_id       text,
    title            varchar(255) NOT NULL,
    model_provider   text,
    is_active        boolean NOT NULL DEFAULT true,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.chat_messages (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id    uuid NOT NULL REFERENCES public.chat_sessions (id) ON DELETE CASCADE,
    role          text NOT NULL,
    content       text NOT NULL,
    event_type    text,
    metadata_json jsonb,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- An earlier version of this file called a user's name `full_name`. Where both are there, what only
-- `full_name` has goes to `name`, and the column stays.
DO $$
DECLARE
    names text[] := ARRAY(
        SELECT attname::text FROM pg_catalog.pg_attribute
        WHERE attrelid = 'public.users'::regclass AND NOT attisdropped
            AND attname IN ('name', 'full_name')
    );
BEGIN
    IF names = ARRAY['full_name'] THEN
        ALTER TABLE public.users RENAME COLUMN full_name TO name;
    ELSIF cardinality(names) = 2 THEN
        UPDATE public.users SET name = full_name WHERE name IS NULL AND full_name IS NOT NULL;
    END IF;
END;
$$;

-- What tables from elsewhere may lack.
ALTER TABLE public.users
    ADD COLUMN IF NOT EXISTS email      text,
    ADD COLUMN IF NOT EXISTS name       text,
    ADD COLUMN IF NOT EXISTS avatar_url text,
    ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE public.chat_sessions
    ADD COLUMN IF NOT EXISTS agent_session_id text,
    ADD COLUMN IF NOT EXISTS project_id       text,
    ADD COLUMN IF NOT EXISTS title            varchar(255) NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS model_provider   text,
    -- The sessions of the chats that are there are over.
    ADD COLUMN IF NOT EXISTS is_active        boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS created_at       timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at       timestamptz NOT NULL DEFAULT now();
ALTER TABLE public.chat_messages
    ADD COLUMN IF NOT EXISTS event_type    text,
    ADD COLUMN IF NOT EXISTS metadata_json jsonb,
    ADD COLUMN IF NOT EXISTS created_at    timestamptz NOT NULL DEFAULT now();

-- What columns from elsewhere must allow, so that the server can read and write them; `integrations`
-- belongs to the next file and is here only where it exists already. Nothing is altered that is right
-- already, so running this again rewrites no table.
DO $$
DECLARE
    col record;
    -- Columns that are read as they are, and so may not be empty; what they get where they are.
    filled CONSTANT jsonb := '{
        "users.created_at": "now()", "users.updated_at": "now()",
        "chat_sessions.title": "''''", "chat_sessions.is_active": "false",
        "chat_sessions.created_at": "now()", "chat_sessions.updated_at": "now()",
        "chat_messages.role": "''assistant''", "chat_messages.content": "''''",
        "chat_messages.created_at": "now()", "integrations.created_at": "now()"}';
    -- Columns that the server always writes.
    written CONSTANT text[] := ARRAY[
        'users.id',
        'chat_sessions.id', 'chat_sessions.user_id', 'chat_sessions.title',
        'chat_messages.id', 'chat_messages.session_id', 'chat_messages.role', 'chat_messages.content',
        'integrations.id', 'integrations.user_id', 'integrations.provider',
        'integrations.access_token_encrypted', 'integrations.iv'];
    -- Columns whose text has no fixed length.
    texts CONSTANT text[] := ARRAY[
        'users.email', 'users.name', 'users.avatar_url',
        'chat_sessions.agent_session_id', 'chat_sessions.project_id', 'chat_sessions.title',
        'chat_sessions.model_provider', 'chat_messages.role', 'chat_messages.content',
        'chat_messages.event_type', 'chat_messages.metadata_json',
        'integrations.provider', 'integrations.label', 'integrations.access_token_encrypted',
        'integrations.iv', 'integrations.external_username', 'integrations.scopes'];
BEGIN
    FOR col IN
        SELECT c.relname || '.' || a.attname AS path, a.attrelid::regclass AS tab, a.attname AS name,
            format_type(a.atttypid, NULL) AS type, a.atttypmod - 4 AS length, a.attnotnull AS needed,
            a.attidentity <> '' OR a.attgenerated <> '' OR d.oid IS NOT NULL AS has_default
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
            AND c.relname IN ('users', 'chat_sessions', 'chat_messages', 'integrations')
        ORDER BY c.oid, a.attnum
    LOOP
        IF col.name = 'id' THEN
            IF col.type NOT IN ('uuid', 'text', 'character varying') THEN
                RAISE EXCEPTION 'the column % is of the type %, and the server''s ids are UUIDs',
                    col.path, col.type
                    USING HINT = 'Make it uuid or text, and run this file again.';
            END IF;
            IF NOT col.has_default AND col.path <> 'users.id' THEN
                EXECUTE format('ALTER TABLE %s ALTER COLUMN id SET DEFAULT gen_random_uuid()%s',
                    col.tab, CASE WHEN col.type = 'uuid' THEN '' ELSE '::text' END);
            END IF;
            CONTINUE;
        END IF;

        -- A time without a zone is UTC, as applications that have such columns write it.
        IF col.type = 'timestamp without time zone' AND filled ? col.path THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', col.tab, col.name);
            EXECUTE format(
                'ALTER TABLE %1$s ALTER COLUMN %2$I TYPE timestamptz USING %2$I AT TIME ZONE ''UTC''',
                col.tab, col.name);
            col.has_default := false;
        ELSIF col.type IN ('character varying', 'character') AND col.length > 0
            AND col.path = ANY (texts)
            AND NOT (col.path = 'chat_sessions.title' AND col.type = 'character varying'
                AND col.length >= 255)
        THEN
            -- A view or a policy may hold on to it.
            BEGIN
                EXECUTE format('ALTER TABLE %s ALTER COLUMN %I TYPE text', col.tab, col.name);
            EXCEPTION WHEN feature_not_supported THEN
                RAISE WARNING 'the column % stays of the type %(%), so longer texts are refused: %',
                    col.path, col.type, col.length, SQLERRM;
            END;
        END IF;

        IF filled ? col.path THEN
            IF NOT col.needed THEN
                EXECUTE format('UPDATE %1$s SET %2$I = %3$s WHERE %2$I IS NULL',
                    col.tab, col.name, filled ->> col.path);
                EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', col.tab, col.name);
            END IF;
            IF NOT col.has_default AND filled ->> col.path = 'now()' THEN
                EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT now()', col.tab, col.name);
            END IF;
        ELSIF col.needed AND col.path <> ALL (written) AND (col.path = ANY (texts) OR NOT col.has_default)
        THEN
            -- The server has nothing for it, or not always.
            IF col.type LIKE 'timestamp%' THEN
                EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT now()', col.tab, col.name);
            ELSE
                EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', col.tab, col.name);
            END IF;
        END IF;
    END LOOP;
END;
$$;
ALTER TABLE public.chat_sessions ALTER COLUMN is_active SET DEFAULT true;

-- Indexes, and the one foreign key that the REST API needs to find a message's chat, and that takes a
-- chat's messages along with it.
DO $$
DECLARE
    wanted record;
    link record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            -- A user's chats, the last changed first; also the foreign key's index.
            ('chat_sessions_of_user', 'public.chat_sessions', '(user_id, updated_at DESC, id DESC)'),
            -- A chat's messages in their order; also the foreign key's index.
            ('chat_messages_of_chat', 'public.chat_messages', '(session_id, created_at, id)')
        ) AS list (name, tab, columns)
    LOOP
        -- One of that name over something else makes way.
        IF EXISTS (
            SELECT 1 FROM pg_catalog.pg_indexes
            WHERE schemaname = 'public' AND indexname = wanted.name
                AND right(indexdef, length(wanted.columns)) <> wanted.columns
        ) THEN
            EXECUTE format('ALTER INDEX public.%I RENAME TO %I', wanted.name, wanted.name || '_before');
        END IF;
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %s %s', wanted.name, wanted.tab, wanted.columns);
    END LOOP;

    -- Frontends look people up by their address.
    IF NOT EXISTS (
        SELECT 1 FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = 'public.users'::regclass AND i.indisunique AND i.indpred IS NULL
            AND i.indnkeyatts = 1 AND a.attname = 'email'
    ) THEN
        IF EXISTS (SELECT 1 FROM public.users WHERE email IS NOT NULL GROUP BY email HAVING count(*) > 1)
        THEN
            RAISE WARNING 'two rows of public.users have the same email, so it is not made unique';
        ELSE
            CREATE UNIQUE INDEX users_email_key ON public.users (email);
        END IF;
    END IF;

    SELECT conname AS name, confdeltype = 'c' AS cascades INTO link
    FROM pg_catalog.pg_constraint
    WHERE contype = 'f' AND conrelid = 'public.chat_messages'::regclass
        AND confrelid = 'public.chat_sessions'::regclass
    ORDER BY confdeltype <> 'c'
    LIMIT 1;
    IF link.name IS NULL OR NOT link.cascades THEN
        IF link.name IS NOT NULL THEN
            EXECUTE format('ALTER TABLE public.chat_messages DROP CONSTRAINT %I', link.name);
        END IF;
        EXECUTE format(
            'ALTER TABLE public.chat_messages ADD CONSTRAINT %I FOREIGN KEY (session_id)
             REFERENCES public.chat_sessions (id) ON DELETE CASCADE NOT VALID',
            coalesce(link.name, 'chat_messages_session_id_fkey'));
        BEGIN
            EXECUTE format('ALTER TABLE public.chat_messages VALIDATE CONSTRAINT %I',
                coalesce(link.name, 'chat_messages_session_id_fkey'));
        EXCEPTION WHEN foreign_key_violation THEN
            RAISE WARNING 'some rows of public.chat_messages belong to no chat; they are kept as they are';
        END;
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION public.lucid_set_updated_at() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = ''
AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$;

CREATE OR REPLACE TRIGGER users_set_updated_at
    BEFORE UPDATE ON public.users
    FOR EACH ROW EXECUTE FUNCTION public.lucid_set_updated_at();
CREATE OR REPLACE TRIGGER chat_sessions_set_updated_at
    BEFORE UPDATE ON public.chat_sessions
    FOR EACH ROW EXECUTE FUNCTION public.lucid_set_updated_at();

-- Whoever signs up gets their row here. It runs with its owner's rights, since the role that signs
-- users up has none on our tables; so its search path is pinned, and nothing in it is looked up by a
-- bare name. Where somebody else's row has the address already, or a column does not take what the
-- provider says, the new row is without it: signing up must not fail here, and chats need the row.
CREATE OR REPLACE FUNCTION public.lucid_new_user() RETURNS trigger
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = ''
AS $$
DECLARE
    own_name   CONSTANT text := COALESCE(
        NEW.raw_user_meta_data ->> 'full_name', NEW.raw_user_meta_data ->> 'name');
    own_avatar CONSTANT text := COALESCE(
        NEW.raw_user_meta_data ->> 'avatar_url', NEW.raw_user_meta_data ->> 'picture');
BEGIN
    BEGIN
        INSERT INTO public.users (id, email, name, avatar_url)
        VALUES (NEW.id, NEW.email, own_name, own_avatar)
        ON CONFLICT DO NOTHING;
        INSERT INTO public.users (id, name, avatar_url)
        VALUES (NEW.id, own_name, own_avatar)
        ON CONFLICT DO NOTHING;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
        NULL;
    END;
    INSERT INTO public.users (id) VALUES (NEW.id) ON CONFLICT DO NOTHING;
    RETURN NEW;
END;
$$;

-- Another application's trigger may do it already; two of them would be in each other's way. The usual name
-- of such a trigger is taken over where that is all it does, as what an earlier version of this file made;
-- one that does something else stays, with this one beside it.
DO $$
DECLARE
    signs_up record;
BEGIN
    SELECT
        coalesce(bool_or(fills_users) FILTER (WHERE NOT is_usual OR fills_others), false) AS is_done,
        coalesce(bool_or(is_usual AND NOT fills_users), false) AS is_taken
    INTO signs_up
    FROM (
        SELECT t.tgname = 'on_auth_user_created' AS is_usual, filled.users > 0 AS fills_users,
            filled.tables > filled.users AS fills_others
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        CROSS JOIN LATERAL (SELECT
            regexp_count(p.prosrc, 'insert\s+into\s+("?public"?\s*\.\s*)?"?users"?\W', 1, 'i') AS users,
            regexp_count(p.prosrc, 'insert\s+into\s', 1, 'i') AS tables) AS filled
        WHERE t.tgrelid = 'auth.users'::regclass AND NOT t.tgisinternal AND t.tgenabled <> 'D'
            AND p.proname <> 'lucid_new_user'
    ) AS triggers;

    IF signs_up.is_done THEN
        NULL;
    ELSIF signs_up.is_taken THEN
        CREATE OR REPLACE TRIGGER on_auth_user_created_lucid
            AFTER INSERT ON auth.users
            FOR EACH ROW EXECUTE FUNCTION public.lucid_new_user();
    ELSE
        CREATE OR REPLACE TRIGGER on_auth_user_created
            AFTER INSERT ON auth.users
            FOR EACH ROW EXECUTE FUNCTION public.lucid_new_user();
    END IF;
END;
$$;

-- They are for triggers alone, and not to be called through the REST API.
REVOKE EXECUTE ON FUNCTION public.lucid_set_updated_at(), public.lucid_new_user()
    FROM PUBLIC, anon, authenticated;

-- Those who signed up before this file was run, as above.
DO $$
DECLARE
    somebody record;
BEGIN
    FOR somebody IN
        SELECT
            a.id,
            a.email,
            COALESCE(a.raw_user_meta_data ->> 'full_name', a.raw_user_meta_data ->> 'name') AS name,
            COALESCE(a.raw_user_meta_data ->> 'avatar_url', a.raw_user_meta_data ->> 'picture') AS avatar
        FROM auth.users a
        WHERE NOT EXISTS (SELECT 1 FROM public.users u WHERE u.id::text = a.id::text)
    LOOP
        BEGIN
            INSERT INTO public.users (id, email, name, avatar_url)
            VALUES (somebody.id, somebody.email, somebody.name, somebody.avatar)
            ON CONFLICT DO NOTHING;
            INSERT INTO public.users (id, name, avatar_url)
            VALUES (somebody.id, somebody.name, somebody.avatar)
            ON CONFLICT DO NOTHING;
        EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
            NULL;
        END;
        INSERT INTO public.users (id) VALUES (somebody.id) ON CONFLICT DO NOTHING;
    END LOOP;
END;
$$;

-- Supabase grants everything on a new table to `anon` and `authenticated`. Nothing here is for those
-- who did not sign in, and what row-level security does not look at (TRUNCATE) is for nobody.
REVOKE ALL ON public.users, public.chat_sessions, public.chat_messages FROM anon, authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.users, public.chat_sessions TO authenticated;
-- No UPDATE: what was said stays as it was said. No DELETE either: it goes with its chat.
GRANT SELECT, INSERT ON public.chat_messages TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.users, public.chat_sessions, public.chat_messages
    TO service_role;

-- Forced, so that the tables' owner is held to the policies too, except on `users`: there
-- `lucid_new_user` writes as the owner, for somebody who has no token yet. Deleting along foreign
-- keys is not subject to it.
ALTER TABLE public.users ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.users NO FORCE ROW LEVEL SECURITY;
ALTER TABLE public.chat_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.chat_sessions FORCE ROW LEVEL SECURITY;
ALTER TABLE public.chat_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.chat_messages FORCE ROW LEVEL SECURITY;

DO $$
DECLARE
    -- Who asks, in the type that ids have in this project.
    me       text;
    own      text;
    verb     record;
    stranger record;
BEGIN
    FOR verb IN
        SELECT t.tab, t.owner, v.name, v.clauses, a.atttypid = 'uuid'::regtype AS is_uuid
        FROM (VALUES ('users', 'id'), ('chat_sessions', 'user_id'), ('chat_messages', 'session_id'))
            AS t (tab, owner)
        JOIN (VALUES
            ('select', 'USING (%1$s)'), ('insert', 'WITH CHECK (%1$s)'),
            -- The check keeps a row from being given to somebody else.
            ('update', 'USING (%1$s) WITH CHECK (%1$s)'), ('delete', 'USING (%1$s)')
        ) AS v (name, clauses) ON t.tab <> 'chat_messages' OR v.name IN ('select', 'insert')
        JOIN pg_catalog.pg_attribute a
            ON a.attrelid = format('public.%I', t.tab)::regclass AND a.attname = t.owner
    LOOP
        me := CASE WHEN verb.is_uuid THEN '(SELECT auth.uid())' ELSE '(SELECT auth.uid()::text)' END;
        own := format('%I = %s', verb.owner, me);
        IF verb.tab = 'chat_messages' THEN
            -- A message is its chat's owner's.
            SELECT format('EXISTS (SELECT 1 FROM public.chat_sessions chat
                    WHERE chat.id = session_id AND chat.user_id = %s)',
                CASE WHEN a.atttypid = 'uuid'::regtype
                    THEN '(SELECT auth.uid())' ELSE '(SELECT auth.uid()::text)' END)
            INTO own
            FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = 'public.chat_sessions'::regclass AND a.attname = 'user_id';
        END IF;
        EXECUTE format('DROP POLICY IF EXISTS %I ON public.%I', verb.tab || '_' || verb.name, verb.tab);
        EXECUTE format('CREATE POLICY %I ON public.%I FOR %s TO authenticated ',
            verb.tab || '_' || verb.name, verb.tab, verb.name) || format(verb.clauses, own);
    END LOOP;

    FOR stranger IN
        SELECT tablename, policyname FROM pg_catalog.pg_policies
        WHERE schemaname = 'public' AND tablename IN ('users', 'chat_sessions', 'chat_messages')
            AND permissive = 'PERMISSIVE' AND roles && '{public,anon,authenticated}'::name[]
            AND policyname NOT IN (tablename || '_select', tablename || '_insert',
                tablename || '_update', tablename || '_delete')
    LOOP
        RAISE WARNING 'the policy "%" on public.% is not this file''s and stays: whatever it allows is allowed',
            stranger.policyname, stranger.tablename;
    END LOOP;
END;
$$;

-- PostgREST keeps the schema in memory; Supabase's reads it again when it hears of this.
NOTIFY pgrst, 'reload schema';

COMMIT;
