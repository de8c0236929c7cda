//! Owns which of an answer's text is shown while it comes: not what may be a call that is written as text.
//!
//! What always holds: what is shown is the beginning of the text; what is held back is shown at the end,
//! unless it became a call.

use super::code;
use super::markup::OPENERS;

/// Watches the text of one answer.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// All of it that was shown: whether the rest is code depends on it.
    shown: String,
    held: String,
}

/// What begins another format in which a whole answer may be written.
const FORMATS: [&str; 2] = ["<|channel|>", "<|start|>"];

/// Of a longer answer nothing more is held back.
const LONGEST: usize = 1 << 20;

impl Watch {
    /// How much of this, and of what was held back, can be shown now.
    pub(crate) fn next(&mut self, text: &str) -> String {
        self.held.push_str(text);
        if self.shown.len() > LONGEST {
            return self.rest();
        }
        let mut from = 0;
        while let Some(at) = may_open(&self.held[from..]).map(|at| from + at) {
            let before = format!("{}{}", self.shown, &self.held[..at]);
            if !is_in_code(&before) {
                return self.show(at);
            }
            // Code is shown as it is.
            let next = self.held[at..].chars().next().map_or(1, char::len_utf8);
            from = at + next;
        }
        self.show(self.held.len())
    }

    /// What is held back when the answer is over.
    pub(crate) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn show(&mut self, end: usize) -> String {
        let rest = self.held.split_off(end);
        let shown = std::mem::replace(&mut self.held, rest);
        self.shown.push_str(&shown);
        shown
    }
}

/// Where something begins that is an opener, or may become one.
fn may_open(text: &str) -> Option<usize> {
    let all = || OPENERS.iter().chain(&FORMATS);
    let mut places = text.char_indices();
    let found = places.find(|(at, _)| {
        let rest = &text[*at..];
        all().any(|opener| rest.starts_with(opener) || opener.starts_with(rest))
    });
    found.map(|(at, _)| at)
}

/// Whether what comes behind a text is within code that began in it.
fn is_in_code(before: &str) -> bool {
    let closed = code::ranges(before).last().map_or(0, |range| range.end);
    let open = &before[closed..];
    let line = open.rsplit('\n').next().unwrap_or_default();
    code::is_open(before) || line.contains('`')
}
