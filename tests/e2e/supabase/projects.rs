//! The migrations on projects that are there already: made by the system that this one succeeds, in two
//! forms, and by an earlier version of the migrations. Rows stay, the host works over them afterwards, and
//! before that it says what is missing.

use serde_json::{Value, json};

use lucid_tests::{
    Host, JWT_SECRET, Socket, TestSupabase, anon_key, command, eventually, text_of, token,
};

const UUIDS: &str = include_str!("projects/uuids.sql");
const TEXTS: &str = include_str!("projects/texts.sql");
const EARLIER: &str = include_str!("projects/earlier.sql");

const OLD_USER: &str = "10000000-0000-4000-8000-000000000001";
const OLD_CHAT: &str = "20000000-0000-4000-8000-000000000001";

/// Everything that can be told of the schema, for a comparison.
fn schema(supabase: &TestSupabase) -> String {
    supabase.sql(
        "SELECT string_agg(t, E'\\n' ORDER BY t) FROM (
            SELECT table_name || '.' || column_name || ' ' || data_type || is_nullable
                    || coalesce(column_default, '') AS t
                FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL SELECT tablename || ' ' || policyname || ' ' || cmd || roles::text
                || coalesce(qual, '') || coalesce(with_check, '') FROM pg_policies
            UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint
                WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT grantee || privilege_type || table_name
                FROM information_schema.role_table_grants WHERE table_schema = 'public'
            UNION ALL SELECT tgrelid::regclass || tgname FROM pg_trigger WHERE NOT tgisinternal) AS parts",
    )
}

/// The old user's rows, as they were.
fn old_rows(supabase: &TestSupabase) -> String {
    supabase.sql(&format!(
        "SELECT u.email, u.name, c.title, c.is_active, c.created_at AT TIME ZONE 'UTC',
                m.content, m.metadata_json, i.access_token_encrypted
            FROM users u JOIN chat_sessions c ON c.user_id = u.id JOIN chat_messages m ON m.session_id = c.id
            JOIN integrations i ON i.user_id = u.id WHERE u.id = '{OLD_USER}'"
    ))
}

/// Waits until PostgREST has heard of the migrations.
async fn heard(supabase: &TestSupabase) {
    eventually("PostgREST to read the schema again", async || {
        let path = "users?select=name&limit=0";
        let asked = supabase.ask_as_service("GET", path, None).await;
        let path = "chat_sessions?select=cost,chat_messages(id)&limit=0";
        let usage = supabase.ask_as_service("GET", path, None).await;
        (asked.status == 200 && usage.status == 200).then_some(())
    })
    .await;
}

/// What a user has of a host over the project, with a chat of before and one of their own.
async fn is_worked_with(supabase: &TestSupabase) {
    let host = supabase.host().set("SANDBOX_BACKEND", "none").start();

    // Their old chat is there, with what was said, and is theirs alone.
    let chats = host.get(OLD_USER, "/api/v1/chats").await.ok();
    assert_eq!(
        (&chats["chats"][0]["id"], &chats["chats"][0]["title"]),
        (&json!(OLD_CHAT), &json!("An old chat"))
    );
    assert_eq!(chats["chats"][0]["createdAt"], "2026-01-02T03:04:05+00:00");
    let path = format!("/api/v1/chats/{OLD_CHAT}");
    let old = host.get(OLD_USER, &path).await.ok();
    assert_eq!(
        (
            &old["messages"][0]["content"],
            &old["messages"][0]["metadataJson"]
        ),
        (&json!("An old task"), &json!({"old": true}))
    );
    let accounts = host.get(OLD_USER, "/api/v1/integrations").await.ok();
    assert_eq!(accounts["integrations"][0]["provider"], "github");

    // A new session of theirs, and of somebody who signs up now; one of them has no address.
    let new = supabase.sign_up("new");
    let nameless = uuid::Uuid::new_v4().to_string();
    supabase.sql(&format!(
        "SET ROLE supabase_auth_admin; INSERT INTO auth.users VALUES ('{nameless}', NULL, '{{}}')"
    ));
    for user in [OLD_USER, &new, &nameless] {
        works_for(&host, supabase, user).await;
    }
    host.get(&new, &path).await.refused(404, "Chat not found");
    let direct = supabase
        .ask(Some(&token(&new)), "GET", "chat_messages", None)
        .await
        .ok();
    assert!(!direct.to_string().contains("An old task"), "{direct}");
    let direct = supabase
        .ask(Some(&token(&new)), "GET", "users", None)
        .await
        .ok();
    assert_eq!(direct.as_array().unwrap().len(), 1, "{direct}");

    // An account replaces the old one of that provider, and a chat takes its messages along.
    let account = json!({"user_id": OLD_USER, "provider": "GITHUB", "access_token_encrypted": "bb", "iv": "0"});
    let answer = supabase
        .ask_as_service(
            "POST",
            "integrations?on_conflict=user_id,provider",
            Some(&account),
        )
        .await;
    // The helper does not ask to merge, so what says that there is a unique index is its refusal.
    assert_eq!(
        (answer.status, &answer.body["code"]),
        (409, &json!("23505"))
    );
    let gone = host.call(OLD_USER, "DELETE", &path, None).await.ok();
    assert_eq!(gone["status"], "deleted");
    let left = format!("SELECT count(*) FROM chat_messages WHERE session_id = '{OLD_CHAT}'");
    assert_eq!(supabase.sql(&left), "0");
}

/// A session plays, and its record is in the project.
async fn works_for(host: &Host, supabase: &TestSupabase, user: &str) {
    let task = "A task of now, which is longer than any column of a hundred characters would hold: it \
        goes on and on, and is cut by nothing but the title's own length";
    let mut socket = Socket::open(host, user, json!({"task": task})).await;
    let session = socket.session().await;
    socket.completed().await;
    let lines = eventually("the record of a session", async || {
        let chats = host.get(user, "/api/v1/chats").await.ok();
        let mut all = chats["chats"].as_array().unwrap().clone().into_iter();
        let chat = all.find(|chat| chat["agentSessionId"] == session.as_str())?;
        let rows = format!(
            "chat_messages?session_id=eq.{}",
            chat["id"].as_str().unwrap()
        );
        let rows = supabase.ask(Some(&token(user)), "GET", &rows, None).await;
        let rows: Vec<Value> = rows.ok().as_array().unwrap().clone();
        (rows.len() > 5).then_some(rows)
    })
    .await;
    let types: Vec<_> = lines.iter().map(|line| &line["event_type"]).collect();
    assert!(types.contains(&&json!("FileWriteObservation")), "{types:?}");
}

async fn doctor(supabase: &TestSupabase) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut doctor = command(folder.path(), &["doctor"]);
    doctor
        .env("SANDBOX_BACKEND", "none")
        .env("SUPABASE_JWT_SECRET", JWT_SECRET)
        .env("SUPABASE_URL", supabase.url())
        .env("SUPABASE_ANON_KEY", anon_key());
    // It is asked by this process's gateway, so it must not be waited for by blocking all of it.
    let output = tokio::task::spawn_blocking(move || doctor.output().unwrap());
    text_of(&output.await.unwrap().stdout)
}

/// A project whose migrations did not run says so to the operator and to a user, with what is missing.
async fn says_what_it_lacks(supabase: &TestSupabase, doctor_names: &str, client_reads: &str) {
    let said = doctor(supabase).await;
    let expected = format!("lacks {doctor_names}");
    assert!(
        said.contains(&expected) && said.contains("migrations/supabase"),
        "{said}"
    );
    let host = supabase.host().set("SANDBOX_BACKEND", "none").start();
    let refused = host.get(OLD_USER, "/api/v1/chats").await.problem(503);
    let expected = format!("lacks {client_reads}: its migrations did not run");
    assert!(refused.contains(&expected), "{refused}");
}

/// Both runs of the migrations leave the same, and the rows.
fn migrates_twice(supabase: &TestSupabase, rows: &str) {
    supabase.migrate();
    assert_eq!(old_rows(supabase), rows);
    let first = schema(supabase);
    supabase.migrate();
    assert_eq!(schema(supabase), first);
    assert_eq!(old_rows(supabase), rows);
    let open = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind = 'r' AND NOT relrowsecurity";
    assert_eq!(supabase.sql(open), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_project_says_that_nothing_was_run_there() {
    let Some(supabase) = TestSupabase::start_with("SELECT 1").await else {
        return;
    };
    says_what_it_lacks(&supabase, "the table users", "the table chat_sessions").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migrations_run_on_the_predecessors_project_and_keep_its_rows() {
    let Some(supabase) = TestSupabase::start_with(UUIDS).await else {
        return;
    };
    let column = "the column chat_sessions.agent_session_id";
    says_what_it_lacks(&supabase, column, column).await;
    let rows =
        r#"old@example.org|Old|An old chat|f|2026-01-02 03:04:05|An old task|{"old": true}|aa"#;
    migrates_twice(&supabase, rows);
    heard(&supabase).await;
    is_worked_with(&supabase).await;
    // The name's column kept its length, and that keeps nobody from signing up.
    let long = supabase.sign_up("somebody-whose-name-is-longer-than-twenty-characters");
    let shown = format!("SELECT coalesce(name, '-') FROM users WHERE id = '{long}'");
    assert_eq!(supabase.sql(&shown), "-");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migrations_run_on_a_project_with_texts_for_ids_and_times_without_a_zone() {
    let Some(supabase) = TestSupabase::start_with(TEXTS).await else {
        return;
    };
    let rows =
        r#"old@example.org|Old|An old chat|f|2026-01-02 03:04:05|An old task|{"old": true}|aa"#;
    migrates_twice(&supabase, rows);
    heard(&supabase).await;
    is_worked_with(&supabase).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migrations_run_on_a_project_that_ran_an_earlier_version_of_them() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    supabase.sql(EARLIER);
    eventually("the earlier schema to be noticed", async || {
        let said = doctor(&supabase).await;
        said.contains("lacks the column users.name").then_some(())
    })
    .await;
    let rows =
        r#"old@example.org|Old|An old chat|f|2026-01-02 03:04:05|An old task|{"old": true}|aa"#;
    migrates_twice(&supabase, rows);
    heard(&supabase).await;
    is_worked_with(&supabase).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_another_application_stay_whatever_they_are_called() {
    // As the provider's own examples name them, and one that is called by statements.
    let other = "CREATE TABLE profiles (id uuid PRIMARY KEY);
        ALTER TABLE profiles ENABLE ROW LEVEL SECURITY;
        CREATE FUNCTION handle_new_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN INSERT INTO public.profiles (id) VALUES (NEW.id); RETURN NEW; END $$;
        CREATE TRIGGER on_auth_user_created AFTER INSERT ON auth.users
            FOR EACH ROW EXECUTE FUNCTION handle_new_user();
        CREATE FUNCTION set_updated_at() RETURNS text LANGUAGE sql AS 'SELECT now()::text'";
    let Some(supabase) = TestSupabase::start_with(other).await else {
        return;
    };
    supabase.migrate();
    supabase.migrate();
    let user = supabase.sign_up("ann");
    for table in ["users", "profiles"] {
        let rows = format!("SELECT count(*) FROM {table} WHERE id = '{user}'");
        assert_eq!(supabase.sql(&rows), "1", "{table}");
    }
    let theirs = supabase.sql("SELECT set_updated_at() IS NOT NULL");
    assert_eq!(theirs, "t");

    // One that fills both is enough.
    supabase.sql(
        "DROP TRIGGER on_auth_user_created_lucid ON auth.users;
        CREATE OR REPLACE FUNCTION handle_new_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN INSERT INTO public.profiles (id) VALUES (NEW.id);
            INSERT INTO public.users (id, email) VALUES (NEW.id, NEW.email); RETURN NEW; END $$",
    );
    supabase.migrate();
    let user = supabase.sign_up("bob");
    for table in ["users", "profiles"] {
        let rows = format!("SELECT count(*) FROM {table} WHERE id = '{user}'");
        assert_eq!(supabase.sql(&rows), "1", "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_gives_users_no_rights_says_so() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let host = supabase.host().set("SANDBOX_BACKEND", "none").start();
    let user = supabase.sign_up("ann");
    supabase.sql("REVOKE ALL ON public.chat_sessions FROM authenticated");
    let refused = host.get(&user, "/api/v1/chats").await.problem(503);
    assert!(
        refused.contains("users' right to use the table chat_sessions"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_whose_last_migration_did_not_run_works_and_its_operator_is_told_once() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    supabase.sql("ALTER TABLE integrations DROP COLUMN lucid_mac; NOTIFY pgrst, 'reload schema'");
    let lack = "lacks the column integrations.lucid_mac";
    let said = doctor(&supabase).await;
    assert!(
        said.contains("chats go to Supabase at") && said.contains(lack),
        "{said}"
    );
    let host = supabase.host().set("SANDBOX_BACKEND", "none").start();
    let ann = supabase.sign_up("ann");
    for _ in 0..3 {
        let accounts = host.get(&ann, "/api/v1/integrations").await.ok();
        assert_eq!(accounts, json!({"integrations": []}));
    }
    let log = host.log();
    assert_eq!(log.matches(lack).count(), 1, "{log}");
}
