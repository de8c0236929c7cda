//! Requests and decoded responses, without a network: the provider's responses are in `recorded`.

use lucid_plugin::llm::{Adapter as _, Frame};
use lucid_plugin::testing::{decode, events, request};
use lucid_plugin::types::{Content, ErrorKind, Message, StopReason, ToolCall, ToolResult};
use my_agent::MyAgent;
use serde_json::{Value, json};

#[test]
fn a_conversation_with_a_tool_goes_out_in_the_providers_form() {
    let mut asked = Message::assistant("I look.");
    asked.content.push(Content::ToolCall(ToolCall {
        id: "call_7".into(),
        name: "terminal".into(),
        arguments: r#"{"command":"ls"}"#.into(),
    }));
    let messages = vec![
        Message::system("Be good."),
        Message::user("What is here?"),
        asked,
        Message::tool(ToolResult::ok("call_7", "hello.py")),
    ];
    let encoded = MyAgent::encode("{}", request::<MyAgent>(messages)).unwrap();
    assert_eq!(encoded.request.path, "/chat/completions");
    let body: Value = serde_json::from_slice(&encoded.request.body).unwrap();
    assert_eq!(body["messages"][2]["tool_calls"][0]["id"], "call_7");
    assert_eq!(
        body["messages"][3],
        json!({ "role": "tool", "tool_call_id": "call_7", "content": "hello.py" })
    );
}

#[test]
fn a_streamed_answer_is_its_text_and_its_calls() {
    let body = include_str!("recorded/calls.sse");
    let (completion, deltas) = decode::<MyAgent>(events(body)).unwrap();
    assert_eq!(completion.stop, StopReason::ToolUse);
    assert_eq!(completion.usage.input_tokens, 12);
    assert_eq!(completion.message.joined_text(), "I look first.");
    let Content::ToolCall(call) = &completion.message.content[1] else {
        panic!("no call: {completion:?}")
    };
    assert_eq!(call.arguments, r#"{"command":"ls"}"#);
    assert_eq!(deltas.len(), 6, "{deltas:?}");
}

#[test]
fn a_whole_answer_is_read_as_well_and_half_of_one_is_none() {
    let body = include_bytes!("recorded/text.whole.json");
    let (completion, _) = decode::<MyAgent>(vec![Frame::Body(body.to_vec())]).unwrap();
    assert_eq!(completion.message.joined_text(), "Hello.");
    let half = vec![Frame::Body(body[..20].to_vec())];
    assert_eq!(
        decode::<MyAgent>(half).unwrap_err().kind,
        ErrorKind::Upstream
    );
}

#[test]
fn a_refusal_says_what_to_do_about_it() {
    let body = br#"{"error":{"code":"slow_down","message":"Too many requests."}}"#;
    let error = MyAgent::classify(429, &[], body);
    assert_eq!(error.kind, ErrorKind::RateLimited);
    assert_eq!(error.code.as_deref(), Some("slow_down"));
}
