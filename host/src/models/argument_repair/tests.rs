//! Tool calls as models write them, and their repaired forms.

use lucid_mutations::mutated_text;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use lucid_types::wit::types::{Role, StopReason};

fn tools() -> Vec<ToolDefinition> {
    let own = lucid_sandbox::tools::definitions()
        .into_iter()
        .map(|tool| ToolDefinition {
            name: tool.name.to_owned(),
            description: String::new(),
            input_schema: tool.input_schema.to_string(),
        });
    let beside = ToolDefinition {
        name: "files__read_file".to_owned(),
        description: String::new(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "mode": {"enum": ["text", "raw"]},
                "lines": {"anyOf": [{"$ref": "#/$defs/lines"}, {"type": "null"}]},
                "follow": {"type": ["boolean", "null"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "filters": {"type": "array", "items": {
                    "type": "object",
                    "properties": {"size": {"type": "integer"}},
                }},
                "options": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
                "any": {},
            },
            "required": ["path"],
            "$defs": {"lines": {"type": "integer"}},
        })
        .to_string(),
    };
    own.chain([beside]).collect()
}

fn called(name: &str, arguments: &str, stop: StopReason) -> ToolCall {
    let mut message = Message {
        role: Role::Assistant,
        content: vec![Content::ToolCall(ToolCall {
            id: "c".to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        })],
    };
    repair(&mut message, &tools(), stop);
    match message.content.pop() {
        Some(Content::ToolCall(call)) => call,
        other => panic!("{other:?}"),
    }
}

fn arguments(name: &str, text: &str) -> String {
    called(name, text, StopReason::ToolUse).arguments
}

#[track_caller]
fn becomes(name: &str, text: &str, meant: &Value) {
    let found = arguments(name, text);
    assert_eq!(
        serde_json::from_str::<Value>(&found).ok().as_ref(),
        Some(meant),
        "{text}: {found}"
    );
}

#[test]
fn a_tool_is_found_by_every_name_that_can_only_mean_it() {
    for (name, meant) in [
        ("terminal", "terminal"),
        ("Terminal", "terminal"),
        ("functions.terminal", "terminal"),
        ("functions.terminal:0", "terminal"),
        ("default_api:terminal", "terminal"),
        ("tools/terminal", "terminal"),
        (" terminal ", "terminal"),
        ("`terminal`", "terminal"),
        ("terminal()", "terminal"),
        ("terminal<|channel|>commentary", "terminal"),
        ("file-editor", "file_editor"),
        ("FileEditor", "file_editor"),
        ("files.read_file", "files__read_file"),
        ("files_read_file", "files__read_file"),
        // Their meaning is unknown.
        ("bash", "bash"),
        ("my.terminal", "my.terminal"),
        ("read_file", "read_file"),
        ("", ""),
        ("___", "___"),
    ] {
        assert_eq!(
            called(name, "{}", StopReason::ToolUse).name,
            meant,
            "{name}"
        );
    }
    // It could mean either of two, so it means neither.
    let two = ["run", "RUN"].map(|name| ToolDefinition {
        name: name.to_owned(),
        description: String::new(),
        input_schema: "{}".to_owned(),
    });
    assert!(find_tool("Run", &two).is_none());
    assert_eq!(
        find_tool("RUN", &two).map(|tool| tool.name.as_str()),
        Some("RUN")
    );
}

#[test]
fn arguments_in_another_type_become_what_they_say() {
    let editor = |member: &str, value: &Value| {
        let mut all = json!({"command": "view", "path": "a"});
        all[member] = value.clone();
        all
    };
    for (member, given, meant) in [
        ("insert_line", json!(1.0), json!(1)),
        ("insert_line", json!("3"), json!(3)),
        ("insert_line", json!(" 3.0 "), json!(3)),
        ("insert_line", json!([4]), json!(4)),
        ("view_range", json!([1.0, "-1"]), json!([1, -1])),
        ("view_range", json!("[1, 2]"), json!([1, 2])),
        ("file_text", json!(12), json!("12")),
        ("command", json!("View"), json!("view")),
        ("command", json!("str-replace"), json!("str_replace")),
        // Their meaning is unknown.
        ("insert_line", json!(1.5), json!(1.5)),
        ("insert_line", json!("many"), json!("many")),
        ("file_text", json!({"a": 1}), json!({"a": 1})),
        ("file_text", json!(true), json!(true)),
        ("path", json!(["a", "b"]), json!(["a", "b"])),
    ] {
        let text = editor(member, &given).to_string();
        becomes("file_editor", &text, &editor(member, &meant));
    }
    for (given, meant) in [
        (
            json!({"path": "a", "follow": "true"}),
            json!({"path": "a", "follow": true}),
        ),
        (
            json!({"path": "a", "follow": "False"}),
            json!({"path": "a", "follow": false}),
        ),
        (
            json!({"path": "a", "follow": "null"}),
            json!({"path": "a", "follow": null}),
        ),
        (
            json!({"path": "a", "lines": "7"}),
            json!({"path": "a", "lines": 7}),
        ),
        (
            json!({"path": "a", "lines": 7.0}),
            json!({"path": "a", "lines": 7}),
        ),
        (
            json!({"path": "a", "lines": null}),
            json!({"path": "a", "lines": null}),
        ),
        (json!({"path": "a", "tags": null}), json!({"path": "a"})),
        (
            json!({"path": "a", "mode": "RAW"}),
            json!({"path": "a", "mode": "raw"}),
        ),
        (json!({"Path": "a"}), json!({"path": "a"})),
        (
            json!({"path": "a", "options": "{\"deep\": \"true\",}"}),
            json!({"path": "a", "options": {"deep": true}}),
        ),
        (
            json!({"path": "a", "filters": {"size": "2"}}),
            json!({"path": "a", "filters": [{"size": 2}]}),
        ),
        (
            json!({"name": "files__read_file", "arguments": {"path": "a"}}),
            json!({"path": "a"}),
        ),
        (
            json!({"files__read_file": {"path": "a"}}),
            json!({"path": "a"}),
        ),
        (
            json!({"arguments": "{\"path\": \"a\"}"}),
            json!({"path": "a"}),
        ),
        (
            json!({"path": "a", "any": "3"}),
            json!({"path": "a", "any": "3"}),
        ),
        (
            json!({"path": "a", "tags": "x"}),
            json!({"path": "a", "tags": "x"}),
        ),
        // This schema accepts other members.
        (
            json!({"path": "a", "Lines": 3}),
            json!({"path": "a", "Lines": 3}),
        ),
    ] {
        becomes("files__read_file", &given.to_string(), &meant);
    }
    // This one does not.
    becomes(
        "terminal",
        r#"{"Command": "ls", "Timeout": "5"}"#,
        &json!({"command": "ls", "timeout": 5}),
    );
}

#[test]
fn text_that_is_almost_json_is_read_where_it_can_only_mean_one_thing() {
    let meant = json!({"command": "echo a\n\techo b"});
    for text in [
        "{\"command\": \"echo a\n\techo b\"}",
        "{\"command\": \"echo a\\n\\techo b\",}",
        "{}{\"command\": \"echo a\\n\\techo b\"}",
        "{\"command\": \"echo a\\n\\techo b\"}{}",
        "{\"command\": \"echo a\\n\\techo b\"}{\"command\": \"echo a\\n\\techo b\"}",
        "```json\n{\"command\": \"echo a\\n\\techo b\"}\n```",
        "```\n{\"command\": \"echo a\\n\\techo b\"}```",
        "`{\"command\": \"echo a\\n\\techo b\"}`",
        "[{\"command\": \"echo a\\n\\techo b\"}]",
        "\"{\\\"command\\\": \\\"echo a\\\\n\\\\techo b\\\"}\"",
        "{'command': 'echo a\\n\\techo b'}",
        "{\"command\": \"echo a\\n\\techo b\"}}",
        "\u{feff}{\"command\": \"echo a\\n\\techo b\"}\n",
        "{\"command\": \"echo a\\n\\techo b\" /* both */}",
        "{\n  // both\n  \"command\": \"echo a\\n\\techo b\", // so\n}",
        "{command: \"echo a\\n\\techo b\"}",
        "null{\"command\": \"echo a\\n\\techo b\"}",
    ] {
        becomes("terminal", text, &meant);
    }
    for nothing in ["", "  ", "null", "[]", "\"\"", "{}{}", "\"{}\""] {
        becomes("terminal", nothing, &json!({}));
    }
    becomes(
        "terminal",
        r#"{"command": "it\'s", "timeout": None}"#,
        &json!({"command": "it's"}),
    );
    becomes(
        "terminal",
        r#"{"command": "a \ud83d b \ud83d\ude00"}"#,
        &json!({"command": "a \u{fffd} b 😀"}),
    );
}

#[test]
fn what_could_mean_two_things_or_is_not_whole_stays_as_it_is() {
    for text in [
        r#"{"command": "ls"#,
        r#"{"command": "ls""#,
        r#"{"command": "#,
        "{",
        r#"{"command": "a"}{"command": "b"}"#,
        r#"[{"command": "a"}, {"command": "b"}]"#,
        r#"{"command": "grep \d"}"#,
        "ls -la",
        "3",
        r#""ls""#,
        r#"{"command": "a",, }"#,
        r#"{command line: "ls"}"#,
        r#"{"command": // ls"#,
        r#"{"command": "a" "timeout": 3}"#,
        "I call {\"command\": \"ls\"}",
    ] {
        assert_eq!(arguments("terminal", text), text);
    }
    // Possibly nothing of what was meant has arrived.
    for stop in [StopReason::MaxTokens, StopReason::Other] {
        assert_eq!(called("terminal", "", stop).arguments, "");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(arguments("terminal", &deep), deep);
}

/// Arguments that fit the editor's schema.
fn fitting() -> impl Strategy<Value = Value> {
    let text = || proptest::option::of("\\PC{0,20}|[\\n\\t\"\\\\{}\\[\\],:a]{0,10}");
    let line = proptest::option::of(0_u32..1_000);
    let range = proptest::option::of(proptest::array::uniform2(-1..1_000_i32));
    ("[a-z_/.]{1,9}", text(), text(), line, range).prop_map(|(path, old, new, line, range)| {
        let mut all = json!({"command": "view", "path": path});
        let members = [
            ("old_str", old.map(Value::from)),
            ("new_str", new.map(Value::from)),
            ("insert_line", line.map(Value::from)),
            ("view_range", range.map(|range| json!(range))),
        ];
        for (name, value) in members {
            if let Some(value) = value {
                all[name] = value;
            }
        }
        all
    })
}

proptest! {
    #[test]
    fn arguments_that_fit_are_never_changed(given in fitting(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&given).unwrap() } else { given.to_string() };
        prop_assert_eq!(arguments("file_editor", &text), text);
    }

    #[test]
    fn arguments_that_were_damaged_become_what_they_were(given in fitting(), how in 0_usize..9) {
        let text = given.to_string();
        let inner = &text[1..text.len() - 1];
        let damaged = match how {
            0 => format!("{{{inner},}}"),
            1 => format!("{{}}{text}"),
            2 => format!("```json\n{text}\n```"),
            3 => Value::String(text.clone()).to_string(),
            4 => format!("[{text}]"),
            5 => text.replace("\\n", "\n").replace("\\t", "\t"),
            6 => format!("{text}{text}"),
            7 => json!({"arguments": given}).to_string(),
            _ => format!("{text}}}"),
        };
        // A backslash before an n is not a line break.
        prop_assume!(how != 5 || !text.contains("\\\\"));
        let found = arguments("file_editor", &damaged);
        prop_assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), given);
    }

    #[test]
    fn whatever_comes_either_stays_or_becomes_an_object_that_is_not_mended_again(
        text in prop_oneof![
            "\\PC{0,40}|[\\[\\]{}\"':,\\\\nua0-9 ]{0,30}",
            mutated_text([
                r#"```json\n{"command": "ls", 'timeout': 5, // five\n }\n```"#,
                r#"{"path":"a","lines":"\u00e9\ud83d\ude00","tags":["x",],"options":"{\"deep\":True}"}"#,
                r#""{\"arguments\":{\"path\":\"a\"}}""#,
            ]),
        ],
    ) {
        for name in ["terminal", "files__read_file"] {
            let found = arguments(name, &text);
            if found != text {
                prop_assert!(serde_json::from_str::<Value>(&found).unwrap().is_object(), "{}", found);
                prop_assert_eq!(arguments(name, &found), found);
            }
        }
    }
}
