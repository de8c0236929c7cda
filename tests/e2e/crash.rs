//! SIGKILL at bad moments: what was written is there afterwards, what was in doubt is said to be lost,
//! and nothing happens twice.

use serde_json::{Value, json};

use lucid_tests::{
    Host, Model, ModelTurn, Socket, call, eventually, is_completed, kinds, process_with, seq,
    stop_within_a_guest,
};

/// Frames that a client got before and after a crash, put together.
fn check_dense(before: &[Value], after: &[Value]) {
    let numbers: Vec<u64> = before.iter().chain(after).filter_map(seq).collect();
    let dense = numbers.windows(2).all(|two| two[1] == two[0] + 1);
    assert!(
        dense,
        "before: {:?}\nafter: {:?}",
        before.iter().map(seq).collect::<Vec<_>>(),
        after.iter().map(seq).collect::<Vec<_>>()
    );
}

async fn listed(host: &Host, user: &str) -> Vec<String> {
    let sessions = host.get(user, "/api/v1/sessions").await.ok();
    let all = sessions["sessions"].as_array().unwrap();
    all.iter()
        .map(|session| session["sessionId"].as_str().unwrap().to_owned())
        .collect()
}

/// A command that was cut off fails the mock's task, which is an end too.
fn is_over(frame: &Value) -> bool {
    is_completed(frame) || frame["type"] == "error"
}

fn last_seq(socket: &Socket) -> u64 {
    socket
        .frames
        .iter()
        .filter_map(seq)
        .max()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_crash_cut_off_is_reported_lost_and_never_run_again() {
    // A number nobody else sleeps for: the process can be found by it.
    let marker = format!("300.{}", uuid::Uuid::new_v4().as_u128() % 1_000_000_007);
    let command = format!("echo ran >> effects.txt; sleep {marker}");
    let model = Model::start(move |number, _| match number {
        0 => call("terminal", json!({"command": command})),
        1 => call("finish", json!({"message": "It was cut off."})),
        _ => ModelTurn::Say("Done.".into()),
    })
    .await;
    let mut host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Run it", "modelProvider": "openai", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    socket
        .until("the command", |frame| frame["eventType"] == "CmdRunAction")
        .await;
    let read = format!("/api/v1/files/read?session_id={session}&path=effects.txt");
    eventually("the command's first effect", async || {
        let answer = host.get("alice", &read).await;
        (answer.body["content"] == "ran\n").then_some(())
    })
    .await;
    let seen = last_seq(&socket);
    host.crash();
    eventually("the command to die with its host", async || {
        process_with(&marker).is_none().then_some(())
    })
    .await;

    host.start_again();
    assert_eq!(listed(&host, "alice").await, [session.as_str()]);
    let again = json!({"sessionId": session, "lastSeq": seen, "features": ["seq"]});
    let mut back = Socket::open(&host, "alice", again).await;
    back.completed().await;
    check_dense(&socket.frames, &back.frames);
    assert_eq!(
        back.frames.iter().filter_map(seq).min(),
        Some(seen + 1),
        "{:#?}",
        back.frames
    );
    let runs = |frames: &[Value]| {
        kinds(frames)
            .iter()
            .filter(|kind| *kind == "action:CmdRunAction")
            .count()
    };
    assert_eq!(
        (runs(&socket.frames), runs(&back.frames)),
        (1, 0),
        "{:#?}",
        back.frames
    );

    // The model was told, in the place of the tool's result.
    let asked = model.completions();
    assert_eq!(asked.len(), 2);
    let told = asked[1].messages("tool");
    assert_eq!(told.len(), 1, "{told:?}");
    let said = told[0].to_lowercase();
    assert!(
        said.contains("lost") || said.contains("may or may not have happened"),
        "{told:?}"
    );
    assert_eq!(
        host.get("alice", &read).await.ok()["content"],
        "ran\n",
        "the command ran twice"
    );
    assert_eq!(process_with(&marker), None, "the command runs again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_goes_on_after_a_crash_in_the_middle_of_a_model_call() {
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Hang("I am thinking about ".into()),
        1 => call("terminal", json!({"command": "echo after the crash"})),
        _ => call("finish", json!({"message": "All done."})),
    })
    .await;
    let mut host = Host::with_defaults()
        .set("LLM_API_KEY", "sk-test")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Think long", "modelProvider": "openai", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    model.asked(1).await;
    socket
        .until("task_start", |frame| frame["event"] == "task_start")
        .await;
    let seen = last_seq(&socket);
    host.crash();
    host.start_again();

    assert_eq!(listed(&host, "alice").await, [session.as_str()]);
    // Nobody is connected: the task goes on by itself.
    model.asked(3).await;
    let again = json!({"sessionId": session, "lastSeq": seen, "features": ["seq"]});
    let mut back = Socket::open(&host, "alice", again).await;
    back.completed().await;
    check_dense(&socket.frames, &back.frames);
    let found = kinds(&back.frames);
    assert!(
        found
            .iter()
            .any(|kind| kind == "observation:CmdOutputObservation"),
        "{found:?}"
    );

    // The same from the start: a client that has nothing gets everything, once.
    let whole = json!({"sessionId": session, "lastSeq": 0, "features": ["seq"]});
    let mut whole = Socket::open(&host, "alice", whole).await;
    whole.completed().await;
    let of = |frames: &[Value]| -> Vec<Value> {
        frames
            .iter()
            .filter(|frame| seq(frame).is_some())
            .cloned()
            .collect()
    };
    let pieces = [of(&socket.frames), of(&back.frames)].concat();
    let all = of(&whole.frames);
    let from = pieces.first().and_then(seq).unwrap();
    let all: Vec<Value> = all
        .into_iter()
        .filter(|frame| seq(frame) >= Some(from))
        .collect();
    assert_eq!(all, pieces, "a replay differs from what was shown live");

    // And follow-ups work on the session that came back.
    back.say("One thing more").await;
    back.completed().await;
    assert!(model.completions().len() > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_step_a_crash_cut_off_reaches_the_policy_once() {
    // While its script waits, the mock keeps what is said in its state: a step reads and writes all of
    // that, quote by quote, and so takes some milliseconds.
    let mut host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("MOCK_STEP_DELAY_SECONDS", "0.5")
        .start();
    let first = json!({"task": "Listen to me", "features": ["seq"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    let mut said: Vec<String> = Vec::new();
    let is_scene = |frame: &Value| frame["type"] == "agent_event" && frame["event"] != "task_start";
    socket.until("a scene of the script", is_scene).await;
    loop {
        let text = format!("message {} {}", said.len(), "\"".repeat(400_000));
        socket.say(&text).await;
        // A ping is answered when what was said before it is written down.
        socket.send(json!({"type": "ping"})).await;
        said.push(text);
        // The next scene's step comes after that of the message.
        let next_scene = async || socket.next_now().is_some_and(|frame| is_scene(&frame));
        if stop_within_a_guest(host.pid(), next_scene).await {
            break;
        }
        assert!(
            !socket.frames.iter().any(is_over),
            "none of {} steps was seen",
            said.len()
        );
    }
    host.crash();
    // What was on its way when the process died.
    while socket.next().await.is_some() {}
    let seen = last_seq(&socket);
    assert!(!socket.frames.iter().any(is_over), "{:#?}", socket.frames);

    host.start_again();
    assert_eq!(listed(&host, "alice").await, [session.as_str()]);
    let again = json!({"sessionId": session, "lastSeq": seen, "features": ["seq"]});
    let mut back = Socket::open(&host, "alice", again).await;
    back.completed().await;
    check_dense(&socket.frames, &back.frames);
    assert_eq!(back.frames.iter().filter_map(seq).min(), Some(seen + 1));
    // The policy answers each message at the end of its script.
    let answers = |frames: &[Value]| -> Vec<String> {
        let answers = frames
            .iter()
            .filter(|frame| frame["eventType"] == "MockResponse");
        let content = answers.map(|frame| frame["content"].as_str().unwrap());
        content
            .map(|text| text.trim_end_matches(['"', '…']).trim_end().to_owned())
            .collect()
    };
    let answered = answers(&back.frames);
    // What was written down holds; of what came just before the crash nobody was told so.
    let pongs = socket.frames.iter().filter(|frame| frame["type"] == "pong");
    let written = pongs.count();
    assert!(
        (written..=said.len()).contains(&answered.len()),
        "{written} of {} messages were written down, and {} reached the policy",
        said.len(),
        answered.len()
    );
    said.truncate(answered.len());
    let expected: Vec<String> = (0..said.len())
        .map(|number| format!("[MOCK] Received: message {number}"))
        .collect();
    assert_eq!(answered, expected);
    assert_eq!(answers(&socket.frames), Vec::<String>::new());

    // The session goes on, and the record has every message, whole and once.
    back.say("And then?").await;
    let then = back.completed().await;
    assert_eq!(answers(&then), ["[MOCK] Received: And then?"]);
    check_dense(&socket.frames, &back.frames);
    said.push("And then?".to_owned());
    let chats = host.get("alice", "/api/v1/chats").await.ok();
    let path = format!(
        "/api/v1/chats/{}",
        chats["chats"][0]["id"].as_str().unwrap()
    );
    eventually("the whole chat", async || {
        let chat = host.get("alice", &path).await.ok();
        let messages = chat["messages"].as_array().unwrap();
        let follow_ups = messages
            .iter()
            .filter(|message| message["eventType"] == "FollowUp")
            .map(|message| message["content"].as_str().unwrap());
        follow_ups.eq(said.iter().map(String::as_str)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_a_crash_hits_anywhere_all_come_to_their_end_without_a_gap() {
    const SESSIONS: usize = 12;
    let mut host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let mut sockets = Vec::new();
    for number in 0..SESSIONS {
        let first = json!({"task": format!("Task {number}"), "features": ["seq"]});
        sockets.push(Socket::open(&host, "alice", first).await);
    }
    let mut sessions = Vec::new();
    for (number, socket) in sockets.iter_mut().enumerate() {
        sessions.push(socket.session().await);
        // Some have only begun, some are far.
        for _ in 0..number % 6 {
            if !socket.frames.iter().any(is_over) {
                socket.next().await;
            }
        }
    }
    host.crash();
    host.start_again();
    let mut found = listed(&host, "alice").await;
    let mut expected = sessions.clone();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    for (socket, session) in sockets.iter().zip(&sessions) {
        let again = json!({"sessionId": session, "lastSeq": last_seq(socket), "features": ["seq"]});
        let mut back = Socket::open(&host, "alice", again).await;
        if !socket.frames.iter().any(is_over) {
            back.until("the end", is_over).await;
        } else {
            back.send(json!({"type": "ping"})).await;
            back.until("pong", |frame| frame["type"] == "pong").await;
        }
        check_dense(&socket.frames, &back.frames);
        let both = [socket.frames.clone(), back.frames].concat();
        let ends = both.iter().filter(|frame| is_over(frame)).count();
        assert_eq!(ends, 1, "{both:#?}");
    }
}
