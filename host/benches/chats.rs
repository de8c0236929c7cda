//! What the record of chats costs in both stores: `cargo bench --bench chats`. The list of a user with
//! 10,000 chats and 1,000,000 messages, one chat read as a whole, and messages written one by one and
//! in batches. Supabase is a PostgreSQL on this machine behind PostgREST and a gateway; without
//! PostgreSQL its part is left out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

use std::time::{Duration, Instant};

use chrono::Utc;
use rusqlite::Connection;
use uuid::Uuid;

use lucid_store::{
    Chat, ChatMessage, ChatStore, Principal, SqliteChatStore, Store, Supabase as Project,
    SupabaseChatStore, SupabaseSettings,
};
use lucid_tests::{TestSupabase, anon_key, service_key, token};
use lucid_types::log::UsageTotals;
use lucid_types::secret::Secret;

const CHATS: u32 = 10_000;
const MESSAGES_OF_A_CHAT: u32 = 100;
/// Calls that are measured.
const CALLS: u32 = 200;
/// Messages that are written.
const WRITTEN: usize = 2_000;

fn show(store: &str, what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!(
        "{store:<24} {what:<40} p50 {:>9.2?}  p95 {:>9.2?}",
        at(50),
        at(95)
    );
}

async fn measure(store: &str, records: &dyn ChatStore, caller: &Principal) {
    let mut times = Vec::new();
    for call in 0..CALLS {
        let began = Instant::now();
        let page = records.list(caller, 50, call % 10 * 50).await.unwrap();
        times.push(began.elapsed());
        assert_eq!(page.len(), 50);
    }
    show(store, "list 50 of 10,000 chats", times);
    let last = records.list(caller, 1, CHATS - 1).await.unwrap().remove(0);
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        let messages = records.messages(caller, &last.id).await.unwrap();
        times.push(began.elapsed());
        assert_eq!(messages.len(), MESSAGES_OF_A_CHAT as usize);
    }
    show(store, "all 100 messages of one of them", times);

    for size in [1, 20] {
        let chat = Chat {
            id: Uuid::now_v7().to_string(),
            agent_session_id: None,
            project_id: None,
            title: "Written".to_owned(),
            model_provider: None,
            is_active: true,
            totals: UsageTotals::default(),
            created_at: Utc::now(),
            updated_at: Utc::now(),
        };
        records.create(caller, chat.clone()).await.unwrap();
        let written = if size == 1 { WRITTEN / 4 } else { WRITTEN };
        let lines: Vec<ChatMessage> = (0..written)
            .map(|number| ChatMessage {
                id: Uuid::now_v7().to_string(),
                role: "assistant".to_owned(),
                content: format!("{number}: {}", "test result: ok. ".repeat(16)),
                event_type: Some("CmdOutputObservation".to_owned()),
                metadata_json: Some(r#"{"exitCode":0}"#.to_owned()),
                created_at: Utc::now(),
            })
            .collect();
        let began = Instant::now();
        for batch in lines.chunks(size) {
            assert!(
                records
                    .append(caller, &chat.id, batch.to_vec())
                    .await
                    .unwrap()
            );
        }
        let rate = written as f64 / began.elapsed().as_secs_f64();
        println!("{store:<24} messages written, {size:>2} at once {rate:>23.0} in a second");
    }
}

/// The user's chats in the local database.
fn fill_local(folder: &std::path::Path, user: &str) {
    drop(Store::open(folder).unwrap());
    let database = Connection::open(folder.join("lucid.db")).unwrap();
    database
        .execute_batch(&format!(
            "BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {CHATS} - 1)
             INSERT INTO chat_sessions (id, user_id, title, is_active, created_at, updated_at)
                 SELECT printf('00000000-0000-7000-8000-%012d', i), '{user}', 'Chat ' || i, 0, i, i FROM n;
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {MESSAGES_OF_A_CHAT} - 1)
             INSERT INTO chat_messages (id, session_id, role, content, event_type, created_at)
                 SELECT printf('%s-%d', c.id, i), c.id, 'assistant', 'test result: ok. 12 passed; 0 failed',
                     'CmdOutputObservation', i FROM n, chat_sessions c;
             COMMIT;"
        ))
        .unwrap();
}

/// The same in PostgreSQL, and as many chats of somebody else.
fn fill_supabase(supabase: &TestSupabase, user: &str) {
    let other = supabase.sign_up("other");
    for user in [user, &other] {
        supabase.sql(&format!(
            "INSERT INTO chat_sessions (user_id, title, updated_at)
                 SELECT '{user}', 'Chat ' || i, to_timestamp(i) FROM generate_series(1, {CHATS}) i;
             INSERT INTO chat_messages (session_id, role, content, event_type, created_at)
                 SELECT c.id, 'assistant', 'test result: ok. 12 passed; 0 failed', 'CmdOutputObservation',
                     to_timestamp(i) FROM generate_series(1, {MESSAGES_OF_A_CHAT}) i, chat_sessions c
                 WHERE c.user_id = '{user}'"
        ));
    }
    supabase.sql("ANALYZE");
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    fill_local(folder.path(), "ann");
    let local = SqliteChatStore::new(Store::open(folder.path()).unwrap());
    measure("local", &local, &Principal::service("ann")).await;

    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let ann = supabase.sign_up("ann");
    fill_supabase(&supabase, &ann);
    let settings = SupabaseSettings {
        url: supabase.url().parse().unwrap(),
        anon_key: Secret::new(anon_key()),
        service_key: Some(Secret::new(service_key())),
    };
    let records = SupabaseChatStore::new(Project::new(&settings).unwrap());
    let by_token = Principal::User {
        id: ann.as_str().into(),
        token: Secret::new(token(&ann)),
    };
    measure("Supabase, user's token", &records, &by_token).await;
    measure(
        "Supabase, service key",
        &records,
        &Principal::service(ann.as_str()),
    )
    .await;
}
