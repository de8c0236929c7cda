//! What the adapter sends, and what it makes of refusals.
//!
//! Always holds: no request has a header that is the host's own.

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
