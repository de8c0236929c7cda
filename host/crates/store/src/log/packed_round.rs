//! A round, and a user's message, as they are written.

use std::sync::Arc;

use uuid::Uuid;

use super::settle::{SETTLE_EVERY, pending_round};
use crate::error::StoreError;
use crate::sqlite::pending::PendingLine;
use crate::sqlite::texts::{LargeTexts, PackedValue, Parts};
use lucid_types::log::{RoundRow, SessionStatus};

/// The most bytes of a round that its session writes itself, see [`Store::write_at_once`](crate::sqlite::Store).
const SHORT: usize = 64 << 10;
/// The largest state of a policy that is written with each round, in bytes. A larger one only replaces the one
/// before.
const LARGEST_STATE: usize = 4096;

/// A round whose large texts were taken out of its values.
pub(super) struct PackedRound {
    pub(super) round: Arc<RoundRow>,
    pub(super) texts: LargeTexts,
    /// The frames as one JSON list.
    frames: (String, Parts),
    inputs: Parts,
    commands: Parts,
    entries: Vec<Parts>,
    /// Content and metadata of the chat's lines.
    lines: Vec<(Parts, Parts)>,
    /// The ids of the chat's lines.
    ids: Vec<Uuid>,
    /// What the round changes beside its own row, if that stays pending.
    pub(super) pending: Option<String>,
}

impl PackedRound {
    /// Prepares a round. Without `may_stay_pending` nothing of it does, whatever the round itself says.
    pub(super) fn new(round: Arc<RoundRow>, may_stay_pending: bool) -> Result<Self, StoreError> {
        let mut texts = LargeTexts::default();
        let decision = round.decision.as_ref();
        let mut pack = |json: Option<&str>| match json {
            Some(json) => texts.pack_json(json),
            None => Ok(None),
        };
        let inputs = pack(decision.map(|decision| &*decision.inputs))?;
        let commands = pack(decision.and_then(|decision| decision.commands.as_deref()))?;
        let entries = round.entries.iter();
        let entries = entries.map(|(_, json)| pack(Some(json)));
        let entries = entries.collect::<Result<_, _>>()?;
        // After the texts that they may be the beginning of.
        let frames = joined(&round.frames);
        let packed_frames = pack(Some(&frames))?;
        let lines = round.chat_lines.iter().map(|line| {
            let content = texts.pack_text(&line.content)?;
            let metadata = line.metadata.as_deref();
            let metadata = metadata.map_or(Ok(None), |json| texts.pack_json(json))?;
            Ok((content, metadata))
        });
        let lines = lines.collect::<Result<_, StoreError>>()?;
        let mut packed = Self {
            texts,
            frames: (frames, packed_frames),
            inputs,
            commands,
            entries,
            lines,
            ids: round.chat_lines.iter().map(|_| Uuid::now_v7()).collect(),
            pending: None,
            round,
        };
        if may_stay_pending && can_stay_pending(&packed.round) {
            let pending = serde_json::to_string(&pending_round(&packed));
            let pending = pending.map_err(|cause| StoreError::Content(cause.to_string()))?;
            packed.pending = Some(pending);
        }
        Ok(packed)
    }

    /// The lines of the chat.
    pub(super) fn chat_lines(&self) -> impl Iterator<Item = PendingLine<'_>> {
        let lines = self.round.chat_lines.iter().zip(&self.ids);
        let lines = lines.zip(self.lines());
        lines.map(|((line, id), (content, metadata))| PendingLine {
            id: *id,
            role: line.role.into(),
            event_type: line.event_type.as_str().into(),
            content: content.into(),
            metadata: metadata.map(Into::into),
        })
    }

    pub(super) fn frames(&self) -> PackedValue<'_> {
        PackedValue::new(&self.frames.0, &self.frames.1)
    }

    pub(super) fn inputs(&self) -> Option<PackedValue<'_>> {
        let decision = self.round.decision.as_ref()?;
        Some(PackedValue::new(&decision.inputs, &self.inputs))
    }

    pub(super) fn commands(&self) -> Option<PackedValue<'_>> {
        let commands = self.round.decision.as_ref()?.commands.as_deref()?;
        Some(PackedValue::new(commands, &self.commands))
    }

    /// The new transcript entries, with their numbers.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, PackedValue<'_>)> {
        let entries = self.round.entries.iter().zip(&self.entries);
        entries.map(|((entry, json), parts)| (*entry, PackedValue::new(json, parts)))
    }

    /// Content and metadata of the chat's lines.
    fn lines(&self) -> impl Iterator<Item = (PackedValue<'_>, Option<PackedValue<'_>>)> {
        let lines = self.round.chat_lines.iter().zip(&self.lines);
        lines.map(|(line, (content, metadata))| {
            let json = line.metadata.as_deref();
            let metadata = json.map(|json| PackedValue::new(json, metadata));
            (PackedValue::new(&line.content, content), metadata)
        })
    }

    /// Its size in bytes, without the texts that were taken out.
    pub(super) fn len(&self) -> usize {
        let values = [Some(self.frames()), self.inputs(), self.commands()];
        let values = values.into_iter().flatten();
        let values: usize = values.map(|value| value.len()).sum();
        RoundRow::OVERHEAD + values + self.changes_len()
    }

    /// The size of what it adds to the transcript and to the chat, which a pending round has twice.
    pub(super) fn changes_len(&self) -> usize {
        let entries = self.entries().map(|(_, message)| message.len());
        let lines = self
            .lines()
            .map(|(content, metadata)| content.len() + metadata.map_or(0, |it| it.len()));
        entries.chain(lines).sum()
    }
}

/// Whether the rounds are written soon.
pub(super) fn is_short(rounds: &[PackedRound]) -> bool {
    let length = |round: &PackedRound| round.len() + round.texts.len();
    rounds.iter().map(length).sum::<usize>() <= SHORT
}

/// Whether a round changes nothing that others look for in the tables.
fn can_stay_pending(round: &RoundRow) -> bool {
    let decision = round.decision.as_ref();
    let state = decision.and_then(|decision| decision.state.as_ref());
    // The second row says that the session has begun.
    let is_landmark = round.row == 1 || (round.row > 0 && round.row.is_multiple_of(SETTLE_EVERY));
    round.may_stay_pending
        && !is_landmark
        && matches!(
            round.status,
            SessionStatus::Created | SessionStatus::Running
        )
        && round.processed.is_empty()
        && round.pushed.is_none()
        && !round.retains_workspace
        && state.is_none_or(|(_, bytes)| bytes.len() <= LARGEST_STATE)
}

/// The frames as one JSON list.
fn joined(frames: &[Arc<str>]) -> String {
    let length: usize = frames.iter().map(|frame| frame.len() + 1).sum();
    let mut list = String::with_capacity(length + 2);
    list.push('[');
    for frame in frames {
        if list.len() > 1 {
            list.push(',');
        }
        list.push_str(frame);
    }
    list.push(']');
    list
}

/// A user's message whose text, if it is large, was taken out.
pub(super) struct PackedMessage {
    pub(super) text: String,
    pub(super) parts: Parts,
    pub(super) texts: LargeTexts,
}

impl PackedMessage {
    pub(super) fn new(text: String) -> Result<Self, StoreError> {
        let mut texts = LargeTexts::default();
        let parts = texts.pack_text(&text)?;
        Ok(Self { text, parts, texts })
    }
}
