//! Features of this provider only: the order of blocks, signatures, cache breakpoints, reasoning
//! modes.

use lucid_anthropic::Anthropic;
use lucid_conformance::request;
use lucid_plugin::llm::{Adapter, CompletionRequest, Framing, KeyPlace};
use lucid_plugin::types::{
    Content, Custom, Message, Role, Thinking, ToolCall, ToolDefinition, ToolResult,
};
use serde_json::{Value, json};

use crate::valid::valid;

fn body(request: CompletionRequest) -> Value {
    let encoded = Anthropic::encode("", request).unwrap();
    let body = serde_json::from_slice(&encoded.request.body).unwrap();
    valid(&body).unwrap();
    body
}

fn asked(model: &str, params: &str) -> Value {
    body(CompletionRequest {
        model: model.into(),
        params: params.into(),
        ..request::<Anthropic>(vec![Message::user("Hi")])
    })
}

fn call(id: &str) -> Content {
    Content::ToolCall(ToolCall {
        id: id.into(),
        name: "view".into(),
        arguments: r#"{"path":"a"}"#.into(),
    })
}

#[test]
fn a_request_goes_to_the_messages_with_the_version_and_no_key() {
    let encoded = Anthropic::encode("", request::<Anthropic>(vec![Message::user("Hi")])).unwrap();
    assert_eq!(encoded.request.path, "/v1/messages");
    assert_eq!(encoded.framing, Framing::ServerSentEvents);
    let header = |name: &str| {
        let found = encoded.request.headers.iter().find(|h| h.name == name);
        found.map(|h| h.value.as_str())
    };
    assert_eq!(header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(header("accept"), Some("text/event-stream"));
    assert_eq!(
        Anthropic::describe().key,
        KeyPlace::Header("x-api-key".into())
    );
}

#[test]
fn reasoning_goes_back_word_for_word_and_in_its_place() {
    let redacted = Content::Other(Custom {
        kind: "anthropic.redacted-thinking".into(),
        body: "\"EmwKAhgB\"".into(),
    });
    let thought = |text: &str, signature: Option<&str>| {
        Content::Thinking(Thinking {
            text: text.into(),
            signature: signature.map(Into::into),
        })
    };
    let sent = body(request::<Anthropic>(vec![
        Message::user("Do it."),
        Message {
            role: Role::Assistant,
            content: vec![
                thought("  Hm.\n", Some("EqQB")),
                redacted,
                thought("", Some("EhiD")),
                // Another provider's.
                thought("So.", None),
                Content::Text("Looking.".into()),
                call("toolu_1"),
                // At the end the API refuses it.
                thought("And?", Some("EhiE")),
            ],
        },
        Message::tool(ToolResult::ok("toolu_1", "done")),
    ]));
    assert_eq!(
        sent["messages"][1]["content"],
        json!([
            {"type": "thinking", "thinking": "  Hm.\n", "signature": "EqQB"},
            {"type": "redacted_thinking", "data": "EmwKAhgB"},
            {"type": "thinking", "thinking": "", "signature": "EhiD"},
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "toolu_1", "name": "view", "input": {"path": "a"}},
        ])
    );
}

#[test]
fn two_answers_with_reasoning_stay_two_and_without_become_one() {
    let said = |thinks: bool| {
        let thought = Content::Thinking(Thinking {
            text: "Hm".into(),
            signature: Some("EqQB".into()),
        });
        let text = Content::Text("Yes.".into());
        Message {
            role: Role::Assistant,
            content: if thinks {
                vec![thought, text]
            } else {
                vec![text]
            },
        }
    };
    let turns = |thinks| {
        let messages = vec![Message::user("Hi"), said(thinks), said(thinks)];
        let sent = body(request::<Anthropic>(messages));
        sent["messages"].as_array().unwrap().len()
    };
    assert_eq!(turns(false), 3);
    assert_eq!(turns(true), 5);
}

#[test]
fn results_come_right_behind_their_calls_and_say_what_failed() {
    let sent = body(request::<Anthropic>(vec![
        Message::system("Be good."),
        Message::user("Do it."),
        Message {
            role: Role::Assistant,
            content: vec![call("a b"), call("c"), call("lost")],
        },
        Message::user("Faster!"),
        Message::tool(ToolResult::failed("c", "not fine")),
        Message::tool(ToolResult::ok("a b", "")),
        Message::tool(ToolResult::ok("c", "again")),
        Message::system("Be quick, too."),
    ]));
    assert_eq!(sent["system"][0]["text"], "Be good.\n\nBe quick, too.");
    let content = sent["messages"][2]["content"].as_array().unwrap();
    let brief: Vec<Value> = content
        .iter()
        .map(|b| {
            json!([
                b["tool_use_id"],
                b["content"][0]["text"],
                b["is_error"],
                b["text"]
            ])
        })
        .collect();
    let lost = "There is no result: the call was not carried out, or its result was lost.";
    assert_eq!(
        brief,
        [
            json!(["a_b", "(no output)", null, null]),
            json!(["c", "not fine", true, null]),
            json!(["lost", lost, true, null]),
            json!([null, null, null, "Faster!"]),
        ]
    );
}

#[test]
fn the_cache_is_told_of_tools_system_and_the_last_two_user_turns() {
    let mut messages = vec![Message::system("Be good.")];
    for turn in 0..4 {
        messages.push(Message::user(format!("Turn {turn}")));
        messages.push(Message::assistant("Fine."));
    }
    messages.push(Message::user("And?"));
    let sent = body(CompletionRequest {
        tools: vec![
            ToolDefinition::new("a", "A.", &json!({"type": "object"})),
            ToolDefinition::new("b", "B.", &json!({})),
        ],
        ..request::<Anthropic>(messages)
    });
    let kept = |value: &Value| value.get("cache_control").is_some();
    let tools: Vec<bool> = sent["tools"].as_array().unwrap().iter().map(kept).collect();
    assert_eq!(tools, [false, true]);
    assert!(kept(&sent["system"][0]));
    let turns: Vec<bool> = sent["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| kept(&m["content"][0]))
        .collect();
    let expected = [false, false, false, false, false, false, true, false, true];
    assert_eq!(turns, expected);
}

#[test]
fn each_generation_is_told_to_reason_in_its_own_way() {
    let shown = json!({"type": "adaptive", "display": "summarized"});
    let mut bound = shown.clone();
    bound["block_binding"] = json!({"prefix_mismatch_behavior": "drop_block"});
    let high = r#"{"thinking":{"effort":"high"},"temperature":0.5,"top_p":0.5}"#;
    let off = r#"{"thinking":false}"#;
    let none = Value::Null;
    for (model, params, thinking, effort, temperature) in [
        ("claude-opus-5-5", "{}", &bound, &none, &none),
        ("claude-opus-5-5", high, &bound, &json!("high"), &none),
        ("claude-opus-5-5", off, &bound, &json!("low"), &none),
        ("claude-opus-5", "{}", &shown, &none, &none),
        (
            "claude-opus-5",
            off,
            &json!({"type": "disabled"}),
            &none,
            &none,
        ),
        ("claude-opus-4-8", "{}", &none, &none, &none),
        ("claude-opus-4-8", high, &shown, &json!("high"), &none),
        (
            "claude-opus-4-6",
            high,
            &json!({"type": "adaptive"}),
            &json!("high"),
            &none,
        ),
        (
            "claude-opus-4-6",
            r#"{"temperature":0.5,"top_p":0.5}"#,
            &none,
            &none,
            &json!(0.5),
        ),
        (
            "claude-haiku-4-5",
            r#"{"thinking":{"budget_tokens":9}}"#,
            &json!({"type": "enabled", "budget_tokens": 1024}),
            &none,
            &none,
        ),
        (
            "claude-haiku-4-5-20251001",
            r#"{"thinking":{"budget_tokens":90000}}"#,
            &json!({"type": "enabled", "budget_tokens": 31_999}),
            &none,
            &none,
        ),
        ("claude-haiku-4-5", off, &none, &none, &none),
    ] {
        let sent = asked(model, params);
        assert_eq!(sent["thinking"], *thinking, "{model} {params}");
        assert_eq!(sent["output_config"]["effort"], *effort, "{model} {params}");
        assert_eq!(sent["temperature"], *temperature, "{model} {params}");
    }
}

#[test]
fn reasoning_does_not_begin_among_calls_it_did_not_lead_to() {
    let among = |thought: bool| {
        let mut content = vec![call("a")];
        if thought {
            content.insert(
                0,
                Content::Thinking(Thinking {
                    text: "Hm".into(),
                    signature: Some("EqQB".into()),
                }),
            );
        }
        let messages = vec![
            Message::user("Hi"),
            Message {
                role: Role::Assistant,
                content,
            },
            Message::tool(ToolResult::ok("a", "done")),
        ];
        body(CompletionRequest {
            model: "claude-haiku-4-5".into(),
            params: r#"{"thinking":2000}"#.into(),
            ..request::<Anthropic>(messages)
        })
    };
    assert_eq!(among(true)["thinking"]["budget_tokens"], 2_000);
    assert!(among(false).get("thinking").is_none());
}

fn events(blocks: &[(&str, &[&str])]) -> Vec<u8> {
    let mut body = String::from("data: {\"type\":\"message_start\",\"message\":{}}\n\n");
    for (at, (start, deltas)) in blocks.iter().enumerate() {
        body += &format!(
            "data: {{\"type\":\"content_block_start\",\"index\":{at},\"content_block\":{start}}}\n\n"
        );
        for delta in *deltas {
            body += &format!(
                "data: {{\"type\":\"content_block_delta\",\"index\":{at},\"delta\":{delta}}}\n\n"
            );
        }
    }
    body += "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n";
    body.into_bytes()
}

/// What a server that stands in for the API gives, and what it is sent of that.
fn there_and_back(model: &str, blocks: &[(&str, &[&str])]) -> Value {
    let body = events(blocks);
    let whole = lucid_conformance::decode::<Anthropic>(lucid_conformance::cut(&[&body])).unwrap();
    for at in 0..=body.len() {
        let (head, tail) = body.split_at(at);
        let cut = lucid_conformance::decode::<Anthropic>(lucid_conformance::cut(&[head, tail]));
        assert_eq!(cut.unwrap(), whole, "{at}");
    }
    let message = whole.0.message;
    let mut messages = vec![Message::user("Hi"), message.clone()];
    for piece in &message.content {
        if let Content::ToolCall(call) = piece {
            messages.push(Message::tool(ToolResult::ok(&call.id, "done")));
        }
    }
    let encoded = Anthropic::encode(
        "",
        CompletionRequest {
            model: model.into(),
            ..request::<Anthropic>(messages)
        },
    );
    let body: Value = serde_json::from_slice(&encoded.unwrap().request.body).unwrap();
    body["messages"][1]["content"].clone()
}

#[test]
fn reasoning_without_a_proof_goes_back_as_it_came_but_to_no_model_that_proves() {
    let call = r#"{"type":"tool_use","id":"c","name":"view","input":{}}"#;
    let thought: &[&str] = &[r#"{"type":"thinking_delta","thinking":"Hm"}"#];
    let without = [
        (r#"{"type":"thinking","thinking":""}"#, thought),
        (call, &[]),
    ];
    let blank = [
        (
            r#"{"type":"thinking","thinking":"","signature":""}"#,
            thought,
        ),
        (call, &[]),
    ];
    assert_eq!(
        there_and_back("kimi-k3", &without)[0],
        json!({"type": "thinking", "thinking": "Hm"})
    );
    assert_eq!(
        there_and_back("deepseek-v4", &blank)[0],
        json!({"type": "thinking", "thinking": "Hm", "signature": ""})
    );
    for blocks in [without, blank] {
        assert_eq!(
            there_and_back("claude-opus-5-5", &blocks)[0]["type"],
            "tool_use"
        );
    }
}

#[test]
fn a_gateways_own_id_goes_back_whole_with_what_came_beside_it() {
    let id = "call_1__thought__".to_owned() + &"aB+/".repeat(200);
    let call = format!(
        r#"{{"type":"tool_use","id":"{id}","name":"view","input":{{}},"provider_specific_fields":{{"signature":"c2ln"}}}}"#
    );
    let sent = there_and_back("gemini-3.8-flash", &[(&call, &[])]);
    assert_eq!(sent[0]["id"], id);
    assert_eq!(sent[0]["provider_specific_fields"]["signature"], "c2ln");
}

#[test]
fn a_character_that_was_cut_in_two_is_one_again() {
    let sent = there_and_back(
        "claude-opus-5-5",
        &[
            (
                r#"{"type":"text","text":""}"#,
                &[
                    r#"{"type":"text_delta","text":"a\ud83d"}"#,
                    r#"{"type":"text_delta","text":"\ude00b\ud83d"}"#,
                ],
            ),
            (
                r#"{"type":"tool_use","id":"c","name":"view","input":{}}"#,
                &[
                    r#"{"type":"input_json_delta","partial_json":"{\"path\":\"\ud83d"}"#,
                    r#"{"type":"input_json_delta","partial_json":"\ude00\"}"}"#,
                ],
            ),
        ],
    );
    assert_eq!(sent[0]["text"], "a😀b\u{FFFD}");
    assert_eq!(sent[1]["input"]["path"], "😀");
}

#[test]
fn reasoning_between_tags_in_a_text_goes_back_as_it_was_written() {
    let sent = there_and_back(
        "local",
        &[
            (
                r#"{"type":"text","text":"<thi"}"#,
                &[
                    r#"{"type":"text_delta","text":"nk>Hm</thi"}"#,
                    r#"{"type":"text_delta","text":"nk>\n\nYes."}"#,
                ],
            ),
            (
                r#"{"type":"tool_use","id":"c","name":"view","input":{}}"#,
                &[],
            ),
        ],
    );
    assert_eq!(
        sent[0],
        json!({"type": "text", "text": "<think>Hm</think>\n\nYes."})
    );
}

#[test]
fn what_stands_in_for_the_api_may_leave_out_what_can_be_told_without_it() {
    let text = |body: &[u8]| {
        let decoded = lucid_conformance::decode::<Anthropic>(lucid_conformance::cut(&[body]));
        decoded.unwrap().0.message.joined_text()
    };
    // No beginning of a block, and no reason for the end.
    let said = r#"data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"Hel"}}

data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"lo"}}

data: {"type":"message_stop"}

"#;
    assert_eq!(text(said.as_bytes()), "Hello");
    let whole = json!({"type": "message", "content": "Hello", "stop_reason": "end_turn"});
    assert_eq!(text(format!("data: {whole}\n\n").as_bytes()), "Hello");
    let call = json!({"type": "message", "stop_reason": "tool_use", "content": [
        {"type": "tool_use", "id": "c", "name": "view", "input": "{\"path\":\"a\"}"}]});
    let body = format!("data: {call}\n\n");
    let decoded =
        lucid_conformance::decode::<Anthropic>(lucid_conformance::cut(&[body.as_bytes()]));
    let [Content::ToolCall(call)] = &decoded.unwrap().0.message.content[..] else {
        panic!("no call")
    };
    assert_eq!(call.arguments, r#"{"path":"a"}"#);
}
