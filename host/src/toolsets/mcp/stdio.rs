//! The stdio transport to an MCP server that runs in the session's sandbox.
//!
//! # Invariants
//!
//! - Its output is counted. A server that exceeds the limit between two calls is no longer read,
//!   which ends it.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rmcp::RoleClient;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::io::{AsyncRead, ReadBuf};

use super::server::MAX_OUTPUT;
use lucid_session::Environment;
use lucid_types::exec::{ExecError, ExecRequest, ProcessEnd, ProcessInput, ProcessOutput};
use lucid_types::unicode::JsonRepairer;

/// How many of the last bytes of its stderr are kept.
const COMPLAINT: usize = 4 << 10;

/// The read size, in bytes.
const PIECE: usize = 8 << 10;

/// How much a program may still print before the next call.
#[derive(Clone, Default)]
pub(super) struct OutputAllowance(Arc<AtomicUsize>);

impl OutputAllowance {
    /// Resets it at the beginning of a call.
    pub(super) fn reset(&self) {
        self.0.store(MAX_OUTPUT, Ordering::Relaxed);
    }

    /// Whether it is used up.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// A running server program.
pub(super) struct McpProcess {
    pub(super) transport: AsyncRwTransport<RoleClient, CountedOutput, ProcessInput>,
    pub(super) allowance: OutputAllowance,
    pub(super) end: ProcessEnd,
}

/// Starts a program.
pub(super) async fn start(
    environment: &dyn Environment,
    argv: &[String],
    env: &BTreeMap<String, String>,
) -> Result<McpProcess, ExecError> {
    let request = ExecRequest::argv(argv.iter().cloned()).keep_output(0, COMPLAINT);
    let request = env
        .iter()
        .fold(request, |request, (name, value)| request.env(name, value));
    let process = environment.spawn(request).await?;
    let allowance = OutputAllowance::default();
    allowance.reset();
    let output = CountedOutput {
        output: process.output,
        allowance: allowance.clone(),
        pieces: JsonRepairer::default(),
        readable: Bytes::new(),
    };
    Ok(McpProcess {
        transport: AsyncRwTransport::new(output, process.input).with_max_line_length(MAX_OUTPUT),
        allowance,
        end: process.end,
    })
}

/// A program's output, counted, and repaired where it is almost JSON.
pub(super) struct CountedOutput {
    output: ProcessOutput,
    allowance: OutputAllowance,
    pieces: JsonRepairer,
    readable: Bytes,
}

impl AsyncRead for CountedOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.readable.is_empty() {
            if this.allowance.is_exhausted() {
                return Poll::Ready(Err(io::Error::other("it said more than it may")));
            }
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.output).poll_read(context, &mut piece))?;
            let filled = piece.filled();
            if filled.is_empty() {
                this.readable = this.pieces.finish().into();
                if this.readable.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let take = |left: usize| Some(left.saturating_sub(filled.len()));
                // Never fails: there is always a replacement.
                let left = &this.allowance.0;
                let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
                this.readable = this.pieces.push(filled).into();
            }
        }
        let count = this.readable.len().min(buffer.remaining());
        buffer.put_slice(&this.readable.split_to(count));
        Poll::Ready(Ok(()))
    }
}
