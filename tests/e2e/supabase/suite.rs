//! One suite that every store of records passes: the local database, and Supabase by a user's token
//! and by the service key.

use chrono::{DateTime, Duration, Utc};
use uuid::Uuid;

use lucid_store::{
    Chat, ChatMessage, ChatProgress, ChatStore, Integrations, NewIntegration, Principal,
    SqliteChatStore, Store, Supabase as Project, SupabaseChatStore, SupabaseSettings,
};
use lucid_tests::{TestSupabase, anon_key, eventually, service_key, token};
use lucid_types::identity::Identity;
use lucid_types::log::UsageTotals;
use lucid_types::secret::Secret;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_771_410_600, 0).unwrap() + Duration::seconds(seconds)
}

fn new_chat(title: &str) -> Chat {
    Chat {
        id: Uuid::now_v7().to_string(),
        agent_session_id: Some(Uuid::new_v4().to_string()),
        project_id: Some("p".to_owned()),
        title: title.to_owned(),
        model_provider: Some("openai".to_owned()),
        is_active: true,
        totals: UsageTotals::default(),
        created_at: at(0),
        updated_at: at(0),
    }
}

fn line(number: i64, content: &str) -> ChatMessage {
    ChatMessage {
        id: Uuid::now_v7().to_string(),
        role: "assistant".to_owned(),
        content: content.to_owned(),
        event_type: Some("CmdRunAction".to_owned()),
        metadata_json: Some(r#"{"command": "ls"}"#.to_owned()),
        created_at: at(number),
    }
}

fn used(calls: u64) -> UsageTotals {
    UsageTotals {
        calls,
        input_tokens: 2,
        output_tokens: 3,
        cache_read_tokens: 4,
        cache_write_tokens: 5,
        cost: 6,
    }
}

/// What every store of records does, for two users of it.
async fn suite(records: &dyn ChatStore, ann: &Principal, bob: &Principal) {
    // Made once, however often it is said.
    let chat = new_chat("First");
    for _ in 0..2 {
        records.create(ann, chat.clone()).await.unwrap();
    }
    let listed = records.list(ann, 50, 0).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        records.find(ann, &chat.id).await.unwrap().as_ref(),
        Some(&listed[0])
    );
    let expected = Chat {
        updated_at: listed[0].updated_at,
        ..chat.clone()
    };
    assert_eq!(listed[0], expected);

    // Messages come back as they went, in the order written, once each.
    let content = "ü\u{1F980} \"quoted\" {json} 'sql'; -- \\ \n end";
    let lines: Vec<_> = (0..45)
        .map(|n| line(n, &format!("{n} {content}")))
        .collect();
    for batch in [
        &lines[..20],
        &lines[..20],
        &lines[10..40],
        &lines[40..],
        &[],
    ] {
        assert!(records.append(ann, &chat.id, batch.to_vec()).await.unwrap());
    }
    let read = records.messages(ann, &chat.id).await.unwrap();
    assert_eq!(read.len(), lines.len());
    for (read, written) in read.iter().zip(&lines) {
        let json = |message: &ChatMessage| -> serde_json::Value {
            serde_json::from_str(message.metadata_json.as_deref().unwrap()).unwrap()
        };
        assert_eq!(json(read), json(written));
        let read = ChatMessage {
            metadata_json: written.metadata_json.clone(),
            ..read.clone()
        };
        assert_eq!(&read, written);
    }
    let bare = ChatMessage {
        event_type: None,
        metadata_json: None,
        ..line(50, "")
    };
    assert!(
        records
            .append(ann, &chat.id, vec![bare.clone()])
            .await
            .unwrap()
    );
    assert_eq!(
        records.messages(ann, &chat.id).await.unwrap().last(),
        Some(&bare)
    );

    // Another user's chat is not there, for no verb.
    assert!(records.list(bob, 50, 0).await.unwrap().is_empty());
    assert!(records.find(bob, &chat.id).await.unwrap().is_none());
    assert!(records.messages(bob, &chat.id).await.unwrap().is_empty());
    assert!(
        records
            .rename(bob, &chat.id, "Mine")
            .await
            .unwrap()
            .is_none()
    );
    assert!(!records.delete(bob, &chat.id).await.unwrap());
    assert!(
        !records
            .append(bob, &chat.id, vec![line(60, "I was here")])
            .await
            .unwrap()
    );
    assert!(!records.append(bob, &chat.id, Vec::new()).await.unwrap());
    let over = ChatProgress {
        is_active: false,
        totals: used(1),
    };
    assert!(!records.update_progress(bob, &chat.id, over).await.unwrap());
    // Neither is it taken over by making it anew.
    records
        .create(
            bob,
            Chat {
                title: "Mine".to_owned(),
                ..chat.clone()
            },
        )
        .await
        .unwrap();
    assert!(records.find(bob, &chat.id).await.unwrap().is_none());
    let kept = records.find(ann, &chat.id).await.unwrap().unwrap();
    assert_eq!((kept.title.as_str(), kept.is_active), ("First", true));
    assert_eq!(records.messages(ann, &chat.id).await.unwrap().len(), 46);

    // What is in no store, and what is no id.
    for none in [
        Uuid::new_v4().to_string(),
        "x".to_owned(),
        "id=eq.1&or=(true)".to_owned(),
    ] {
        assert!(records.find(ann, &none).await.unwrap().is_none());
        assert!(records.messages(ann, &none).await.unwrap().is_empty());
        assert!(records.rename(ann, &none, "t").await.unwrap().is_none());
        assert!(!records.delete(ann, &none).await.unwrap());
        assert!(!records.update_progress(ann, &none, over).await.unwrap());
        assert!(
            !records
                .append(ann, &none, vec![line(1, "a")])
                .await
                .unwrap()
        );
    }

    // Progress, and a title of 255 characters at the most.
    assert!(records.update_progress(ann, &chat.id, over).await.unwrap());
    let noted = records.find(ann, &chat.id).await.unwrap().unwrap();
    assert_eq!((noted.is_active, noted.totals), (false, used(1)));
    assert!(noted.updated_at >= kept.updated_at);
    let long = "ß".repeat(300);
    let title = records.rename(ann, &chat.id, &long).await.unwrap().unwrap();
    assert_eq!(title.chars().count(), 255);
    assert_eq!(
        records.find(ann, &chat.id).await.unwrap().unwrap().title,
        title
    );

    // The last changed first, in pages.
    let mut chats = vec![chat.id.clone()];
    for number in 0..4 {
        let more = new_chat(&format!("More {number}"));
        records.create(ann, more.clone()).await.unwrap();
        // Each is changed after the one before.
        records
            .rename(ann, &more.id, "Changed")
            .await
            .unwrap()
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        chats.push(more.id);
    }
    records
        .rename(ann, &chat.id, "Changed last")
        .await
        .unwrap()
        .unwrap();
    chats.rotate_left(1);
    chats.reverse();
    let ids = async |limit, offset| -> Vec<String> {
        let page = records.list(ann, limit, offset).await.unwrap();
        page.into_iter().map(|chat| chat.id).collect()
    };
    assert_eq!(ids(50, 0).await, chats);
    assert_eq!(ids(2, 1).await, chats[1..3]);
    assert_eq!(ids(2, 4).await, chats[4..]);
    assert!(ids(2, 400).await.is_empty());

    // A chat takes its messages along, and takes none any more.
    assert!(records.delete(ann, &chat.id).await.unwrap());
    assert!(!records.delete(ann, &chat.id).await.unwrap());
    assert!(records.messages(ann, &chat.id).await.unwrap().is_empty());
    assert!(
        !records
            .append(ann, &chat.id, vec![line(70, "late")])
            .await
            .unwrap()
    );
    for id in &chats[1..] {
        assert!(records.delete(ann, id).await.unwrap());
    }
    assert!(records.list(ann, 50, 0).await.unwrap().is_empty());
}

fn who(caller: &Principal) -> Identity {
    let token = match caller {
        Principal::User { token, .. } => Some(token.clone()),
        Principal::Service { .. } => None,
    };
    Identity {
        user: caller.user().clone(),
        token,
        project: None,
        session: None,
        admin: false,
    }
}

fn account(provider: &str, token: &str) -> NewIntegration {
    NewIntegration {
        provider: provider.to_owned(),
        label: "An account".to_owned(),
        access_token_encrypted: token.to_owned(),
        iv: "00".to_owned(),
        external_username: "octocat".to_owned(),
        scopes: "repo||https://git.example.org".to_owned(),
        mac: format!("mac of {token}"),
        mac_required: false,
    }
}

/// What every store of git accounts does, for two users of it.
async fn accounts(kept: &dyn Integrations, ann: &Principal, bob: &Principal) {
    let (ann, bob) = (&who(ann), &who(bob));
    for token in ["aa", "bb"] {
        kept.put(ann, account("GITHUB", token)).await.unwrap();
    }
    kept.put(ann, account("GITLAB", "cc")).await.unwrap();
    let listed = kept.list(ann).await.unwrap();
    let short: Vec<_> = listed
        .iter()
        .map(|row| (row.provider.as_str(), row.access_token_encrypted.as_str()))
        .collect();
    assert_eq!(short, [("GITHUB", "bb"), ("GITLAB", "cc")]);
    let found = kept.get(ann, "GITLAB").await.unwrap().unwrap();
    assert_eq!(found, listed[1]);
    assert_eq!(
        found.scopes.as_deref(),
        Some("repo||https://git.example.org")
    );
    assert_eq!(found.mac.as_deref(), Some("mac of cc"));
    // Another user's account is not there, and a filter is no place to say more.
    assert!(kept.list(bob).await.unwrap().is_empty());
    assert!(kept.get(bob, "GITHUB").await.unwrap().is_none());
    assert!(!kept.delete(bob, "GITHUB").await.unwrap());
    assert!(
        !kept
            .delete(ann, "GITHUB&user_id=not.is.null")
            .await
            .unwrap()
    );
    kept.put(bob, account("GITHUB", "dd")).await.unwrap();
    assert!(kept.delete(ann, "GITHUB").await.unwrap());
    assert!(!kept.delete(ann, "GITHUB").await.unwrap());
    assert_eq!(
        kept.list(bob).await.unwrap()[0].access_token_encrypted,
        "dd"
    );
    assert!(kept.delete(ann, "GITLAB").await.unwrap());
    assert!(kept.delete(bob, "GITHUB").await.unwrap());
}

/// A client for the project, with the service key.
fn records(supabase: &TestSupabase) -> SupabaseChatStore {
    let settings = SupabaseSettings {
        url: supabase.url().parse().unwrap(),
        anon_key: Secret::new(anon_key()),
        service_key: Some(Secret::new(service_key())),
    };
    SupabaseChatStore::new(Project::new(&settings).unwrap())
}

fn by_token(user: &str) -> Principal {
    Principal::User {
        id: user.into(),
        token: Secret::new(token(user)),
    }
}

#[tokio::test]
async fn the_local_database_keeps_chats() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    accounts(
        &store,
        &Principal::service("ann"),
        &Principal::service("bob"),
    )
    .await;
    let records = SqliteChatStore::new(store);
    suite(
        &records,
        &Principal::service("ann"),
        &Principal::service("bob"),
    )
    .await;
    // A token changes nothing here.
    suite(&records, &by_token("ann"), &by_token("bob")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn supabase_keeps_chats_by_users_tokens_and_by_the_service_key() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let records = records(&supabase);
    let (ann, bob) = (supabase.sign_up("ann"), supabase.sign_up("bob"));
    suite(&records, &by_token(&ann), &by_token(&bob)).await;
    accounts(&records, &by_token(&ann), &by_token(&bob)).await;
    let by_token_alone = supabase.passed().len();
    suite(
        &records,
        &Principal::service(ann.as_str()),
        &Principal::service(bob.as_str()),
    )
    .await;
    suite(&records, &by_token(&ann), &Principal::service(bob.as_str())).await;

    accounts(
        &records,
        &Principal::service(ann.as_str()),
        &Principal::service(bob.as_str()),
    )
    .await;

    // A key goes with its own kind of token, and a user's token with nobody else's rows.
    for (number, passed) in supabase.passed().into_iter().enumerate() {
        match (passed.key, passed.role.as_str(), &passed.user) {
            ("anon", "authenticated", Some(user)) => {
                let other = if *user == ann { &bob } else { &ann };
                let named = passed.path.contains(other) || passed.body.contains(other);
                assert!(
                    !named,
                    "the token of {user} with a row of {other}: {passed:?}"
                );
            }
            ("service", "service_role", None) => {
                assert!(
                    number >= by_token_alone,
                    "the service key for a user with a token"
                );
                // Filtered by hand: by the user's id, or the row of a chat that was looked for so.
                let filtered = passed.path.contains("user_id=eq.")
                    || passed.body.contains("user_id")
                    || (passed.method == "POST" && passed.path.starts_with("chat_messages"));
                assert!(filtered, "nothing says whose: {passed:?}");
            }
            _ => panic!("a key and a token that do not belong together: {passed:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_without_the_column_of_the_codes_still_keeps_accounts() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let records = records(&supabase);
    let kept: &dyn Integrations = &records;
    let ann = who(&by_token(&supabase.sign_up("ann")));
    supabase.sql("ALTER TABLE integrations DROP COLUMN lucid_mac; NOTIFY pgrst, 'reload schema'");
    kept.put(&ann, account("GITHUB", "aa")).await.unwrap();
    let row = kept.get(&ann, "GITHUB").await.unwrap().unwrap();
    assert_eq!((row.access_token_encrypted.as_str(), row.mac), ("aa", None));
    assert_eq!(kept.list(&ann).await.unwrap().len(), 1);
    // One that would be of no use is not kept, and the sentence says what is missing.
    let needed = NewIntegration {
        mac_required: true,
        ..account("GITLAB", "bb")
    };
    let refused = kept.put(&ann, needed.clone()).await.unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("the column integrations.lucid_mac: its migrations"),
        "{refused}"
    );
    assert!(kept.get(&ann, "GITLAB").await.unwrap().is_none());

    // Once the migration ran, also while this host does.
    supabase.migrate();
    eventually("PostgREST to read the schema again", async || {
        kept.put(&ann, needed.clone()).await.ok()
    })
    .await;
    let row = kept.get(&ann, "GITLAB").await.unwrap().unwrap();
    assert_eq!(row.mac.as_deref(), Some("mac of bb"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_supabase_cannot_hold_or_do_is_a_sentence() {
    let Some(mut supabase) = TestSupabase::start().await else {
        return;
    };
    let client = records(&supabase);
    let records: &dyn ChatStore = &client;
    let ann = by_token(&supabase.sign_up("ann"));
    let chat = new_chat("With a \0 in it");
    records.create(&ann, chat.clone()).await.unwrap();

    // Programs print NULs, and policies give metadata of their own making.
    let odd = ChatMessage {
        metadata_json: Some(r#"{"out\u0000": ["\u0000"], "half": 1}"#.to_owned()),
        ..line(1, "a\0b")
    };
    let broken = ChatMessage {
        metadata_json: Some(r#"{"half": "\ud800"}"#.to_owned()),
        ..line(2, "c")
    };
    assert!(
        records
            .append(&ann, &chat.id, vec![odd, broken])
            .await
            .unwrap()
    );
    let read = records.messages(&ann, &chat.id).await.unwrap();
    assert_eq!(read[0].content, "a\u{FFFD}b");
    assert!(read[0].metadata_json.as_ref().unwrap().contains("half"));
    assert_eq!(
        (read[1].content.as_str(), &read[1].metadata_json),
        ("c", &None)
    );

    // More messages than the project gives at once, all of one moment.
    let many: Vec<_> = (0..2100).map(|n| line(10, &n.to_string())).collect();
    for batch in many.chunks(700) {
        assert!(
            records
                .append(&ann, &chat.id, batch.to_vec())
                .await
                .unwrap()
        );
    }
    let read = records.messages(&ann, &chat.id).await.unwrap();
    let numbers: Vec<_> = read[2..].iter().map(|line| line.content.clone()).collect();
    let expected: Vec<_> = (0..2100).map(|n| n.to_string()).collect();
    assert_eq!(numbers, expected);

    // Callers who may not.
    let refusal =
        async |caller: &Principal| records.list(caller, 1, 0).await.unwrap_err().to_string();
    let expired = Principal::User {
        id: ann.user().clone(),
        token: Secret::new(lucid_tests::expired_token(ann.user().as_str())),
    };
    assert_eq!(
        refusal(&expired).await,
        "the token is invalid or has expired"
    );
    let garbage = Principal::User {
        id: ann.user().clone(),
        token: Secret::new("no\r\nheader: value"),
    };
    assert_eq!(
        refusal(&garbage).await,
        "the token is invalid or has expired"
    );
    let stranger = by_token(&Uuid::new_v4().to_string());
    let refused = records.create(&stranger, new_chat("t")).await.unwrap_err();
    assert_eq!(refused.to_string(), "the record of chats did not take this");
    let local = Principal::service("no-uuid");
    assert!(records.list(&local, 1, 0).await.unwrap().is_empty());

    // A database of another version, and one that is not there.
    supabase
        .sql("ALTER TABLE chat_sessions DROP COLUMN model_calls; NOTIFY pgrst, 'reload schema'");
    let said = refusal(&ann).await;
    assert!(said.contains("migrations/supabase"), "{said}");
    supabase.migrate();
    supabase.stop_postgres();
    let said = refusal(&ann).await;
    assert!(said.contains("cannot be reached"), "{said}");
    supabase.stop_rest();
    assert_eq!(refusal(&ann).await, said);
}
