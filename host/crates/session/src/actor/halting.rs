//! Brings a session to rest when the host is told to stop.
//!
//! # Invariants
//! - Once halting has begun, no new work starts.
//! - The command that is running, or about to run, finishes if there is time, and its result is
//!   written as usual.
//! - What the policy requests next is logged as not begun, and begins at the next start.
//! - An internal error says nothing about a command while everything around it is being taken down,
//!   so the effect is left open and counts as lost at the next start.

use std::collections::HashMap;

use super::{Actor, ActorEnd};
use crate::message::ActorMessage;
use crate::retry::when_possible;
use crate::round::StartedWork;
use lucid_types::ids::EffectId;
use lucid_types::log::LogError;
use lucid_types::wit::policy::{Command, ModelCall, ToolRun};

impl Actor {
    /// Waits for the running command and records its outcome.
    pub(super) async fn drain(&mut self) -> ActorEnd {
        self.effects.pause();
        loop {
            if self.shared.deadline_passed.is_cancelled() {
                return ActorEnd::Halted;
            }
            if !self.queue.is_empty() {
                if let Err(end) = self.round().await {
                    return end;
                }
                continue;
            }
            if !self.effects.runs_tool() {
                return ActorEnd::Halted;
            }
            let message = tokio::select! {
                biased;
                () = self.shared.deadline_passed.cancelled() => return ActorEnd::Halted,
                () = self.session.stop.cancelled() => return ActorEnd::Stopped,
                message = self.messages.recv() => message,
            };
            match message.map(|message| *message) {
                None => return ActorEnd::Halted,
                Some(ActorMessage::Tool(effect, Err(_), _) | ActorMessage::Failed(effect, _))
                    if self.effects.is_tool(&effect) =>
                {
                    return ActorEnd::Halted;
                }
                Some(message) => self.queue.push_back(message),
            }
        }
    }

    /// Starts the effects that the previous host logged but did not begin.
    pub(super) async fn begin_paused(&mut self) -> Result<(), ActorEnd> {
        if self.paused.is_empty() {
            return Ok(());
        }
        let wanted = std::mem::take(&mut self.paused);
        let last_entry = self.counters.next_entry.saturating_sub(1);
        let mut begins = match self.commands_of(&wanted).await {
            Ok(begins) => begins,
            Err(cause) => {
                tracing::warn!(session = %self.id, %cause, "what was to begin is not known any more, and is taken to be lost");
                HashMap::new()
            }
        };
        // From here on the log says they have begun: after a crash they are lost like any other.
        let (id, user) = (self.id, self.fixed.user.clone());
        self.persist(move |log| log.mark_begun(id, &user)).await?;
        self.effects.at_step(self.counters.step.saturating_sub(1));
        for effect in wanted {
            match begins.remove(&effect) {
                Some(StartedWork::Model(call)) => self.effects.model(call, last_entry),
                Some(StartedWork::Tool(run)) => self.effects.tool(run),
                _ => self.queue.push_back(ActorMessage::Lost(effect)),
            }
        }
        self.effects.prune_finished(&self.open);
        Ok(())
    }

    /// Looks up the commands that opened these effects.
    async fn commands_of(
        &self,
        wanted: &[EffectId],
    ) -> Result<HashMap<EffectId, StartedWork>, LogError> {
        let log = &self.shared.deps.log;
        let (mut found, mut before) = (HashMap::new(), u64::MAX);
        while found.len() < wanted.len() {
            let steps =
                when_possible(|| log.commands_before(self.id, &self.fixed.user, before)).await?;
            let Some(oldest) = steps.last() else { break };
            before = oldest.row;
            for step in &steps {
                let commands: Vec<Command> =
                    serde_json::from_str(&step.commands).unwrap_or_default();
                find_begun(commands, wanted, &mut found);
            }
        }
        Ok(found)
    }
}

/// Adds the commands that opened wanted effects. The newest steps come first, because an effect's
/// name may be reused once it is closed.
fn find_begun(
    commands: Vec<Command>,
    wanted: &[EffectId],
    found: &mut HashMap<EffectId, StartedWork>,
) {
    for command in commands {
        let begin = match command {
            Command::CallModel(call) => StartedWork::Model(call),
            Command::RunTool(run) => StartedWork::Tool(run),
            _ => continue,
        };
        let (StartedWork::Model(ModelCall { effect, .. })
        | StartedWork::Tool(ToolRun { effect, .. })) = &begin
        else {
            continue;
        };
        let effect = EffectId::from(effect.as_str());
        if wanted.contains(&effect) && !found.contains_key(&effect) {
            found.insert(effect, begin);
        }
    }
}
