//! Selects the part of the transcript that a prompt contains, and tracks its size.
//!
//! # Invariants
//!
//! - Entries are stored by number and size, never by text.
//! - The verbatim part begins at a model's reply, or after the last entry. Whatever follows a reply
//!   up to the next one belongs to it, so no tool result is without its call.
//! - Skipped entries are in no prompt.

use lucid_plugin::policy::{Command, Part};
use lucid_plugin::types::{Content, Message, ToolResult, Usage};
use serde::{Deserialize, Serialize};

/// So many bytes are about a token; most text has more.
pub(crate) const BYTES_A_TOKEN: u64 = 3;
/// What a picture counts for, in bytes of text. Providers bill its pixels, mostly 1500 tokens for a
/// screenshot and at most about 5000; nobody says here how many pixels it has.
const PICTURE: u64 = 3000 * BYTES_A_TOKEN;
/// What the user said earlier is kept word for word up to this size, in bytes; the first task always.
const USER_BYTES: u64 = 48 * 1024;

/// What the agent knows of the transcript.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Conversation {
    /// What the user said.
    pub(crate) users: Vec<Stretch>,
    /// The model's turns, as far as they are in the prompt word for word.
    pub(crate) turns: Vec<Stretch>,
    /// From here on the prompt holds everything; before it, what the user said and the summary.
    pub(crate) whole_from: Option<u64>,
    /// What stands for the part before `whole_from`.
    pub(crate) summary: Option<String>,
    /// Something before `whole_from` is in no summary.
    pub(crate) left_out: bool,
    /// Entries from `whole_from` on that are in no prompt.
    pub(crate) skipped: Vec<u64>,
    /// Tokens of the last prompt and its answer; 0 where nobody knows.
    pub(crate) used: u64,
    /// Bytes that came since.
    pub(crate) since: u64,
    /// Number of the next entry.
    pub(crate) next: u64,
}

/// A part of the transcript: from one entry on, with a size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stretch {
    pub(crate) entry: u64,
    pub(crate) bytes: u64,
}

impl Conversation {
    /// The user said something.
    pub(crate) fn user(&mut self, entry: u64, bytes: u64) {
        self.users.push(Stretch { entry, bytes });
        self.came(entry, bytes);
    }

    /// The model's next turn begins.
    pub(crate) fn turn(&mut self, entry: u64, message: &Message, usage: &Usage) {
        self.turns.push(Stretch { entry, bytes: 0 });
        self.came(entry, size(message));
        self.used = usage
            .input_tokens
            .saturating_add(usage.cache_read_tokens)
            .saturating_add(usage.cache_write_tokens)
            .saturating_add(usage.output_tokens);
        self.since = 0;
    }

    /// Something that belongs to the turn came into the transcript.
    pub(crate) fn came(&mut self, entry: u64, bytes: u64) {
        self.next = self.next.max(entry.saturating_add(1));
        self.grew(bytes);
    }

    /// An entry that no prompt is to hold.
    pub(crate) fn skip(&mut self, entry: u64) {
        self.next = self.next.max(entry.saturating_add(1));
        self.skipped.push(entry);
    }

    /// Counts what commands add to the transcript.
    pub(crate) fn appended(&mut self, commands: &[Command]) {
        for command in commands {
            if let Command::Append(message) = command {
                self.next += 1;
                self.grew(size(message));
            }
        }
    }

    fn grew(&mut self, bytes: u64) {
        self.since = self.since.saturating_add(bytes);
        if let Some(turn) = self.turns.last_mut() {
            turn.bytes = turn.bytes.saturating_add(bytes);
        }
    }

    /// How many tokens the next prompt has, about; `fixed` is what it has besides, in bytes.
    pub(crate) fn tokens(&self, fixed: u64) -> u64 {
        if self.used > 0 {
            return self.used.saturating_add(self.since / BYTES_A_TOKEN);
        }
        let summary = self.summary.as_ref().map_or(0, |text| text.len() as u64);
        // What the user said within a turn is counted with it.
        let first = self.turns.first().map_or(self.next, |turn| turn.entry);
        let said = self.said_before(first);
        let bytes = self.turns.iter().chain(&said).map(|part| part.bytes);
        (bytes.sum::<u64>() + summary + fixed) / BYTES_A_TOKEN
    }

    /// What the user said before an entry, as far as it is kept word for word, in order.
    fn said_before(&self, entry: u64) -> Vec<Stretch> {
        let before = self.users.partition_point(|said| said.entry < entry);
        let Some((first, rest)) = self.users[..before].split_first() else {
            return Vec::new();
        };
        let mut room = USER_BYTES;
        let mut kept = Vec::new();
        for said in rest.iter().rev() {
            match room.checked_sub(said.bytes) {
                Some(left) => room = left,
                None => break,
            }
            kept.push(*said);
        }
        kept.push(*first);
        kept.reverse();
        kept
    }

    /// Makes the word-for-word part begin at `cut`. `summary` stands for all before it; without one
    /// the part is left out.
    pub(crate) fn condense(&mut self, cut: u64, summary: Option<String>) {
        match summary {
            Some(text) => self.summary = Some(text),
            None => self.left_out = true,
        }
        self.turns.retain(|turn| turn.entry >= cut);
        self.skipped.retain(|entry| *entry >= cut);
        self.whole_from = Some(cut);
        // The numbers of the last prompt say nothing of the next one.
        self.used = 0;
    }

    /// What the user said before the word-for-word part.
    pub(crate) fn earlier_words(&self) -> Vec<Part> {
        let from = self.whole_from.unwrap_or(0);
        self.said_before(from)
            .iter()
            .map(|said| Part::history(said.entry, said.entry))
            .collect()
    }

    /// The word-for-word part, to its end.
    pub(crate) fn latest(&self) -> Vec<Part> {
        let (mut parts, from) = self.between(u64::MAX);
        parts.push(Part::history_from(from));
        parts
    }

    /// The word-for-word part up to an entry, which is not part of it.
    pub(crate) fn before(&self, cut: u64) -> Vec<Part> {
        let (mut parts, from) = self.between(cut);
        if from < cut {
            parts.push(Part::history(from, cut - 1));
        }
        parts
    }

    /// What lies between skipped entries before `cut`, and where the rest begins.
    fn between(&self, cut: u64) -> (Vec<Part>, u64) {
        let mut from = self.whole_from.unwrap_or(0);
        let mut parts = Vec::new();
        for entry in self.skipped.iter().filter(|entry| **entry < cut) {
            if from < *entry {
                parts.push(Part::history(from, entry - 1));
            }
            from = entry + 1;
        }
        (parts, from)
    }
}

/// How large a message is for a model, in bytes of text.
pub(crate) fn size(message: &Message) -> u64 {
    message.content.iter().map(size_of_content).sum()
}

/// How large a piece is for a model, in bytes of text.
pub(crate) fn size_of_content(content: &Content) -> u64 {
    match content {
        Content::Text(text) => text.len() as u64,
        Content::Thinking(thinking) => thinking.text.len() as u64,
        Content::Image(_) => PICTURE,
        Content::ToolCall(call) => (call.name.len() + call.arguments.len()) as u64,
        Content::ToolResult(result) => size_of_result(result),
        Content::Other(custom) => custom.body.len() as u64,
    }
}

/// How large a tool's result is for a model, in bytes of text.
pub(crate) fn size_of_result(result: &ToolResult) -> u64 {
    result.text.len() as u64 + PICTURE * result.blobs.len() as u64
}
