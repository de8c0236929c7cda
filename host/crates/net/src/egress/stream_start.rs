//! How a response that should be a stream of events is read if it is none, or not a clean one.
//!
//! Servers, and proxies in front of them, report success and send a page, a single JSON value, or lines of JSON
//! among the events. Most of these are errors, which the adapter has to see.
//!
//! # Invariants
//!
//! - A stream of events passes through unchanged, line by line as it comes, except for bytes that are not UTF-8
//!   and for lines of JSON outside of any event; each of those becomes an event of its own.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::EgressError;
use super::response::{BodyChunks, FrameStream, events, single_frame};

/// The names that lines of a stream of events have; a comment has none. Some servers write an error as one.
const FIELDS: [&[u8]; 6] = [b"", b"data", b"event", b"id", b"retry", b"error"];
const LONGEST_FIELD: usize = 5;
/// The mark that a text may begin with.
const MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Cuts an answer into events, or takes it as one value where it begins like one.
pub(super) fn detect_framing(chunks: BodyChunks) -> FrameStream {
    let cut = async move {
        let mut chunks = chunks;
        let (mut read, mut blank, mut is_events) = (Vec::new(), 0, None);
        while is_events.is_none() {
            let Some(chunk) = chunks.next().await else {
                break;
            };
            read.extend_from_slice(&chunk?);
            // A provider may send nothing but blanks for a while: each is looked at once.
            let more = read[blank..].iter().position(|byte| !is_blank(*byte));
            blank = more.map_or(read.len(), |more| blank + more);
            is_events = begins_events(&read[blank..]);
        }
        let read = stream::iter([Ok(Bytes::from(read))]);
        let all = read.chain(chunks).boxed();
        Ok(match is_events {
            Some(true) => events(normalize_event_stream(all).boxed()),
            _ => single_frame(all),
        })
    };
    stream::once(cut).try_flatten().boxed()
}

/// Whether a body may have it before it begins.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || MARK.contains(&byte)
}

/// Whether a body that begins so, behind its blanks, is a stream of events; none where that is not known yet.
fn begins_events(text: &[u8]) -> Option<bool> {
    let Some(end) = text.iter().position(|byte| !byte.is_ascii_alphabetic()) else {
        return (text.len() > LONGEST_FIELD).then_some(false);
    };
    let (name, rest) = text.split_at(end);
    let is_field = rest[0] == b':' && FIELDS.contains(&name);
    Some(is_field || rest[0] == b'\n' && name == b"data")
}

/// The same stream without what a reader of events stumbles over.
fn normalize_event_stream(
    chunks: BodyChunks,
) -> impl Stream<Item = Result<Bytes, EgressError>> + Send {
    let ends = chunks
        .map_ok(Some)
        .chain(stream::once(futures::future::ready(Ok(None))));
    let lines = ends.scan(Lines::default(), |lines, chunk| {
        let mended = match chunk {
            Err(error) => Err(error),
            Ok(Some(chunk)) => Ok(lines.take(&chunk)),
            Ok(None) => Ok(lines.end()),
        };
        futures::future::ready(Some(mended))
    });
    // Each line on its own: the reader drops what came in one piece with a line that it cannot read, and how
    // the network cut the stream must make no difference.
    lines
        .map_ok(|lines| stream::iter(lines).map(Ok))
        .try_flatten()
}

#[derive(Default)]
struct Lines {
    /// The line that is not whole.
    rest: Vec<u8>,
}

impl Lines {
    fn take(&mut self, chunk: &[u8]) -> Vec<Bytes> {
        let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') else {
            self.rest.extend_from_slice(chunk);
            return Vec::new();
        };
        let mut whole = std::mem::replace(&mut self.rest, chunk[end + 1..].to_vec());
        whole.extend_from_slice(&chunk[..=end]);
        let mut out = BytesMut::with_capacity(whole.len());
        let lines = whole.split_inclusive(|byte| *byte == b'\n').map(|line| {
            push_line(line, &mut out);
            out.split().freeze()
        });
        lines.collect()
    }

    /// The last event may lack the empty line behind it.
    fn end(&mut self) -> Vec<Bytes> {
        let rest = std::mem::take(&mut self.rest);
        let data = rest.strip_prefix(b"data:").map(<[u8]>::trim_ascii);
        let is_whole = data.is_some_and(|data| data == b"[DONE]" || is_json(data));
        let mut out = BytesMut::new();
        if is_whole || is_bare_json(&rest) {
            push_line(&rest, &mut out);
            out.put_u8(b'\n');
        }
        if rest.is_empty() || is_whole {
            out.put_u8(b'\n');
        }
        if out.is_empty() {
            return Vec::new();
        }
        vec![out.freeze()]
    }
}

fn push_line(line: &[u8], out: &mut BytesMut) {
    // Some servers write an error as a field of its own.
    let error = line
        .strip_prefix(b"error:")
        .filter(|rest| is_bare_json(rest));
    let bare = error.or_else(|| is_bare_json(line).then_some(line));
    let Some(json) = bare else {
        out.extend_from_slice(String::from_utf8_lossy(line).as_bytes());
        return;
    };
    let name: &[u8] = if error.is_some() {
        b"event: error\n"
    } else {
        b""
    };
    out.put_u8(b'\n');
    out.extend_from_slice(name);
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(String::from_utf8_lossy(json).trim().as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// Whether a line is a JSON object that should have been in an event.
fn is_bare_json(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.starts_with(b"{") && line.ends_with(b"}") && is_json(line)
}

fn is_json(text: &[u8]) -> bool {
    // Halves of characters, which only the adapter knows what to do with, make no difference here.
    let text = String::from_utf8_lossy(text);
    text.starts_with('{')
        && text.ends_with('}')
        && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok()
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use lucid_types::wit::llm::{Frame, Sse};

    fn read(body: &[u8], at: usize) -> Vec<Frame> {
        let (head, tail) = body.split_at(at);
        let chunks = [head, tail].map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
        let cut = detect_framing(stream::iter(chunks).boxed());
        block_on(cut.try_collect::<Vec<_>>()).unwrap()
    }

    fn everywhere(body: &[u8], expected: &[Frame]) {
        for at in 0..=body.len() {
            assert_eq!(
                read(body, at),
                expected,
                "{} at {at}",
                String::from_utf8_lossy(body)
            );
        }
    }

    fn event(data: &str) -> Frame {
        Frame::Sse(Sse {
            event: None,
            data: data.to_owned(),
            id: None,
        })
    }

    #[test]
    fn a_stream_of_events_stays_one() {
        let body =
            "\u{FEFF}: hello\n\ndata: {\"a\":\"ü\"}\r\n\r\ndata: {\ndata: }\n\ndata: [DONE]\n\n";
        let expected = [event("{\"a\":\"ü\"}"), event("{\n}"), event("[DONE]")];
        everywhere(body.as_bytes(), &expected);
    }

    #[test]
    fn a_page_or_a_json_value_is_taken_as_a_whole() {
        for body in [
            "<html><title>502</title></html>",
            " \n{\"error\":\n{}}",
            "[{\"error\":1}]",
            "upstream request timeout",
            "OK",
            "Internal Server Error: no worker\n",
        ] {
            everywhere(body.as_bytes(), &[Frame::Body(body.as_bytes().to_vec())]);
        }
    }

    #[test]
    fn a_body_that_is_blank_for_long_is_read_as_it_goes_on() {
        let blanks = "\n".repeat(200_000);
        let began = std::time::Instant::now();
        for (end, expected) in [
            ("data: 1\n\n", event("1")),
            ("{}", Frame::Body(format!("{blanks}{{}}").into_bytes())),
        ] {
            let body = Bytes::from(format!("{blanks}{end}"));
            let chunks = (0..body.len()).map(|at| Ok(body.slice(at..=at)));
            let cut = detect_framing(stream::iter(chunks.collect::<Vec<_>>()).boxed());
            assert_eq!(block_on(cut.try_collect::<Vec<_>>()).unwrap(), [expected]);
        }
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn json_among_the_events_becomes_one_and_the_last_needs_no_empty_line() {
        let words = event("{\"a\":1}");
        let error = event("{\"error\":{\"message\":\"no\"}}");
        for body in [
            "data: {\"a\":1}\n\n{\"error\":{\"message\":\"no\"}}\n",
            "data: {\"a\":1}\n\n{\"error\":{\"message\":\"no\"}}",
            "data: {\"a\":1}\n{\"error\":{\"message\":\"no\"}}\n\n",
            "data: {\"a\":1}\n\ndata: {\"error\":{\"message\":\"no\"}}\n",
            "data: {\"a\":1}\n\ndata: {\"error\":{\"message\":\"no\"}}",
        ] {
            everywhere(body.as_bytes(), &[words.clone(), error.clone()]);
        }
        let named = Frame::Sse(Sse {
            event: Some("error".to_owned()),
            data: "{\"code\":500}".to_owned(),
            id: None,
        });
        everywhere(
            b"data: {\"a\":1}\n\nerror: {\"code\":500}\n",
            &[words.clone(), named],
        );
        // What was cut off is no event.
        everywhere(b"data: {\"a\":1}\n\ndata: {\"b\":{\"c\":1}", &[words]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        everywhere(
            b"data: {\"a\":\"\xF0\x9F\"}\n\n",
            &[event("{\"a\":\"\u{FFFD}\"}")],
        );
    }
}
