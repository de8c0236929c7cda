//! Requests that the adapter sends, and its classification of refusals.
//!
//! No request has a header that only the host may set.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use lucid_openai::OpenAi;
use lucid_plugin::llm::{Adapter, CompletionRequest, Framing};
use lucid_plugin::types::{
    BlobRef, Content, Error, ErrorKind, Header, Message, Role, Thinking, ToolCall, ToolDefinition,
    ToolResult,
};
use serde_json::{Value, json};

fn request(messages: Vec<Message>) -> CompletionRequest {
    CompletionRequest {
        model: "scripted".into(),
        messages,
        tools: Vec::new(),
        max_output_tokens: None,
        params: "{}".into(),
        streaming: true,
    }
}

fn body(settings: &str, request: CompletionRequest) -> Value {
    let encoded = OpenAi::encode(settings, request).unwrap();
    serde_json::from_slice(&encoded.request.body).unwrap()
}

fn call(id: &str, arguments: &str) -> Content {
    Content::ToolCall(ToolCall {
        id: id.into(),
        name: "t".into(),
        arguments: arguments.into(),
    })
}

#[test]
fn a_streamed_request_asks_for_a_stream_with_token_counts() {
    let encoded = OpenAi::encode("", request(vec![Message::user("Hi")])).unwrap();
    assert_eq!(encoded.framing, Framing::ServerSentEvents);
    assert_eq!(encoded.request.method, "POST");
    assert_eq!(encoded.request.path, "/chat/completions");
    for header in &encoded.request.headers {
        let name = header.name.to_ascii_lowercase();
        assert!(
            ["content-type", "accept"].contains(&name.as_str()),
            "{name}"
        );
    }
    let body: Value = serde_json::from_slice(&encoded.request.body).unwrap();
    assert_eq!(
        body,
        json!({
            "model": "scripted",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    );
}

#[test]
fn a_whole_request_asks_for_none() {
    let request = CompletionRequest {
        streaming: false,
        ..request(vec![])
    };
    let encoded = OpenAi::encode("{}", request).unwrap();
    assert_eq!(encoded.framing, Framing::WholeBody);
    let body: Value = serde_json::from_slice(&encoded.request.body).unwrap();
    assert!(body.get("stream").is_none() && body.get("stream_options").is_none());
}

#[test]
fn a_conversation_with_tools_goes_out_in_order() {
    let messages = vec![
        Message::system("Be good."),
        Message::user("Do it."),
        Message {
            role: Role::Assistant,
            content: vec![
                Content::Thinking(Thinking {
                    text: "Hm".into(),
                    signature: None,
                }),
                Content::Text("Doing it.".into()),
                call("a", r#"{"x":1}"#),
                call("b", ""),
            ],
        },
        Message::tool(ToolResult::ok("a", "fine")),
        Message::tool(ToolResult::failed("b", "not fine")),
        Message {
            role: Role::Assistant,
            content: vec![],
        },
        Message::user("Continue."),
        Message {
            role: Role::Assistant,
            content: vec![call("c", "{\"x\":")],
        },
    ];
    let sent = body("", request(messages));
    let function = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "t", "arguments": arguments}});
    assert_eq!(
        sent["messages"],
        json!([
            {"role": "system", "content": "Be good."},
            {"role": "user", "content": "Do it."},
            {"role": "assistant", "content": "Doing it.",
                "tool_calls": [function("a", r#"{"x":1}"#), function("b", "{}")]},
            {"role": "tool", "tool_call_id": "a", "content": "fine"},
            {"role": "tool", "tool_call_id": "b", "content": "[error] not fine"},
            {"role": "user", "content": "Continue."},
            {"role": "assistant", "content": null,
                "tool_calls": [function("c", r#"{"not_an_object":"{\"x\":"}"#)]},
            {"role": "tool", "tool_call_id": "c", "content":
                "[error] There is no result: the call was not carried out, or its result was lost."},
        ])
    );
}

#[test]
fn tools_limits_and_params_are_passed_on() {
    let schema = json!({"type": "object", "properties": {}});
    let full = |params: &str| CompletionRequest {
        tools: vec![ToolDefinition::new("t", "Does it.", &schema)],
        max_output_tokens: Some(9),
        params: params.into(),
        ..request(vec![])
    };
    let sent = body("", full(r#"{"temperature":0.5}"#));
    assert_eq!(sent["tools"][0]["function"]["parameters"], schema);
    assert_eq!(sent["max_tokens"], 9);
    assert_eq!(sent["temperature"], 0.5);
    let sent = body(r#"{"stream_usage":false}"#, full(""));
    assert!(sent.get("stream_options").is_none());
}

#[test]
fn the_output_limit_has_the_name_that_the_models_server_knows() {
    let field = |settings: &str, model: &str| {
        let request = CompletionRequest {
            model: model.into(),
            max_output_tokens: Some(9),
            ..request(vec![])
        };
        let sent = body(settings, request);
        let fields = sent
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| sent[*name] == 9);
        fields.cloned().collect::<Vec<_>>()
    };
    for (settings, model, expected) in [
        ("", "gpt-6.1-sol", "max_completion_tokens"),
        ("", "gpt-5-2025-08-07", "max_completion_tokens"),
        ("{}", "openai/o4-mini", "max_completion_tokens"),
        ("", "qwen3-coder", "max_tokens"),
        ("", "gpt-oss-120b", "max_tokens"),
        (r#"{"max_tokens_field":null}"#, "llama", "max_tokens"),
        (r#"{"max_tokens_field":"limit"}"#, "gpt-6-luna", "limit"),
        (
            r#"{"max_tokens_field":"max_completion_tokens"}"#,
            "on-azure",
            "max_completion_tokens",
        ),
    ] {
        assert_eq!(field(settings, model), [expected], "{settings} {model}");
    }
}

#[test]
fn what_a_policy_sets_for_another_adapter_is_passed_over() {
    let sent = body(
        "",
        CompletionRequest {
            params: r#"{"n":2,"stream":false,"top_k":3,"stop":"END"}"#.into(),
            ..request(vec![])
        },
    );
    assert!(sent.get("n").is_none() && sent.get("top_k").is_none());
    assert_eq!(sent["stream"], true);
    assert_eq!(sent["stop"], json!(["END"]));
    let error = OpenAi::encode("nonsense", request(vec![])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidInput);
}

#[test]
fn reasoning_goes_back_only_to_servers_that_want_it() {
    let answer = Message {
        role: Role::Assistant,
        content: vec![
            Content::Thinking(Thinking {
                text: "Hm".into(),
                signature: None,
            }),
            Content::Text("Yes.".into()),
        ],
    };
    let sent = |settings| {
        let messages = vec![Message::user("Hi"), answer.clone(), Message::user("So?")];
        body(settings, request(messages))["messages"][1].clone()
    };
    assert!(sent("").get("reasoning_content").is_none());
    assert_eq!(
        sent(r#"{"send_reasoning":true}"#)["reasoning_content"],
        "Hm"
    );
}

#[test]
fn effort_is_told_as_each_generation_takes_it() {
    let effort = |model: &str, tools: bool| {
        let mut asked = CompletionRequest {
            model: model.into(),
            params: r#"{"thinking":"high","temperature":0.5}"#.into(),
            ..request(vec![Message::user("Hi")])
        };
        if tools {
            asked.tools = vec![ToolDefinition::new("t", "", &json!({"type": "object"}))];
        }
        let sent = body("", asked);
        (
            sent["reasoning_effort"].clone(),
            sent["temperature"].clone(),
        )
    };
    let none = Value::Null;
    for (model, tools, expected) in [
        ("gpt-6.1-sol", true, (json!("none"), none.clone())),
        ("gpt-6.1-sol", false, (json!("high"), none.clone())),
        ("gpt-5.4", true, (none.clone(), none.clone())),
        ("gpt-5", true, (json!("high"), none.clone())),
        ("gpt-4.1", true, (none, json!(0.5))),
        ("qwen3-coder", true, (json!("high"), json!(0.5))),
    ] {
        assert_eq!(effort(model, tools), expected, "{model}");
    }
}

#[test]
fn pictures_of_results_come_behind_all_results() {
    let blob = |digit: &str| BlobRef {
        digest: format!("sha256:{}", digit.repeat(64)),
        media_type: "image/png".into(),
        size: 3,
    };
    let seen = |id: &str, digit| ToolResult {
        blobs: vec![blob(digit)],
        ..ToolResult::ok(id, "seen")
    };
    let messages = vec![
        Message::user("Look."),
        Message {
            role: Role::Assistant,
            content: vec![call("a", "{}"), call("b", "{}")],
        },
        Message::tool(seen("a", "1")),
        Message::tool(seen("b", "2")),
    ];
    let sent = body("", request(messages));
    let roles: Vec<&str> = sent["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool", "user"]);
    let url = format!("data:image/png;base64,lucid-blob:sha256:{}", "2".repeat(64));
    let part = &sent["messages"][4]["content"][1];
    assert_eq!(
        *part,
        json!({"type": "image_url", "image_url": {"url": url}})
    );
}

fn classify(status: u16, headers: &[(&str, &str)], body: &str) -> Error {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| Header {
            name: (*name).into(),
            value: (*value).into(),
        })
        .collect();
    OpenAi::classify(status, &headers, body.as_bytes())
}

#[test]
fn when_to_try_again_is_read_from_the_headers() {
    let after = |headers| classify(429, headers, "").retry_after_ms;
    assert_eq!(after(&[("Retry-After", "3")]), Some(3_000));
    assert_eq!(after(&[("retry-after", "0.25")]), Some(250));
    assert_eq!(
        after(&[("retry-after-ms", "40"), ("retry-after", "1")]),
        Some(40)
    );
    assert_eq!(
        after(&[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")]),
        None
    );
    assert_eq!(after(&[("retry-after", "-1")]), None);
    assert_eq!(after(&[]), None);
}

#[test]
fn it_knows_its_default_model() {
    let d = OpenAi::describe();
    assert_eq!(d.default_base_url, "https://api.openai.com/v1");
    assert!(OpenAi::models("").iter().any(|m| m.id == d.default_model));
}

fn other(kind: &str, body: &Value) -> Content {
    Content::Other(lucid_plugin::types::Custom {
        kind: kind.into(),
        body: body.to_string(),
    })
}

fn thought(text: &str) -> Content {
    Content::Thinking(Thinking {
        text: text.into(),
        signature: None,
    })
}

fn answer(content: Vec<Content>) -> Message {
    Message {
        role: Role::Assistant,
        content,
    }
}

#[test]
fn what_a_server_gave_goes_back_where_it_stood_and_without_it_nothing_does() {
    let place = other("openai.thinking", &json!({"member": "reasoning_content"}));
    let extra = json!({"google": {"thought_signature": "c2ln"}});
    let long = "call_1__thought__".to_owned() + &"aB+/".repeat(200);
    let messages = vec![
        Message::user("Go"),
        answer(vec![
            other(
                "openai.message",
                &json!({"reasoning_details": [{"type": "reasoning.encrypted", "data": "QQ=="}]}),
            ),
            thought("Hm"),
            place.clone(),
            other(
                "server.call",
                &json!({"own_id": true, "members": {"extra_content": extra}}),
            ),
            call(&long, "{}"),
        ]),
        Message::tool(ToolResult::ok(&long, "fine")),
        answer(vec![call("b", "{}")]),
        Message::tool(ToolResult::ok("b", "fine")),
        answer(vec![
            thought("Yes?"),
            other(
                "server.tags",
                &json!({"open": "<think>", "close": "</think>\n\n", "begins": true}),
            ),
            Content::Text("Yes.".into()),
        ]),
        Message::user("So?"),
        answer(vec![
            thought("Not called for."),
            place,
            Content::Text("So.".into()),
        ]),
        Message::user("And?"),
        answer(vec![
            thought("In parts"),
            other("openai.thinking", &json!("parts")),
            Content::Text("Good.".into()),
        ]),
    ];
    let sent = body("", request(messages))["messages"].clone();
    assert_eq!(sent[1]["reasoning_content"], "Hm");
    assert_eq!(sent[1]["reasoning_details"][0]["data"], "QQ==");
    assert_eq!(sent[1]["tool_calls"][0]["id"], long);
    assert_eq!(sent[1]["tool_calls"][0]["extra_content"], extra);
    assert_eq!(sent[2]["tool_call_id"], long);
    // The server wants it with each that has calls.
    assert_eq!(sent[3]["reasoning_content"], "");
    assert!(sent[3].get("extra_content").is_none() && sent[3].get("reasoning_details").is_none());
    assert_eq!(sent[5]["content"], "<think>Yes?</think>\n\nYes.");
    assert!(sent[7].get("reasoning_content").is_none());
    assert_eq!(
        sent[9]["content"],
        json!([{"type": "thinking", "thinking": [{"type": "text", "text": "In parts"}]},
            {"type": "text", "text": "Good."}])
    );

    // The same without what says where it came from.
    let foreign = vec![
        Message::user("Go"),
        answer(vec![thought("Hm"), call(&long, "{}")]),
        Message::tool(ToolResult::ok(&long, "fine")),
    ];
    let sent = body("", request(foreign))["messages"].clone();
    assert_eq!(sent[1]["tool_calls"][0]["id"], long[..40]);
    assert_eq!(sent[2]["tool_call_id"], long[..40]);
    assert_eq!(sent[1].as_object().unwrap().len(), 3, "{}", sent[1]);
}

#[test]
fn roles_come_in_the_order_that_a_strict_server_takes() {
    let messages = || {
        vec![
            Message::system("Be good."),
            Message::user("Go"),
            answer(vec![call("call_1", "{}"), call("a1B2c3D4e", "{}")]),
            Message::tool(ToolResult::ok("call_1", "fine")),
            Message::tool(ToolResult::ok("a1B2c3D4e", "fine")),
            Message::user("And now?"),
        ]
    };
    let asked = |model: &str, params: &str| {
        let sent = body(
            "",
            CompletionRequest {
                model: model.into(),
                params: params.into(),
                ..request(messages())
            },
        );
        assert!(sent.get("roles").is_none());
        sent["messages"].as_array().unwrap().clone()
    };
    let roles = |messages: &[Value]| {
        let roles = messages
            .iter()
            .map(|message| message["role"].as_str().unwrap().to_owned());
        roles.collect::<Vec<_>>().join(" ")
    };
    let usual = "system user assistant tool tool user";
    let strict = "system user assistant tool tool assistant user";
    assert_eq!(roles(&asked("gpt-6.1-sol", "{}")), usual);
    assert_eq!(
        roles(&asked("scripted", r#"{"roles":"alternate"}"#)),
        strict
    );
    let bare = asked("scripted", r#"{"roles":"no-system"}"#);
    assert_eq!(roles(&bare), &strict["system ".len()..]);
    assert_eq!(bare[0]["content"], "Be good.\n\nGo");
    let mistral = asked("mistralai/Devstral-Small-2", "{}");
    assert_eq!(roles(&mistral), strict);
    // Its own id stays, and another's becomes one of its kind, for the call and its result.
    let id = |at: usize| {
        mistral[2]["tool_calls"][at]["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(id(1), "a1B2c3D4e");
    assert!(id(0).len() == 9 && id(0).bytes().all(|b| b.is_ascii_alphanumeric()));
    assert_eq!(mistral[3]["tool_call_id"], id(0));
    let wanted = body(
        "",
        CompletionRequest {
            params: r#"{"reasoning":"always"}"#.into(),
            ..request(messages())
        },
    );
    assert_eq!(wanted["messages"][2]["reasoning_content"], "");
}
