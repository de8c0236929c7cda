//! Reads what an exec server sends, and hands it to the commands that wait for it.

use std::io::ErrorKind;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{CommandEvent, State};
use lucid_exec::protocol::{Frame, FrameKind, HEADER, Header};
use lucid_types::sanitize::sanitize;

/// The longest message from a sandbox, in characters: the model and the log read it.
pub(super) const SENTENCE: usize = 500;

/// Reads one frame, whose length is checked before anything is allocated for it.
pub async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Frame> {
    let mut header = [0; HEADER];
    reader.read_exact(&mut header).await?;
    read_payload(header, reader).await
}

/// Reads the rest of a frame whose first byte was read.
pub(super) async fn read_frame_after(
    first: u8,
    reader: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<Frame> {
    let mut header = [first; HEADER];
    reader.read_exact(&mut header[1..]).await?;
    read_payload(header, reader).await
}

async fn read_payload(
    header: [u8; HEADER],
    reader: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<Frame> {
    let Header { kind, id, length } =
        Header::parse(header).map_err(|bad| std::io::Error::new(ErrorKind::InvalidData, bad))?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok(Frame { kind, id, payload })
}

/// The reason why reading stopped.
pub(super) enum ReadEnd {
    /// The other side is gone.
    Ended,
    /// The other side violated the protocol. A sentence.
    Broke(String),
}

impl ReadEnd {
    pub(super) fn sentence(self) -> String {
        match self {
            Self::Ended => "It ended on its own: it was killed, or ran out of memory.".to_owned(),
            Self::Broke(sentence) => sentence,
        }
    }
}

/// Dispatches frames to the commands that wait for them, until the connection ends.
pub(super) async fn read_frames(
    mut reader: impl AsyncRead + Unpin,
    state: &Mutex<State>,
) -> ReadEnd {
    let broke = |sentence: &str| ReadEnd::Broke(sentence.to_owned());
    loop {
        let frame = match read_frame(&mut reader).await {
            Ok(frame) => frame,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return ReadEnd::Broke(format!("{error}."));
            }
            Err(_) => return ReadEnd::Ended,
        };
        let Frame { kind, id, payload } = frame;
        let mut state = state.lock();
        let Some(waiter) = state.waiters.get_mut(&id) else {
            return broke("Its exec server spoke of a command that was never sent.");
        };
        let (event, last) = match kind {
            // Empty frames use up none of the agreed bytes, so there could be any number of them.
            FrameKind::Output | FrameKind::Tail if payload.is_empty() => {
                return broke("Its exec server sent output without a byte in it.");
            }
            FrameKind::Output if payload.len() <= waiter.head_left => {
                waiter.head_left -= payload.len();
                (CommandEvent::Output(payload), false)
            }
            FrameKind::Tail if payload.len() <= waiter.tail_left => {
                waiter.tail_left -= payload.len();
                (CommandEvent::Tail(payload), false)
            }
            FrameKind::Exit => match serde_json::from_slice(&payload) {
                Ok(exit) => (CommandEvent::Exit(exit), true),
                Err(error) => {
                    // The error repeats the input that it failed on.
                    let error = sanitize(&error.to_string(), SENTENCE);
                    return ReadEnd::Broke(format!(
                        "Its exec server reported an end that cannot be read: {error}."
                    ));
                }
            },
            FrameKind::Failed => (CommandEvent::Failed(sentence(&payload)), true),
            FrameKind::Full => (CommandEvent::Full(sentence(&payload)), true),
            FrameKind::Output | FrameKind::Tail => {
                return broke("Its exec server sent more output than it was asked for.");
            }
            other => {
                return ReadEnd::Broke(format!(
                    "Its exec server sent a {other:?} frame out of turn."
                ));
            }
        };
        // A waiter that is gone was dropped: its command is being killed.
        let _ = waiter.events.send(event);
        if last {
            state.waiters.remove(&id);
        }
    }
}

/// A message from a sandbox, sanitized for other readers.
fn sentence(payload: &[u8]) -> String {
    sanitize(&String::from_utf8_lossy(payload), SENTENCE)
}
