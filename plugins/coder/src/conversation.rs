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

/// The assumed number of bytes per token. Most text has more.
pub(crate) const BYTES_A_TOKEN: u64 = 3;
/// The assumed size of an image, in bytes of text. Providers bill its pixels, mostly 1500 tokens
/// for a screenshot and at most about 5000, and the number of pixels is unknown here.
const PICTURE: u64 = 3000 * BYTES_A_TOKEN;
/// Earlier user messages are kept verbatim up to this size, in bytes. The first task always is.
const USER_BYTES: u64 = 48 * 1024;

/// The agent's index of the transcript.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Conversation {
    /// The user's messages.
    pub(crate) users: Vec<Stretch>,
    /// The model's turns that are in the prompt verbatim.
    pub(crate) turns: Vec<Stretch>,
    /// The entry from which the prompt contains everything. Before it, only the user's messages and
    /// the summary.
    pub(crate) whole_from: Option<u64>,
    /// The summary of the part before `whole_from`.
    pub(crate) summary: Option<String>,
    /// Whether something before `whole_from` is in no summary.
    pub(crate) left_out: bool,
    /// Entries from `whole_from` on that are in no prompt.
    pub(crate) skipped: Vec<u64>,
    /// Tokens of the last prompt and its reply. 0 if unknown.
    pub(crate) used: u64,
    /// Bytes added since.
    pub(crate) since: u64,
    /// The number of the next entry.
    pub(crate) next: u64,
}

/// A part of the transcript: its first entry, and its size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stretch {
    pub(crate) entry: u64,
    pub(crate) bytes: u64,
}

impl Conversation {
    /// Adds a user message.
    pub(crate) fn user(&mut self, entry: u64, bytes: u64) {
        self.users.push(Stretch { entry, bytes });
        self.came(entry, bytes);
    }

    /// Begins the model's next turn.
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

    /// Adds an entry that belongs to the turn.
    pub(crate) fn came(&mut self, entry: u64, bytes: u64) {
        self.next = self.next.max(entry.saturating_add(1));
        self.grew(bytes);
    }

    /// Excludes an entry from all prompts.
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

    /// The estimated number of tokens of the next prompt. `fixed` is its size besides the
    /// transcript, in bytes.
    pub(crate) fn tokens(&self, fixed: u64) -> u64 {
        if self.used > 0 {
            return self.used.saturating_add(self.since / BYTES_A_TOKEN);
        }
        let summary = self.summary.as_ref().map_or(0, |text| text.len() as u64);
        // User messages within a turn are counted with it.
        let first = self.turns.first().map_or(self.next, |turn| turn.entry);
        let said = self.said_before(first);
        let bytes = self.turns.iter().chain(&said).map(|part| part.bytes);
        (bytes.sum::<u64>() + summary + fixed) / BYTES_A_TOKEN
    }

    /// The user's messages before an entry that are kept verbatim, in order.
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

    /// Makes the verbatim part begin at `cut`. `summary` replaces everything before it. Without one
    /// that part is left out.
    pub(crate) fn condense(&mut self, cut: u64, summary: Option<String>) {
        match summary {
            Some(text) => self.summary = Some(text),
            None => self.left_out = true,
        }
        self.turns.retain(|turn| turn.entry >= cut);
        self.skipped.retain(|entry| *entry >= cut);
        self.whole_from = Some(cut);
        // The token count of the last prompt does not apply to the next one.
        self.used = 0;
    }

    /// The user's messages before the verbatim part.
    pub(crate) fn earlier_words(&self) -> Vec<Part> {
        let from = self.whole_from.unwrap_or(0);
        self.said_before(from)
            .iter()
            .map(|said| Part::history(said.entry, said.entry))
            .collect()
    }

    /// The verbatim part, to its end.
    pub(crate) fn latest(&self) -> Vec<Part> {
        let (mut parts, from) = self.between(u64::MAX);
        parts.push(Part::history_from(from));
        parts
    }

    /// The verbatim part up to an entry, exclusive.
    pub(crate) fn before(&self, cut: u64) -> Vec<Part> {
        let (mut parts, from) = self.between(cut);
        if from < cut {
            parts.push(Part::history(from, cut - 1));
        }
        parts
    }

    /// The ranges between skipped entries before `cut`, and where the rest begins.
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

/// A message's size for a model, in bytes of text.
pub(crate) fn size(message: &Message) -> u64 {
    message.content.iter().map(size_of_content).sum()
}

/// A piece's size for a model, in bytes of text.
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

/// A tool result's size for a model, in bytes of text.
pub(crate) fn size_of_result(result: &ToolResult) -> u64 {
    result.text.len() as u64 + PICTURE * result.blobs.len() as u64
}
