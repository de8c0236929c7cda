//! One request and its answer, from the end of the header until the last of the body is on its way.
//!
//! # Invariants
//!
//! - A connection whose client has not taken its answer is in use: what the server holds of an answer for a
//!   slow client is not lost to a new connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use super::budget::{ConnectionSlot, ConnectionUse};
use super::held_bytes::HeldBytes;
use super::stream::ExchangePhase;

/// An exchange whose answer was handed over, and may not be sent yet.
#[derive(Clone, Default)]
pub(super) struct UnsentAnswer(Arc<Mutex<Option<ActiveExchange>>>);

impl UnsentAnswer {
    /// All that was handed over is sent, or given up.
    pub(super) fn end(&self) {
        drop(self.take());
    }

    fn take(&self) -> Option<ActiveExchange> {
        self.0.lock().take()
    }
}

/// Begins the exchanges of one connection.
#[derive(Clone)]
pub(super) struct Exchange {
    slot: ConnectionSlot,
    phase: ExchangePhase,
    unsent: UnsentAnswer,
}

impl Exchange {
    pub(super) fn new(slot: ConnectionSlot, phase: ExchangePhase, unsent: UnsentAnswer) -> Self {
        Self {
            slot,
            phase,
            unsent,
        }
    }

    pub(super) fn slot(&self) -> &ConnectionSlot {
        &self.slot
    }

    /// Marks a request as in progress. `None` if the connection is closed for another one.
    pub(super) fn begin(&self) -> Option<ActiveExchange> {
        let using = self.slot.begin()?;
        // A client need not wait for one answer before it asks for the next.
        self.unsent.end();
        self.phase.begin();
        Some(ActiveExchange {
            phase: self.phase.clone(),
            held: None,
            _using: using,
        })
    }

    /// The body of an answer, with which an exchange ends once it is sent.
    pub(super) fn body(&self, body: Body, active: ActiveExchange) -> TrackedBody {
        TrackedBody {
            body,
            active: Some((active, self.unsent.clone())),
        }
    }
}

/// A request in progress, until this is dropped.
pub(super) struct ActiveExchange {
    phase: ExchangePhase,
    held: Option<HeldBytes>,
    _using: ConnectionUse,
}

impl ActiveExchange {
    /// The answer has so many bytes in memory, until all of it is sent.
    pub(super) fn hold(&mut self, bytes: Option<HeldBytes>) {
        self.held = bytes;
    }

    /// The answer switches the protocol, after which there are no more requests.
    pub(super) fn upgrade(&self) {
        self.phase.upgrade();
    }
}

impl Drop for ActiveExchange {
    fn drop(&mut self) {
        self.phase.end();
    }
}

/// An answer's body.
pub(super) struct TrackedBody {
    body: Body,
    active: Option<(ActiveExchange, UnsentAnswer)>,
}

impl TrackedBody {
    /// Of an answer that belongs to no exchange.
    pub(super) fn untracked(body: Body) -> Self {
        Self { body, active: None }
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        // All of it is in a buffer now, which may be large.
        if let Some((active, unsent)) = self.active.take() {
            *unsent.0.lock() = Some(active);
        }
    }
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
