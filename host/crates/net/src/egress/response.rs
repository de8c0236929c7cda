//! How a response is read: a refusal as a short body, an answer as frames.
//!
//! # Invariants
//!
//! - A decoder never sees half a frame, neither of events nor of lines, and never the key.
//! - Each piece has a time limit, and all of them together a size limit.
//! - After an error nothing more comes.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use sse_stream::SseStream;

use super::redact::Redactor;
use super::stream_start::by_its_beginning;
use super::{EgressError, EgressLimits};
use crate::client::error_message;
use lucid_types::sanitize::clean;
use lucid_types::wit::llm::{Frame, Framing, Sse};
use lucid_types::wit::types::{Header, HttpResponse};

/// How long a refusal may pause: nobody thinks about one, however long its model may.
const REFUSAL_SILENCE: Duration = Duration::from_secs(30);

/// What a compressed body is called.
const COMPRESSIONS: [&[u8]; 6] = [b"gzip", b"x-gzip", b"deflate", b"br", b"zstd", b"compress"];

/// What a provider said.
#[derive(Debug)]
pub enum EgressResponse {
    /// Yes, and here it is.
    Frames(ResponseFrames),
    /// No.
    Refused(ErrorResponse),
}

/// A status that is not success. A key that is a secret is blanked in all of it; a placeholder may be a word
/// of the sentence, and an adapter has to read that as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorResponse {
    /// HTTP status.
    pub status: u16,
    /// Without cookies.
    pub headers: Vec<Header>,
    /// Its beginning.
    pub body: Vec<u8>,
}

/// The frames of an answer, as they come.
pub struct ResponseFrames(BoxStream<'static, Result<Frame, EgressError>>);

impl std::fmt::Debug for ResponseFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Frames")
    }
}

impl Stream for ResponseFrames {
    type Item = Result<Frame, EgressError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// Reads as much of a refusal as is of use.
pub(super) async fn refusal(
    mut response: Response,
    blanker: &Redactor,
    limits: &EgressLimits,
) -> ErrorResponse {
    let nothing = Redactor::default();
    let blanker = if blanker.is_secret() {
        blanker
    } else {
        &nothing
    };
    let headers = headers(&response, blanker);
    let status = response.status().as_u16();
    let enough = limits.refusal + blanker.margin();
    let mut body = Vec::new();
    // A refusal that breaks off is one all the same.
    let mut whole = false;
    if is_encoded(&response) {
        return ErrorResponse {
            status,
            headers,
            body,
        };
    }
    let silence = limits.idle.min(REFUSAL_SILENCE);
    while let Ok(Ok(piece)) = tokio::time::timeout(silence, response.chunk()).await {
        let Some(piece) = piece else {
            whole = true;
            break;
        };
        let room = enough - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == enough {
            break;
        }
    }
    ErrorResponse {
        status,
        headers,
        body: blanker.body(&body, whole, limits.refusal),
    }
}

/// All of an answer, whatever its status. A key of any length is taken out of it.
pub(super) async fn response(
    response: Response,
    blanker: &Redactor,
    limits: &EgressLimits,
) -> Result<HttpResponse, EgressError> {
    let status = response.status().as_u16();
    let headers = headers(&response, blanker);
    let mut body = Vec::new();
    let mut pieces = pieces(response, limits);
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece?);
    }
    let body = match blanker.text(&String::from_utf8_lossy(&body)) {
        // Lossy or not: nothing was found, so nothing is changed.
        Cow::Borrowed(_) => None,
        Cow::Owned(blanked) => Some(blanked.into_bytes()),
    }
    .unwrap_or(body);
    Ok(HttpResponse {
        status,
        headers,
        body,
    })
}

/// An answer's headers without cookies, and without the key.
pub(super) fn headers(response: &Response, blanker: &Redactor) -> Vec<Header> {
    let headers = response.headers().iter();
    let own = headers.filter(|(name, _)| !matches!(name.as_str(), "set-cookie" | "set-cookie2"));
    own.map(|(name, value)| Header {
        name: name.as_str().to_owned(),
        value: blanker
            .text(&String::from_utf8_lossy(value.as_bytes()))
            .into_owned(),
    })
    .collect()
}

/// Whether a body is compressed. Nobody asked for it: an answer is to come as it is made. Servers also name
/// what is no compression here, a character set for example.
fn is_encoded(response: &Response) -> bool {
    let stated = response.headers().get_all(CONTENT_ENCODING).into_iter();
    let mut codings = stated.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    codings.any(|coding| {
        let coding = coding.trim_ascii().to_ascii_lowercase();
        COMPRESSIONS.contains(&&*coding)
    })
}

/// Cuts an answer into frames.
pub(super) fn frames(
    response: Response,
    framing: Framing,
    blanker: Redactor,
    limits: &EgressLimits,
) -> ResponseFrames {
    let kind = response.headers().get(CONTENT_TYPE);
    let json = kind
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if is_encoded(&response) {
        let error = unreadable("it is compressed, which it was not asked to be");
        return ResponseFrames(stream::once(futures::future::ready(Err(error))).boxed());
    }
    let pieces = pieces(response, limits);
    let frames = match framing {
        // A provider that was asked for events may answer with one JSON value, an error for example.
        Framing::ServerSentEvents if json => whole(pieces),
        Framing::ServerSentEvents => by_its_beginning(pieces),
        Framing::JsonLines => lines(pieces),
        Framing::WholeBody => whole(pieces),
    };
    let blanked = frames.map(move |frame| match frame {
        Ok(frame) => Ok(blanker.frame(frame)),
        Err(error) => Err(error.blanked(&blanker)),
    });
    // Nothing comes after an error.
    let ended = blanked.scan(false, |ended, frame| {
        let next = (!*ended).then_some(frame);
        *ended |= matches!(next, Some(Err(_)));
        futures::future::ready(next)
    });
    ResponseFrames(ended.boxed())
}

pub(super) type BodyChunks = BoxStream<'static, Result<Bytes, EgressError>>;
pub(super) type FrameStream = BoxStream<'static, Result<Frame, EgressError>>;

/// The body as it comes, with its limits.
fn pieces(response: Response, limits: &EgressLimits) -> BodyChunks {
    let (idle, most) = (limits.idle, limits.response);
    stream::try_unfold(
        (response, 0_u64),
        move |(mut response, before)| async move {
            let piece = tokio::time::timeout(idle, response.chunk())
                .await
                .map_err(|_| EgressError::Idle { limit: idle })?
                .map_err(|cause| EgressError::Broken {
                    detail: error_message(cause),
                })?;
            let Some(piece) = piece else {
                return Ok(None);
            };
            let so_far = before + piece.len() as u64;
            if so_far > most {
                return Err(EgressError::TooLarge { limit: most });
            }
            Ok(Some((piece, (response, so_far))))
        },
    )
    .boxed()
}

/// An event without data is none, as the standard says.
pub(super) fn events(pieces: BodyChunks) -> FrameStream {
    SseStream::from_bytes_stream(pieces)
        .map_err(|error| match error {
            sse_stream::Error::Body(cause) => match cause.downcast::<EgressError>() {
                Ok(error) => *error,
                Err(cause) => unreadable(&cause.to_string()),
            },
            other => unreadable(&format!("it is not a stream of events ({other})")),
        })
        .try_filter_map(|event| {
            let frame = event.data.map(|data| {
                Frame::Sse(Sse {
                    event: event.event,
                    data,
                    id: event.id,
                })
            });
            futures::future::ready(Ok(frame))
        })
        .boxed()
}

/// Lines that are not blank. The last one needs no line break.
pub(super) fn lines(pieces: BodyChunks) -> FrameStream {
    let line = |line: Vec<u8>| match String::from_utf8(line) {
        Ok(line) => Ok(Frame::Line(line.trim().to_owned())),
        Err(_) => Err(unreadable("a line is not UTF-8")),
    };
    let ends = pieces
        .map_ok(Some)
        .chain(stream::once(futures::future::ready(Ok(None))));
    ends.scan(Vec::new(), move |rest: &mut Vec<u8>, piece| {
        let cut = match piece {
            Err(error) => vec![Err(error)],
            Ok(Some(piece)) => {
                let mut cut = Vec::new();
                let mut parts = piece.split(|byte| *byte == b'\n').peekable();
                while let Some(part) = parts.next() {
                    rest.extend_from_slice(part);
                    if parts.peek().is_some() {
                        cut.push(line(std::mem::take(rest)));
                    }
                }
                cut
            }
            Ok(None) => vec![line(std::mem::take(rest))],
        };
        futures::future::ready(Some(stream::iter(cut)))
    })
    .flatten()
    .try_filter(|frame| {
        let blank = matches!(frame, Frame::Line(line) if line.is_empty());
        futures::future::ready(!blank)
    })
    .boxed()
}

pub(super) fn whole(pieces: BodyChunks) -> FrameStream {
    let body = pieces.try_fold(Vec::new(), |mut body, piece| async move {
        body.extend_from_slice(&piece);
        Ok(body)
    });
    stream::once(body).map_ok(Frame::Body).boxed()
}

fn unreadable(detail: &str) -> EgressError {
    EgressError::Unreadable {
        detail: clean(detail, 300),
    }
}
