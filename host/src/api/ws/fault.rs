//! The close frame sent to a client whose bytes cannot be read as messages.
//!
//! # Invariants
//!
//! - The close code says what was wrong (RFC 6455, section 7.4.1), the reason says what to do about
//!   it.
//! - Nothing is sent on a connection that merely broke, since nobody is left to read it.

use std::error::Error as _;

use axum::extract::ws::close_code;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};

use crate::api::LARGEST_BODY;

/// Whether the other side ended the connection, in order and without a close frame.
pub(super) fn is_end(error: &axum::Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<Error>());
    matches!(
        cause,
        Some(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))
    )
}

/// Why nothing more can be read from a connected client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientFault {
    /// The close code.
    pub(super) code: u16,
    /// The reason, a sentence.
    pub(super) reason: String,
}

impl ClientFault {
    /// The client sends more pings than anybody has a use for.
    pub(super) fn too_many_pings() -> Self {
        Self {
            code: close_code::POLICY,
            reason: "Too many pings; one in a few seconds is enough.".to_owned(),
        }
    }

    /// Classifies an error. `None` if the connection is gone.
    pub(super) fn of(error: &axum::Error) -> Option<Self> {
        let (code, reason) = match error.source()?.downcast_ref::<Error>()? {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => (
                close_code::SIZE,
                format!("A message may have at most {LARGEST_BODY} bytes; send less at once."),
            ),
            Error::Utf8(_) => (close_code::INVALID, "A text must be UTF-8.".to_owned()),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return None,
            Error::Protocol(error) => (close_code::PROTOCOL, format!("{error}.")),
            _ => return None,
        };
        Some(Self { code, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: Error) -> Option<u16> {
        ClientFault::of(&axum::Error::new(error)).map(|protocol_error| protocol_error.code)
    }

    #[test]
    fn each_fault_of_a_client_has_the_protocols_own_code() {
        let size = LARGEST_BODY + 1;
        let long = CapacityError::MessageTooLong {
            size,
            max_size: LARGEST_BODY,
        };
        assert_eq!(code(long.into()), Some(1009));
        assert_eq!(code(Error::Utf8("no text".into())), Some(1007));
        let unmasked = ProtocolError::UnmaskedFrameFromClient;
        assert_eq!(code(unmasked.into()), Some(1002));
    }

    #[test]
    fn an_end_in_order_is_told_from_a_reset() {
        let ended = ProtocolError::ResetWithoutClosingHandshake;
        assert!(is_end(&axum::Error::new(Error::from(ended))));
        let reset = Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(!is_end(&axum::Error::new(reset)));
    }

    #[test]
    fn nobody_is_told_that_the_connection_broke() {
        let reset = ProtocolError::ResetWithoutClosingHandshake;
        assert_eq!(code(reset.into()), None);
        assert_eq!(code(Error::Io(std::io::ErrorKind::BrokenPipe.into())), None);
        assert_eq!(ClientFault::of(&axum::Error::new("something else")), None);
    }
}
