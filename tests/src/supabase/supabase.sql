-- What Supabase has made before anybody's migration is run: its roles, what they get on new tables,
-- and the schema of its identity provider.

CREATE ROLE anon NOLOGIN NOINHERIT;
CREATE ROLE authenticated NOLOGIN NOINHERIT;
CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
-- PostgREST comes as this one, and becomes what the token says.
CREATE ROLE authenticator LOGIN NOINHERIT;
GRANT anon, authenticated, service_role TO authenticator;

GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public
    GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public
    GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;

-- The role that signs users up, and owns their table.
CREATE ROLE supabase_auth_admin NOLOGIN NOINHERIT;
CREATE SCHEMA auth AUTHORIZATION supabase_auth_admin;
CREATE TABLE auth.users (
    id                 uuid PRIMARY KEY,
    email              text,
    raw_user_meta_data jsonb
);
ALTER TABLE auth.users OWNER TO supabase_auth_admin;
GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;

CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;

-- Somebody who was there before the migrations.
INSERT INTO auth.users (id, email, raw_user_meta_data) VALUES (
    '00000000-0000-4000-8000-000000000001', 'first@example.org',
    '{"full_name": "The First", "avatar_url": "https://example.org/first.png"}'
);
