//! The text of a response, separated from reasoning that a server left in it between tags.
//!
//! # Invariants
//!
//! - The text shown is the text of the message, except for reasoning that only its closing tag
//!   revealed.
//! - The text goes back to the server as it came, tags included.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::extra::{custom, kept};
use super::json::Joiner;
use super::thoughts::{Piece, Thoughts};
use super::wit::Delta;
use crate::types::{Content, Thinking};

/// The kind of the piece after reasoning that was in a text. Its body is [`Tags`].
const TAGS: &str = "server.tags";

/// The tags around reasoning that was in a text.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Tags {
    open: String,
    close: String,
    /// The text began with the reasoning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    begins: bool,
    /// The text ended with the reasoning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ends: bool,
}

/// A text of a response, assembled from the fragments that servers send.
#[derive(Debug, Default)]
pub struct Spoken {
    joiner: Joiner,
    thoughts: Thoughts,
    pieces: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    /// Reasoning, and the tags around it once they are known.
    Thought(String, Option<(String, String)>),
}

impl Spoken {
    /// Takes a fragment. `marked` is as in [`super::json::ResponsePiece`].
    pub fn push(&mut self, text: &str, marked: bool, deltas: &mut Vec<Delta>) {
        let text = self.joiner.push(text, marked);
        let mut pieces = Vec::new();
        self.thoughts.push(&text, &mut pieces);
        self.take(pieces, deltas);
    }

    /// Ends the text.
    pub fn end(&mut self, deltas: &mut Vec<Delta>) {
        let mut pieces = Vec::new();
        self.thoughts.push(self.joiner.rest(), &mut pieces);
        self.thoughts.finish(&mut pieces);
        self.take(pieces, deltas);
    }

    fn take(&mut self, pieces: Vec<Piece>, deltas: &mut Vec<Delta>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    deltas.push(Delta::Text(text.clone()));
                    match self.pieces.last_mut() {
                        Some(Part::Text(before)) => before.push_str(&text),
                        _ => self.pieces.push(Part::Text(text)),
                    }
                }
                Piece::Thought(text) => {
                    deltas.push(Delta::Thinking(text.clone()));
                    match self.pieces.last_mut() {
                        Some(Part::Thought(before, None)) => before.push_str(&text),
                        _ => self.pieces.push(Part::Thought(text, None)),
                    }
                }
                Piece::End(open, close) => {
                    if let Some(Part::Thought(_, tags)) = self.pieces.last_mut() {
                        *tags = Some((open.into(), close));
                    }
                }
                Piece::WasThought(_, close) => {
                    for piece in &mut self.pieces {
                        if let Part::Text(text) = piece {
                            // It had no opening tag, and goes back without one.
                            let tags = Some((String::new(), close.clone()));
                            *piece = Part::Thought(std::mem::take(text), tags);
                        }
                    }
                }
            }
        }
    }

    /// The message's pieces.
    pub fn into_content(mut self) -> Vec<Content> {
        self.end(&mut Vec::new());
        let mut content = Vec::new();
        let last = self.pieces.len().saturating_sub(1);
        for (number, piece) in self.pieces.into_iter().enumerate() {
            match piece {
                Part::Text(text) => content.push(Content::Text(text)),
                Part::Thought(text, tags) => {
                    let signature = None;
                    content.push(Content::Thinking(Thinking { text, signature }));
                    content.extend(tags.map(|(open, close)| {
                        let (begins, ends) = (number == 0, number == last);
                        let tags = Tags {
                            open,
                            close,
                            begins,
                            ends,
                        };
                        custom(TAGS, &tags)
                    }));
                }
            }
        }
        content
    }
}

/// The pieces of a response with the texts as their server sent them: reasoning that was in one is
/// part of it again.
pub(super) fn as_given(content: &[Content]) -> Cow<'_, [Content]> {
    if !content.iter().any(|piece| tags(Some(piece)).is_some()) {
        return Cow::Borrowed(content);
    }
    let mut given: Vec<Content> = Vec::with_capacity(content.len());
    // Whether the last piece is a text that continues.
    let mut open = false;
    let mut pieces = content.iter().peekable();
    while let Some(piece) = pieces.next() {
        let found = match piece {
            Content::Thinking(_) => tags(pieces.peek().copied()),
            _ => None,
        };
        let (text, goes_on) = match (piece, &found) {
            (Content::Thinking(thinking), Some(tags)) => {
                let text = format!("{}{}{}", tags.open, thinking.text, tags.close);
                (text, !tags.begins)
            }
            (Content::Text(text), _) => (text.clone(), open),
            _ => (String::new(), false),
        };
        match given.last_mut() {
            Some(Content::Text(before)) if goes_on => before.push_str(&text),
            _ if found.is_some() => given.push(Content::Text(text)),
            _ => given.push(piece.clone()),
        }
        open = found.as_ref().is_some_and(|tags| !tags.ends);
        if found.is_some() {
            pieces.next();
        }
    }
    Cow::Owned(given)
}

/// The tags around the reasoning before this piece.
fn tags(piece: Option<&Content>) -> Option<Tags> {
    match piece {
        Some(Content::Other(piece)) => kept(TAGS, piece),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_between_tags_is_told_apart_and_goes_back_as_it_was_written() {
        for (text, thoughts, said) in [
            ("<think>\nHm.\n</think>\n\nYes.", "\nHm.\n", "Yes."),
            ("Look.\n<think>Hm</think>\nYes", "Hm", "Look.\nYes"),
            (
                "It began before.\n</think>\n\nYes.",
                "It began before.\n",
                "Yes.",
            ),
            ("Plain.", "", "Plain."),
        ] {
            let mut spoken = Spoken::default();
            let mut deltas = Vec::new();
            for c in text.chars() {
                spoken.push(&c.to_string(), false, &mut deltas);
            }
            let content = spoken.into_content();
            let of = |thinking: bool| -> String {
                let texts = content.iter().filter_map(|piece| match piece {
                    Content::Text(text) if !thinking => Some(text.as_str()),
                    Content::Thinking(thought) if thinking => Some(thought.text.as_str()),
                    _ => None,
                });
                texts.collect()
            };
            assert_eq!(
                (of(true).as_str(), of(false).as_str()),
                (thoughts, said),
                "{text}"
            );
            assert_eq!(*as_given(&content), [Content::Text(text.into())], "{text}");
        }
    }

    #[test]
    fn pieces_that_are_no_part_of_a_text_stay_as_they_are() {
        let content = [
            Content::Text("a".into()),
            Content::Text("b".into()),
            Content::Thinking(Thinking {
                text: "Hm".into(),
                signature: None,
            }),
            Content::Thinking(Thinking {
                text: "So".into(),
                signature: None,
            }),
            custom(
                TAGS,
                &Tags {
                    open: "<think>".into(),
                    close: "</think>".into(),
                    begins: true,
                    ends: false,
                },
            ),
            Content::Text("c".into()),
            Content::Text("d".into()),
        ];
        assert_eq!(*as_given(&content[..4]), content[..4]);
        let given = as_given(&content).into_owned();
        assert_eq!(given[..3], content[..3]);
        assert_eq!(
            given[3..],
            [
                Content::Text("<think>So</think>c".into()),
                Content::Text("d".into())
            ]
        );
    }

    #[test]
    fn texts_that_follow_each_other_stay_several() {
        let texts = [
            "a",
            "<think>Hm</think>b\n<think>So</think>",
            "c",
            "<think>Yes</think>",
        ];
        let spoken = texts.iter().flat_map(|text| {
            let mut spoken = Spoken::default();
            spoken.push(text, false, &mut Vec::new());
            spoken.into_content()
        });
        let content: Vec<Content> = spoken.collect();
        let thoughts = content
            .iter()
            .filter(|piece| matches!(piece, Content::Thinking(_)));
        assert_eq!(thoughts.count(), 3);
        assert_eq!(
            *as_given(&content),
            texts.map(|text| Content::Text(text.into()))
        );
    }
}
