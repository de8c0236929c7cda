//! Request checks: an adapter's encoding of transcripts, validated against the provider's rules.
//!
//! # Invariants
//!
//! - Any transcript can be encoded. What cannot be sent is repaired or left out.

use lucid_plugin::llm::{Adapter, Completion, CompletionRequest, Encoded};
use lucid_plugin::types::{BlobRef, Content, ErrorKind, Message, Role, ToolDefinition, ToolResult};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::{Suite, request, transcript};

/// Headers that only the host may set.
const HOSTS: [&str; 6] = [
    "authorization",
    "host",
    "cookie",
    "x-api-key",
    "x-goog-api-key",
    "proxy-authorization",
];
/// The number of transcripts that are tried.
const CASES: u32 = 2_000;

impl<A: Adapter> Suite<A> {
    /// Checks that hold for requests to any provider.
    pub fn requests(&self) {
        self.knows_its_models();
        self.sends_tools_and_params();
        self.sends_pictures();
        let probe = A::probe("").expect("no way to try a key");
        assert_eq!((probe.method.as_str(), probe.body.len()), ("GET", 0));
        no_host_header(&probe.headers);
        for nonsense in ["[]", "{", "\"text\""] {
            let mut wrong = request::<A>(vec![Message::user("Hi")]);
            wrong.params = nonsense.into();
            let error = A::encode("", wrong).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidInput, "{nonsense}");
        }
        self.takes_any_tool();
    }

    /// Checks any transcript, by two thousand samples.
    pub fn any_transcript(&self) {
        let mut runner = TestRunner::new(Config {
            cases: CASES,
            failure_persistence: None,
            ..Config::default()
        });
        let result = runner.run(&transcript(), |messages| {
            for streaming in [true, false] {
                let mut request = request::<A>(messages.clone());
                request.streaming = streaming;
                self.encode(request);
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }

    /// Checks that a response goes back, with its calls answered, and the conversation continues.
    pub(crate) fn goes_back(&self, name: &str, completion: &Completion) {
        let mut messages = vec![
            Message::system("Be good."),
            Message::user("Do it."),
            completion.message.clone(),
        ];
        for piece in &completion.message.content {
            if let Content::ToolCall(call) = piece {
                messages.push(Message::tool(ToolResult::ok(&call.id, "done")));
            }
        }
        let body = self.encode(request::<A>(messages.clone()));
        messages.push(Message::user("And now?"));
        self.encode(request::<A>(messages));
        // The parts that the provider must receive again.
        let body = body.to_string();
        for piece in &completion.message.content {
            let kept = match piece {
                Content::Thinking(thinking) => thinking.signature.clone(),
                Content::ToolCall(call) => Some(call.name.clone()),
                _ => None,
            };
            if let Some(kept) = kept {
                assert!(body.contains(&kept), "{name}: {kept} is not sent back");
            }
        }
    }

    fn encode(&self, request: CompletionRequest) -> Value {
        let encoded = A::encode("", request).unwrap();
        assert_eq!(encoded.request.method, "POST");
        assert!(encoded.request.path.starts_with('/'));
        no_host_header(&encoded.request.headers);
        let body = body(&encoded);
        if let Err(wrong) = (self.valid)(&body) {
            panic!("{wrong}\n{body:#}");
        }
        body
    }

    fn knows_its_models(&self) {
        let about = A::describe();
        let models = A::models("");
        for name in [&about.default_model, &about.small_model] {
            assert!(models.iter().any(|m| m.id == *name), "{name} is not known");
        }
        assert!(about.default_base_url.starts_with("https://"));
        for model in &models {
            assert!(model.output_tokens <= model.context_tokens, "{model:?}");
            let prices = model.prices.expect("no price");
            assert!(prices.cache_read <= prices.input, "{model:?}");
            assert!(
                prices.input <= prices.output && prices.input > 0,
                "{model:?}"
            );
        }
    }

    fn sends_tools_and_params(&self) {
        let schema = json!({
            "type": "object",
            "properties": {"path": {"type": "string", "description": "Where."}},
            "required": ["path"],
            "additionalProperties": false,
        });
        for model in A::models("") {
            for params in [
                "{}",
                r#"{"temperature":0.5,"top_p":0.9,"stop":["END"],"x_new":{"a":1}}"#,
                r#"{"thinking":false}"#,
                r#"{"thinking":{"budget_tokens":2048}}"#,
                r#"{"thinking":{"effort":"high"}}"#,
                r#"{"thinking":"minimal","temperature":"hot"}"#,
            ] {
                let request = CompletionRequest {
                    model: model.id.clone(),
                    tools: vec![
                        ToolDefinition::new("view", "Shows a file.", &schema),
                        ToolDefinition::new("finish", "", &json!({"type": "object"})),
                    ],
                    max_output_tokens: Some(9_000),
                    params: params.into(),
                    ..request::<A>(vec![Message::system("Be good."), Message::user("Hi")])
                };
                let body = self.encode(request).to_string();
                assert!(
                    body.contains("Shows a file.") && body.contains("9000"),
                    "{body}"
                );
                assert!(!body.contains("x_new"), "{body}");
            }
        }
    }

    /// Checks that a tool with an unusable schema is offered without one, beside the others.
    fn takes_any_tool(&self) {
        for schema in schemas() {
            let tool = |name: &str, schema: &str| ToolDefinition {
                name: name.into(),
                description: "Does it.".into(),
                input_schema: schema.into(),
            };
            let body = self.encode(CompletionRequest {
                tools: vec![
                    tool("odd", &schema),
                    tool("odd", "{}"),
                    tool("a b.c", "{}"),
                    tool("fine", "{}"),
                ],
                ..request::<A>(vec![Message::user("Hi")])
            });
            let body = body.to_string();
            for name in ["\"odd\"", "\"fine\"", "\"a_b_c\""] {
                assert_eq!(body.matches(name).count(), 1, "{name} of {schema}: {body}");
            }
        }
    }

    fn sends_pictures(&self) {
        let picture = |digit: char| BlobRef {
            digest: format!("sha256:{}", digit.to_string().repeat(64)),
            media_type: "image/png".into(),
            size: 3,
        };
        let seen = ToolResult {
            blobs: vec![picture('b'), picture('a')],
            ..ToolResult::ok("c1", "There.")
        };
        let call = Content::ToolCall(lucid_plugin::types::ToolCall {
            id: "c1".into(),
            name: "view".into(),
            arguments: "{}".into(),
        });
        let mut messages = vec![
            Message {
                role: Role::User,
                content: vec![Content::Text("See".into()), Content::Image(picture('a'))],
            },
            Message {
                role: Role::Assistant,
                content: vec![call],
            },
            Message::tool(seen),
        ];
        let encoded = A::encode("", request::<A>(messages.clone())).unwrap();
        self.encode(request::<A>(messages.clone()));
        let placed: Vec<_> = encoded.files.iter().map(|f| f.blob.clone()).collect();
        assert_eq!(placed, [picture('a'), picture('b')], "each once");
        marks_occur_once(&encoded);
        // A placeholder written into a text is not replaced by an image.
        let mark = encoded.files[0].marker.clone();
        messages.push(Message::user(format!("What is {mark}? And {mark}:1?")));
        let encoded = A::encode("", request::<A>(messages)).unwrap();
        assert_eq!(encoded.files.len(), 2);
        marks_occur_once(&encoded);
    }
}

/// Schemas as in tools of MCP servers, and worse ones.
fn schemas() -> Vec<String> {
    let object =
        |a: Value| json!({"type": "object", "properties": {"a": a}, "required": ["a", "b"]});
    let property = |a: Value| object(a).to_string();
    let mut all: Vec<String> = [
        "{",
        "",
        "[]",
        "null",
        "true",
        "false",
        "7",
        "{}",
        "{\"type\": \"string\"}",
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend(
        [
            json!({"type": "object"}),
            json!({"type": "object", "properties": null, "required": true}),
            json!({"type": ["object", "null"], "properties": {"a": {"type": ["string", "null"]}}}),
            json!({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object",
                "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}),
            json!({"oneOf": [object(json!({"const": 1})), object(json!({"const": "x"})), {"type": "null"}]}),
            json!({"allOf": [object(json!({})), {"$ref": "#/$defs/b"}], "$defs": {"b": {"properties": {"b": true}}}}),
            json!({"$ref": "#/$defs/me", "$defs": {"me": object(json!({"$ref": "#/$defs/me"}))}}),
            json!({"$ref": "#"}),
            json!({"enum": [{}], "not": {}, "if": {}, "type": "object"}),
            // References to references: expanded it would be larger than any machine.
            {
                let mut definitions = json!({"d0": {"type": "string"}});
                for n in 1..40 {
                    let below = json!({"$ref": format!("#/$defs/d{}", n - 1)});
                    definitions[format!("d{n}")] = object(below.clone());
                    definitions[format!("d{n}")]["properties"]["b"] = below;
                }
                json!({"$ref": "#/$defs/d39", "$defs": definitions})
            },
        ]
        .map(|schema| schema.to_string()),
    );
    all.extend(
        [
            json!(true),
            json!(false),
            json!({}),
            json!(null),
            json!("string"),
            json!({"type": "array"}),
            json!({"type": ["string", "array"]}),
            json!({"type": "array", "items": [{"type": "string"}, {"type": "number"}], "additionalItems": false}),
            json!({"type": "array", "prefixItems": [{"type": "string"}], "items": false}),
            json!({"type": "array", "items": true}),
            json!({"type": "object"}),
            json!({"type": "object", "additionalProperties": {"type": "array"}}),
            json!({"type": "file"}),
            json!({"type": "any", "nullable": true}),
            json!({"type": "string", "nullable": true, "format": "binary", "enum": []}),
            json!({"type": "integer", "format": "uint32", "exclusiveMinimum": true, "minimum": 0}),
            json!({"type": "integer", "enum": ["a", 1, 1, null]}),
            json!({"const": null}),
            json!({"const": {"a": 1}}),
            json!({"anyOf": [{"type": "string"}, {"type": "null"}], "default": null, "x-order": 1}),
            json!({"type": "string", "anyOf": [{"format": "date"}, {"format": "time"}]}),
            json!({"anyOf": []}),
            json!({"oneOf": [false, {"$ref": "#/nowhere"}, {"$ref": "https://example.org/x"}]}),
            json!({"type": "string", "pattern": "^(?=.*x)", "minLength": -1, "description": 7, "required": true}),
            json!({"patternProperties": {"^a": {}}, "dependentRequired": {}, "unevaluatedProperties": false}),
        ]
        .map(property),
    );
    let named = json!({"type": "object", "properties": {"$filter": {}, "a b": {}, "": {}, "ü": {}}, "required": ["a b"]});
    all.push(named.to_string());
    all
}

fn marks_occur_once(encoded: &Encoded) {
    let body = String::from_utf8(encoded.request.body.clone()).unwrap();
    for file in &encoded.files {
        assert_eq!(body.matches(&file.marker).count(), 1, "{file:?}\n{body}");
        assert!(file.marker.contains(&file.blob.digest));
    }
}

fn body(encoded: &Encoded) -> Value {
    serde_json::from_slice(&encoded.request.body).expect("a body that is not JSON")
}

fn no_host_header(headers: &[lucid_plugin::types::Header]) {
    for header in headers {
        let name = header.name.to_ascii_lowercase();
        assert!(!HOSTS.contains(&name.as_str()), "{name} is the host's");
    }
}
