//! Answers of providers that no provider sends: cut anywhere, they are the same frames.

use bytes::Bytes;
use futures::executor::block_on;
use futures::{StreamExt as _, stream};
use lucid_mutations::{cuts, mutated, pieces};
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::response::{BodyChunks, FrameStream, lines};
use super::super::stream_start::detect_framing;
use lucid_types::wit::llm::{Frame, Sse};

const EVENTS: [&str; 5] = [
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"1\"}}\n\nevent: ping\ndata: {}\n\n",
    "\u{feff}: hello\r\n\r\nid: 7\r\nretry: 10\r\ndata: {\r\ndata: \"a\":\"\u{fc}\"}\r\n\r\ndata: [DONE]\r\n\r\n",
    "data: {\"a\":1}\n\nerror: {\"code\":500}\n{\"error\":{\"message\":\"no\"}}\n",
    "\n\n{\"error\":{\"message\":\"no\"}}",
    "<html>\n<title>502</title></html>\n",
];

/// The frames of a body in these pieces, and whether an error came behind them.
fn frames(read: fn(BodyChunks) -> FrameStream, body: &[u8], cuts: &[Index]) -> (Vec<Frame>, bool) {
    let chunks: Vec<_> = pieces(body, cuts)
        .into_iter()
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let all = block_on(read(stream::iter(chunks).boxed()).collect::<Vec<_>>());
    let count = all.len();
    let good: Vec<_> = all.into_iter().map_while(Result::ok).collect();
    let has_error = good.len() < count;
    (good, has_error)
}

fn size(frame: &Frame) -> usize {
    match frame {
        Frame::Sse(Sse { event, data, id }) => {
            let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
            length(event) + data.len() + length(id)
        }
        Frame::Line(line) => line.len(),
        Frame::Body(body) => body.len(),
    }
}

fn check(
    read: fn(BodyChunks) -> FrameStream,
    body: &[u8],
    cuts: &[Index],
) -> Result<(), TestCaseError> {
    let whole = frames(read, body, &[]);
    // A byte that is no text becomes a character of three.
    let total: usize = whole.0.iter().map(size).sum();
    prop_assert!(
        total <= 3 * body.len() + 16,
        "{} bytes of {}",
        total,
        body.len()
    );
    prop_assert_eq!(frames(read, body, cuts), whole);
    Ok(())
}

proptest! {
    #[test]
    fn mutated_events_are_the_same_wherever_they_are_cut(body in mutated(EVENTS), cuts in cuts()) {
        check(detect_framing, &body, &cuts)?;
    }

    #[test]
    fn mutated_lines_are_the_same_wherever_they_are_cut(
        body in mutated(["{\"a\":1}\r\n\n{\"b\":\"\u{fc}\"}\n", "[]"]),
        cuts in cuts(),
    ) {
        check(lines, &body, &cuts)?;
    }
}
