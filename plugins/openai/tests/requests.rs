//! What the adapter sends, and what it makes of refusals.
//!
//! Always holds: no request has a header that is the host's own.

use lucid_openai::OpenAi;
use lucid_plugin::llm::{Adapter, CompletionRequest, Framing};
use lucid_plugin::types::{
    Content, Error, ErrorKind, Header, Message, Role, Thinking, ToolCall, ToolDefinition,
    ToolResult,
};
use serde_json::{Value, json};

fn request(messages: Vec<Message>) -> CompletionRequest {
    CompletionRequest {
        model: "gpt-5".into(),
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
            "model": "gpt-5",
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
            {"role": "assistant", "content": null,
                "tool_calls": [function("c", r#"{"not_an_object":"{\"x\":"}"#)]},
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
    assert_eq!(sent["max_completion_tokens"], 9);
    assert_eq!(sent["temperature"], 0.5);
    let sent = body(
        r#"{"max_tokens_field":"max_tokens","stream_usage":false}"#,
        full(""),
    );
    assert_eq!(sent["max_tokens"], 9);
    assert!(sent.get("max_completion_tokens").is_none() && sent.get("stream_options").is_none());
}

#[test]
fn what_the_decoder_relies_on_cannot_be_set_and_nonsense_is_refused() {
    let with = |params: &str| CompletionRequest {
        params: params.into(),
        ..request(vec![])
    };
    for params in [r#"{"n":2}"#, r#"{"stream":false}"#, "[]", "{"] {
        let error = OpenAi::encode("", with(params)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput, "{params}");
    }
    assert!(OpenAi::encode("nonsense", with("{}")).is_err());
    let mut broken = with("{}");
    broken.tools = vec![ToolDefinition {
        name: "t".into(),
        description: String::new(),
        input_schema: "{".into(),
    }];
    assert!(
        OpenAi::encode("", broken)
            .unwrap_err()
            .message
            .contains("`t`")
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
fn a_status_says_what_kind_of_refusal_it_is() {
    let kinds = [
        (400, ErrorKind::InvalidInput),
        (401, ErrorKind::Unauthenticated),
        (402, ErrorKind::Forbidden),
        (403, ErrorKind::Forbidden),
        (404, ErrorKind::NotFound),
        (408, ErrorKind::Upstream),
        (409, ErrorKind::Upstream),
        (413, ErrorKind::ContextTooLong),
        (422, ErrorKind::InvalidInput),
        (429, ErrorKind::RateLimited),
        (500, ErrorKind::Upstream),
        (502, ErrorKind::Upstream),
        (503, ErrorKind::Overloaded),
        (504, ErrorKind::Upstream),
        (529, ErrorKind::Overloaded),
    ];
    for (status, kind) in kinds {
        let error = classify(status, &[], "<html>nginx</html>");
        assert_eq!(error.kind, kind, "{status}");
        assert!(!error.message.contains("html"));
    }
}

#[test]
fn the_providers_own_code_decides_before_the_status() {
    let body =
        |code: &str| json!({"error": {"message": "No.", "type": "x", "code": code}}).to_string();
    let codes = [
        (429, "insufficient_quota", ErrorKind::Forbidden),
        (400, "context_length_exceeded", ErrorKind::ContextTooLong),
        (400, "content_policy_violation", ErrorKind::Refused),
        (400, "model_not_found", ErrorKind::NotFound),
        (429, "rate_limit_exceeded", ErrorKind::RateLimited),
    ];
    for (status, code, kind) in codes {
        let error = classify(status, &[], &body(code));
        assert_eq!(error.kind, kind, "{code}");
        assert_eq!(error.code.as_deref(), Some(code));
        assert_eq!(error.message, "No.");
    }
    let other = r#"{"object":"error","message":"This model's maximum context length is 4096 tokens.","code":400}"#;
    assert_eq!(classify(400, &[], other).kind, ErrorKind::ContextTooLong);
}

#[test]
fn a_refused_key_is_never_repeated() {
    let body =
        r#"{"error":{"message":"Incorrect API key provided: sk-secret","code":"invalid_api_key"}}"#;
    let error = classify(401, &[], body);
    assert_eq!(error.kind, ErrorKind::Unauthenticated);
    assert!(!error.message.contains("sk-secret"));
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
