//! Features of this provider only: thought signatures, missing ids, schemas, filters.

use lucid_conformance::{cut, decode, request};
use lucid_google::Google;
use lucid_plugin::llm::{Adapter, CompletionRequest, KeyPlace};
use lucid_plugin::types::{Content, Message, Role, ToolCall, ToolDefinition, ToolResult};
use serde_json::{Value, json};

use crate::valid::{schema, valid};

fn body(request: CompletionRequest) -> Value {
    let encoded = Google::encode("", request).unwrap();
    let body = serde_json::from_slice(&encoded.request.body).unwrap();
    valid(&body).unwrap();
    body
}

#[test]
fn a_request_names_the_model_in_its_path_and_asks_for_events() {
    let mut asked = request::<Google>(vec![Message::system("Be good."), Message::user("Hi")]);
    asked.model = "models/gemini-2.5-pro".into();
    let encoded = Google::encode("", asked.clone()).unwrap();
    let path = "/v1beta/models/gemini-2.5-pro:streamGenerateContent";
    assert_eq!(encoded.request.path, path);
    assert_eq!(encoded.request.query, [("alt".into(), "sse".into())]);
    assert_eq!(
        Google::describe().key,
        KeyPlace::Header("x-goog-api-key".into())
    );
    asked.streaming = false;
    let encoded = Google::encode("", asked.clone()).unwrap();
    let path = "/v1beta/models/gemini-2.5-pro:generateContent";
    assert_eq!(encoded.request.path, path);
    assert!(encoded.request.query.is_empty());
    let sent = body(asked);
    assert_eq!(
        sent["systemInstruction"],
        json!({"parts": [{"text": "Be good."}]})
    );
    assert_eq!(
        sent["contents"],
        json!([{"role": "user", "parts": [{"text": "Hi"}]}])
    );
}

#[test]
fn a_recorded_answer_goes_back_part_by_part() {
    for name in ["tools", "signed_text", "think_tags"] {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded");
        let recorded = std::fs::read_to_string(format!("{folder}/{name}.sse")).unwrap();
        let (completion, _) = decode::<Google>(cut(&[recorded.as_bytes()])).unwrap();
        let mut messages = vec![Message::user("Do it."), completion.message.clone()];
        for piece in completion.message.content {
            if let Content::ToolCall(call) = piece {
                messages.push(Message::tool(ToolResult::ok(call.id, call.name)));
            }
        }
        let sent = body(request::<Google>(messages));
        let parts = &sent["contents"][1]["parts"];
        if name == "think_tags" {
            let text = "<think>\nIs a < b?\n</think>\n\nPut `<think>` there.";
            assert_eq!(*parts, json!([{ "text": text }]));
            continue;
        }
        if name == "signed_text" {
            assert_eq!(
                *parts,
                json!([
                    {"text": "One two"},
                    {"text": " three.", "thoughtSignature": "Zmlyc3Q="},
                    {"text": "", "thoughtSignature": "bGFzdA=="},
                ])
            );
            continue;
        }
        assert_eq!(
            *parts,
            json!([
                {"text": "Let me look."},
                {"functionCall": {"name": "terminal", "args": {"command": "ls \"ü\""}},
                    "thoughtSignature": "CiQBVKhc7gjTWvNmkWF7hLcYkLqyyLQ0+M1CPkd5+G4="},
                {"functionCall": {"name": "view", "args": {"path": "/workspace/a.py"}}},
                {"functionCall": {"name": "finish", "args": {}, "id": "fc-7"}},
            ])
        );
        let answers = &sent["contents"][2]["parts"];
        assert_eq!(
            answers[0],
            json!({"functionResponse": {"name": "terminal", "response": {"output": "terminal"}}})
        );
        assert_eq!(answers[2]["functionResponse"]["id"], "fc-7");
    }
}

#[test]
fn a_call_of_another_providers_model_gets_the_stand_in_for_a_proof_where_one_is_wanted() {
    let sent = |model: &str| {
        let call = |id: &str| {
            Content::ToolCall(ToolCall {
                id: id.into(),
                name: "view".into(),
                arguments: "{".into(),
            })
        };
        let messages = vec![
            Message::user("Do it."),
            Message {
                role: Role::Assistant,
                content: vec![call("toolu_1"), call("toolu_2")],
            },
            Message::tool(ToolResult::failed("toolu_1", "not fine")),
        ];
        let asked = CompletionRequest {
            model: model.into(),
            ..request::<Google>(messages)
        };
        let encoded = Google::encode("", asked).unwrap();
        serde_json::from_slice::<Value>(&encoded.request.body).unwrap()
    };
    let new = sent("gemini-3.8-flash");
    let parts = &new["contents"][1]["parts"];
    assert_eq!(
        parts[0]["thoughtSignature"],
        "skip_thought_signature_validator"
    );
    assert!(parts[1].get("thoughtSignature").is_none());
    assert_eq!(
        parts[0]["functionCall"]["args"],
        json!({"not_an_object": "{"})
    );
    let answer = &new["contents"][2]["parts"][0]["functionResponse"];
    assert_eq!(
        *answer,
        json!({"id": "toolu_1", "name": "view", "response": {"error": "not fine"}})
    );
    let old = sent("gemini-2.5-flash");
    assert!(!old.to_string().contains("thoughtSignature"));
}

#[test]
fn each_generation_is_told_to_reason_in_its_own_way() {
    for (model, params, config) in [
        ("gemini-3.8-flash", "{}", json!({"includeThoughts": true})),
        (
            "gemini-3.8-flash",
            r#"{"thinking":false}"#,
            json!({"includeThoughts": false, "thinkingLevel": "low"}),
        ),
        (
            "gemini-3.5-flash",
            r#"{"thinking":false}"#,
            json!({"includeThoughts": false, "thinkingLevel": "minimal"}),
        ),
        (
            "gemini-2.5-pro",
            r#"{"thinking":false}"#,
            json!({"includeThoughts": false, "thinkingBudget": 128}),
        ),
        (
            "gemini-2.5-flash",
            r#"{"thinking":"high"}"#,
            json!({"includeThoughts": true, "thinkingBudget": 16_384}),
        ),
    ] {
        let sent = body(CompletionRequest {
            model: model.into(),
            params: params.into(),
            ..request::<Google>(vec![Message::user("Hi")])
        });
        let found = &sent["generationConfig"]["thinkingConfig"];
        assert_eq!(*found, config, "{model} {params}");
    }
    // Somebody else's model behind the same API is told nothing.
    let sent = body(CompletionRequest {
        model: "mock".into(),
        ..request::<Google>(vec![Message::user("Hi")])
    });
    assert!(sent.get("generationConfig").is_none());
}

fn parameters(schema: &Value) -> Value {
    let sent = body(CompletionRequest {
        tools: vec![ToolDefinition::new("t", "", schema)],
        ..request::<Google>(vec![Message::user("Hi")])
    });
    sent["tools"][0]["functionDeclarations"][0]["parameters"].clone()
}

#[test]
fn a_schema_keeps_what_the_api_knows_and_says_nothing_else() {
    let cleaned = parameters(&json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$defs": {"place": {"type": "object", "properties": {"line": {"type": "integer"}}}},
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "path": {"type": "string", "format": "uri", "description": "Where."},
            "mode": {"enum": ["a", "b"]},
            "one": {"const": "x"},
            "depth": {"type": ["integer", "null"], "exclusiveMinimum": 0, "enum": [1, 2]},
            "either": {"oneOf": [{"type": "string"}, {"type": "array"}]},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "place": {"$ref": "#/$defs/place", "description": "Here."},
            "both": {"allOf": [{"$ref": "#/$defs/place"}, {"properties": {"column": {"type": "integer"}}}]},
            "several": {"type": ["string", "object"], "properties": {"a": {}}},
            "anything": {},
        },
        "required": ["path", "gone"],
    }));
    assert_eq!(
        cleaned,
        json!({
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "Where."},
                "mode": {"type": "string", "enum": ["a", "b"]},
                "one": {"type": "string", "enum": ["x"]},
                "depth": {"type": "integer", "nullable": true},
                "either": {"anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}},
                ]},
                "maybe": {"type": "string", "nullable": true},
                "place": {"type": "object", "properties": {"line": {"type": "integer"}}, "description": "Here."},
                "both": {"type": "object", "properties": {
                    "line": {"type": "integer"}, "column": {"type": "integer"},
                }},
                "several": {"anyOf": [
                    {"type": "string"},
                    {"type": "object", "properties": {"a": {"type": "string"}}},
                ]},
                "anything": {"type": "string"},
            },
            "required": ["path"],
        })
    );
}

#[test]
fn a_tool_without_parameters_is_declared_without() {
    assert!(parameters(&json!({"type": "object", "properties": {}})).is_null());
}

#[test]
fn a_schema_that_holds_itself_comes_to_an_end() {
    let cleaned = parameters(&json!({
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "odd": {"$ref": "elsewhere.json"}},
    }));
    assert_eq!(
        cleaned["properties"]["next"]["properties"]["odd"]["type"],
        "string"
    );
    schema(&cleaned).unwrap();
}

mod any_schema {
    use super::*;
    use proptest::prelude::*;

    fn any() -> impl Strategy<Value = Value> {
        let kind = prop_oneof![
            Just(json!("string")),
            Just(json!("object")),
            Just(json!("array")),
            Just(json!("null")),
            Just(json!(["integer", "null"])),
            Just(json!(["string", "array", "object"])),
            Just(json!(7)),
        ];
        let leaf = prop_oneof![
            Just(json!({})),
            Just(json!(true)),
            Just(json!(null)),
            Just(json!({"$ref": "#/properties/a"})),
            Just(json!({"enum": ["a", "", 1]})),
            Just(json!({"const": null})),
            kind.clone().prop_map(
                |kind| json!({"type": kind, "enum": ["a"], "required": ["x"], "format": "uuid"})
            ),
        ];
        leaf.prop_recursive(4, 24, 3, move |inner| {
            let some = prop::collection::vec(inner.clone(), 0..3);
            (kind.clone(), some.clone(), some, inner.clone(), inner, 0..6_u8).prop_map(|(kind, some, more, a, b, how)| {
                match how {
                    0 => json!({"type": kind, "properties": {"a": a, "b": b}, "required": ["a", "c"]}),
                    1 => json!({"anyOf": some, "properties": {"a": a}, "type": kind}),
                    2 => json!({"oneOf": some, "allOf": more}),
                    3 => json!({"type": "array", "items": a, "minItems": 1}),
                    4 => json!({"type": kind, "items": some, "properties": {}}),
                    _ => json!({"allOf": some, "anyOf": more, "enum": ["x"], "properties": {"a": a}}),
                }
            })
        })
    }

    proptest! {
        #[test]
        fn becomes_one_that_the_api_takes(inner in any()) {
            let tool = json!({"type": "object", "properties": {"a": inner}});
            parameters(&tool);
        }
    }
}

#[test]
fn a_character_that_was_cut_in_two_is_one_again() {
    let part = |part: &str| {
        format!("data: {{\"candidates\":[{{\"content\":{{\"parts\":[{part}]}}}}]}}\n\n")
    };
    let body = [
        part(r#"{"thought":true,"text":"Hm \ud83d"}"#),
        part(r#"{"thought":true,"text":"\ude00"}"#),
        part(r#"{"text":"a\ud83d"}"#),
        part(r#"{"text":"\ude00b"}"#),
        part(r#"{"functionCall":{"name":"view","args":{"path":"\ud83d"}}}"#),
        "data: {\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n".to_owned(),
    ]
    .concat();
    let (completion, _) =
        lucid_conformance::decode::<Google>(lucid_conformance::cut(&[body.as_bytes()])).unwrap();
    let text = format!("{:?}", completion.message.content);
    for said in ["Hm 😀", "a😀b", "\u{FFFD}"] {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn arguments_that_a_gateway_gives_as_a_text_are_arguments() {
    let body = r#"data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"view","args":"{\"path\":\"a\"}"}}]},"finishReason":"STOP"}]}

"#;
    let decoded = decode::<Google>(cut(&[body.as_bytes()])).unwrap().0;
    let [Content::ToolCall(call)] = &decoded.message.content[..] else {
        panic!("{decoded:?}")
    };
    assert_eq!(call.arguments, r#"{"path":"a"}"#);
}
