//! The HTTP listener: accepts connections, serves HTTP/1.1 on each, and ends those that only cost.
//!
//! HTTP/1.1 only, on purpose. Browsers speak HTTP/2 over TLS alone, which a proxy in front of this
//! server ends, and proxies speak HTTP/1.1 to what is behind them. The upgrade to a WebSocket needs
//! it, and one connection is then one request at a time, which is what the budgets count.
//!
//! # Invariants
//!
//! - Every wait for a client has a limit: for a header, for the next request, for an answer to be
//!   taken. What waits for a body, or for a WebSocket's messages, has its own.
//! - An error of `accept` never ends the server.
//! - What is held of an answer for a client that does not take it counts as its user's ([`HeldBytes`], an
//!   extension of the answer).
//! - A connection counts in the [`ConnectionBudget`] until its descriptor is closed, also after it
//!   became a WebSocket.

mod accept;
mod budget;
mod held_bytes;
mod refusal;
mod response;
mod stream;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::accept::AcceptBackoff;
pub use self::budget::{
    ConnectionBudget, ConnectionLimits, ConnectionSlot, ConnectionUse, TooManyInUse,
    TooManySockets, UserSocket,
};
pub use self::held_bytes::{HeldBytes, TooManyBytes};
use self::refusal::Refusals;
use self::response::{Exchange, TrackedBody, UnsentAnswer};
use self::stream::{ExchangePhase, TimedStream};

/// The largest header of a request with its first line, in bytes. A connection keeps what it has read
/// of one, and anybody can open connections.
const LARGEST_HEADER: usize = 64 * 1024;

/// How long a connection may wait for its client.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionTimeouts {
    /// For a whole header: from the connection's begin, or from the first byte of another request.
    pub header: Duration,
    /// For another request. Longer than proxies keep connections by default (nginx 60 s, Traefik and
    /// Go 90 s, Caddy 2 minutes), so that it is the proxy that closes one, and a request is never sent
    /// on a connection that is closed at that moment.
    pub idle: Duration,
    /// For the client to take any more of an answer.
    pub write: Duration,
}

impl Default for ConnectionTimeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            idle: Duration::from_secs(180),
            write: Duration::from_secs(60),
        }
    }
}

/// Serves `router` until `stop`. Then nothing more is accepted, connections with nothing in progress
/// are closed, and this returns when all requests have been answered. WebSockets are not waited for.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    (budget, timeouts): (ConnectionBudget, ConnectionTimeouts),
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let stopping = CancellationToken::new();
    // In a task of its own: what it does before it ends must not wait for the loop.
    tokio::spawn({
        let stopping = stopping.clone();
        async move {
            stop.await;
            stopping.cancel();
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // In hyper it begins with the end of the last answer, so it limits the wait for the next
        // request. `TimedStream` limits the header itself.
        .header_read_timeout(timeouts.idle)
        .max_header_size(LARGEST_HEADER);
    let mut server = Server {
        builder,
        routes: TowerToHyperService::new(router),
        budget,
        timeouts,
        stopping: stopping.clone(),
        connections: TaskTracker::new(),
        refusals: Refusals::default(),
    };
    let mut backoff = AcceptBackoff::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let pause = match accepted {
            Ok((stream, address)) => {
                backoff.reset();
                server.take(stream, address);
                None
            }
            Err(error) => backoff.pause(&error),
        };
        if let Some(pause) = pause {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopping.cancelled() => break,
            }
        }
    }
    drop(listener);
    server.connections.close();
    server.connections.wait().await;
}

/// What each connection is served with.
struct Server {
    builder: http1::Builder,
    routes: TowerToHyperService<Router>,
    budget: ConnectionBudget,
    timeouts: ConnectionTimeouts,
    stopping: CancellationToken,
    connections: TaskTracker,
    refusals: Refusals,
}

impl Server {
    /// Serves a connection in a task of its own, or refuses it.
    fn take(&mut self, stream: TcpStream, address: SocketAddr) {
        // A frame is small, and somebody waits for it.
        let _ = stream.set_nodelay(true);
        let Some(slot) = self.budget.admit(address.ip()) else {
            self.refusals.refuse(stream);
            return;
        };
        let phase = ExchangePhase::default();
        let unsent = UnsentAnswer::default();
        let stream = TimedStream::new(
            stream,
            self.timeouts,
            phase.clone(),
            unsent.clone(),
            slot.clone(),
        );
        let exchange = Exchange::new(slot.clone(), phase, unsent);
        let routes = self.routes.clone();
        let service = service_fn(move |request| answer(routes.clone(), exchange.clone(), request));
        let serving = self
            .builder
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let stopping = self.stopping.clone();
        self.connections.spawn(async move {
            let mut serving = pin!(serving);
            let mut is_stopping = false;
            loop {
                tokio::select! {
                    served = serving.as_mut() => {
                        if let Err(error) = served {
                            tracing::trace!(%error, "a connection ended");
                        }
                        break;
                    }
                    () = slot.closed() => break,
                    () = stopping.cancelled(), if !is_stopping => {
                        is_stopping = true;
                        serving.as_mut().graceful_shutdown();
                    }
                }
            }
        });
    }
}

/// Answers one request of a connection.
async fn answer(
    routes: TowerToHyperService<Router>,
    exchange: Exchange,
    mut request: Request<Incoming>,
) -> Result<Response<TrackedBody>, Infallible> {
    let Some(mut active) = exchange.begin() else {
        // Closed for another connection just now. Nothing of the request is carried out.
        return Ok(refusal::response().map(TrackedBody::untracked));
    };
    request.extensions_mut().insert(exchange.slot().clone());
    let mut response = routes.call(request).await?;
    active.hold(response.extensions_mut().remove::<HeldBytes>());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        active.upgrade();
    }
    Ok(response.map(|body| exchange.body(body, active)))
}
