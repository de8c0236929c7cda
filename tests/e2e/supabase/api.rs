//! The running host with Supabase behind it: what two users and a server see of chats, and what the
//! frontend's own database then holds.

use serde_json::{Value, json};
use uuid::Uuid;

use lucid_tests::{
    GitApi, GitServer, Host, JWT_SECRET, Model, Socket, TestSupabase, anon_key, call, command,
    eventually, expired_token, repository, service_key, text_of, token, token_for,
};

const INTERNAL: &str = "internal-key-of-the-tests";

/// A session of a user that has played its script: its id, and its chat's.
async fn played(host: &Host, user: &str, task: &str) -> (Socket, String, String) {
    let mut socket = Socket::open(host, user, json!({"task": task})).await;
    let session = socket.session().await;
    socket.completed().await;
    let chats = host.get(user, "/api/v1/chats").await.ok();
    let mut all = chats["chats"].as_array().unwrap().iter();
    let chat = all.find(|chat| chat["agentSessionId"] == session.as_str());
    let chat = chat.unwrap_or_else(|| panic!("no chat of {session} at once: {chats}"));
    let chat = chat["id"].as_str().unwrap().to_owned();
    (socket, session, chat)
}

/// The lines of a chat as the database has them.
fn lines(supabase: &TestSupabase, chat: &str) -> Vec<String> {
    let rows = supabase.sql(&format!(
        "SELECT role || ' ' || event_type || ' ' || replace(content, E'\\n', ' ') FROM chat_messages
         WHERE session_id = '{chat}' ORDER BY created_at, id"
    ));
    rows.lines().map(str::to_owned).collect()
}

fn bearer(token: &str) -> [(&'static str, String); 1] {
    [("authorization", format!("Bearer {token}"))]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_says_is_in_supabase_for_its_user_alone() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let host = supabase
        .host_with_service(INTERNAL)
        .set("SANDBOX_BACKEND", "none")
        .start();
    let (ann, bob) = (supabase.sign_up("ann"), supabase.sign_up("bob"));
    assert_eq!(
        host.send("GET", "/", &[], None).await.ok()["store"],
        "supabase"
    );

    let (mut socket, session, chat) = played(&host, &ann, "Say hello").await;
    let path = format!("/api/v1/chats/{chat}");
    let whole = host.get(&ann, &path).await.ok();
    assert_eq!(
        (
            &whole["title"],
            &whole["isActive"],
            &whole["agentSessionId"]
        ),
        (&json!("Say hello"), &json!(true), &json!(session))
    );
    let messages = whole["messages"].as_array().unwrap();
    let kinds: Vec<&str> = messages
        .iter()
        .map(|line| line["eventType"].as_str().unwrap())
        .collect();
    assert_eq!(
        (kinds[0], kinds[1], kinds[2]),
        ("InitialTask", "ThinkAction", "CmdRunAction")
    );
    assert_eq!(
        messages[2]["metadataJson"]["command"],
        "mkdir -p /workspace && cd /workspace"
    );
    // The frontend reads the same rows itself.
    let rows = format!("chat_messages?session_id=eq.{chat}&order=created_at");
    let own = supabase
        .ask(Some(&token(&ann)), "GET", &rows, None)
        .await
        .ok();
    let own: Vec<&Value> = own
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["id"])
        .collect();
    assert_eq!(
        own,
        messages.iter().map(|line| &line["id"]).collect::<Vec<_>>()
    );

    // Bob, by his token and by a server that acts for him.
    let for_bob = [("x-user-id", bob.as_str()), ("x-internal-key", INTERNAL)];
    let body = || Some(json!({"title": "Mine"}).to_string());
    for (method, body) in [("GET", None), ("PATCH", body()), ("DELETE", None)] {
        let by_token = bearer(&token(&bob));
        let by_token = by_token
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        for headers in [&by_token[..], &for_bob[..]] {
            let answer = host.send(method, &path, headers, body.clone()).await;
            answer.refused(404, "Chat not found");
        }
    }
    let listed = host.send("GET", "/api/v1/chats", &for_bob, None).await.ok();
    assert_eq!(listed, json!({"chats": []}));
    // And for Ann, who has the chat.
    let for_ann = [("x-user-id", ann.as_str()), ("x-internal-key", INTERNAL)];
    let read = host.send("GET", &path, &for_ann, None).await.ok();
    assert_eq!(read["messages"], whole["messages"]);

    // Renamed here, and renamed by the frontend: one row.
    let renamed = host
        .call(&ann, "PATCH", &path, Some(&json!({"title": "Renamed"})))
        .await;
    assert_eq!(renamed.ok()["title"], "Renamed");
    let row = format!("chat_sessions?id=eq.{chat}");
    let change = json!({"title": "By the frontend"});
    supabase
        .ask(Some(&token(&ann)), "PATCH", &row, Some(&change))
        .await
        .ok();
    socket.say("More, please").await;
    socket.completed().await;
    let whole = host.get(&ann, &path).await.ok();
    assert_eq!(whole["title"], "By the frontend");
    let said = whole["messages"].as_array().unwrap().iter();
    assert!(
        said.into_iter()
            .any(|line| line["eventType"] == "FollowUp" && line["content"] == "More, please")
    );

    // Over: the chat says so, and nothing of it stays behind in the local database.
    socket.send(json!({"type": "stop", "content": ""})).await;
    eventually("the chat to be over", async || {
        let chat = host.get(&ann, &path).await.ok();
        (chat["isActive"] == false).then_some(())
    })
    .await;
    let local = || {
        let file = host.folder().join("storage/.lucid/data");
        let database = lucid_store::open_read_only(&file).unwrap();
        let count = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM chat_messages)
            + (SELECT count(*) FROM chat_sessions)";
        database
            .query_row(count, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    eventually("the local rows to go", async || {
        (local() == 0).then_some(())
    })
    .await;

    host.delete(&ann, &path).await.ok();
    host.get(&ann, &path).await.refused(404, "Chat not found");
    assert_eq!(supabase.sql("SELECT count(*) FROM chat_messages"), "0");

    // Everything that went for Ann by her own token went so; the service key was for servers.
    let passed = supabase.passed();
    assert!(
        passed
            .iter()
            .all(|passed| passed.key == "service" || passed.user.is_some())
    );
    let writes = passed.iter().filter(|passed| passed.method == "POST");
    assert!(
        writes
            .into_iter()
            .all(|passed| passed.user.as_ref() == Some(&ann))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_wait_for_their_user_where_there_is_no_service_key() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let host = supabase
        .host()
        .set("INTERNAL_API_KEY", INTERNAL)
        .set("SANDBOX_BACKEND", "none")
        .start();
    let ann = supabase.sign_up("ann");

    // It was good when the session began; it is not good for long enough to be sent with.
    let short = token_for(&ann, 4);
    let mut socket = Socket::open_by(&host, &short, json!({"task": "Wait for me"})).await;
    let session = socket.session().await;
    socket.completed().await;
    // A server that acts for her cannot help, and says why.
    let for_ann = [("x-user-id", ann.as_str()), ("x-internal-key", INTERNAL)];
    let refused = host
        .send("GET", "/api/v1/chats", &for_ann, None)
        .await
        .problem(503);
    assert!(refused.contains("SUPABASE_SERVICE_KEY"), "{refused}");
    let old = expired_token(&ann);
    let old = bearer(&old);
    let old = old.each_ref().map(|(name, value)| (*name, value.as_str()));
    host.send("GET", "/api/v1/chats", &old, None)
        .await
        .refused(401, "Invalid token");
    assert_eq!(
        supabase.sql("SELECT count(*) FROM chat_sessions"),
        "0",
        "by which token?"
    );

    // Her next request of any kind brings a token that is.
    host.get(&ann, "/api/v1/sessions").await.ok();
    let count = format!("SELECT count(*) FROM chat_sessions WHERE agent_session_id = '{session}'");
    eventually("the rows to be sent", async || {
        (supabase.sql(&count) == "1").then_some(())
    })
    .await;
    let chat = supabase.sql("SELECT id FROM chat_sessions");
    let whole = host.get(&ann, &format!("/api/v1/chats/{chat}")).await.ok();
    assert_eq!(whole["messages"][0]["content"], "Wait for me");
    assert!(supabase.passed().iter().all(|passed| passed.key == "anon"));

    // A user whom the project does not know has sessions all the same.
    let stranger = Uuid::new_v4().to_string();
    let mut socket = Socket::open(&host, &stranger, json!({"task": "Who am I?"})).await;
    socket.completed().await;
    assert_eq!(
        host.get(&stranger, "/api/v1/chats").await.ok(),
        json!({"chats": []})
    );
    eventually("the log to say so", async || {
        host.log().contains("does not take a chat").then_some(())
    })
    .await;
    assert!(
        !host.log().contains(&token(&stranger)),
        "a token is in the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_doubles_nothing_and_a_deleted_chat_stays_deleted() {
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let host = supabase.host().set("SANDBOX_BACKEND", "none").start();
    let ann = supabase.sign_up("ann");
    // The chat is made, its first messages are added, and the host hears of neither.
    supabase.lose_answers(3);
    let mut socket = Socket::open(&host, &ann, json!({"task": "Once"})).await;
    socket.completed().await;
    for number in 0..30 {
        socket.say(&format!("Number {number}")).await;
        socket.completed().await;
    }
    let chat = eventually("the chat to be made", async || {
        let chat = supabase.sql("SELECT id FROM chat_sessions");
        (!chat.is_empty()).then_some(chat)
    })
    .await;
    let all = eventually("everything to be there", async || {
        let all = lines(&supabase, &chat);
        all.iter()
            .any(|line| line.starts_with("assistant MockResponse") && line.contains("Number 29"))
            .then_some(all)
    })
    .await;
    let said: Vec<&String> = all.iter().filter(|line| line.starts_with("user")).collect();
    let expected: Vec<String> = (0..30)
        .map(|number| format!("user FollowUp Number {number}"))
        .collect();
    assert_eq!(said[0], "user InitialTask Once");
    assert!(
        said[1..]
            .iter()
            .zip(&expected)
            .all(|(said, expected)| **said == *expected),
        "{said:#?}"
    );
    assert_eq!(said.len(), 31, "{said:#?}");
    let responses = all
        .iter()
        .filter(|line| line.contains("MockResponse"))
        .count();
    assert_eq!(responses, 30, "{all:#?}");
    let lost = supabase
        .passed()
        .into_iter()
        .filter(|passed| passed.method == "POST" && passed.status == 201);
    assert!(lost.count() >= 4, "no answer was lost");

    // The frontend deletes the chat while its session goes on: the host does not bring it back.
    let row = format!("chat_sessions?id=eq.{chat}");
    supabase
        .ask(Some(&token(&ann)), "DELETE", &row, None)
        .await
        .ok();
    socket.say("Anybody there?").await;
    socket.completed().await;
    host.get(&ann, &format!("/api/v1/chats/{chat}"))
        .await
        .refused(404, "Chat not found");
    assert_eq!(
        host.get(&ann, "/api/v1/chats").await.ok(),
        json!({"chats": []})
    );
    assert_eq!(supabase.sql("SELECT count(*) FROM chat_messages"), "0");
    assert_eq!(
        host.get(&ann, "/api/v1/sessions").await.ok()["sessions"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_whether_the_project_can_be_used() {
    let Some(mut supabase) = TestSupabase::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let doctor = |service: Option<String>| {
        let mut doctor = command(folder.path(), &["doctor"]);
        doctor
            .env("SANDBOX_BACKEND", "none")
            .env("SUPABASE_JWT_SECRET", JWT_SECRET)
            .env("SUPABASE_URL", supabase.url())
            .env("SUPABASE_ANON_KEY", anon_key());
        if let Some(key) = service {
            doctor.env("SUPABASE_SERVICE_KEY", key);
        }
        doctor
    };
    // It is asked by this process's gateway, so it must not be waited for by blocking all of it.
    let said = async |mut doctor: std::process::Command| {
        let output = tokio::task::spawn_blocking(move || doctor.output().unwrap());
        text_of(&output.await.unwrap().stdout)
    };
    let without = said(doctor(None)).await;
    assert!(
        without.contains(&format!("chats go to Supabase at {}", supabase.url())),
        "{without}"
    );
    assert!(
        without.contains("SUPABASE_SERVICE_KEY is not set"),
        "{without}"
    );
    let with = said(doctor(Some(service_key()))).await;
    assert!(with.contains("chats go to Supabase"), "{with}");
    assert!(!with.contains("The operator"), "{with}");
    let wrong = said(doctor(Some(anon_key()))).await;
    assert!(
        wrong.contains("The operator sets SUPABASE_SERVICE_KEY"),
        "{wrong}"
    );

    supabase.sql("ALTER TABLE chat_sessions DROP COLUMN cost; NOTIFY pgrst, 'reload schema'");
    let doctor_without = || doctor(None);
    eventually("the missing column to be noticed", async || {
        said(doctor_without())
            .await
            .contains("migrations/supabase")
            .then_some(())
    })
    .await;
    let gone = doctor(None);
    supabase.stop_rest();
    let gone = said(gone).await;
    assert!(
        gone.contains("cannot be reached") && !gone.contains(&anon_key()),
        "{gone}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_opened_with_the_users_account_also_where_there_is_no_service_key() {
    const TOKEN: &str = "ghp_supabase0123456789abcdefghij";
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let (git, api) = (GitServer::start().await, GitApi::start(TOKEN).await);
    let source = repository(&[("a.txt", "a\n")]);
    let url = git.publish("team/own", source.path());
    let model = Model::start(|number, _| match number {
        0 => {
            let command = "git switch -q -c lucid/fix && echo b > b.txt && git add b.txt \
                && git commit -q -m b && git push -q -u origin lucid/fix";
            call("terminal", json!({ "command": command }))
        }
        _ => call("finish", json!({ "message": "It is pushed." })),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("lucid.toml");
    let text = format!(
        "[git.github]\ncomponent = \"builtin:github\"\nweb_url = \"{}\"\nbase_url = \"{}\"\n",
        git.url, api.url
    );
    std::fs::write(&manifest, text).unwrap();
    let host = supabase
        .host()
        .set("LUCID_MANIFEST", manifest.to_str().unwrap())
        .set("LLM_API_KEY", "sk-the-tests-own-key-0123456789")
        .set("LLM_BASE_URL", &model.url)
        .set("ALLOW_PRIVATE_REPOSITORIES", "true")
        .set("SANDBOX_NETWORK", "none")
        .start();
    let ann = supabase.sign_up("ann");
    let account = json!({"provider": "github", "token": TOKEN});
    host.post(&ann, "/api/v1/integrations", account).await.ok();
    // The session has no git token: the account's is in Supabase, where only Ann's own token leads.
    let first = json!({"task": "Make b", "repoUrl": url, "openChange": "ready", "modelProvider": "openai",
        "gitUserName": "An Agent", "gitUserEmail": "agent@example.com"});
    let mut socket = Socket::open(&host, &ann, first).await;
    let frames = socket
        .until("what became of the change", |frame| {
            frame["eventType"] == "ChangeMessage" || frame["eventType"] == "AgentErrorObservation"
        })
        .await;
    let told = frames.last().unwrap();
    assert_eq!(told["url"], "https://git.example/team/own/pull/1", "{told}");
    assert_eq!(api.pulls().len(), 1);
    assert!(supabase.passed().iter().all(|passed| passed.key == "anon"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_row_is_told_so_when_an_account_is_connected() {
    const TOKEN: &str = "ghp_supabase0123456789abcdefghij";
    let Some(supabase) = TestSupabase::start().await else {
        return;
    };
    let api = GitApi::start(TOKEN).await;
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("lucid.toml");
    let text = format!(
        "[git.github]\ncomponent = \"builtin:github\"\nweb_url = \"{0}\"\nbase_url = \"{0}\"\n",
        api.url
    );
    std::fs::write(&manifest, text).unwrap();
    let host = supabase
        .host()
        .set("LUCID_MANIFEST", manifest.to_str().unwrap())
        .start();
    let ann = supabase.sign_up("ann");
    supabase.sql(&format!("DELETE FROM public.users WHERE id = '{ann}'"));
    let account = json!({"provider": "github", "token": TOKEN});
    let refused = host.post(&ann, "/api/v1/integrations", account).await;
    let detail = refused.problem(409);
    assert!(detail.contains("no row in its table `users`"), "{detail}");
}
