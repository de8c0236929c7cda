//! The exec server's first message, by which the host knows it.

use std::time::Duration;

use tokio::io::AsyncRead;

use super::reader::read_frame;
use crate::error::SandboxError;
use lucid_exec::protocol::{Frame, FrameKind, Hello, VERSION};

/// Why a sandbox's exec server is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    /// It is of another build.
    #[error("its exec server speaks another version")]
    Version,
    /// It sent something else first.
    #[error("its exec server did not say hello")]
    NoHello,
    /// It closed the connection.
    #[error("it ended at once")]
    Ended(#[source] std::io::Error),
    /// It sent nothing in time.
    #[error("it was not ready after {} seconds", .0.as_secs())]
    NotReady(Duration),
}

impl From<GreetError> for SandboxError {
    fn from(error: GreetError) -> Self {
        Self::Start(error.to_string())
    }
}

/// Reads the first frame.
pub(crate) async fn read_hello(
    reader: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> Result<(), GreetError> {
    match tokio::time::timeout(patience, read_frame(reader)).await {
        Ok(Ok(Frame {
            kind: FrameKind::Hello,
            payload,
            ..
        })) => match serde_json::from_slice::<Hello>(&payload) {
            Ok(hello) if hello.version == VERSION => Ok(()),
            _ => Err(GreetError::Version),
        },
        Ok(Ok(_)) => Err(GreetError::NoHello),
        Ok(Err(cause)) => Err(GreetError::Ended(cause)),
        Err(_) => Err(GreetError::NotReady(patience)),
    }
}
