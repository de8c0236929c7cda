//! Model servers as they are, and not as the API's documentation has them: what they want back, which roles
//! they take, errors that come with a success, and calls that come as text.

use serde_json::{Value, json};

use lucid_tests::{Host, Model, ModelRequestSeen, ModelTurn, Socket, call};

const EVENTS: &str = "text/event-stream";

/// A stream of chunks with these deltas, as they are: some hold half a character.
fn stream(deltas: &[&str], reason: &str) -> ModelTurn {
    let chunk = |delta: &str, reason: &str| {
        format!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#
        ) + "\n\n"
    };
    let mut body: String = deltas.iter().map(|delta| chunk(delta, "null")).collect();
    body += &chunk("{}", &format!("\"{reason}\""));
    body += "data: [DONE]\n\n";
    ModelTurn::Body(EVENTS, body)
}

fn host(model: &Model, key: &str) -> Host {
    Host::with_defaults()
        .set("LLM_API_KEY", key)
        .set("LLM_BASE_URL", &model.url)
        .start()
}

async fn session(host: &Host, user: &str, task: &str) -> Socket {
    let first =
        json!({"task": task, "modelProvider": "openai", "projectId": "any", "features": ["seq"]});
    Socket::open(host, user, first).await
}

fn roles(seen: &ModelRequestSeen) -> Vec<String> {
    let body = seen.json();
    let all = body["messages"].as_array().cloned().unwrap_or_default();
    all.iter()
        .map(|message| message["role"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Whether a strict server would refuse the order.
fn is_out_of_order(seen: &ModelRequestSeen) -> bool {
    roles(seen)
        .windows(2)
        .any(|two| two[0] == "tool" && two[1] == "user")
}

fn commands(frames: &[Value]) -> Vec<String> {
    let shown = frames
        .iter()
        .filter(|frame| frame["eventType"] == "CmdRunAction");
    shown
        .filter_map(|frame| frame["command"].as_str().map(str::to_owned))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_through_with_a_server_that_has_ways_of_its_own() {
    let id = "call_0123__thought__".to_owned() + &"EuIDCt8D/+".repeat(70);
    let own = id.clone();
    let model = Model::start(move |number, seen| {
        if is_out_of_order(seen) {
            return ModelTurn::Refuse(400, "Unexpected role 'user' after role 'tool'".into());
        }
        match number {
            0 => stream(
                &[
                    r#"{"role":"assistant","reasoning_content":"One \ud83d"}"#,
                    r#"{"reasoning_content":"\ude00","reasoning_details":[{"type":"reasoning.encrypted","data":"QUJD","index":0}]}"#,
                    &format!(
                        r#"{{"tool_calls":[{{"index":0,"id":"{own}","type":"function","extra_content":{{"google":{{"thought_signature":"c2ln"}}}},"function":{{"name":"terminal","arguments":"{{\"command\":\"echo one\ud83d"}}}}]}}"#
                    ),
                    r#"{"tool_calls":[{"index":0,"function":{"arguments":"\ude00\"}"}}]}"#,
                ],
                "tool_calls",
            ),
            1 => stream(
                &[
                    r#"{"content":"<thi"}"#,
                    r#"{"content":"nk>Two.</think>Go on.\n<tool_call>\n<function=terminal>\n"}"#,
                    r#"{"content":"<parameter=command>\necho two\n</parameter>\n</function>\n</tool_call>"}"#,
                ],
                "stop",
            ),
            2 => ModelTurn::Say("<tool_call>\n{\"name\": \"nobody\", \"arguments\": {}}\n</tool_call>".into()),
            // Behind a tool's answer and a note, so that the roles are tried.
            3 => call("terminal", json!({"command": "echo three"})),
            4 => call("finish", json!({"message": "Done."})),
            5 => ModelTurn::Refuse(400, "Unexpected role 'user' after role 'tool'".into()),
            6 => ModelTurn::Body(
                EVENTS,
                "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"I\"}}]}\n\n{\"object\":\"error\",\"message\":\"The server had a hiccup.\",\"code\":500}\n".into(),
            ),
            _ => ModelTurn::Say("That was all.".into()),
        }
    })
    .await;
    let host = host(&model, "sk-the-tests-own-key-0123456789");
    let mut socket = session(&host, "alice", "Do it.").await;
    socket.session().await;
    socket.completed().await;
    socket.say("And now?").await;
    socket.completed().await;

    let frames = &socket.frames;
    assert_eq!(
        commands(frames)[..3],
        ["echo one\u{1F600}", "echo two", "echo three"],
        "{frames:#?}"
    );
    let asked = model.completions();
    let given = asked[1].json()["messages"].as_array().unwrap().clone();
    let answer = given
        .iter()
        .find(|message| message["role"] == "assistant")
        .unwrap();
    assert_eq!(answer["reasoning_content"], "One \u{1F600}", "{answer}");
    assert_eq!(
        answer["reasoning_details"],
        json!([{"type": "reasoning.encrypted", "data": "QUJD", "index": 0}])
    );
    let back = &answer["tool_calls"][0];
    assert_eq!(back["id"], id, "{answer}");
    assert_eq!(back["extra_content"]["google"]["thought_signature"], "c2ln");
    assert!(
        given.iter().any(|message| message["tool_call_id"] == id),
        "{given:?}"
    );
    // What leaked was a call, and what cannot be one was told to the model.
    let note = asked[3].messages("user").concat();
    assert!(note.contains("No tool call arrived"), "{note}");
    // The order that was refused was asked in another one, and from then on at once.
    assert!(!asked.last().is_some_and(is_out_of_order), "{asked:?}");
    assert!(
        asked
            .last()
            .is_some_and(|seen| seen.messages("user").concat().contains("And now?"))
    );
    let text: String = frames.iter().map(Value::to_string).collect();
    for markup in ["<think", "<function="] {
        assert!(!text.contains(markup), "{markup}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_within_a_success_is_that_error_and_a_short_key_is_no_word_of_it() {
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Body(
            "text/html",
            "<html><head><title>Welcome to the captive portal</title></head></html>".into(),
        ),
        1 => ModelTurn::Body(
            "application/json",
            r#"{"detail":[{"loc":["body","tools",0],"msg":"The tools are out of order"}],"code":400}"#.into(),
        ),
        2 => ModelTurn::Refuse(400, "This model's maximum context length is 8192 tokens; the key was x.".into()),
        _ => ModelTurn::Body(
            EVENTS,
            "event: error\ndata: {\"code\":400,\"message\":\"prompt is too long: 9 > 8\"}\n\n".into(),
        ),
    })
    .await;
    let host = host(&model, "x");
    for (user, said) in [
        "Welcome to the captive portal",
        "body.tools.0: The tools are out of order",
        "is longer than",
        "is longer than",
    ]
    .into_iter()
    .enumerate()
    {
        let mut socket = session(&host, &format!("user-{user}"), "Do it.").await;
        socket.session().await;
        let read = socket.until(said, |frame| frame["type"] == "error").await;
        let error = read.last().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}
