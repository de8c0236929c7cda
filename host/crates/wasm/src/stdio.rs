//! A guest's standard output and standard error, as lines of the host's log.
//!
//! The last output on standard error is kept until the next call, since it says why an engine gave
//! up.
//!
//! # Invariants
//! - A call prints a bounded number of bounded lines, without control characters, under the
//!   plugin's name.
//! - Output beyond that is dropped, and never fails or blocks the guest.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::log_label::LogLabel;
use lucid_types::sanitize::sanitize;
use lucid_types::wit::log::Level;

/// The most lines that one call may print. A stack trace has several.
const MOST_LINES: u32 = 64;
/// The longest line: in characters of the log, and in bytes before sanitizing.
const LONGEST_LINE: usize = 1_000;
const LONGEST_RAW: usize = 4 * LONGEST_LINE;
/// How much of standard error an error message repeats.
const STDERR_TAIL: usize = 400;
/// How much a guest may write at once; it writes again for the rest.
const PERMIT: usize = 64 << 10;

/// The output of one instance.
pub(super) struct GuestOutput(Arc<Mutex<StdioBuffer>>);

struct StdioBuffer {
    label: Arc<LogLabel>,
    out: Vec<u8>,
    err: Vec<u8>,
    lines: u32,
    last_words: String,
}

#[derive(Clone, Copy)]
enum StdioPipe {
    Out,
    Err,
}

/// Standard output or standard error.
#[derive(Clone)]
pub(super) struct StdioStream {
    buffer: Arc<Mutex<StdioBuffer>>,
    pipe: StdioPipe,
}

impl GuestOutput {
    pub(super) fn new(label: Arc<LogLabel>) -> Self {
        Self(Arc::new(Mutex::new(StdioBuffer {
            label,
            out: Vec::new(),
            err: Vec::new(),
            lines: 0,
            last_words: String::new(),
        })))
    }

    pub(super) fn out(&self) -> StdioStream {
        self.stream(StdioPipe::Out)
    }

    pub(super) fn err(&self) -> StdioStream {
        self.stream(StdioPipe::Err)
    }

    fn stream(&self, pipe: StdioPipe) -> StdioStream {
        StdioStream {
            buffer: self.0.clone(),
            pipe,
        }
    }

    /// Begins a new call.
    pub(super) fn begin(&self) {
        let mut page = self.0.lock();
        page.lines = 0;
        page.last_words.clear();
    }

    /// Ends a call and its unfinished line. Returns the end of its standard error.
    pub(super) fn end(&self) -> String {
        let mut page = self.0.lock();
        for pipe in [StdioPipe::Out, StdioPipe::Err] {
            if !page.buffer_of(pipe).is_empty() {
                page.line(pipe);
            }
        }
        page.last_words.clone()
    }
}

impl StdioBuffer {
    fn buffer_of(&mut self, pipe: StdioPipe) -> &mut Vec<u8> {
        match pipe {
            StdioPipe::Out => &mut self.out,
            StdioPipe::Err => &mut self.err,
        }
    }

    fn write(&mut self, pipe: StdioPipe, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.add(pipe, &rest[..end]);
            self.line(pipe);
            rest = &rest[end + 1..];
        }
        self.add(pipe, rest);
    }

    /// Appends to the current line. What exceeds the longest line is dropped.
    fn add(&mut self, pipe: StdioPipe, bytes: &[u8]) {
        let half = self.buffer_of(pipe);
        let room = LONGEST_RAW.saturating_sub(half.len());
        half.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Ends a line.
    fn line(&mut self, pipe: StdioPipe) {
        let raw = std::mem::take(self.buffer_of(pipe));
        self.lines = self.lines.saturating_add(1);
        if self.lines > MOST_LINES {
            if self.lines == MOST_LINES + 1 {
                let dropped = format!(
                    "more than {MOST_LINES} printed lines in one call; the rest is dropped"
                );
                self.label.line(Level::Warn, &dropped);
            }
            return;
        }
        let line = sanitize(&String::from_utf8_lossy(&raw), LONGEST_LINE);
        match pipe {
            StdioPipe::Out => self.label.line(Level::Info, &line),
            StdioPipe::Err => {
                self.label.line(Level::Warn, &line);
                self.last_words.push_str(line.trim());
                self.last_words.push(' ');
                let over = self.last_words.chars().count().saturating_sub(STDERR_TAIL);
                if let Some((at, _)) = self.last_words.char_indices().nth(over) {
                    self.last_words.drain(..at);
                }
            }
        }
    }
}

impl IsTerminal for StdioStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for StdioStream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Needed for WASI 0.3, which is not offered.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for StdioStream {
    async fn ready(&mut self) {}
}

impl OutputStream for StdioStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.buffer.lock().write(self.pipe, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed(pieces: &[&[u8]]) -> GuestOutput {
        let printed = GuestOutput::new(crate::log_label::label());
        let mut err = printed.err();
        for piece in pieces {
            err.write(Bytes::copy_from_slice(piece)).unwrap();
        }
        printed
    }

    #[test]
    fn the_last_words_are_whole_lines_cleaned_and_few() {
        let page = printed(&[b"Traceback:\n  Value", b"Error: \x1b[31mno\n", b"and half"]);
        assert_eq!(page.end(), "Traceback: ValueError: [31mno and half ");
        let page = printed(&[&[b'x'; 5_000][..], b"\nend\n"]);
        let last = page.end();
        assert_eq!(last.chars().count(), STDERR_TAIL);
        assert!(last.ends_with("end "), "{last}");
        page.begin();
        assert_eq!(page.end(), "", "a new call begins with a clean page");
    }

    #[test]
    fn a_flood_is_dropped_and_a_line_without_end_does_not_grow() {
        let page = printed(&[&[b'\n'; 10_000][..], b"too late\n"]);
        assert_eq!(page.end().trim(), "", "the budget was used up before");
        let page = printed(&vec![&[b'y'; 1_000][..]; 100]);
        assert!(page.0.lock().err.capacity() <= 2 * LONGEST_RAW);
    }

    proptest! {
        #[test]
        fn where_a_text_is_cut_makes_no_difference(text in "[ab\n\u{fc}]{0,60}", at in 0_usize..60) {
            let bytes = text.as_bytes();
            let (first, second) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(printed(&[first, second]).end(), printed(&[bytes]).end());
        }
    }
}
