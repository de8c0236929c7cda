//! The store goes away under sessions that run: nothing is lost, doubled or out of order.

use futures::future::join_all;
use serde_json::{Value, json};

use lucid_tests::{Host, Socket, TestSupabase, eventually};

const SESSIONS: usize = 20;

/// A session, and what it showed.
struct Shown {
    user: String,
    id: String,
    socket: Socket,
    said: Vec<String>,
}

impl Shown {
    async fn open(host: &Host, user: &str, number: usize) -> Self {
        let task = format!("Task {number}");
        let mut socket = Socket::open(host, user, json!({"task": task, "projectId": task})).await;
        let id = socket.session().await;
        socket.completed().await;
        let said = vec![format!("user InitialTask {task}")];
        Self {
            user: user.to_owned(),
            id,
            socket,
            said,
        }
    }

    /// The user says something, and the session answers.
    async fn say(&mut self, text: &str) {
        self.socket.say(text).await;
        self.socket.completed().await;
        self.said.push(format!("user FollowUp {text}"));
    }

    /// The record that there must be: what the user said, and what the session showed, each in its
    /// order.
    fn expected(&self) -> (Vec<String>, Vec<String>) {
        let events = self.socket.frames.iter().filter(|frame| {
            frame["type"] == "agent_event"
                && frame["event"] != "task_start"
                && frame["event"] != "state"
                && frame["content"] != ""
        });
        let line = |frame: &Value| {
            let text = |name: &str| frame[name].as_str().unwrap_or_default().replace('\n', " ");
            format!("assistant {} {}", text("eventType"), text("content"))
        };
        (self.said.clone(), events.map(line).collect())
    }
}

/// The record that there is.
fn recorded(supabase: &TestSupabase, session: &str) -> (Vec<String>, Vec<String>) {
    let rows = supabase.sql(&format!(
        "SELECT role || ' ' || event_type || ' ' || replace(content, E'\\n', ' ') FROM chat_messages m
         JOIN chat_sessions c ON c.id = m.session_id WHERE c.agent_session_id = '{session}'
         ORDER BY m.created_at, m.id"
    ));
    rows.lines()
        .map(str::to_owned)
        .partition(|line| line.starts_with("user "))
}

async fn everybody_says(sessions: &mut [Shown], text: &str) {
    join_all(sessions.iter_mut().map(|session| session.say(text))).await;
}

async fn all_is_recorded(supabase: &TestSupabase, sessions: &[Shown]) {
    for session in sessions {
        let expected = session.expected();
        assert!(expected.1.len() > 5, "{expected:?}");
        let mut last = Default::default();
        let there = eventually("the record of a session", async || {
            last = recorded(supabase, &session.id);
            // More than expected never becomes right again.
            let done = last.0.len() >= expected.0.len() && last.1.len() >= expected.1.len();
            done.then(|| last.clone())
        })
        .await;
        assert_eq!(
            there, expected,
            "session {} of {}",
            session.id, session.user
        );
    }
    let times = "SELECT count(*) - count(DISTINCT (session_id, created_at)) FROM chat_messages";
    assert_eq!(
        supabase.sql(times),
        "0",
        "whoever orders by time alone cannot tell"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_out_of_order_when_postgrest_or_postgresql_goes_and_comes() {
    let Some(mut supabase) = TestSupabase::start().await else {
        return;
    };
    let mut host = supabase
        .host_with_service("internal-key-of-the-tests")
        .set("SANDBOX_BACKEND", "none")
        .start();
    let users = [supabase.sign_up("ann"), supabase.sign_up("bob")];
    let opened = (0..SESSIONS).map(|number| Shown::open(&host, &users[number % 2], number));
    let mut sessions = join_all(opened).await;

    supabase.stop_rest();
    everybody_says(&mut sessions, "Without PostgREST").await;
    // Sessions go on; their record says in a sentence that it is not there.
    let refused = host.get(&users[0], "/api/v1/chats").await.problem(503);
    assert!(refused.contains("cannot be reached"), "{refused}");
    supabase.start_rest().await;
    everybody_says(&mut sessions, "With it again").await;
    all_is_recorded(&supabase, &sessions).await;

    supabase.stop_postgres();
    everybody_says(&mut sessions, "Without PostgreSQL").await;
    let refused = host.get(&users[0], "/api/v1/chats").await.problem(503);
    assert!(refused.contains("cannot be reached"), "{refused}");
    supabase.start_postgres();
    everybody_says(&mut sessions, "With that too").await;
    all_is_recorded(&supabase, &sessions).await;

    // The host itself is killed while rows wait.
    supabase.stop_rest();
    everybody_says(&mut sessions, "Before the crash").await;
    host.crash();
    supabase.start_rest().await;
    host.start_again();
    all_is_recorded(&supabase, &sessions).await;
    assert_eq!(
        supabase.sql("SELECT count(*) FROM chat_sessions"),
        SESSIONS.to_string()
    );
    let log = host.log();
    assert!(
        log.contains("cannot be reached") && log.contains("reached again"),
        "{log}"
    );
}
