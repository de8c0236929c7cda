//! How much of an answer's text can be shown while it arrives: not what may be a call written as text.
//!
//! # Invariants
//!
//! - What is shown is the beginning of the text.
//! - What is held back is shown at the end, unless it became a call.

use super::code::TextPosition;
use super::markup::OPENERS;

/// Watches the text of one answer.
#[derive(Debug, Default)]
pub(crate) struct LeakWatcher {
    buffer: String,
    /// How much was shown.
    shown: usize,
    /// Where the text stands behind what was shown, and behind this much of what is held back.
    position: TextPosition,
    passed: usize,
}

/// What begins another format in which a whole answer may be written.
const FORMATS: [&str; 2] = ["<|channel|>", "<|start|>"];

/// Of a longer answer nothing more is held back.
const LONGEST: usize = 1 << 20;

/// Of an opener that begins with a letter so much has to be there, but at the beginning of a line: ordinary
/// words begin like it.
const WORD: usize = 4;

impl LeakWatcher {
    /// How much of this, and of what was held back, can be shown now.
    pub(crate) fn next(&mut self, text: &str) -> String {
        self.buffer.push_str(text);
        if self.shown > LONGEST {
            return self.finish();
        }
        while let Some(at) = self.may_open() {
            self.advance(at);
            if !self.position.is_code() {
                return self.release(at);
            }
            // Code is shown as it is.
            let next = self.buffer[at..].chars().next().map_or(1, char::len_utf8);
            self.advance(at + next);
        }
        let all = self.buffer.len();
        self.advance(all);
        self.release(all)
    }

    /// What is held back when the answer is over.
    pub(crate) fn finish(&mut self) -> String {
        self.passed = 0;
        std::mem::take(&mut self.buffer)
    }

    /// Where something begins, of what is not passed yet, that is an opener or may become one.
    fn may_open(&self) -> Option<usize> {
        let mut places = self.buffer[self.passed..].char_indices();
        let found = places.find(|(at, _)| {
            let at = self.passed + at;
            let rest = &self.buffer[at..];
            let may_become = |opener: &str| {
                let is_word = opener.starts_with(|c: char| c.is_ascii_alphabetic());
                let is_enough = !is_word || rest.len() >= WORD || self.begins_line(at);
                opener.starts_with(rest) && is_enough
            };
            let mut all = OPENERS.iter().chain(&FORMATS);
            all.any(|opener| rest.starts_with(opener) || may_become(opener))
        });
        found.map(|(at, _)| self.passed + at)
    }

    fn begins_line(&self, at: usize) -> bool {
        let before = &self.buffer[self.passed..at];
        match before.rsplit_once('\n') {
            Some((_, line)) => line.trim().is_empty(),
            None => self.position.begins_line() && before.trim().is_empty(),
        }
    }

    fn advance(&mut self, end: usize) {
        self.position.push(&self.buffer[self.passed..end]);
        self.passed = end;
    }

    /// Shows all that was passed.
    fn release(&mut self, end: usize) -> String {
        let rest = self.buffer.split_off(end);
        let released = std::mem::replace(&mut self.buffer, rest);
        self.shown += released.len();
        self.passed = 0;
        released
    }
}
