//! The user's answers in `lucid run`: lines of standard input, from a terminal or a pipe.
//!
//! # Invariants
//!
//! - Nothing is read before there is a question.
//! - A blank line is not an answer.
//! - The reading thread delays nobody once the work is over.

use std::io::{BufRead, IsTerminal, Write};

use tokio::sync::mpsc;

/// The pending answers.
#[derive(Debug, Default)]
pub(super) struct PendingAnswers {
    /// Created with the first question.
    lines: Option<mpsc::Receiver<String>>,
}

impl PendingAnswers {
    /// Whether a person types the answers.
    pub(super) fn is_interactive() -> bool {
        std::io::stdin().is_terminal()
    }

    /// The next answer. `None` if there are no more. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<String> {
        self.lines.get_or_insert_with(lines).recv().await
    }

    /// Prompts for an answer, if a person types them.
    pub(super) fn prompt() {
        if Self::is_interactive() {
            // Stdout is for results.
            let mut out = std::io::stderr();
            let _ = write!(out, " answer  ").and_then(|()| out.flush());
        }
    }
}

/// Reads lines in a dedicated thread: one of the runtime's would delay its shutdown.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut line = Vec::new();
        loop {
            line.clear();
            match input.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim();
            if text.is_empty() {
                if sender.is_closed() {
                    return;
                }
                PendingAnswers::prompt();
            } else if sender.blocking_send(text.to_owned()).is_err() {
                return;
            }
        }
    });
    lines
}
