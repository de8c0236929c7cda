//! What a model says and thinks, put together from the pieces that servers send.
//!
//! Always holds: what is shown of a text is what the message has of it, but for reasoning that only its
//! end gave away; the order of both is the model's.

use lucid_plugin::llm::Delta;
use lucid_plugin::llm::json::Joiner;
use lucid_plugin::llm::thoughts::{Piece, Thoughts};
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
    pieces: Vec<Spoken>,
    text_joiner: Joiner,
    thoughts: Thoughts,
}

enum Spoken {
    Text(String),
    Thought(String, Option<Place>),
}

impl Said {
    /// Takes reasoning. `place` is where it stands; none where it is only to be shown.
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
        let text = self.text_joiner.push(text, marked);
        let mut pieces = Vec::new();
        self.thoughts.push(&text, &mut pieces);
        self.take(pieces, deltas);
    }

    /// All of it is there.
    pub(super) fn end(&mut self, deltas: &mut Vec<Delta>) {
        let rest = self.thinking_joiner.rest();
        self.thought(rest, deltas);
        let mut pieces = Vec::new();
        self.thoughts.push(self.text_joiner.rest(), &mut pieces);
        self.thoughts.finish(&mut pieces);
        self.take(pieces, deltas);
    }

    fn take(&mut self, pieces: Vec<Piece>, deltas: &mut Vec<Delta>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    deltas.push(Delta::Text(text.clone()));
                    match self.pieces.last_mut() {
                        Some(Spoken::Text(before)) => before.push_str(&text),
                        _ => self.pieces.push(Spoken::Text(text)),
                    }
                }
                Piece::Thought(text) => {
                    deltas.push(Delta::Thinking(text.clone()));
                    match self.pieces.last_mut() {
                        Some(Spoken::Thought(before, None)) => before.push_str(&text),
                        _ => self.pieces.push(Spoken::Thought(text, None)),
                    }
                }
                Piece::End(open, close) => {
                    if let Some(Spoken::Thought(_, place)) = self.pieces.last_mut() {
                        *place = Some(Place::Tags(open.into(), close));
                    }
                }
                Piece::WasThought(_, close) => {
                    for piece in &mut self.pieces {
                        if let Spoken::Text(text) = piece {
                            // It had no beginning, and goes back without one.
                            let place = Place::Tags(String::new(), close.clone());
                            *piece = Spoken::Thought(std::mem::take(text), Some(place));
                        }
                    }
                }
            }
        }
    }

    /// As pieces of the message.
    pub(super) fn into_content(self) -> Vec<Content> {
        let mut content = Vec::new();
        if !self.thinking.is_empty() {
            thought(self.thinking, self.place, &mut content);
        }
        for piece in self.pieces {
            match piece {
                Spoken::Text(text) => content.push(Content::Text(text)),
                Spoken::Thought(text, place) => thought(text, place, &mut content),
            }
        }
        content
    }
}

fn thought(text: String, place: Option<Place>, content: &mut Vec<Content>) {
    content.push(Content::Thinking(Thinking {
        text,
        signature: None,
    }));
    content.extend(place.map(|place| place.piece()));
}
