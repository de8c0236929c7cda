//! Calls as models write them, and texts that only speak of them.

use lucid_mutations::{cuts, mutated_text};
use proptest::prelude::*;

use super::*;
use lucid_types::wit::types::{Message, Role, Usage};

fn tools() -> Vec<ToolDefinition> {
    let tool = |name: &str, schema: &str| ToolDefinition {
        name: name.into(),
        description: String::new(),
        input_schema: schema.into(),
    };
    vec![
        tool(
            "terminal",
            r#"{"type":"object","properties":{"command":{"type":"string"},"timeout":{"type":"integer"}}}"#,
        ),
        tool(
            "file_editor",
            r#"{"type":"object","properties":{"path":{"type":"string"}}}"#,
        ),
        tool("finish", r#"{"type":"object"}"#),
    ]
}

fn completion(text: &str) -> Completion {
    Completion {
        message: Message {
            role: Role::Assistant,
            content: vec![Content::Text(text.into())],
        },
        stop: StopReason::EndTurn,
        usage: Usage {
            input_tokens: 1,
            output_tokens: 1,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
        },
    }
}

/// The text that is left, the calls, and whether it waits for tools.
fn read(text: &str) -> (String, Vec<(String, Value)>, bool) {
    let mut completion = completion(text);
    take(&mut completion, &tools());
    let mut said = String::new();
    let mut calls = Vec::new();
    for piece in &completion.message.content {
        match piece {
            Content::Text(text) => said.push_str(text),
            Content::ToolCall(call) => {
                calls.push((
                    call.name.clone(),
                    serde_json::from_str(&call.arguments).unwrap(),
                ));
            }
            _ => {}
        }
    }
    (said, calls, completion.stop == StopReason::ToolUse)
}

#[test]
fn a_call_in_any_markup_becomes_one() {
    let ls = serde_json::json!({"command": "ls"});
    for text in [
        "<tool_call>\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}\n</tool_call>",
        "<tool_call>{\"name\": \"terminal\", \"arguments\": \"{\\\"command\\\": \\\"ls\\\"}\"}",
        "<tool_call>\n<function=terminal>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>",
        "<function=terminal>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>",
        "<function=terminal>{\"command\": \"ls\"}</function>",
        "<tool_call>terminal\n<arg_key>command</arg_key>\n<arg_value>ls</arg_value>\n</tool_call>",
        "<function_calls>\n<invoke name=\"terminal\">\n<parameter name=\"command\">ls</parameter>\n</invoke>\n</function_calls>",
        "<antml:function_calls>\n<antml:invoke name=\"terminal\">\n<antml:parameter name=\"command\">ls</antml:parameter>\n</antml:invoke>\n</antml:function_calls>",
        "<minimax:tool_call>\n<invoke name=\"terminal\">\n<parameter name=\"command\">ls</parameter>\n</invoke>\n</minimax:tool_call>",
        "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"terminal\">\n<｜DSML｜parameter name=\"command\" string=\"true\">ls</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "[TOOL_CALLS] [{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}]",
        "[TOOL_CALLS]terminal[ARGS]{\"command\": \"ls\"}",
        "[TOOL_CALLS]terminal[CALL_ID]a1B2c3D4e[ARGS]{\"command\": \"ls\"}",
        "<|python_tag|>{\"name\": \"terminal\", \"parameters\": {\"command\": \"ls\"}}<|eom_id|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.terminal:0<|tool_call_argument_begin|>{\"command\": \"ls\"}<|tool_call_end|><|tool_calls_section_end|>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>terminal\n```json\n{\"command\": \"ls\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>terminal<｜tool▁sep｜>{\"command\": \"ls\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "```json\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}\n```",
        "```tool_call\n{\"tool\": \"Terminal\", \"args\": {\"command\": \"ls\"}}\n```\n",
        "{\"type\": \"function\", \"function\": {\"name\": \"functions.terminal\", \"arguments\": \"{\\\"command\\\":\\\"ls\\\"}\"}}",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.terminal <|constrain|>json<|message|>{\"command\": \"ls\"}<|call|>",
        "<|channel|>commentary to=functions.terminal <|constrain|>json{\"command\": \"ls\"}",
        "assistantcommentary to=functions.terminal json{\"command\": \"ls\"}",
        "<|start|>assistant to=functions.terminal<|channel|>commentary json<|message|>{\"command\": \"ls\"}",
        "<｜tool▁call▁begin｜>terminal<｜tool▁sep｜>{\"command\": \"ls\"}<｜tool▁call▁end｜>",
        "<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>terminal\n```json\n{\"command\": \"ls\"}\n```<|tool_call_end|><|tool_calls_end|>",
        "<TOOLCALL>[{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}]</TOOLCALL>",
        "functools[{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}]",
        "<tool_call>\n{'name': 'terminal', 'arguments': {'command': 'ls'}}\n</tool_call>",
        "<tool_call>{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}</tool_call>\n<tool_response>\na.py\n</tool_response>\nI see a.py.",
    ] {
        let (said, calls, waits) = read(text);
        assert_eq!((said.as_str(), waits), ("", true), "{text}");
        assert_eq!(calls, [("terminal".to_owned(), ls.clone())], "{text}");
        if !text.starts_with(['`', '{']) {
            let (said, calls, _) = read(&format!("Let me look at `<tool_call>`.\n\n{text}"));
            assert_eq!(said, "Let me look at `<tool_call>`.", "{text}");
            assert_eq!(calls.len(), 1, "{text}");
        }
    }
}

#[test]
fn several_calls_stay_several_and_values_are_what_the_schema_says() {
    let text = "Both.\n<tool_call>\n<function=terminal>\n<parameter=command>\necho '</parameter>' > a\n{}\n</parameter>\n<parameter=timeout>\n30\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=file_editor>\n<parameter=path>\n7\n</parameter>\n</function>\n</tool_call>";
    let (said, calls, _) = read(text);
    assert_eq!(said, "Both.");
    assert_eq!(
        calls,
        [
            (
                "terminal".to_owned(),
                serde_json::json!({"command": "echo '</parameter>' > a\n{}", "timeout": 30})
            ),
            ("file_editor".to_owned(), serde_json::json!({"path": "7"})),
        ]
    );
}

#[test]
fn calls_behind_each_other_and_behind_words_without_a_line_break_are_calls() {
    let one = "{\"name\": \"terminal\", \"parameters\": {\"command\": \"ls\"}}";
    for text in [format!("{one}; {one}"), format!("{one}\n{one}\n")] {
        let (said, calls, waits) = read(&text);
        assert_eq!((said.as_str(), calls.len(), waits), ("", 2, true), "{text}");
    }
    for opener in ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"] {
        let (said, calls, _) = read(&format!("I look.{opener}{one}"));
        assert_eq!((said.as_str(), calls.len()), ("I look.", 1), "{opener}");
    }
    let (_, calls, _) = read(
        "<tool_call>{\"name\": \"terminal\", \"arguments\": {\"command\": \"a\nb\"}}</tool_call>",
    );
    assert_eq!(calls[0].1["command"], "a\nb", "a raw line break is one");
}

#[test]
fn what_cannot_be_told_waits_for_tools_and_keeps_its_text() {
    for text in [
        "<tool_call>\n{\"name\": \"nobody\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"terminal\", \"arguments\": {\"command\": \n</tool_call>",
        "<function=terminal>\n<parameter=command>\nls\n</function>",
        "For example:\n```json\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"rm -r /\"}}\n```",
        "tools.json now holds:\n```json\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"rm -r /\"}}\n```",
        "I run it.\n{\"name\": \"terminal\", \"parameters\": {\"command\": \"ls\"}}",
        "The server prints <tool_call>{\"name\": \"terminal\", \"arguments\": {}}</tool_call>",
        "The server prints <tool_call>\n<function=terminal>\n</function>\n</tool_call>",
        "```xml\n<tool_call>\n{\"name\": \"terminal\", \"arguments\": {}}\n</tool_call>",
        "```xml\n<tool_call>\n{\"name\": \"terminal\", \"arguments\": {}}\n</tool_call>\n```",
        "```tool_code\nterminal(command=\"ls\")\n```",
        "The log of yesterday holds:\n```tool_call\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"rm -r /\"}}\n```",
        "The server prints:<tool_call>{\"name\": \"terminal\", \"arguments\": {}}</tool_call>",
        "[terminal(command=\"ls\")]",
        "<tool_call>\n{\"name\": \"terminal\"\n</tool_call>\n<tool_response>\na.py\n</tool_response>\nI see a.py.",
        "<|python_tag|>terminal.call(command=\"ls\")",
        "<start_function_call>call:terminal{command:<escape>ls<escape>}<end_function_call>",
        "<tool_call>\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls ",
        "<function=terminal>\n<parameter=command>\nls",
        "Thought: I look.\nAction: terminal\nAction Input: {\"command\": \"ls\"}",
    ] {
        assert_eq!(read(text), (text.to_owned(), Vec::new(), true), "{text}");
    }
}

#[test]
fn a_text_that_speaks_of_such_markup_stays_an_answer() {
    for text in [
        "Done.",
        "The model writes `<tool_call>{\"name\": \"terminal\", \"arguments\": {}}</tool_call>` as text.",
        "It looks so:\n\n```xml\n<tool_call>\n{\"name\": \"terminal\", \"arguments\": {}}\n</tool_call>\n```",
        "It looks so:\n\n```xml\n<tool_call>\n{\"name\": \"terminal\", \"arguments\": {}}\n</tool_call>\n```\nThat is all.",
        "<tool_call> is what it begins with, and then a name comes.",
        "It is written so:\n\n    <tool_call>\n    {\"name\": \"terminal\", \"arguments\": {}}\n    </tool_call>",
        "> <tool_call>\n> {\"name\": \"terminal\", \"arguments\": {}}\n> </tool_call>",
        "[the manual](https://example.org/manual)",
        "> <tool_call>{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}</tool_call>",
        "It said:\n\n> ><tool_call>{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}</tool_call>",
        "<tool_call>\n{\"name\": \"terminal\", \"arguments\": {}}\n</tool_call>\nis how it looks.",
        "<function=terminal>\n<parameter=command>\nls\n</parameter>\n</function>\n\nSo it is written (mostly)",
        "```\nAction: terminal\nAction Input: {\"command\": \"ls\"}\n```\nis what older agents wrote.",
        "Older agents wrote\n\nAction: terminal\nAction Input: {\"command\": \"ls\"}\n\nand read what came of it.",
        "Call it with {\"name\": \"terminal\", \"parameters\": {\"command\": \"ls\"}}",
        "```json\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}\n```\nshows the files.",
        "```json\n{\"name\": \"lucid\", \"version\": \"1\"}\n```",
        "{\"name\": \"lucid\", \"arguments\": 1}",
        "I wrote [TOOL_CALLS] into the parser, and `<|channel|>` and <|message|> as well.",
        "Harmony has `<|channel|>analysis<|message|>` in it.",
    ] {
        assert_eq!(read(text), (text.to_owned(), Vec::new(), false), "{text}");
    }
}

#[test]
fn the_channels_of_harmony_are_told_apart() {
    let text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>";
    let mut answer = completion(text);
    take(&mut answer, &tools());
    assert_eq!(answer.stop, StopReason::EndTurn);
    let thought = Content::Thinking(Thinking {
        text: "Hm.".into(),
        signature: None,
    });
    assert_eq!(
        answer.message.content,
        [thought, Content::Text("Yes.".into())]
    );
}

#[test]
fn an_answer_with_calls_of_its_own_or_that_was_cut_off_stays_as_it_is() {
    let text = "<tool_call>{\"name\": \"terminal\", \"arguments\": {}}</tool_call>";
    let mut cut = completion(text);
    cut.stop = StopReason::MaxTokens;
    let before = cut.clone();
    take(&mut cut, &tools());
    assert_eq!(cut, before);
    let mut calls = completion(text);
    calls.message.content.push(Content::ToolCall(ToolCall {
        id: "a".into(),
        name: "finish".into(),
        arguments: "{}".into(),
    }));
    let before = calls.clone();
    take(&mut calls, &tools());
    assert_eq!(calls, before);
    let mut alone = completion(text);
    take(&mut alone, &[]);
    assert_eq!(alone, completion(text));
}

#[test]
fn markup_is_held_back_while_the_answer_comes_and_code_is_not() {
    for (text, shown) in [
        ("Let me look.\n<tool_call>\n{}", "Let me look.\n"),
        ("a < b and [1] <i>\n", "a < b and [1] <i>\n"),
        ("See `<tool_call>` there", "See `<tool_call>` there"),
        ("```\n<function=x>\n```\nand", "```\n<function=x>\n```\nand"),
        ("Yes.<|channel|>final", "Yes."),
        ("functools[{}]", ""),
        ("I look.\nfunctools[{}]", "I look.\n"),
        (
            "```\n``\n<tool_call>\n```\n<i><tool_call>",
            "```\n``\n<tool_call>\n```\n<i>",
        ),
        ("``a`<tool_call>`` `b`<tool_call>", "``a`<tool_call>`` `b`"),
    ] {
        let mut watch = LeakWatcher::default();
        let mut seen = String::new();
        for c in text.chars() {
            seen.push_str(&watch.next(&c.to_string()));
        }
        assert_eq!(seen, shown, "{text}");
        seen.push_str(&watch.finish());
        assert_eq!(seen, text);
    }
}

#[test]
fn ordinary_words_are_shown_as_they_come() {
    let mut watch = LeakWatcher::default();
    for text in ["I look", " if", " f", "fa", " co", "com"] {
        assert_eq!(watch.next(text), text);
    }
}

#[test]
fn what_a_long_answer_holds_does_not_make_it_slow() {
    // Each of these would be looked at again with every line, or with every piece.
    let indented = format!("It is:\n\n{}\nDone.", "    [1\n".repeat(100_000));
    let began = std::time::Instant::now();
    assert!(!read(&indented).2);
    let mut watch = LeakWatcher::default();
    let piece = "an `i`\n<f";
    let mut shown = 0;
    for _ in 0..100_000 {
        shown += watch.next(piece).len();
    }
    assert!(shown + 2 >= piece.len() * 100_000, "{shown}");
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}

/// Answers in which a call is written as text.
const WRITTEN: [&str; 7] = [
    "I look.\n<tool_call>\n{\"name\": \"terminal\", \"arguments\": {\"command\": \"ls\"}}\n</tool_call>",
    "<function=terminal><parameter=command>ls -l</parameter><parameter=timeout>5</parameter></function>",
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.terminal <|constrain|>json<|message|>{\"command\":\"ls\"}<|call|>",
    "```json\n{\"name\":\"file_editor\",\"parameters\":{\"path\":\"a\"}}\n```",
    "[TOOL_CALLS][{\"name\":\"terminal\",\"arguments\":{}}]",
    "<invoke name=\"terminal\">\n<parameter name=\"command\">echo `x`</parameter>\n</invoke>",
    "As in `<tool_call>`:\n\n    <tool_call>{}</tool_call>\n~~~\n[terminal(command=\"ls\")]",
];

proptest! {
    #[test]
    fn of_a_mutated_answer_only_offered_tools_are_called_and_nothing_is_added(text in mutated_text(WRITTEN)) {
        let mut answer = completion(&text);
        take(&mut answer, &tools());
        let offered = ["terminal", "file_editor", "finish"];
        let mut kept = 0;
        for piece in &answer.message.content {
            match piece {
                Content::ToolCall(call) => prop_assert!(offered.contains(&call.name.as_str()), "{}", call.name),
                Content::Text(text) | Content::Thinking(Thinking { text, .. }) => kept += text.len(),
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(kept <= text.len());
    }

    #[test]
    fn what_is_shown_of_a_mutated_answer_is_its_text_wherever_it_is_cut(
        text in mutated_text(WRITTEN),
        cuts in cuts(),
    ) {
        let mut ends: Vec<usize> = cuts.iter().map(|at| text.floor_char_boundary(at.index(text.len() + 1))).collect();
        ends.push(text.len());
        ends.sort_unstable();
        let (mut watch, mut shown, mut from) = (LeakWatcher::default(), String::new(), 0);
        for end in ends {
            shown.push_str(&watch.next(&text[from..end]));
            prop_assert!(text.starts_with(&shown));
            from = end;
        }
        shown.push_str(&watch.finish());
        prop_assert_eq!(shown, text);
    }
}
