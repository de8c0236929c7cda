//! Assembles a model's text and reasoning from the fragments that servers send.
//!
//! # Invariants
//!
//! - The text shown is the text of the message, except for reasoning that only its closing tag
//!   revealed.
//! - The order of both is the model's.

use lucid_plugin::llm::Delta;
use lucid_plugin::llm::json::Joiner;
use lucid_plugin::llm::spoken::Spoken;
use lucid_plugin::types::{Content, Thinking};

use crate::kept::Place;

/// The texts of one message.
#[derive(Default)]
pub(super) struct Said {
    /// Reasoning that has a member or a part of its own.
    thinking: String,
    thinking_joiner: Joiner,
    place: Option<Place>,
    /// The content: answer, and reasoning between tags.
    spoken: Spoken,
}

impl Said {
    /// Takes reasoning. `place` is its position. `None` if it is only to be shown.
    pub(super) fn think(
        &mut self,
        text: &str,
        marked: bool,
        place: Option<Place>,
        deltas: &mut Vec<Delta>,
    ) {
        let text = self.thinking_joiner.push(text, marked);
        if self.place.is_none() {
            self.place = place;
        }
        self.thought(&text, deltas);
    }

    fn thought(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        if !text.is_empty() {
            self.thinking.push_str(text);
            deltas.push(Delta::Thinking(text.into()));
        }
    }

    /// Takes content.
    pub(super) fn say(&mut self, text: &str, marked: bool, deltas: &mut Vec<Delta>) {
        self.spoken.push(text, marked, deltas);
    }

    /// Ends all texts.
    pub(super) fn end(&mut self, deltas: &mut Vec<Delta>) {
        let rest = self.thinking_joiner.rest();
        self.thought(rest, deltas);
        self.spoken.end(deltas);
    }

    /// The message's pieces.
    pub(super) fn into_content(self) -> Vec<Content> {
        let mut content = Vec::new();
        if !self.thinking.is_empty() {
            content.push(Content::Thinking(Thinking {
                text: self.thinking,
                signature: None,
            }));
            content.extend(self.place.map(|place| place.piece()));
        }
        content.extend(self.spoken.into_content());
        content
    }
}
