//! The WebSocket endpoint: authentication, the choice of a session, then both directions of the
//! connection.
//!
//! # Invariants
//!
//! - Nothing is done for a client before its token is checked.
//! - A connection whose client is not admitted yet ends at once where it has to give way to another.
//! - Another user's session is indistinguishable from one that does not exist.
//! - Frames are read from the log at the client's pace, so a slow client loses nothing and nothing
//!   is buffered for it here.
//! - A client that reads nothing makes the server keep nothing for it: pongs are few.
//! - A client that is gone is noticed and detached, and its session keeps running for the grace
//!   period.

mod connection;
mod fault;
mod frames;
mod handshake;
mod pings;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::StatusCode;
use axum::response::Response;
use futures::FutureExt as _;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};
use utoipa::IntoParams;

use self::fault::ClientFault;
use self::frames::ServerMessage;
use self::handshake::{ConnectRequest, Handshake};
use self::pings::PingAllowance;
use super::problem::{Problem, Query};
use super::sessions::{CANNOT_GO_ON, no_session};
use super::{Api, LARGEST_BODY};
use crate::auth::AuthError;
use crate::listener::{ConnectionSlot, ConnectionUse, UserSocket};
use lucid_session::{Features, GetSessionError, SessionHandle, WakeError};
use lucid_types::identity::Identity;
use lucid_types::ids::SessionId;
use lucid_types::sentence::with_advice;

/// How long a client has for its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);
/// How long a client may take to accept one more frame before it counts as gone.
const STALLED: Duration = Duration::from_secs(60);
/// The read and write buffer size of a connection, in bytes. A larger message takes several reads.
/// Each connection keeps its buffers, and zeroes the one for reading before each read.
const BUFFER: usize = 4 * 1024;
/// How long a closing client has to answer.
const GOODBYE: Duration = Duration::from_secs(2);

/// The close code for missing or invalid authentication, which is final for the client.
const CLOSE_UNAUTHENTICATED: u16 = 4010;
/// The close code for a missing task, which is final for the client.
const CLOSE_NO_TASK: u16 = 4001;
/// The close code for an unknown session.
const CLOSE_NO_SESSION: u16 = 4004;

const UNAUTHENTICATED: &str = "Authentication required. Provide a valid JWT token.";
const CROWDED: &str = "The server has too many connections. Try again in a moment.";
const NO_TASK: &str = "Missing required field: 'task'";
const CANNOT_WAKE: &str = "The session cannot be read at the moment. Try again in a moment.";

/// The token, where it comes with the address.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TokenQuery {
    /// A JWT. It may come as `token` in the first message instead.
    token: Option<String>,
}

/// Work on a task
///
/// A WebSocket. The client's first message, within 30 s, is a JSON object with the members of
/// `POST /api/v1/sessions`, and optionally `sessionId`, `lastSeq` and `features` (`seq`, `deltas`,
/// `diffs`, `usage`). Where any feature is asked for, a command's output carries its `command` as well;
/// else that stands on the action alone, and a client that prints it shows it once. A client that comes back
/// with the same first message within 30 s after its connection broke without a close frame from it is
/// continued behind what that connection took; one that closed it gets all from the start. Afterwards it sends `{"type":"message","content"}`, `{"type":"stop"}` and
/// `{"type":"ping"}`. Closes: 4010 not authenticated, 4001 no task, 4004 no such session, 1000 the
/// session ended, or the user has too many connections, 1009 a message of more than 1 MiB, 1012 the
/// server restarts (reconnect with `sessionId` and `lastSeq`), 1013 the token cannot be checked, or no
/// session can begin, or too many connections without a token are open, at the moment (reconnect).
#[utoipa::path(
    get, path = "/api/v1/ws", tag = "sessions", params(TokenQuery),
    responses(
        (status = 101, description = "The protocol is switched"),
        (status = 400, description = "Not a request for a WebSocket", body = Problem),
        (status = 426, description = "The connection cannot be switched to a WebSocket", body = Problem),
        (status = 503, description = "The server is stopping", body = Problem),
    ),
)]
pub(super) async fn open(
    State(api): State<Api>,
    Query(query): Query<TokenQuery>,
    connection: Option<Extension<ConnectionSlot>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|rejection| {
        let status = axum::response::IntoResponse::into_response(rejection).status();
        Problem::new(status, "This address takes WebSocket connections only.")
    })?;
    if api.parts.stop.is_cancelled() {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "The server is stopping.",
        ));
    }
    let token = query.token.filter(|token| !token.trim().is_empty());
    let tracker = api.parts.sockets.clone();
    let upgrade = upgrade
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(LARGEST_BODY)
        .max_frame_size(LARGEST_BODY);
    let connection = connection.map(|Extension(connection)| connection);
    Ok(upgrade
        .on_upgrade(move |socket| tracker.track_future(serve(api, socket, connection, token))))
}

/// A client that is served, and its session.
struct AcceptedClient {
    session: Arc<SessionHandle>,
    /// The client gets everything after this number.
    from: u64,
    features: Features,
    /// The client does not count frames itself, and is recognised by its task when it comes back.
    uncounted: bool,
    /// The client's place among the server's connections.
    place: Place,
}

/// A client's place among the server's connections, until this is dropped.
struct Place {
    _connection: Option<ConnectionUse>,
    _socket: Option<UserSocket>,
}

/// A client that is refused.
struct Rejection {
    code: u16,
    reason: String,
    /// Whether the client is sent an error frame as well.
    sends_message: bool,
    /// Whether nothing more can be read from it, not even its answer to the close.
    unreadable: bool,
}

impl Rejection {
    fn with_message(code: u16, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            sends_message: true,
            unreadable: false,
        }
    }

    fn silent(code: u16, reason: impl Into<String>) -> Self {
        Self {
            sends_message: false,
            ..Self::with_message(code, reason)
        }
    }
}

impl From<ClientFault> for Rejection {
    fn from(protocol_error: ClientFault) -> Self {
        Self {
            unreadable: true,
            ..Self::silent(protocol_error.code, protocol_error.reason)
        }
    }
}

/// Why there is no connection to serve: the client is gone, or it was refused.
enum ConnectError {
    Gone,
    /// Its connection is closed for another one.
    Displaced,
    Refused(Rejection),
}

impl From<Rejection> for ConnectError {
    fn from(refused: Rejection) -> Self {
        Self::Refused(refused)
    }
}

async fn serve(
    api: Api,
    mut socket: WebSocket,
    connection: Option<ConnectionSlot>,
    token: Option<String>,
) {
    let client = tokio::select! {
        client = admit(&api, &mut socket, connection.as_ref(), token) => client,
        () = displaced(connection.as_ref()) => Err(ConnectError::Displaced),
        () = api.parts.stop.cancelled() => Err(Rejection::silent(close_code::RESTART, "The server is stopping.").into()),
    };
    match client {
        Ok(client) => Box::pin(connection::run(&api, socket, client)).await,
        Err(ConnectError::Gone) => {}
        Err(ConnectError::Displaced) => {
            // Another connection has its place by now, so nothing is waited for.
            let _ = socket
                .send(close_frame(close_code::AGAIN, CROWDED))
                .now_or_never();
        }
        Err(ConnectError::Refused(refused)) => {
            tracing::debug!(
                code = refused.code,
                reason = refused.reason,
                "a client was refused"
            );
            tokio::select! {
                _ = timeout(GOODBYE, refuse(socket, refused)) => {}
                () = displaced(connection.as_ref()) => {}
            }
        }
    }
}

/// Waits until the connection has to give way to another one. After its client was admitted it never does.
async fn displaced(connection: Option<&ConnectionSlot>) {
    match connection {
        Some(connection) => connection.closed().await,
        None => std::future::pending().await,
    }
}

/// A client with a valid token.
struct KnownClient {
    who: Identity,
    socket: Option<UserSocket>,
}

impl KnownClient {
    /// Counts the connection as one of the user's.
    fn new(connection: Option<&ConnectionSlot>, who: Identity) -> Result<Self, Rejection> {
        let counted = connection.map(|connection| {
            connection.authenticate();
            connection.open_socket(&who.user)
        });
        let socket = counted.transpose().map_err(crowded)?;
        Ok(Self { who, socket })
    }
}

/// Authenticates a client and finds its session.
async fn admit(
    api: &Api,
    socket: &mut WebSocket,
    connection: Option<&ConnectionSlot>,
    token: Option<String>,
) -> Result<AcceptedClient, ConnectError> {
    let known = match token {
        Some(token) => {
            let checked = api.parts.auth.token(&token).await;
            let who = checked.map_err(|error| match error {
                AuthError::NoKeys => unchecked(),
                _ => Rejection::silent(CLOSE_UNAUTHENTICATED, error.detail()),
            })?;
            Some(KnownClient::new(connection, who)?)
        }
        None => None,
    };
    let request = read_handshake(socket, known.is_some()).await?;
    let known = match (known, request.token()) {
        (Some(known), _) => known,
        (None, Some(token)) => {
            let checked = api.parts.auth.token(token.expose()).await;
            let who = checked.map_err(|error| match error {
                AuthError::NoKeys => unchecked(),
                _ => Rejection::with_message(CLOSE_UNAUTHENTICATED, UNAUTHENTICATED),
            })?;
            KnownClient::new(connection, who)?
        }
        (None, None) => {
            return Err(Rejection::with_message(CLOSE_UNAUTHENTICATED, UNAUTHENTICATED).into());
        }
    };
    // Before anything is begun for the client.
    let used = connection.map(|connection| use_for(connection, &known.who));
    let place = Place {
        _connection: used.transpose()?,
        _socket: known.socket,
    };
    let who = known.who;
    let (last_seq, features) = (request.last_seq, request.features());
    let uncounted = last_seq.is_none() && request.session_id().is_none() && !features.seq;
    let session = session_for(api, &who, request).await?;
    let lost = if uncounted {
        session.lost_position(features).await
    } else {
        None
    };
    api.parts.sessions.start(&session);
    Ok(AcceptedClient {
        session,
        from: last_seq.or(lost).unwrap_or(0),
        features,
        uncounted,
        place,
    })
}

/// Uses the connection for a user from now on.
fn use_for(connection: &ConnectionSlot, who: &Identity) -> Result<ConnectionUse, ConnectError> {
    let used = connection.begin().ok_or(ConnectError::Displaced)?;
    connection.count_use(&who.user).map_err(crowded)?;
    Ok(used)
}

/// Refuses a client whose user has too many connections.
fn crowded(error: impl Display) -> Rejection {
    // 1000, as for too many sessions: the same would fail in the same way, so the client should not
    // retry by itself.
    let text = with_advice(error, Some("Close one first."));
    Rejection::with_message(close_code::NORMAL, text)
}

/// Refuses a client whose token cannot be verified now. It is sent no error frame, which would be
/// final. The close code makes it come back.
fn unchecked() -> Rejection {
    Rejection::silent(close_code::AGAIN, AuthError::NoKeys.detail())
}

/// Reads messages up to the first one that is not a ping.
async fn read_handshake(
    socket: &mut WebSocket,
    known: bool,
) -> Result<ConnectRequest, ConnectError> {
    let deadline = Instant::now() + FIRST_MESSAGE;
    // The close code is decided by what the client must correct first.
    let code = if known {
        CLOSE_NO_TASK
    } else {
        CLOSE_UNAUTHENTICATED
    };
    let mut pings = PingAllowance::new(std::time::Instant::now());
    loop {
        let Ok(message) = timeout_at(deadline, socket.recv()).await else {
            return Err(
                Rejection::with_message(code, "No first message came within 30 seconds.").into(),
            );
        };
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_))) if !pings.take(std::time::Instant::now()) => {
                return Err(Rejection::from(ClientFault::too_many_pings()).into());
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Binary(_))) => {
                return Err(
                    Rejection::with_message(code, "The first message must be text.").into(),
                );
            }
            Some(Ok(Message::Close(_))) => {
                // Reading on is what sends the answer to a client's close.
                let _ = timeout(GOODBYE, async {
                    while let Some(Ok(_)) = socket.recv().await {}
                })
                .await;
                return Err(ConnectError::Gone);
            }
            None => return Err(ConnectError::Gone),
            Some(Err(error)) => {
                tracing::debug!(%error, "a client's first message could not be read");
                return Err(match ClientFault::of(&error) {
                    Some(protocol_error) => Rejection::from(protocol_error).into(),
                    None => ConnectError::Gone,
                });
            }
        };
        match handshake::parse_handshake(&text) {
            Handshake::Hello(request) => return Ok(*request),
            Handshake::Ping => socket
                .send(Message::text(ServerMessage::Pong.text()))
                .await
                .map_err(|_| ConnectError::Gone)?,
            Handshake::Wrong(why) => return Err(Rejection::with_message(code, why).into()),
        }
    }
}

/// The named session, the one that does the same work already, or a new one.
async fn session_for(
    api: &Api,
    who: &Identity,
    request: ConnectRequest,
) -> Result<Arc<SessionHandle>, Rejection> {
    let sessions = &api.parts.sessions;
    if let Some(id) = request.session_id() {
        let unknown = || Rejection::with_message(CLOSE_NO_SESSION, no_session(&id).detail());
        let parsed = id.parse::<SessionId>().map_err(|_| unknown())?;
        return sessions
            .get(&parsed, &who.user)
            .await
            .map_err(|error| match error {
                // Another user's session is refused like one that does not exist.
                GetSessionError::Lookup(_) => unknown(),
                GetSessionError::Wake(WakeError::Resume(_)) => {
                    Rejection::with_message(CLOSE_NO_SESSION, CANNOT_GO_ON)
                }
                GetSessionError::Wake(WakeError::Log(_) | WakeError::ShuttingDown) => {
                    Rejection::silent(close_code::AGAIN, CANNOT_WAKE)
                }
            });
    }
    let Some(new) = request.request.for_user(who) else {
        return Err(Rejection::with_message(CLOSE_NO_TASK, NO_TASK));
    };
    // 1000, not an error code: the same message would fail in the same way, so the client should
    // not retry by itself.
    sessions
        .find_or_create(new)
        .await
        .map_err(|error| match error.passes() {
            // No error frame, which would be final: the close code makes the client come back.
            true => Rejection::silent(close_code::AGAIN, error.to_user()),
            false => Rejection::with_message(close_code::NORMAL, error.to_user()),
        })
}

/// Sends the reason, closes, and waits until the client has read it.
async fn refuse(mut socket: WebSocket, refused: Rejection) {
    if refused.sends_message {
        let _ = socket
            .send(Message::text(
                ServerMessage::Error {
                    message: &refused.reason,
                }
                .text(),
            ))
            .await;
    }
    let _ = socket
        .send(close_frame(refused.code, &refused.reason))
        .await;
    if refused.unreadable {
        // A reset could overtake the close, so the connection stays open until the caller's
        // timeout.
        std::future::pending::<()>().await;
    }
    while let Some(Ok(_)) = socket.recv().await {}
}

/// A close frame with a reason of at most the 123 bytes that the protocol allows.
fn close_frame(code: u16, reason: &str) -> Message {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    Message::Close(Some(CloseFrame {
        code,
        reason: reason[..end].into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_has_a_reason_that_fits() {
        for reason in [String::new(), "short".to_owned(), "é".repeat(200)] {
            let Message::Close(Some(frame)) = close_frame(4010, &reason) else {
                panic!()
            };
            assert!(frame.reason.len() <= 123 && reason.starts_with(frame.reason.as_str()));
            assert_eq!(frame.code, 4010);
        }
    }
}
