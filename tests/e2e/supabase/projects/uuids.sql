-- A project as the system that this one succeeds left it: its two files, and a user with a chat and an
-- account in it.
CREATE TABLE public.users (
    id         uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
    email      varchar(255) UNIQUE NOT NULL,
    name       varchar(20),
    avatar_url text,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);
-- What a view shows cannot be given another type.
CREATE VIEW public.people AS SELECT id, name FROM public.users;
CREATE TABLE public.chat_sessions (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id        uuid NOT NULL REFERENCES public.users (id) ON DELETE CASCADE,
    project_id     text NOT NULL,
    title          varchar(100),
    model_provider varchar(50) NOT NULL DEFAULT 'anthropic',
    is_active      boolean DEFAULT true,
    created_at     timestamptz DEFAULT now(),
    updated_at     timestamptz DEFAULT now()
);
CREATE INDEX chat_sessions_of_user ON public.chat_sessions (user_id);
CREATE TABLE public.chat_messages (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Without the cascade.
    session_id    uuid NOT NULL REFERENCES public.chat_sessions (id),
    role          varchar(10) NOT NULL CHECK (role IN ('user', 'assistant', 'system')),
    content       text NOT NULL,
    event_type    varchar(10),
    metadata_json jsonb,
    created_at    timestamptz DEFAULT now()
);
CREATE TABLE public.integrations (
    id                     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id                uuid NOT NULL REFERENCES public.users (id) ON DELETE CASCADE,
    provider               varchar(20) NOT NULL,
    label                  text NOT NULL,
    access_token_encrypted text NOT NULL,
    iv                     varchar(32) NOT NULL,
    external_username      varchar(5),
    scopes                 text,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL,
    UNIQUE (user_id, provider)
);

ALTER TABLE public.users ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.chat_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.chat_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.integrations ENABLE ROW LEVEL SECURITY;
-- Of the names that this version's policies have, and looser.
CREATE POLICY users_select ON public.users FOR SELECT USING (true);
CREATE POLICY users_update ON public.users FOR UPDATE USING (auth.uid() = id);
CREATE POLICY chat_sessions_select ON public.chat_sessions FOR ALL USING (true);
CREATE POLICY chat_messages_select ON public.chat_messages FOR ALL USING (true);
CREATE POLICY integrations_select ON public.integrations FOR ALL USING (true);

CREATE FUNCTION public.handle_new_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.users (id, email, name)
    VALUES (NEW.id, NEW.email, NEW.raw_user_meta_data ->> 'name');
    RETURN NEW;
END;
$$;
CREATE TRIGGER on_auth_user_created
    AFTER INSERT ON auth.users FOR EACH ROW EXECUTE FUNCTION public.handle_new_user();
CREATE FUNCTION public.set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.updated_at = now(); RETURN NEW; END;
$$;
CREATE TRIGGER users_set_updated_at
    BEFORE UPDATE ON public.users FOR EACH ROW EXECUTE FUNCTION public.set_updated_at();

INSERT INTO auth.users (id, email, raw_user_meta_data) VALUES
    ('10000000-0000-4000-8000-000000000001', 'old@example.org', '{"name": "Old"}');
INSERT INTO public.chat_sessions (id, user_id, project_id, title, is_active, created_at, updated_at) VALUES
    ('20000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', 'p', 'An old chat', false,
     '2026-01-02T03:04:05Z', '2026-01-02T03:04:05Z');
INSERT INTO public.chat_messages (session_id, role, content, metadata_json, created_at) VALUES
    ('20000000-0000-4000-8000-000000000001', 'user', 'An old task', '{"old": true}', '2026-01-02T03:04:05Z');
INSERT INTO public.integrations (user_id, provider, label, access_token_encrypted, iv, updated_at) VALUES
    ('10000000-0000-4000-8000-000000000001', 'GITHUB', 'Old', 'aa', '00', now());
