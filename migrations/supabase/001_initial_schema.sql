-- Users, chats and their messages, for a Supabase project (PostgreSQL 15 or later).
--
-- What always holds: a user reaches their own rows and no others, whatever is asked through the
-- REST API; what is said in a chat is added to and never changed; the file may be run again at any
-- time. `(select auth.uid())` stands in a subquery so that it is evaluated once for a query and not
-- once for a row.

BEGIN;

-- What the application knows of a user. The identity provider has the rest.
CREATE TABLE IF NOT EXISTS public.users (
    id         uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
    email      text,
    full_name  text,
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
-- A user's chats, the last changed first; also the foreign key's index.
CREATE INDEX IF NOT EXISTS chat_sessions_of_user
    ON public.chat_sessions (user_id, updated_at DESC, id DESC);

CREATE TABLE IF NOT EXISTS public.chat_messages (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id    uuid NOT NULL REFERENCES public.chat_sessions (id) ON DELETE CASCADE,
    role          text NOT NULL,
    content       text NOT NULL,
    event_type    text,
    metadata_json jsonb,
    created_at    timestamptz NOT NULL DEFAULT now()
);
-- A chat's messages in their order; also the foreign key's index.
CREATE INDEX IF NOT EXISTS chat_messages_of_chat
    ON public.chat_messages (session_id, created_at, id);

CREATE OR REPLACE FUNCTION public.set_updated_at() RETURNS trigger
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
    FOR EACH ROW EXECUTE FUNCTION public.set_updated_at();
CREATE OR REPLACE TRIGGER chat_sessions_set_updated_at
    BEFORE UPDATE ON public.chat_sessions
    FOR EACH ROW EXECUTE FUNCTION public.set_updated_at();

-- Whoever signs up gets their row here. It runs with its owner's rights, since the role that signs
-- users up has none on our tables; so its search path is pinned, and nothing in it is looked up by a
-- bare name.
CREATE OR REPLACE FUNCTION public.handle_new_user() RETURNS trigger
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = ''
AS $$
BEGIN
    INSERT INTO public.users (id, email, full_name, avatar_url)
    VALUES (
        NEW.id,
        NEW.email,
        COALESCE(NEW.raw_user_meta_data ->> 'full_name', NEW.raw_user_meta_data ->> 'name'),
        COALESCE(NEW.raw_user_meta_data ->> 'avatar_url', NEW.raw_user_meta_data ->> 'picture')
    )
    ON CONFLICT DO NOTHING;
    RETURN NEW;
END;
$$;

CREATE OR REPLACE TRIGGER on_auth_user_created
    AFTER INSERT ON auth.users
    FOR EACH ROW EXECUTE FUNCTION public.handle_new_user();

-- They are for triggers alone, and not to be called through the REST API.
REVOKE EXECUTE ON FUNCTION public.set_updated_at(), public.handle_new_user()
    FROM PUBLIC, anon, authenticated;

-- Those who signed up before this file was run.
INSERT INTO public.users (id, email, full_name, avatar_url)
SELECT
    id,
    email,
    COALESCE(raw_user_meta_data ->> 'full_name', raw_user_meta_data ->> 'name'),
    COALESCE(raw_user_meta_data ->> 'avatar_url', raw_user_meta_data ->> 'picture')
FROM auth.users
ON CONFLICT DO NOTHING;

-- Supabase grants everything on a new table to `anon` and `authenticated`. Nothing here is for those
-- who did not sign in, and what row-level security does not look at (TRUNCATE) is for nobody.
REVOKE ALL ON public.users, public.chat_sessions, public.chat_messages FROM anon, authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.users, public.chat_sessions TO authenticated;
-- No UPDATE: what was said stays as it was said. No DELETE either: it goes with its chat.
GRANT SELECT, INSERT ON public.chat_messages TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.users, public.chat_sessions, public.chat_messages
    TO service_role;

-- Forced, so that the tables' owner is held to the policies too, except on `users`: there
-- `handle_new_user` writes as the owner, for somebody who has no token yet. Deleting along foreign
-- keys is not subject to it.
ALTER TABLE public.users ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.chat_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.chat_sessions FORCE ROW LEVEL SECURITY;
ALTER TABLE public.chat_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.chat_messages FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS users_select ON public.users;
CREATE POLICY users_select ON public.users
    FOR SELECT TO authenticated USING (id = (SELECT auth.uid()));
DROP POLICY IF EXISTS users_insert ON public.users;
CREATE POLICY users_insert ON public.users
    FOR INSERT TO authenticated WITH CHECK (id = (SELECT auth.uid()));
DROP POLICY IF EXISTS users_update ON public.users;
CREATE POLICY users_update ON public.users
    FOR UPDATE TO authenticated
    USING (id = (SELECT auth.uid())) WITH CHECK (id = (SELECT auth.uid()));
DROP POLICY IF EXISTS users_delete ON public.users;
CREATE POLICY users_delete ON public.users
    FOR DELETE TO authenticated USING (id = (SELECT auth.uid()));

DROP POLICY IF EXISTS chat_sessions_select ON public.chat_sessions;
CREATE POLICY chat_sessions_select ON public.chat_sessions
    FOR SELECT TO authenticated USING (user_id = (SELECT auth.uid()));
DROP POLICY IF EXISTS chat_sessions_insert ON public.chat_sessions;
CREATE POLICY chat_sessions_insert ON public.chat_sessions
    FOR INSERT TO authenticated WITH CHECK (user_id = (SELECT auth.uid()));
-- The check keeps a chat from being given to somebody else.
DROP POLICY IF EXISTS chat_sessions_update ON public.chat_sessions;
CREATE POLICY chat_sessions_update ON public.chat_sessions
    FOR UPDATE TO authenticated
    USING (user_id = (SELECT auth.uid())) WITH CHECK (user_id = (SELECT auth.uid()));
DROP POLICY IF EXISTS chat_sessions_delete ON public.chat_sessions;
CREATE POLICY chat_sessions_delete ON public.chat_sessions
    FOR DELETE TO authenticated USING (user_id = (SELECT auth.uid()));

-- A message is its chat's owner's.
DROP POLICY IF EXISTS chat_messages_select ON public.chat_messages;
CREATE POLICY chat_messages_select ON public.chat_messages
    FOR SELECT TO authenticated
    USING (EXISTS (
        SELECT 1 FROM public.chat_sessions chat
        WHERE chat.id = session_id AND chat.user_id = (SELECT auth.uid())
    ));
DROP POLICY IF EXISTS chat_messages_insert ON public.chat_messages;
CREATE POLICY chat_messages_insert ON public.chat_messages
    FOR INSERT TO authenticated
    WITH CHECK (EXISTS (
        SELECT 1 FROM public.chat_sessions chat
        WHERE chat.id = session_id AND chat.user_id = (SELECT auth.uid())
    ));

COMMIT;
