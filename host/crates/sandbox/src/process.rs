//! A long-running program in a sandbox, as a pair of streams.
//!
//! # Invariants
//! - Output is taken from the program only as it is read here, so it never piles up.
//! - The program is killed when its output is dropped.
//! - Its exit status is known once its output has ended.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{CommandEvent, CommandInput, RunningCommand};
use lucid_exec::protocol::Exit;
use lucid_types::exec::{Process, ProcessEnd, ProcessInput, ProcessOutput};
use lucid_types::sanitize::sanitize;

#[cfg(test)]
mod tests;

/// How many bytes are read before more are granted.
const GRANT: usize = 64 << 10;
/// The most characters of standard error that a sentence repeats.
const MAX_SHOWN: usize = 300;

/// A program's standard input.
struct Stdin(CommandInput);

/// A program's standard output.
struct Stdout {
    running: RunningCommand,
    piece: Vec<u8>,
    /// How much of the current piece was read.
    at: usize,
    /// How much was read and not yet granted again.
    read: usize,
    complaint: Vec<u8>,
    end: ProcessEnd,
}

/// The streams of a program that was started.
pub(super) fn open(running: RunningCommand) -> Process {
    let end = ProcessEnd::default();
    Process {
        input: ProcessInput::new(Stdin(running.input())),
        output: ProcessOutput::new(Stdout {
            running,
            piece: Vec::new(),
            at: 0,
            read: 0,
            complaint: Vec::new(),
            end: end.clone(),
        }),
        end,
    }
}

impl Stdout {
    fn ended(&self, how: String) {
        let stderr = sanitize(&String::from_utf8_lossy(&self.complaint), usize::MAX);
        let stderr = stderr.trim();
        // The end of standard error says what went wrong.
        let from = stderr
            .char_indices()
            .rev()
            .nth(MAX_SHOWN)
            .map_or(0, |(at, _)| at);
        let sentence = match &stderr[from..] {
            "" => how,
            stderr => format!("{how} It said: {stderr}"),
        };
        self.end.set(sentence);
    }
}

fn describe_exit(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("It ended with exit code {code}."),
        (None, Some(signal)) => format!("It was ended by signal {signal}."),
        (None, None) => "It ended.".to_owned(),
    }
}

impl AsyncRead for Stdout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let left = &self.piece[self.at..];
            if !left.is_empty() {
                let count = left.len().min(buffer.remaining());
                buffer.put_slice(&left[..count]);
                self.at += count;
                self.read += count;
                if self.read >= GRANT {
                    let read = std::mem::take(&mut self.read);
                    self.running
                        .grant_output(u32::try_from(read).unwrap_or(u32::MAX));
                }
                return Poll::Ready(Ok(()));
            }
            if self.end.sentence().is_some() {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.running.poll_next(context)) {
                Some(CommandEvent::Output(piece)) => (self.piece, self.at) = (piece, 0),
                // No more arrives than was asked for.
                Some(CommandEvent::Tail(piece)) => self.complaint.extend(piece),
                Some(CommandEvent::Exit(exit)) => self.ended(describe_exit(&exit)),
                Some(CommandEvent::Failed(sentence) | CommandEvent::Full(sentence)) => {
                    self.ended(sentence)
                }
                None => self.ended("The sandbox is gone.".to_owned()),
            }
        }
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.end())
    }
}
