-- The same tables as another tool for schemas makes them: texts for ids, times without a zone, metadata as
-- a text, columns of its own that must be filled, an own trigger for who signs up, and less of what this
-- version needs.
CREATE TABLE public.users (
    id         text PRIMARY KEY,
    email      text NOT NULL,
    name       text,
    avatar_url text,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX users_email_key ON public.users (email);
CREATE TABLE public.chat_sessions (
    id         varchar(36) PRIMARY KEY,
    user_id    text NOT NULL REFERENCES public.users (id),
    project_id text,
    title      text,
    kind       integer NOT NULL,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3)
);
CREATE TABLE public.chat_messages (
    id            text PRIMARY KEY,
    session_id    varchar(36) NOT NULL,
    role          text NOT NULL,
    content       text,
    metadata_json text,
    created_at    timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE public.integrations (
    id                     text PRIMARY KEY,
    user_id                text NOT NULL,
    provider               text NOT NULL,
    access_token_encrypted text NOT NULL,
    iv                     text NOT NULL,
    created_at             timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at             timestamp(3) NOT NULL
);
CREATE FUNCTION public.sync_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    INSERT INTO public.users (id, email, name, updated_at)
    VALUES (NEW.id, NEW.email, NEW.raw_user_meta_data ->> 'name', now());
    RETURN NEW;
END;
$$;
CREATE TRIGGER sync_user AFTER INSERT ON auth.users FOR EACH ROW EXECUTE FUNCTION public.sync_user();

INSERT INTO auth.users (id, email, raw_user_meta_data) VALUES
    ('10000000-0000-4000-8000-000000000001', 'old@example.org', '{"name": "Old"}');
INSERT INTO public.chat_sessions (id, user_id, project_id, title, kind, created_at, updated_at) VALUES
    ('20000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', 'p', 'An old chat', 1,
     '2026-01-02T03:04:05', '2026-01-02T03:04:05');
INSERT INTO public.chat_messages (id, session_id, role, content, metadata_json, created_at) VALUES
    ('not-a-uuid', '20000000-0000-4000-8000-000000000001', 'user', 'An old task', '{"old": true}',
     '2026-01-02T03:04:05');
INSERT INTO public.integrations (id, user_id, provider, access_token_encrypted, iv, updated_at) VALUES
    ('a', '10000000-0000-4000-8000-000000000001', 'GITHUB', 'aa', '00', now());
