//! Two users, somebody who did not sign in, and the service key, over every table and every verb, by
//! PostgREST directly: no host is there to be careful.

use serde_json::{Value, json};
use uuid::Uuid;

use lucid_tests::{TestSupabase, claims_token, expired_token, foreign_token, token};

/// A user with a row in every table.
struct Owner {
    id: String,
    token: String,
    chat: String,
    message: String,
    integration: String,
}

async fn owner(supabase: &TestSupabase, name: &str) -> Owner {
    let id = supabase.sign_up(name);
    let token = token(&id);
    let made = async |table: &str, row: Value| {
        let answer = supabase.ask(Some(&token), "POST", table, Some(&row)).await;
        assert_eq!(answer.status, 201, "{name} in {table}: {answer:?}");
        answer.body[0]["id"].as_str().unwrap().to_owned()
    };
    let chat = made("chat_sessions", json!({"user_id": id, "title": name})).await;
    let message = made("chat_messages", message_in(&chat)).await;
    let integration = made("integrations", integration_of(&id)).await;
    Owner {
        id,
        token,
        chat,
        message,
        integration,
    }
}

fn message_in(chat: &str) -> Value {
    json!({"session_id": chat, "role": "user", "content": "Hello"})
}

fn integration_of(user: &str) -> Value {
    json!({"user_id": user, "provider": "GITHUB", "access_token_encrypted": "00", "iv": "00"})
}

impl Owner {
    /// Their row in each table: how it is found, and a change of it.
    fn rows(&self) -> [(&'static str, String, Value); 4] {
        [
            (
                "users",
                format!("id=eq.{}", self.id),
                json!({"name": "Changed"}),
            ),
            (
                "chat_sessions",
                format!("id=eq.{}", self.chat),
                json!({"title": "Changed"}),
            ),
            (
                "chat_messages",
                format!("id=eq.{}", self.message),
                json!({"content": "Changed"}),
            ),
            (
                "integrations",
                format!("id=eq.{}", self.integration),
                json!({"label": "Changed"}),
            ),
        ]
    }

    /// A new row of theirs for each table. That for `users` and `integrations` is there already.
    fn new_rows(&self) -> [(&'static str, Value); 4] {
        let other = json!({"user_id": self.id, "provider": "GITLAB", "access_token_encrypted": "0", "iv": "0"});
        [
            ("users", json!({"id": self.id})),
            ("chat_sessions", json!({"user_id": self.id, "title": "New"})),
            ("chat_messages", message_in(&self.chat)),
            ("integrations", other),
        ]
    }
}

/// Everything in the tables, as the administrator sees it.
fn all(supabase: &TestSupabase) -> String {
    let tables = ["users", "chat_sessions", "chat_messages", "integrations"];
    let rows = tables.map(|table| {
        supabase.sql(&format!(
            "SELECT '{table}', t::text FROM public.{table} t ORDER BY 2"
        ))
    });
    rows.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_on_every_table_is_for_the_owner_alone() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    eprintln!("PostgreSQL {}", supabase.version());
    let ann = owner(&supabase, "ann").await;
    let bob = owner(&supabase, "bob").await;
    let before = all(&supabase);

    // Bob at Ann's rows: as if they were not there, and what would be hers or be made hers is refused.
    for (table, found, change) in ann.rows() {
        let bobs = async |method: &str, query: &str, body: Option<&Value>| {
            supabase
                .ask(Some(&bob.token), method, &format!("{table}?{query}"), body)
                .await
        };
        for query in [found.as_str(), "select=*"] {
            let seen = bobs("GET", query, None).await;
            let shown = seen.text.contains(&ann.id) || seen.text.contains(&ann.chat);
            assert!(seen.status == 200 && !shown, "bob reads {table}: {seen:?}");
        }
        for (method, body) in [("PATCH", Some(&change)), ("DELETE", None)] {
            let answer = bobs(method, &found, body).await;
            // Either nothing is found, or the verb is nobody's.
            let nothing = answer.status == 200 && answer.body == json!([]);
            let refused = answer.status == 403 && answer.body["code"] == "42501";
            assert!(nothing || refused, "bob, {method} on {table}: {answer:?}");
        }
    }
    for (table, row) in ann.new_rows() {
        let answer = supabase
            .ask(Some(&bob.token), "POST", table, Some(&row))
            .await;
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (403, &json!("42501")),
            "bob in ann's name in {table}: {answer:?}"
        );
    }
    // Giving one's own row to somebody else.
    for (table, found, change) in [
        (
            "chat_sessions",
            format!("id=eq.{}", bob.chat),
            json!({"user_id": ann.id}),
        ),
        (
            "integrations",
            format!("id=eq.{}", bob.integration),
            json!({"user_id": ann.id}),
        ),
        (
            "users",
            format!("id=eq.{}", bob.id),
            json!({"id": Uuid::new_v4()}),
        ),
    ] {
        let path = format!("{table}?{found}");
        let answer = supabase
            .ask(Some(&bob.token), "PATCH", &path, Some(&change))
            .await;
        assert_eq!(answer.status, 403, "{table} is given away: {answer:?}");
    }
    assert_eq!(all(&supabase), before, "something of it changed a row");

    // Whoever did not sign in, or shows what is no token: nothing at all.
    let no_subject = claims_token(json!({"role": "authenticated"}));
    let tokens = [
        ("anon", None),
        ("expired", Some(expired_token(&ann.id))),
        ("foreign", Some(foreign_token(&ann.id))),
        ("without a subject", Some(no_subject)),
        (
            "of another role",
            Some(claims_token(json!({"sub": ann.id, "role": "postgres"}))),
        ),
    ];
    for (who, token) in &tokens {
        for (table, found, change) in ann.rows() {
            for (method, body) in [("GET", None), ("PATCH", Some(&change)), ("DELETE", None)] {
                let path = format!("{table}?{found}");
                let answer = supabase.ask(token.as_deref(), method, &path, body).await;
                let nothing = answer.status == 200 && answer.body == json!([]);
                let refused = [401, 403].contains(&answer.status);
                assert!(nothing || refused, "{who}, {method} on {table}: {answer:?}");
            }
        }
        for (table, row) in ann.new_rows() {
            let answer = supabase
                .ask(token.as_deref(), "POST", table, Some(&row))
                .await;
            let refused = [401, 403].contains(&answer.status);
            assert!(refused, "{who} adds to {table}: {answer:?}");
        }
    }
    assert_eq!(all(&supabase), before, "something of it changed a row");

    // What functions there are is not for callers.
    for function in ["lucid_new_user", "lucid_set_updated_at"] {
        let path = format!("rpc/{function}");
        let answer = supabase
            .ask(Some(&bob.token), "POST", &path, Some(&json!({})))
            .await;
        assert!(
            [401, 403, 404].contains(&answer.status),
            "{function} can be called: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_and_the_service_key_may_what_they_should() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let ann = owner(&supabase, "ann").await;
    let bob = owner(&supabase, "bob").await;

    for (table, found, change) in ann.rows() {
        let path = format!("{table}?{found}");
        let own = async |method: &str, body: Option<&Value>| {
            supabase.ask(Some(&ann.token), method, &path, body).await
        };
        assert_eq!(own("GET", None).await.body.as_array().unwrap().len(), 1);
        let changed = own("PATCH", Some(&change)).await;
        if table == "chat_messages" {
            // Append-only, also for those whose words they are.
            assert_eq!(changed.status, 403, "{changed:?}");
            assert_eq!(own("DELETE", None).await.status, 403);
            assert_eq!(own("GET", None).await.body[0]["content"], "Hello");
        } else {
            assert_eq!(changed.status, 200, "{table}: {changed:?}");
            assert_eq!(changed.body.as_array().unwrap().len(), 1, "{changed:?}");
        }
    }
    for (table, row) in ann.new_rows() {
        let answer = supabase
            .ask(Some(&ann.token), "POST", table, Some(&row))
            .await;
        let expected = if table == "users" { 409 } else { 201 };
        assert_eq!(answer.status, expected, "{table}: {answer:?}");
    }
    // One account at a provider.
    let again = integration_of(&ann.id);
    let again = supabase
        .ask(Some(&ann.token), "POST", "integrations", Some(&again))
        .await;
    assert_eq!((again.status, &again.body["code"]), (409, &json!("23505")));

    // The service key reads and writes all of it; that it filters is the host's duty.
    for (table, found, change) in bob.rows() {
        let path = format!("{table}?{found}");
        let read = supabase.ask_as_service("GET", &path, None).await.ok();
        assert_eq!(read.as_array().unwrap().len(), 1, "{table}");
        let changed = supabase.ask_as_service("PATCH", &path, Some(&change)).await;
        assert_eq!(changed.status, 200, "{table}: {changed:?}");
    }
    for (table, row) in bob.new_rows().into_iter().skip(1) {
        let answer = supabase.ask_as_service("POST", table, Some(&row)).await;
        assert_eq!(answer.status, 201, "{table}: {answer:?}");
    }

    // A chat takes its messages along, a user everything.
    let path = format!("chat_sessions?id=eq.{}", ann.chat);
    let gone = supabase
        .ask(Some(&ann.token), "DELETE", &path, None)
        .await
        .ok();
    assert_eq!(gone.as_array().unwrap().len(), 1);
    let left = format!(
        "SELECT count(*) FROM chat_messages WHERE session_id = '{}'",
        ann.chat
    );
    assert_eq!(supabase.sql(&left), "0");
    supabase.sql(&format!("DELETE FROM auth.users WHERE id = '{}'", bob.id));
    assert!(
        !all(&supabase).contains(&bob.id),
        "rows of a user who is gone are left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migrations_run_again_without_harm() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    owner(&supabase, "ann").await;
    let schema = "SELECT string_agg(t, ',' ORDER BY t) FROM (
            SELECT table_name || '.' || column_name || ' ' || data_type AS t
                FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL SELECT tablename || ' ' || policyname || ' ' || cmd || roles::text
                || coalesce(qual, '') || coalesce(with_check, '') FROM pg_policies
            UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT grantee || privilege_type || table_name
                FROM information_schema.role_table_grants WHERE table_schema = 'public'
            UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
            UNION ALL SELECT relname || relrowsecurity || relforcerowsecurity FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            UNION ALL SELECT proname || proacl::text || prosecdef || proconfig::text FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace) AS parts";
    let (rows, before) = (all(&supabase), supabase.sql(schema));
    assert!(before.contains("chat_messages_of_chat"), "{before}");
    supabase.migrate();
    assert_eq!(supabase.sql(schema), before);
    assert_eq!(all(&supabase), rows);

    // Row-level security is on for every table, and the foreign keys are indexed.
    let open = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind = 'r' AND NOT relrowsecurity";
    assert_eq!(supabase.sql(open), "0");
    let unindexed = "SELECT conrelid::regclass || ' ' || conname FROM pg_constraint c
        WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND NOT EXISTS (
            SELECT 1 FROM pg_index WHERE indrelid = c.conrelid AND indkey[0] = c.conkey[1])";
    assert_eq!(supabase.sql(unindexed), "");
    // Every function's search path is pinned.
    let loose = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        AND NOT coalesce(proconfig::text LIKE '%search_path=%', false)";
    assert_eq!(supabase.sql(loose), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_signs_up_has_a_row_with_what_their_provider_says() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let shown = |id: &str| {
        let columns = "coalesce(email, '-'), coalesce(name, '-'), coalesce(avatar_url, '-')";
        supabase.sql(&format!("SELECT {columns} FROM users WHERE id = '{id}'"))
    };
    let first = "00000000-0000-4000-8000-000000000001";
    assert_eq!(
        shown(first),
        "first@example.org|The First|https://example.org/first.png",
        "who was there before the migrations"
    );
    for (meta, expected) in [
        (
            r#"{"full_name": "F", "name": "N", "avatar_url": "a", "picture": "p"}"#,
            "-|F|a",
        ),
        (r#"{"name": "N", "picture": "p"}"#, "-|N|p"),
        ("{}", "-|-|-"),
        // Nothing that a provider sends may keep somebody from signing up.
        ("[]", "-|-|-"),
        (r#"{"full_name": {"a": 1}}"#, r#"-|{"a": 1}|-"#),
    ] {
        let id = Uuid::new_v4().to_string();
        supabase.sql(&format!(
            "SET ROLE supabase_auth_admin; INSERT INTO auth.users VALUES ('{id}', NULL, '{meta}')"
        ));
        assert_eq!(shown(&id), expected, "{meta}");
    }
    let twice = Uuid::new_v4();
    supabase.sql(&format!(
        "ALTER TABLE public.users DROP CONSTRAINT users_id_fkey;
         INSERT INTO public.users (id, name) VALUES ('{twice}', 'Kept');
         INSERT INTO auth.users VALUES ('{twice}', NULL, '{{}}')"
    ));
    assert_eq!(shown(&twice.to_string()), "-|Kept|-");
}
