//! Response checks: recorded bodies and what they mean.
//!
//! # Invariants
//!
//! - Where a body is split makes no difference to the deltas or to the completion.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, executor, stream};
use lucid_mutations::{cuts, mutated, mutated_text, pieces};
use lucid_plugin::llm::{
    Adapter, Completion, Decoder, Delta, Frame, Sse, ToolCallArguments, ToolCallStart,
};
use lucid_plugin::types::{Content, Error, ErrorKind, StopReason, ToolCall, Usage};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sse_stream::SseStream;

use crate::{Expected, Suite};

/// A completion, and the deltas that led to it.
pub type CompletionWithDeltas = (Completion, Vec<Delta>);

/// The stop reasons. Each must be recorded.
const STOPS: [&str; 5] = ["end-turn", "tool-use", "max-tokens", "refusal", "other"];

/// Splits a body that arrives in these pieces into events, as the host does.
pub fn cut(pieces: &[&[u8]]) -> Vec<Frame> {
    let pieces: Vec<_> = pieces
        .iter()
        .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        .collect();
    let events = SseStream::from_bytes_stream(stream::iter(pieces));
    let events = executor::block_on(events.collect::<Vec<_>>());
    events
        .into_iter()
        .filter_map(|event| {
            let event = event.expect("the recorded body is not a stream of events");
            Some(Frame::Sse(Sse {
                event: event.event,
                data: event.data?,
                id: event.id,
            }))
        })
        .collect()
}

/// What an adapter makes of a stream in these pieces that need not be one of events.
fn decode_any<A: Adapter>(body: &[&[u8]]) -> Option<CompletionWithDeltas> {
    let chunks: Vec<_> = body
        .iter()
        .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        .collect();
    let events = SseStream::from_bytes_stream(stream::iter(chunks));
    let events = executor::block_on(events.try_collect::<Vec<_>>()).ok()?;
    let frames = events.into_iter().filter_map(|event| {
        Some(Frame::Sse(Sse {
            event: event.event,
            data: event.data?,
            id: event.id,
        }))
    });
    decode::<A>(frames.collect()).ok()
}

/// Decodes frames with the adapter's decoder.
pub fn decode<A: Adapter>(frames: Vec<Frame>) -> Result<CompletionWithDeltas, Error> {
    let mut decoder = A::Decoder::new(A::describe().default_model);
    let mut deltas = Vec::new();
    for frame in frames {
        decoder.push(frame, &mut deltas)?;
    }
    Ok((decoder.finish()?, deltas))
}

impl<A: Adapter> Suite<A> {
    /// Checks that every recorded response has the recorded meaning, however it is split, also with
    /// unknown members and events, and that it goes back to the provider in a valid request.
    pub fn answers(&self) {
        let mut all = Vec::new();
        for name in self.names() {
            let expected: Expected = serde_json::from_str(&self.read(&format!("{name}.json")))
                .unwrap_or_else(|e| panic!("{name}.json: {e}"));
            let mut there = false;
            if self.has(&format!("{name}.sse")) {
                self.streamed(&name, &expected);
                there = true;
            }
            if self.has(&format!("{name}.whole.json")) {
                let body = self.read(&format!("{name}.whole.json")).into_bytes();
                for at in [0, 1, body.len() / 2] {
                    let (head, tail) = body.split_at(at);
                    let frames = vec![Frame::Body(head.to_vec()), Frame::Body(tail.to_vec())];
                    let (completion, _) = decode::<A>(frames).unwrap();
                    assert_eq!(brief(&completion), expected, "{name}");
                }
                there = true;
            }
            assert!(there, "{name} has no body");
            all.push(expected);
        }
        for stop in STOPS {
            assert!(
                all.iter().any(|e| e.stop == stop),
                "no answer stops with {stop}"
            );
        }
        let with = |what: &str, times| {
            let count = |e: &Expected| e.content.iter().filter(|c| c.get(what).is_some()).count();
            assert!(all.iter().any(|e| count(e) >= times), "no {times} × {what}");
        };
        with("text", 1);
        with("thinking", 1);
        with("call", 2);
        assert!(
            all.iter().any(|e| e.usage[2] > 0),
            "nothing came from a cache"
        );
    }

    fn streamed(&self, name: &str, expected: &Expected) {
        let body = self.read(&format!("{name}.sse"));
        let frames = cut(&[body.as_bytes()]);
        let whole = decode::<A>(frames.clone()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(&brief(&whole.0), expected, "{name}");
        agree(name, &whole);

        for at in 0..=body.len() {
            let (head, tail) = body.as_bytes().split_at(at);
            let answer = decode::<A>(cut(&[head, tail])).unwrap();
            assert_eq!(answer, whole, "{name}, cut at {at}");
        }
        let bytes: Vec<_> = body.as_bytes().chunks(1).collect();
        assert_eq!(
            decode::<A>(cut(&bytes)).unwrap(),
            whole,
            "{name}, byte by byte"
        );
        let crlf = body.replace('\n', "\r\n");
        assert_eq!(
            decode::<A>(cut(&[crlf.as_bytes()])).unwrap(),
            whole,
            "{name}, CRLF"
        );

        // Truncated anywhere, it is an error or equivalent to the whole.
        for n in 0..frames.len() {
            match decode::<A>(frames[..n].to_vec()) {
                Ok((completion, _)) => {
                    assert_eq!(completion.message, whole.0.message, "{name}, {n} frames");
                }
                Err(error) => assert_eq!(error.kind, ErrorKind::Upstream, "{name}, {n} frames"),
            }
        }
        assert!(decode::<A>(Vec::new()).is_err(), "nothing is no answer");

        assert_eq!(
            decode::<A>(with_news(&frames)).unwrap(),
            whole,
            "{name}, with news"
        );
        self.goes_back(name, &whole.0);
    }

    /// Checks that whatever a provider may send by mistake is an answer or an error, no larger than what
    /// was sent, and the same wherever it is cut.
    pub fn mutated_answers(&self) {
        let names = self.names();
        let bodies = |kind: &str| {
            let files = names.iter().map(|name| format!("{name}.{kind}"));
            let there: Vec<String> = files.filter(|name| self.has(name)).collect();
            there.iter().map(|name| self.read(name)).collect::<Vec<_>>()
        };
        let mut runner = TestRunner::default();
        // The host replaces what is no text.
        let streamed = (mutated_text(bodies("sse")), cuts());
        let outcome = runner.run(&streamed, |(body, cuts)| {
            let whole = decode_any::<A>(&[body.as_bytes()]);
            prop_assert_eq!(&decode_any::<A>(&pieces(body.as_bytes(), &cuts)), &whole);
            let size = whole.map_or(0, |(completion, _)| format!("{completion:?}").len());
            prop_assert!(
                size <= 64 * body.len() + 4_096,
                "{} of {}",
                size,
                body.len()
            );
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
        let mut whole = bodies("whole.json");
        whole.push(self.read("errors.json"));
        let outcome = runner.run(&(mutated(whole), 100..600_u16), |(body, status)| {
            let _ = decode::<A>(vec![Frame::Body(body.clone())]);
            let error = A::classify(status, &[], &body);
            prop_assert!(
                error.message.len() <= 3 * body.len() + 1_024,
                "{}",
                error.message
            );
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.folder)
            .unwrap_or_else(|e| panic!("{}: {e}", self.folder.display()))
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let name = name.strip_suffix(".json")?;
                (name != "errors" && !name.ends_with(".whole")).then(|| name.to_owned())
            })
            .collect();
        names.sort();
        names
    }

    fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }
}

/// The same response from a newer version of the provider: every object has an additional member,
/// and there are unknown events.
fn with_news(frames: &[Frame]) -> Vec<Frame> {
    let event = |data: &str| {
        Frame::Sse(Sse {
            event: None,
            data: data.into(),
            id: None,
        })
    };
    let mut news = vec![event(r#"{"type":"x_new_event","x_new":{"a":[1,null]}}"#)];
    for frame in frames {
        let Frame::Sse(sse) = frame else {
            unreachable!("only events are cut")
        };
        news.push(match serde_json::from_str::<Value>(&sse.data) {
            Ok(mut data) => {
                grow(&mut data);
                event(&data.to_string())
            }
            // A mark such as `[DONE]`.
            Err(_) => event(&sse.data),
        });
        news.push(event(r#"{"type":"ping"}"#));
    }
    news
}

const WHOLE: [&str; 6] = [
    "args",
    "input",
    "reasoning_details",
    "thinking_blocks",
    "extra_content",
    "provider_specific_fields",
];

fn grow(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(grow),
        // A tool's arguments are not the provider's to extend, and members that are kept whole
        // would be kept with the addition.
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                if !WHOLE.contains(&name.as_str()) {
                    grow(member);
                }
            }
            members.insert("x_new".into(), json!({ "a": [1, null] }));
        }
        _ => {}
    }
}

/// Checks that the deltas show the same as the completion.
fn agree(name: &str, (completion, deltas): &CompletionWithDeltas) {
    let (mut text, mut thinking) = (String::new(), String::new());
    let mut shown: Vec<ToolCall> = Vec::new();
    let mut usage = None;
    for delta in deltas {
        match delta {
            Delta::Text(more) => text.push_str(more),
            Delta::Thinking(more) => thinking.push_str(more),
            Delta::ToolCallStarted(ToolCallStart { id, name }) => shown.push(ToolCall {
                id: id.clone(),
                name: name.clone(),
                arguments: String::new(),
            }),
            Delta::ToolCallArguments(ToolCallArguments { id, fragment }) => {
                let call = shown.iter_mut().find(|call| call.id == *id);
                call.expect("arguments of a call that was not begun")
                    .arguments
                    .push_str(fragment);
            }
            Delta::Usage(so_far) => usage = Some(*so_far),
        }
    }
    let (mut said, mut thought) = (String::new(), String::new());
    let mut calls: Vec<ToolCall> = Vec::new();
    for piece in &completion.message.content {
        match piece {
            Content::Text(piece) => said.push_str(piece),
            Content::Thinking(piece) => thought.push_str(&piece.text),
            Content::ToolCall(call) => calls.push(call.clone()),
            _ => {}
        }
    }
    assert_eq!(text, said, "{name}");
    assert_eq!(thinking, thought, "{name}");
    for (shown, call) in shown.iter_mut().zip(&calls) {
        // A call without arguments has no deltas for them.
        if shown.arguments.is_empty() && call.arguments == "{}" {
            shown.arguments = "{}".into();
        }
    }
    assert_eq!(shown, calls, "{name}");
    let zero = completion.usage == lucid_plugin::NO_USAGE;
    assert!(
        usage == Some(completion.usage) || (usage.is_none() && zero),
        "{name}"
    );
}

fn brief(completion: &Completion) -> Expected {
    let content = completion.message.content.iter().map(|piece| match piece {
        Content::Text(text) => json!({ "text": text }),
        Content::Thinking(thinking) => match &thinking.signature {
            Some(signature) => json!({ "thinking": thinking.text, "signature": signature }),
            None => json!({ "thinking": thinking.text }),
        },
        Content::ToolCall(call) => {
            json!({ "call": { "id": call.id, "name": call.name, "arguments": call.arguments } })
        }
        Content::Other(custom) => {
            let body: Value = serde_json::from_str(&custom.body).expect("a body that is not JSON");
            json!({ "other": { "kind": custom.kind, "body": body } })
        }
        other => panic!("a model does not say {other:?}"),
    });
    let Usage {
        input_tokens,
        output_tokens,
        cache_read_tokens,
        cache_write_tokens,
    } = completion.usage;
    Expected {
        content: content.collect(),
        stop: match completion.stop {
            StopReason::EndTurn => "end-turn",
            StopReason::ToolUse => "tool-use",
            StopReason::MaxTokens => "max-tokens",
            StopReason::Refusal => "refusal",
            StopReason::Other => "other",
        }
        .into(),
        usage: [
            input_tokens,
            output_tokens,
            cache_read_tokens,
            cache_write_tokens,
        ],
    }
}
