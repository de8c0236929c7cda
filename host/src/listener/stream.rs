//! A connection's stream, which ends by itself when its client keeps it waiting.
//!
//! # Invariants
//!
//! - A header is complete in time, however its bytes come: the limit begins with the connection, or
//!   with the first byte of another request, and nothing extends it.
//! - A client that takes an answer, however slowly, is not cut off; one that takes nothing is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::ConnectionTimeouts;
use super::budget::ConnectionSlot;
use super::response::UnsentAnswer;

/// A header is awaited or has come in part.
const HEADER: u8 = 0;
/// A request is in progress.
const EXCHANGE: u8 = 1;
/// The last answer was given, and nothing of another request has come.
const IDLE: u8 = 2;
/// The connection is a WebSocket, for the rest of its life.
const UPGRADED: u8 = 3;

/// Where in an exchange a connection is. Its task alone changes it.
#[derive(Debug, Clone, Default)]
pub(super) struct ExchangePhase(Arc<AtomicU8>);

impl ExchangePhase {
    /// A header is complete.
    pub(super) fn begin(&self) {
        self.0.store(EXCHANGE, Ordering::Relaxed);
    }

    /// The answer is that the protocol is switched.
    pub(super) fn upgrade(&self) {
        self.0.store(UPGRADED, Ordering::Relaxed);
    }

    /// The answer is given.
    pub(super) fn end(&self) {
        self.moves(EXCHANGE, IDLE);
    }

    /// Something was read. Returns whether a header began with it.
    fn starts_header(&self) -> bool {
        self.moves(IDLE, HEADER)
    }

    fn moves(&self, from: u8, to: u8) -> bool {
        let moved = self
            .0
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        moved.is_ok()
    }

    fn awaits_header(&self) -> bool {
        self.0.load(Ordering::Relaxed) == HEADER
    }
}

/// The stream of a connection.
pub(super) struct TimedStream {
    stream: TcpStream,
    timeouts: ConnectionTimeouts,
    phase: ExchangePhase,
    /// The exchange that ends when everything is written.
    unsent: UnsentAnswer,
    /// There only while a header is awaited.
    header: Option<Pin<Box<Sleep>>>,
    /// There only while the client takes nothing.
    write: Option<Pin<Box<Sleep>>>,
    /// Given back after the stream is closed.
    _slot: ConnectionSlot,
}

impl TimedStream {
    pub(super) fn new(
        stream: TcpStream,
        timeouts: ConnectionTimeouts,
        phase: ExchangePhase,
        unsent: UnsentAnswer,
        slot: ConnectionSlot,
    ) -> Self {
        Self {
            stream,
            header: Some(Box::pin(sleep(timeouts.header))),
            timeouts,
            phase,
            unsent,
            write: None,
            _slot: slot,
        }
    }

    /// Passes a result of writing on, or an error if the client takes nothing for too long.
    fn stalled<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write = None;
            return written;
        }
        ready!(expired(&mut self.write, self.timeouts.write, context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Ready once the time is over, which begins with the first call.
fn expired(
    timer: &mut Option<Pin<Box<Sleep>>>,
    timeout: Duration,
    context: &mut Context<'_>,
) -> Poll<()> {
    timer
        .get_or_insert_with(|| Box::pin(sleep(timeout)))
        .as_mut()
        .poll(context)
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before && self.phase.starts_header() {
            self.header = None;
        }
        if !self.phase.awaits_header() {
            self.header = None;
            return read;
        }
        let this = &mut *self;
        // Also where something was read, so that a slow trickle does not extend it.
        if expired(&mut this.header, this.timeouts.header, context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.stalled(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.stalled(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Comes behind the last byte that hyper holds.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.unsent.end();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
