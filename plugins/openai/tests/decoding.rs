//! Responses as servers send them, streamed and whole, in the variations found in practice.
//!
//! The stream is split into events by a small reader of its own here, since in a session that is
//! the host's work.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use lucid_openai::ChunkDecoder;
use lucid_plugin::llm::{Completion, Decoder, Delta, Frame, Sse};
use lucid_plugin::types::{Content, Error, ErrorKind, StopReason, ToolCall, Usage};
use serde_json::{Value, json};

/// A stream as the API sends it: text, then two tool calls in fragments, then the token counts.
const BODY: &str = include_str!("recorded/two_calls.sse");

fn event(data: &str) -> Frame {
    Frame::Sse(Sse {
        event: None,
        data: data.into(),
        id: None,
    })
}

/// Cuts a body that arrives in pieces into events.
#[derive(Default)]
struct Cutter(Vec<u8>);

impl Cutter {
    fn take(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.0.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(end) = self.0.windows(2).position(|w| w == b"\n\n") {
            let block: Vec<u8> = self.0.drain(..end + 2).collect();
            let block = String::from_utf8(block).unwrap();
            let data: Vec<_> = block
                .lines()
                .filter_map(|l| l.strip_prefix("data: "))
                .collect();
            frames.push(event(&data.join("\n")));
        }
        frames
    }
}

fn decode(frames: Vec<Frame>) -> Result<(Completion, Vec<Delta>), Error> {
    let mut decoder = ChunkDecoder::new("m".into());
    let mut deltas = Vec::new();
    for frame in frames {
        decoder.push(frame, &mut deltas)?;
    }
    Ok((decoder.finish()?, deltas))
}

/// A stream of chunks with these choices' deltas, ended as it should be.
fn stream(deltas: &[Value], reason: &str) -> Vec<Frame> {
    let chunk = |delta: &Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        event(&json!({"id": "chatcmpl-9", "choices": [choice]}).to_string())
    };
    let mut frames: Vec<_> = deltas.iter().map(|d| chunk(d, Value::Null)).collect();
    frames.push(chunk(&json!({}), reason.into()));
    frames.push(event("[DONE]"));
    frames
}

fn calls(completion: &Completion) -> Vec<ToolCall> {
    completion
        .message
        .content
        .iter()
        .filter_map(|c| match c {
            Content::ToolCall(call) => Some(call.clone()),
            _ => None,
        })
        .collect()
}

fn brief(completion: &Completion) -> Vec<(String, String)> {
    calls(completion)
        .into_iter()
        .map(|c| (c.name, c.arguments))
        .collect()
}

fn pair(name: &str, arguments: &str) -> (String, String) {
    (name.into(), arguments.into())
}

/// Deltas say the same as the completion, call by call.
fn assert_deltas_agree(completion: &Completion, deltas: &[Delta]) {
    let mut text = String::new();
    let mut seen: Vec<ToolCall> = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Text(t) => text.push_str(t),
            Delta::ToolCallStarted(s) => {
                assert!(seen.iter().all(|c| c.id != s.id), "{} began twice", s.id);
                let (id, name) = (s.id.clone(), s.name.clone());
                seen.push(ToolCall {
                    id,
                    name,
                    arguments: String::new(),
                });
            }
            Delta::ToolCallArguments(a) => {
                let call = seen.iter_mut().find(|c| c.id == a.id).unwrap();
                call.arguments.push_str(&a.fragment);
            }
            Delta::Thinking(_) | Delta::Usage(_) => {}
        }
    }
    assert_eq!(text, completion.message.joined_text());
    assert_eq!(seen, calls(completion));
}

#[test]
fn the_older_form_of_a_call_is_one_streamed_and_whole() {
    let begins = json!({"role": "assistant", "content": null, "function_call": {"name": "terminal", "arguments": ""}});
    let more = |piece: &str| json!({"function_call": {"arguments": piece}});
    let streamed = stream(
        &[begins, more("{\"command\":"), more(" \"ls\"}")],
        "function_call",
    );
    let whole = json!({"id": "chatcmpl-9", "choices": [{"index": 0, "finish_reason": "function_call", "message": {
        "role": "assistant", "content": null, "tool_calls": [],
        "function_call": {"name": "terminal", "arguments": "{\"command\": \"ls\"}"},
    }}]});
    for frames in [streamed, vec![Frame::Body(whole.to_string().into_bytes())]] {
        let (completion, _) = decode(frames).unwrap();
        assert_eq!(completion.stop, StopReason::ToolUse);
        let calls = calls(&completion);
        assert_eq!(calls.len(), 1);
        assert_eq!(
            (calls[0].name.as_str(), calls[0].arguments.as_str()),
            ("terminal", "{\"command\": \"ls\"}")
        );
        assert!(!calls[0].id.is_empty());
    }
}

#[test]
fn a_recorded_stream_decodes_to_text_calls_and_usage() {
    let (completion, deltas) = decode(Cutter::default().take(BODY.as_bytes())).unwrap();
    assert_eq!(completion.message.joined_text(), "Let me look — gleich.");
    let calls = calls(&completion);
    assert_eq!(calls[0].id, "call_a1");
    assert_eq!(
        brief(&completion),
        [
            pair("terminal", r#"{"command":"ls -la \"ü\""}"#),
            pair(
                "file_editor",
                r#"{"command":"view","path":"/workspace/a.py"}"#
            ),
        ]
    );
    assert_eq!(completion.stop, StopReason::ToolUse);
    let usage = Usage {
        input_tokens: 476,
        output_tokens: 61,
        cache_read_tokens: 1_024,
        cache_write_tokens: 0,
    };
    assert_eq!(completion.usage, usage);
    assert_eq!(deltas.last(), Some(&Delta::Usage(usage)));
    assert_deltas_agree(&completion, &deltas);
}

#[test]
fn a_tool_call_cut_at_every_byte_decodes_the_same() {
    let whole = decode(Cutter::default().take(BODY.as_bytes())).unwrap();
    for at in 0..=BODY.len() {
        let mut cutter = Cutter::default();
        let mut frames = cutter.take(&BODY.as_bytes()[..at]);
        frames.extend(cutter.take(&BODY.as_bytes()[at..]));
        assert_eq!(decode(frames).unwrap(), whole, "cut at {at}");
    }
}

#[test]
fn arguments_cut_anywhere_decode_the_same() {
    let arguments = r#"{"command":"echo \"ä\" && ls"}"#;
    for at in (0..=arguments.len()).filter(|at| arguments.is_char_boundary(*at)) {
        let (completion, deltas) = decode(stream(
            &[
                json!({"tool_calls": [{"index": 0, "id": "c", "type": "function",
                    "function": {"name": "terminal", "arguments": &arguments[..at]}}]}),
                json!({"tool_calls": [{"index": 0, "function": {"arguments": &arguments[at..]}}]}),
            ],
            "tool_calls",
        ))
        .unwrap();
        assert_eq!(brief(&completion), [pair("terminal", arguments)]);
        assert_deltas_agree(&completion, &deltas);
    }
}

#[test]
fn a_stream_that_ends_anywhere_before_its_end_is_an_error() {
    let frames = Cutter::default().take(BODY.as_bytes());
    // The last three hold the reason, the token counts and `[DONE]`: with the first of them the
    // answer is whole.
    let whole = frames.len() - 2;
    for n in 0..whole {
        let error = decode(frames[..n].to_vec()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Upstream, "{n}");
        let said = if n == 0 { "empty" } else { "broke off" };
        assert!(error.message.contains(said), "{n}: {error:?}");
    }
    for n in whole..=frames.len() {
        assert!(decode(frames[..n].to_vec()).is_ok(), "{n}");
    }
}

#[test]
fn a_done_mark_alone_ends_an_answer_too() {
    let frames = vec![
        event(r#"{"choices":[{"index":0,"delta":{"content":"Hi"}}]}"#),
        event("[DONE]"),
    ];
    let (completion, _) = decode(frames).unwrap();
    assert_eq!(completion.stop, StopReason::EndTurn);
    assert_eq!(completion.usage.input_tokens, 0);
}

#[test]
fn calls_in_one_piece_are_told_apart_however_a_server_marks_them() {
    let call = |index: Value, id: Value, name: &str, arguments: Value| {
        let mut call = json!({"function": {"name": name, "arguments": arguments}});
        for (key, value) in [("index", index), ("id", id)] {
            if !value.is_null() {
                call[key] = value;
            }
        }
        call
    };
    let (x, y) = (json!(r#"{"n":1}"#), json!(r#"{"n":2}"#));
    let n = Value::Null;
    let ways = [
        (
            "index and id",
            call(json!(0), json!("a"), "t", x.clone()),
            call(json!(1), json!("b"), "t", y.clone()),
        ),
        (
            "index",
            call(json!(0), n.clone(), "t", x.clone()),
            call(json!(1), n.clone(), "t", y.clone()),
        ),
        (
            "id",
            call(n.clone(), json!("a"), "t", x.clone()),
            call(n.clone(), json!("b"), "t", y.clone()),
        ),
        (
            "the same index, id",
            call(json!(0), json!("a"), "t", x.clone()),
            call(json!(0), json!("b"), "t", y.clone()),
        ),
        (
            "nothing",
            call(n.clone(), n.clone(), "t", x.clone()),
            call(n.clone(), n.clone(), "t", y.clone()),
        ),
        (
            "an empty id",
            call(json!(0), json!(""), "t", x),
            call(json!(1), json!(""), "t", y),
        ),
        (
            "objects",
            call(json!(0), n.clone(), "t", json!({"n": 1})),
            call(json!(1), n, "t", json!({"n": 2})),
        ),
    ];
    for (way, first, second) in ways {
        let expected = [pair("t", r#"{"n":1}"#), pair("t", r#"{"n":2}"#)];
        let together = vec![json!({"tool_calls": [first, second]})];
        let apart = vec![
            json!({"tool_calls": [first]}),
            json!({"tool_calls": [second]}),
        ];
        for deltas in [together, apart] {
            let frames = stream(&deltas, "tool_calls");
            let (completion, shown) = decode(frames.clone()).unwrap();
            assert_eq!(brief(&completion), expected, "{way}");
            assert_deltas_agree(&completion, &shown);
            assert_eq!(
                decode(frames).unwrap().0,
                completion,
                "{way}: another id each time"
            );
        }
    }
}

#[test]
fn a_missing_id_is_made_from_the_response() {
    let frames = stream(
        &[json!({"tool_calls": [{"index": 0, "function": {"name": "t", "arguments": "{}"}}]})],
        "tool_calls",
    );
    assert_eq!(calls(&decode(frames).unwrap().0)[0].id, "call_chatcmpl9_0");
}

#[test]
fn an_id_and_a_name_in_every_fragment_are_one_call() {
    for with_id in [true, false] {
        let fragment = |arguments: &str| {
            let mut call = json!({"index": 0, "function": {"name": "t", "arguments": arguments}});
            if with_id {
                call["id"] = json!("a");
            }
            json!({"tool_calls": [call]})
        };
        let frames = stream(
            &[
                fragment("{\"a\""),
                fragment(":1"),
                fragment("}"),
                fragment(""),
            ],
            "stop",
        );
        let (completion, _) = decode(frames).unwrap();
        assert_eq!(brief(&completion), [pair("t", "{\"a\":1}")]);
        // `stop` with calls means that it waits for them.
        assert_eq!(completion.stop, StopReason::ToolUse);
    }
}

#[test]
fn a_whole_response_decodes_like_a_stream() {
    let body = json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Looking.",
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "t", "arguments": "{}"}},
                    {"id": "a", "type": "function", "function": {"name": "t", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
        }],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7},
    })
    .to_string();
    for at in 0..body.len() {
        let (head, tail) = body.as_bytes().split_at(at);
        let frames = vec![Frame::Body(head.to_vec()), Frame::Body(tail.to_vec())];
        let (completion, deltas) = decode(frames).unwrap();
        assert!(deltas.is_empty());
        let calls = calls(&completion);
        assert_eq!(calls.len(), 2);
        assert_ne!(calls[0].id, calls[1].id);
        assert_eq!(completion.message.joined_text(), "Looking.");
        assert_eq!(
            (
                completion.usage.input_tokens,
                completion.usage.output_tokens
            ),
            (5, 7)
        );
    }
    // The same response as the one event of a stream.
    assert_eq!(calls(&decode(vec![event(&body)]).unwrap().0).len(), 2);
}

#[test]
fn a_body_that_is_not_whole_json_is_an_error() {
    let error = decode(vec![Frame::Body(b"{\"choices\":".to_vec())]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Upstream);
    assert_eq!(decode(vec![]).unwrap_err().kind, ErrorKind::Upstream);
}

#[test]
fn calls_of_one_id_in_several_places_are_several() {
    let call = |index: u64, command: &str| {
        let arguments = json!({ "command": command }).to_string();
        json!({"tool_calls": [{"index": index, "id": "call_x", "type": "function",
            "function": {"name": "terminal", "arguments": arguments}}]})
    };
    let (completion, _) = decode(stream(&[call(0, "a"), call(1, "b")], "tool_calls")).unwrap();
    assert_eq!(
        brief(&completion),
        [
            pair("terminal", r#"{"command":"a"}"#),
            pair("terminal", r#"{"command":"b"}"#),
        ]
    );
    let ids: Vec<_> = calls(&completion).into_iter().map(|call| call.id).collect();
    assert!(ids[0] == "call_x" && ids[1] != "call_x", "{ids:?}");
}

#[test]
fn lines_of_json_in_place_of_events_are_read_as_they_are() {
    let line = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        json!({ "choices": [choice] }).to_string()
    };
    let body = format!(
        "{}\n{}\n\n{}\n",
        line(json!({"content": "Hel"}), Value::Null),
        line(json!({"content": "lo"}), Value::Null),
        line(json!({}), "stop".into()),
    );
    let (completion, _) = decode(vec![Frame::Body(body.into_bytes())]).unwrap();
    assert_eq!(completion.message.joined_text(), "Hello");
}

#[test]
fn an_error_in_the_middle_ends_the_response() {
    let cases = [
        (
            json!({"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}),
            ErrorKind::RateLimited,
        ),
        (
            json!({"error": {"message": "Oh no", "code": 502}}),
            ErrorKind::Upstream,
        ),
        (
            json!({"error": {"message": "Busy", "code": 503}}),
            ErrorKind::Overloaded,
        ),
        (json!({"error": "It broke"}), ErrorKind::Upstream),
        (
            json!({"error": {"message": "This model's maximum context length is 8"}}),
            ErrorKind::ContextTooLong,
        ),
        (
            json!({"choices": [{"delta": {}, "finish_reason": "error"}]}),
            ErrorKind::Upstream,
        ),
    ];
    for (chunk, kind) in cases {
        let frames = vec![
            event(r#"{"choices":[{"delta":{"content":"H"}}]}"#),
            event(&chunk.to_string()),
        ];
        assert_eq!(decode(frames).unwrap_err().kind, kind, "{chunk}");
    }
    assert!(decode(vec![event("{")]).is_err());
}

#[test]
fn unknown_members_and_empty_pieces_are_passed_over() {
    let frames = vec![
        event(""),
        event(r#"{"id":null,"error":null,"choices":[],"prompt_filter_results":[]}"#),
        event(
            r#"{"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":null,"new":1},"logprobs":null,"finish_reason":null}],"usage":null}"#,
        ),
        event(r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#),
    ];
    assert_eq!(decode(frames).unwrap().0.message.joined_text(), "Hi");
}

#[test]
fn reasons_to_stop_are_told_apart() {
    let reasons = [
        ("stop", StopReason::EndTurn),
        ("length", StopReason::MaxTokens),
        ("tool_calls", StopReason::ToolUse),
        ("content_filter", StopReason::Refusal),
        ("something_new", StopReason::Other),
    ];
    for (reason, stop) in reasons {
        let frames = stream(&[json!({"content": "x"})], reason);
        assert_eq!(decode(frames).unwrap().0.stop, stop);
    }
    let frames = stream(&[json!({"refusal": "I cannot."})], "stop");
    let (completion, _) = decode(frames).unwrap();
    assert_eq!(completion.stop, StopReason::Refusal);
    assert_eq!(completion.message.joined_text(), "I cannot.");
}

#[test]
fn reasoning_of_other_servers_is_kept_apart_from_the_text() {
    let frames = stream(
        &[
            json!({"reasoning_content": "Hm"}),
            json!({"reasoning": "."}),
            json!({"content": "Yes"}),
        ],
        "stop",
    );
    let (completion, deltas) = decode(frames).unwrap();
    let Content::Thinking(thinking) = &completion.message.content[0] else {
        panic!()
    };
    assert_eq!(thinking.text, "Hm.");
    assert_eq!(completion.message.joined_text(), "Yes");
    assert_eq!(deltas[0], Delta::Thinking("Hm".into()));
}

#[test]
fn half_a_pair_alone_in_arguments_is_no_error() {
    let frames = stream(
        &[
            json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "t", "arguments": "{\"a\":\"\\ud83d\"}"}}]}),
        ],
        "tool_calls",
    );
    let (completion, _) = decode(frames).unwrap();
    assert_eq!(brief(&completion), [pair("t", "{\"a\":\"\u{FFFD}\"}")]);
}

#[test]
fn a_stream_that_nobody_asked_for_is_read_all_the_same() {
    let body = format!(
        "{}data: [DONE]\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":\"stop\"}]}\n\n"
    );
    let (completion, _) = decode(vec![Frame::Body(body.into_bytes())]).unwrap();
    assert_eq!(completion.message.joined_text(), "Hi");
}
