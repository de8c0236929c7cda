-- What makes a project that ran all migrations into one that ran an earlier version of them, which called a
-- user's name `full_name`, with a user and a chat in it.
DROP INDEX public.users_email_key;
ALTER TABLE public.users RENAME COLUMN name TO full_name;
CREATE OR REPLACE FUNCTION public.handle_new_user() RETURNS trigger
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = ''
AS $$
BEGIN
    INSERT INTO public.users (id, email, full_name)
    VALUES (NEW.id, NEW.email, NEW.raw_user_meta_data ->> 'name')
    ON CONFLICT DO NOTHING;
    RETURN NEW;
END;
$$;
CREATE OR REPLACE TRIGGER on_auth_user_created
    AFTER INSERT ON auth.users FOR EACH ROW EXECUTE FUNCTION public.handle_new_user();
INSERT INTO auth.users (id, email, raw_user_meta_data) VALUES
    ('10000000-0000-4000-8000-000000000001', 'old@example.org', '{"name": "Old"}');
INSERT INTO public.chat_sessions (id, user_id, title, is_active, created_at, updated_at) VALUES
    ('20000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000001', 'An old chat', false,
     '2026-01-02T03:04:05Z', '2026-01-02T03:04:05Z');
INSERT INTO public.chat_messages (session_id, role, content, metadata_json, created_at) VALUES
    ('20000000-0000-4000-8000-000000000001', 'user', 'An old task', '{"old": true}', '2026-01-02T03:04:05Z');
INSERT INTO public.integrations (user_id, provider, access_token_encrypted, iv) VALUES
    ('10000000-0000-4000-8000-000000000001', 'GITHUB', 'aa', '00');
NOTIFY pgrst, 'reload schema';
