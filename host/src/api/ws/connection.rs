//! One client's connection to its session: frames out, messages in, until either side closes it.
//!
//! # Invariants
//!
//! - No more is taken from the log than fits into the socket.
//! - The two directions do not wait for each other, so a client that does not read can still stop
//!   its session.
//! - However the connection ends, the client is detached, and the position it reached is recorded
//!   if it does not count frames itself.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket, close_code};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::fault::{ClientFault, is_end};
use super::frames::ServerMessage;
use super::handshake::{ClientMessage, parse_message};
use super::pings::PingAllowance;
use super::{AcceptedClient, GOODBYE, STALLED, close_frame};
use crate::api::Api;
use lucid_session::{
    ClientPosition, CloseReason, ConnectionLoss, Features, SessionHandle, Subscription,
    SubscriptionItem, render,
};

/// The interval of the protocol's pings.
const PING: Duration = Duration::from_secs(20);
/// A client that sent nothing for this long, not even a pong, is gone.
const SILENT: Duration = Duration::from_secs(75);
/// The maximum number of replies that wait for the socket. A client that sends requests without
/// reading then waits too.
const ANSWERS: usize = 8;

/// Up to this many frames at once are each followed by a ping. Of more, only the last one is.
const PING_EACH: usize = 32;

/// What the reader passes to the writer.
enum WriterInput {
    /// A frame of this connection.
    Frame(String),
    /// Nothing more can be read.
    Close(ClientFault),
}

/// Serves a client until it disconnects, the session ends, or the server stops.
pub(super) async fn run(api: &Api, socket: WebSocket, client: AcceptedClient) {
    let AcceptedClient {
        session,
        from,
        features,
        uncounted,
        place: _place,
    } = client;
    let _attached = session.attach();
    let position = uncounted.then(|| session.open_position(features, from));
    let subscription = session.subscribe(from);
    let subscription = if features.deltas {
        subscription.with_deltas()
    } else {
        subscription
    };
    let (sink, stream) = socket.split();
    let (answers, waiting) = mpsc::channel(ANSWERS);
    let view = ClientView {
        subscription,
        features,
        position: position.clone(),
    };
    let mut writing = pin!(write(sink, view, waiting, &api.parts.stop));
    let mut reading = pin!(read(stream, &session, position.as_deref(), answers));
    let loss = tokio::select! {
        // First, so that nothing more is written to a client that is known to be gone.
        biased;
        left = &mut reading => left.loss(),
        closed = &mut writing => {
            // The close was sent. Continuing to read lets the client receive it before the
            // connection ends. If nothing can be read any more, a reset could overtake the close,
            // so there is a delay as well.
            let left = timeout(GOODBYE, reading).await;
            left.map_or(Some(ConnectionLoss::Broken), |left| left.loss_after(closed))
        }
    };
    if let Some(position) = &position {
        session.close_position(position, loss);
    }
    tracing::debug!(session = %session.id(), ?loss, "a client is detached");
}

/// How a client's messages ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadEnd {
    /// It closed the connection, or answered a close.
    Closed,
    /// It ended the connection without a close.
    Ended,
    /// The connection broke, or the client is silent.
    Broken,
}

impl ReadEnd {
    /// The kind of loss, if the host did not close the connection.
    fn loss(self) -> Option<ConnectionLoss> {
        match self {
            Self::Closed => None,
            Self::Ended => Some(ConnectionLoss::Ended),
            Self::Broken => Some(ConnectionLoss::Broken),
        }
    }

    /// As `loss`, after the writer has ended: a client that answers the host's close has read
    /// everything before it, and comes back like one that was lost.
    fn loss_after(self, closed: bool) -> Option<ConnectionLoss> {
        match self {
            Self::Closed if closed => Some(ConnectionLoss::Ended),
            Self::Ended => Some(ConnectionLoss::Broken),
            left => left.loss(),
        }
    }
}

/// Handles the client's messages.
async fn read(
    mut stream: SplitStream<WebSocket>,
    session: &Arc<SessionHandle>,
    position: Option<&ClientPosition>,
    answers: mpsc::Sender<WriterInput>,
) -> ReadEnd {
    let mut pings = PingAllowance::new(std::time::Instant::now());
    loop {
        let text = match timeout(SILENT, stream.next()).await {
            Ok(Some(Ok(Message::Text(text)))) => text,
            Ok(Some(Ok(Message::Binary(_)))) => {
                answer(
                    &answers,
                    &ServerMessage::Error {
                        message: "Messages must be text.",
                    },
                )
                .await;
                continue;
            }
            Ok(Some(Ok(Message::Pong(payload)))) => {
                if let Some(position) = position {
                    position.pong(&payload);
                }
                continue;
            }
            Ok(Some(Ok(Message::Ping(_)))) if pings.take(std::time::Instant::now()) => continue,
            Ok(Some(Ok(Message::Ping(_)))) => {
                let fault = ClientFault::too_many_pings();
                let _ = answers.send(WriterInput::Close(fault)).await;
                // As below.
                return std::future::pending().await;
            }
            Ok(Some(Ok(Message::Close(_)))) => {
                drain(&mut stream).await;
                return ReadEnd::Closed;
            }
            Ok(None) => return ReadEnd::Broken,
            Ok(Some(Err(error))) => {
                tracing::debug!(session = %session.id(), %error, "nothing more can be read from a client");
                let Some(protocol_error) = ClientFault::of(&error) else {
                    return if is_end(&error) {
                        ReadEnd::Ended
                    } else {
                        ReadEnd::Broken
                    };
                };
                let _ = answers.send(WriterInput::Close(protocol_error)).await;
                // The writer ends the connection, once the client could read the close.
                return std::future::pending().await;
            }
            Err(_) => {
                tracing::debug!(session = %session.id(), "a client is silent and counts as gone");
                return ReadEnd::Broken;
            }
        };
        match parse_message(&text) {
            ClientMessage::Message(content) => {
                if let Err(error) = session.message(content).await {
                    answer(
                        &answers,
                        &ServerMessage::Error {
                            message: &error.sentence(),
                        },
                    )
                    .await;
                }
            }
            ClientMessage::Empty => {
                answer(
                    &answers,
                    &ServerMessage::Error {
                        message: "Empty content",
                    },
                )
                .await
            }
            ClientMessage::Stop => session.stop(CloseReason::stopped()),
            ClientMessage::Ping => answer(&answers, &ServerMessage::Pong).await,
            ClientMessage::Unknown => {}
            ClientMessage::Wrong => {
                answer(
                    &answers,
                    &ServerMessage::Error {
                        message: "The message is not a JSON object.",
                    },
                )
                .await
            }
        }
    }
}

/// Reading on is what sends the answer to a client's close.
async fn drain(stream: &mut SplitStream<WebSocket>) {
    let _ = timeout(GOODBYE, async {
        while let Some(Ok(_)) = stream.next().await {}
    })
    .await;
}

/// Once the writer has ended nobody receives replies, and then nobody waits for them.
async fn answer(answers: &mpsc::Sender<WriterInput>, frame: &ServerMessage<'_>) {
    let _ = answers.send(WriterInput::Frame(frame.text())).await;
}

/// Why nothing more is written.
enum WriteEnd {
    /// The client reads nothing.
    Gone,
    /// The client is sent this close.
    Close(u16, Cow<'static, str>),
}

type Sink = SplitSink<WebSocket, Message>;

/// A client's view of the session.
struct ClientView {
    subscription: Subscription,
    features: Features,
    /// The recorded position of a client that does not count frames itself.
    position: Option<Arc<ClientPosition>>,
}

/// Sends the session's frames. Returns whether the client was sent a close.
async fn write(
    mut sink: Sink,
    mut view: ClientView,
    mut answers: mpsc::Receiver<WriterInput>,
    stop: &CancellationToken,
) -> bool {
    let end = match pump(&mut sink, &mut view, &mut answers, stop).await {
        Ok(end) | Err(end) => end,
    };
    match end {
        WriteEnd::Gone => false,
        WriteEnd::Close(code, reason) => {
            let sent = timeout(GOODBYE, sink.send(close_frame(code, &reason))).await;
            matches!(sent, Ok(Ok(())))
        }
    }
}

async fn pump(
    sink: &mut Sink,
    view: &mut ClientView,
    answers: &mut mpsc::Receiver<WriterInput>,
    stop: &CancellationToken,
) -> Result<WriteEnd, WriteEnd> {
    let ClientView {
        subscription,
        features,
        position,
    } = view;
    let (features, position) = (*features, position.as_deref());
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    loop {
        tokio::select! {
            batch = subscription.next() => match batch {
                SubscriptionItem::Frames(frames) => {
                    let last = frames.last().map_or(0, |(seq, _)| *seq);
                    let each = frames.len() <= PING_EACH;
                    for (seq, frame) in frames {
                        if let Some(text) = render(seq, &frame, features) {
                            feed(sink, Message::Text(Utf8Bytes::from(&*text))).await?;
                        }
                        if let Some(position) = position.filter(|_| each || seq == last) {
                            let ping = position.ping(seq).to_vec();
                            feed(sink, Message::Ping(ping.into())).await?;
                        }
                    }
                    if let Some(position) = position {
                        flush(sink).await?;
                        position.sent(last);
                    }
                }
                SubscriptionItem::Delta(frame) | SubscriptionItem::Notice(frame) => feed(sink, Message::Text(Utf8Bytes::from(&*frame))).await?,
                // A client that does not count cannot notice a gap.
                SubscriptionItem::Gap(from, to) if features.seq => {
                    feed(sink, Message::Text(ServerMessage::Gap { from, to }.text().into())).await?;
                }
                SubscriptionItem::Gap(..) => continue,
                SubscriptionItem::Ended(close) => return Ok(WriteEnd::Close(close.code, close.reason.into())),
            },
            Some(answer) = answers.recv() => match answer {
                WriterInput::Frame(text) => feed(sink, Message::Text(text.into())).await?,
                WriterInput::Close(protocol_error) => return Ok(WriteEnd::Close(protocol_error.code, protocol_error.reason.into())),
            },
            _ = pings.tick() => feed(sink, Message::Ping(Default::default())).await?,
            () = stop.cancelled() => return Ok(WriteEnd::Close(close_code::RESTART, "The server is stopping.".into())),
        }
        flush(sink).await?;
    }
}

async fn feed(sink: &mut Sink, message: Message) -> Result<(), WriteEnd> {
    with_timeout(sink.feed(message)).await
}

async fn flush(sink: &mut Sink) -> Result<(), WriteEnd> {
    with_timeout(sink.flush()).await
}

async fn with_timeout(work: impl Future<Output = Result<(), axum::Error>>) -> Result<(), WriteEnd> {
    match timeout(STALLED, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(WriteEnd::Gone),
    }
}
