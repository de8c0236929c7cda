//! Turns any transcript into a conversation that a provider accepts.
//!
//! A transcript may hold what no provider accepts: a call whose effect was lost, two results for
//! one call, a result for none, two model turns in a row. What cannot be sent is left out, and what
//! is missing is inserted.
//!
//! # Invariants
//!
//! - User and model alternate, and the user is first and last.
//! - Each tool call has exactly one result, at the beginning of the following turn, in the calls'
//!   order.
//! - No id occurs twice, and no text is blank.
//! - The same transcript gives the same conversation, and a longer one begins with the same turns
//!   except for the last two, which preserves a provider's cache.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::extra::CallExtra;
use super::spoken;
use crate::types::{BlobRef, Content, Message, Role, ToolCall, ToolResult};

/// The requirements of one provider.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether a model's reasoning, or a vendor-specific piece, is sent back. Text and calls always
    /// are, with what belongs to them.
    pub sent_back: fn(&Content) -> bool,
    /// The characters allowed in a call's id, if no [`CallExtra`] marks it as the server's own.
    pub in_ids: fn(char) -> bool,
    /// The maximum length of such an id.
    pub longest_id: usize,
}

/// A conversation to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The deployment's system messages, wherever they were in the transcript.
    pub system: Vec<String>,
    /// The alternating turns: see the module.
    pub turns: Vec<ConversationTurn>,
}

/// One side's turn.
#[derive(Debug, Clone, PartialEq)]
pub enum ConversationTurn {
    /// The user, and the tools.
    User(UserTurn),
    /// The model: text, calls, and what the rules send back.
    Model(Vec<Content>),
}

/// A user turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UserTurn {
    /// One result for each call of the previous turn.
    pub results: Vec<ToolResult>,
    /// The content after the results.
    pub said: Vec<UserContent>,
}

/// Content from the user.
#[derive(Debug, Clone, PartialEq)]
pub enum UserContent {
    /// Never blank.
    Text(String),
    /// An image.
    Image(BlobRef),
}

/// The text of an inserted user turn, where the provider requires one.
pub const GO_ON: &str = "Continue.";
/// The result of a call without one.
pub const NO_RESULT: &str =
    "There is no result: the call was not carried out, or its result was lost.";
/// The text of an empty result.
pub const NO_OUTPUT: &str = "(no output)";

impl Conversation {
    /// Builds the conversation from a transcript.
    pub fn new(messages: &[Message], rules: &Rules) -> Self {
        let mut draft = Draft::default();
        for message in messages {
            draft.take(message, rules);
        }
        draft.finish(rules)
    }
}

/// A turn whose calls may still get results.
enum Open {
    User(Vec<UserContent>),
    Model {
        pieces: Vec<Content>,
        /// The result of each call among the pieces, in order.
        answers: Vec<Option<ToolResult>>,
    },
}

#[derive(Default)]
struct Draft {
    system: Vec<String>,
    turns: Vec<Open>,
}

impl Draft {
    fn take(&mut self, message: &Message, rules: &Rules) {
        let mut said = Vec::new();
        let mut pieces = Vec::new();
        let content = match message.role {
            Role::Assistant => spoken::as_given(&message.content),
            _ => Cow::Borrowed(message.content.as_slice()),
        };
        for piece in content.iter() {
            match (message.role, piece) {
                (_, Content::ToolResult(result)) => self.answer(result),
                (_, Content::Text(text)) if text.trim().is_empty() => {}
                (Role::System, Content::Text(text)) => self.system.push(text.clone()),
                (Role::Assistant, Content::Text(_) | Content::ToolCall(_)) => {
                    pieces.push(piece.clone());
                }
                (Role::Assistant, Content::Thinking(_) | Content::Other(_))
                    if is_of_call(piece) || (rules.sent_back)(piece) =>
                {
                    pieces.push(piece.clone());
                }
                (Role::User | Role::Tool, Content::Text(text)) => {
                    said.push(UserContent::Text(text.clone()))
                }
                (Role::User | Role::Tool, Content::Image(blob)) => {
                    said.push(UserContent::Image(blob.clone()));
                }
                _ => {}
            }
        }
        self.user(said);
        // Reasoning without a following answer is not accepted back on its own.
        let leads = |piece: &Content| match piece {
            Content::Text(text) => !text.trim().is_empty(),
            other => matches!(other, Content::ToolCall(_)),
        };
        if !pieces.is_empty() && message.content.iter().any(leads) {
            self.model(pieces);
        }
    }

    /// The latest pending call with this id is the one that was meant: a server may reuse an id.
    fn answer(&mut self, result: &ToolResult) {
        for turn in self.turns.iter_mut().rev() {
            let Open::Model { pieces, answers } = turn else {
                continue;
            };
            let open = calls(pieces)
                .zip(answers)
                .find(|(call, answer)| call.id == result.call_id && answer.is_none());
            if let Some((_, answer)) = open {
                *answer = Some(result.clone());
                return;
            }
        }
    }

    fn user(&mut self, said: Vec<UserContent>) {
        if said.is_empty() {
            return;
        }
        match self.turns.last_mut() {
            Some(Open::User(before)) => before.extend(said),
            _ => self.turns.push(Open::User(said)),
        }
    }

    fn model(&mut self, pieces: Vec<Content>) {
        let answers = calls(&pieces).map(|_| None).collect::<Vec<_>>();
        if let Some(Open::Model {
            pieces: before,
            answers: open,
        }) = self.turns.last_mut()
        {
            // A provider verifies reasoning against the response it came in, so two responses stay
            // two.
            let whole = |pieces: &[Content]| {
                pieces
                    .iter()
                    .any(|piece| matches!(piece, Content::Thinking(_) | Content::Other(_)))
            };
            if open.is_empty() && !whole(before) && !whole(&pieces) {
                before.extend(pieces);
                *open = answers;
                return;
            }
        }
        self.turns.push(Open::Model { pieces, answers });
    }

    fn finish(self, rules: &Rules) -> Conversation {
        let mut ids = Ids {
            rules,
            taken: BTreeSet::new(),
        };
        let mut turns: Vec<ConversationTurn> = Vec::new();
        // From the previous model turn: they come first in the next user turn.
        let mut results: Vec<ToolResult> = Vec::new();
        for turn in self.turns {
            match turn {
                Open::User(said) => {
                    let results = std::mem::take(&mut results);
                    turns.push(ConversationTurn::User(UserTurn { results, said }));
                }
                Open::Model {
                    mut pieces,
                    answers,
                } => {
                    if !matches!(turns.last(), Some(ConversationTurn::User(_))) {
                        turns.push(ConversationTurn::User(answered(std::mem::take(
                            &mut results,
                        ))));
                    }
                    let mut answers = answers.into_iter();
                    let mut own = false;
                    for piece in &mut pieces {
                        let Content::ToolCall(call) = piece else {
                            own = call_extra(piece).is_some_and(|extra| extra.own_id);
                            continue;
                        };
                        call.id = ids.next(&call.id, std::mem::take(&mut own));
                        call.name = tool_name(&call.name);
                        let answer = answers.next().flatten();
                        let answer = answer.unwrap_or_else(|| ToolResult::failed("", NO_RESULT));
                        results.push(result(answer, &call.id));
                    }
                    turns.push(ConversationTurn::Model(pieces));
                }
            }
        }
        if !matches!(turns.last(), Some(ConversationTurn::User(_))) {
            turns.push(ConversationTurn::User(answered(results)));
        }
        Conversation {
            system: self.system,
            turns,
        }
    }
}

/// A user turn that the transcript does not have.
fn answered(results: Vec<ToolResult>) -> UserTurn {
    let said = if results.is_empty() {
        vec![UserContent::Text(GO_ON.into())]
    } else {
        Vec::new()
    };
    UserTurn { results, said }
}

fn result(answer: ToolResult, id: &str) -> ToolResult {
    let text = if answer.text.trim().is_empty() {
        NO_OUTPUT.into()
    } else {
        answer.text
    };
    ToolResult {
        call_id: id.into(),
        text,
        ..answer
    }
}

fn call_extra(piece: &Content) -> Option<CallExtra> {
    match piece {
        Content::Other(custom) => CallExtra::of(custom),
        _ => None,
    }
}

fn is_of_call(piece: &Content) -> bool {
    call_extra(piece).is_some()
}

fn calls(pieces: &[Content]) -> impl Iterator<Item = &ToolCall> {
    pieces.iter().filter_map(|piece| match piece {
        Content::ToolCall(call) => Some(call),
        _ => None,
    })
}

/// Unique ids that the provider accepts.
struct Ids<'a> {
    rules: &'a Rules,
    taken: BTreeSet<String>,
}

impl Ids<'_> {
    fn next(&mut self, given: &str, own: bool) -> String {
        if own && !given.is_empty() && self.taken.insert(given.to_owned()) {
            return given.to_owned();
        }
        let fits = |c| {
            if (self.rules.in_ids)(c) { c } else { '_' }
        };
        let mut base: String = given
            .chars()
            .map(fits)
            .take(self.rules.longest_id)
            .collect();
        if base.is_empty() {
            base = "call".into();
        }
        let mut id = base.clone();
        let mut number = 1;
        while !self.taken.insert(id.clone()) {
            number += 1;
            let end = format!("_{number}");
            let room = self.rules.longest_id.saturating_sub(end.len());
            id = base.chars().take(room).chain(end.chars()).collect();
        }
        id
    }
}

/// A tool's name that all providers accept. A model may have called one that cannot exist.
pub fn tool_name(given: &str) -> String {
    const LONGEST: usize = 64;
    let fits = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            c
        } else {
            '_'
        }
    };
    let name: String = given.chars().map(fits).take(LONGEST).collect();
    match name.chars().next() {
        None => "unknown".into(),
        Some(first) if first.is_ascii_alphabetic() || first == '_' => name,
        Some(_) => format!("_{name}").chars().take(LONGEST).collect(),
    }
}
