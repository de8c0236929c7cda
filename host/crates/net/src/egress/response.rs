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
use super::stream_start::detect_framing;
use super::{EgressError, EgressLimits};
use crate::client::error_message;
use lucid_types::sanitize::sanitize;
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
    Success(ResponseFrames),
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
    redactor: &Redactor,
    limits: &EgressLimits,
) -> ErrorResponse {
    let nothing = Redactor::default();
    let redactor = if redactor.is_secret() {
        redactor
    } else {
        &nothing
    };
    let headers = headers(&response, redactor);
    let status = response.status().as_u16();
    let enough = limits.refusal + redactor.margin();
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
    while let Ok(Ok(chunk)) = tokio::time::timeout(silence, response.chunk()).await {
        let Some(chunk) = chunk else {
            whole = true;
            break;
        };
        let room = enough - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == enough {
            break;
        }
    }
    ErrorResponse {
        status,
        headers,
        body: redactor.redact_body(&body, whole, limits.refusal),
    }
}

/// All of an answer, whatever its status. A key of any length is taken out of it.
pub(super) async fn response(
    response: Response,
    redactor: &Redactor,
    limits: &EgressLimits,
) -> Result<HttpResponse, EgressError> {
    let status = response.status().as_u16();
    let headers = headers(&response, redactor);
    let mut body = Vec::new();
    let mut chunks = body_chunks(response, limits);
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk?);
    }
    let body = match redactor.text(&String::from_utf8_lossy(&body)) {
        // Lossy or not: nothing was found, so nothing is changed.
        Cow::Borrowed(_) => None,
        Cow::Owned(redacted) => Some(redacted.into_bytes()),
    }
    .unwrap_or(body);
    Ok(HttpResponse {
        status,
        headers,
        body,
    })
}

/// An answer's headers without cookies, and without the key.
pub(super) fn headers(response: &Response, redactor: &Redactor) -> Vec<Header> {
    let headers = response.headers().iter();
    let own = headers.filter(|(name, _)| !matches!(name.as_str(), "set-cookie" | "set-cookie2"));
    own.map(|(name, value)| Header {
        name: name.as_str().to_owned(),
        value: redactor
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
    redactor: Redactor,
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
    let chunks = body_chunks(response, limits);
    let frames = match framing {
        // A provider that was asked for events may answer with one JSON value, an error for example.
        Framing::ServerSentEvents if json => single_frame(chunks),
        Framing::ServerSentEvents => detect_framing(chunks),
        Framing::JsonLines => lines(chunks),
        Framing::WholeBody => single_frame(chunks),
    };
    let redacted = frames.map(move |frame| match frame {
        Ok(frame) => Ok(redactor.redact_frame(frame)),
        Err(error) => Err(error.redacted(&redactor)),
    });
    // Nothing comes after an error.
    let ended = redacted.scan(false, |ended, frame| {
        let next = (!*ended).then_some(frame);
        *ended |= matches!(next, Some(Err(_)));
        futures::future::ready(next)
    });
    ResponseFrames(ended.boxed())
}

pub(super) type BodyChunks = BoxStream<'static, Result<Bytes, EgressError>>;
pub(super) type FrameStream = BoxStream<'static, Result<Frame, EgressError>>;

/// The body as it comes, with its limits.
fn body_chunks(response: Response, limits: &EgressLimits) -> BodyChunks {
    let (idle, most) = (limits.idle, limits.response);
    stream::try_unfold(
        (response, 0_u64),
        move |(mut response, before)| async move {
            let chunk = tokio::time::timeout(idle, response.chunk())
                .await
                .map_err(|_| EgressError::Idle { limit: idle })?
                .map_err(|cause| EgressError::Broken {
                    detail: error_message(cause),
                })?;
            let Some(chunk) = chunk else {
                return Ok(None);
            };
            let so_far = before + chunk.len() as u64;
            if so_far > most {
                return Err(EgressError::TooLarge { limit: most });
            }
            Ok(Some((chunk, (response, so_far))))
        },
    )
    .boxed()
}

/// An event without data is none, as the standard says.
pub(super) fn events(chunks: BodyChunks) -> FrameStream {
    SseStream::from_bytes_stream(chunks)
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
pub(super) fn lines(chunks: BodyChunks) -> FrameStream {
    let line = |line: Vec<u8>| match String::from_utf8(line) {
        Ok(line) => Ok(Frame::Line(line.trim().to_owned())),
        Err(_) => Err(unreadable("a line is not UTF-8")),
    };
    let ends = chunks
        .map_ok(Some)
        .chain(stream::once(futures::future::ready(Ok(None))));
    ends.scan(Vec::new(), move |rest: &mut Vec<u8>, chunk| {
        let cut = match chunk {
            Err(error) => vec![Err(error)],
            Ok(Some(chunk)) => {
                let mut cut = Vec::new();
                let mut parts = chunk.split(|byte| *byte == b'\n').peekable();
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

pub(super) fn single_frame(chunks: BodyChunks) -> FrameStream {
    let body = chunks.try_fold(Vec::new(), |mut body, chunk| async move {
        body.extend_from_slice(&chunk);
        Ok(body)
    });
    stream::once(body).map_ok(Frame::Body).boxed()
}

fn unreadable(detail: &str) -> EgressError {
    EgressError::Unreadable {
        detail: sanitize(detail, 300),
    }
}
