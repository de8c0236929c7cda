//! One request and its answer, from the end of the header to the last of the body.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::budget::{ConnectionSlot, ConnectionUse};
use super::stream::ExchangePhase;

/// Begins the exchanges of one connection.
#[derive(Clone)]
pub(super) struct Exchange {
    slot: ConnectionSlot,
    phase: ExchangePhase,
}

impl Exchange {
    pub(super) fn new(slot: ConnectionSlot, phase: ExchangePhase) -> Self {
        Self { slot, phase }
    }

    pub(super) fn slot(&self) -> &ConnectionSlot {
        &self.slot
    }

    /// Marks a request as in progress. `None` if the connection is closed for another one.
    pub(super) fn begin(&self) -> Option<ActiveExchange> {
        let using = self.slot.begin()?;
        self.phase.begin();
        Some(ActiveExchange {
            phase: self.phase.clone(),
            _using: using,
        })
    }
}

/// A request in progress, until this is dropped.
pub(super) struct ActiveExchange {
    phase: ExchangePhase,
    _using: ConnectionUse,
}

impl ActiveExchange {
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

/// An answer's body, with which the exchange ends.
pub(super) struct TrackedBody {
    body: Body,
    _active: Option<ActiveExchange>,
}

impl TrackedBody {
    pub(super) fn new(body: Body, active: ActiveExchange) -> Self {
        Self {
            body,
            _active: Some(active),
        }
    }

    /// Of an answer that belongs to no exchange.
    pub(super) fn untracked(body: Body) -> Self {
        Self {
            body,
            _active: None,
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
