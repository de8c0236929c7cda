//! The pure core of the engine: a function from a session's counters, what arrived and what the
//! policy decided to everything that is written, shown and started.
//!
//! # Invariants
//! - No I/O, no clock, no randomness.
//! - Sequence numbers and entries are dense.
//! - An effect has at most one result: a message about an effect that is not open is ignored.
//! - The host, not the policy, decides how a policy's commands are shown.

pub(crate) mod final_message;
pub(crate) mod inputs;
pub(crate) mod prompt;

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use self::final_message::final_message;
use self::inputs::user_message;
use super::budget::Budget;
use super::message::{ActorMessage, Tree};
use super::ports::{AvailableModels, PolicyInfo, StepOutcome};
use super::stream::frames::{self, EventDraft};
use lucid_types::digest::Digest;
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::{
    ChatLine, EffectKind, EffectRow, ModelCallRow, PolicyDecision, RoundRow, SessionConfig,
    SessionCounters, SessionStatus,
};
use lucid_types::user::UserId;
use lucid_types::wit::policy::{
    Answer, Command, Context, Failure, Input, ModelCall, ModelReply, Outcome, Snapshot, ToolReply,
    ToolRun,
};
use lucid_types::wit::types::{Error, ErrorKind, Message, ToolCall};

/// Steps without a message from the user after which a policy is considered to be looping.
pub(super) const STEPS_ALONE: u32 = 10_000;

/// The context of a round: what does not change while a session lives, as far as a round needs it.
pub(super) struct RoundContext<'a> {
    pub(super) session: SessionId,
    pub(super) user: &'a UserId,
    pub(super) chat: &'a Arc<str>,
    pub(super) task: &'a str,
    pub(super) repository: Option<&'a str>,
    pub(super) branch: Option<&'a str>,
    /// Whether to open a pull request for what is pushed.
    pub(super) opens_change: bool,
    /// The branch that was pushed so far.
    pub(super) pushed: Option<&'a str>,
    pub(super) model: &'a str,
    pub(super) mock: bool,
    pub(super) settings: &'a str,
    pub(super) policy_digest: Digest,
    pub(super) available_models: Option<&'a AvailableModels>,
    pub(super) budget: Budget,
    pub(super) describe: &'a (dyn Fn(&ToolCall) -> EventDraft + Sync),
}

impl<'a> RoundContext<'a> {
    /// Creates the context of a session's round. `names` holds the ids of the session and of its
    /// chat.
    pub(super) fn new(
        names: &'a (SessionId, Arc<str>),
        fixed: &'a SessionConfig,
        policy: &'a PolicyInfo,
        budget: Budget,
        describe: &'a (dyn Fn(&ToolCall) -> EventDraft + Sync),
    ) -> Self {
        Self {
            session: names.0,
            user: &fixed.user,
            chat: &names.1,
            task: &fixed.task,
            repository: fixed.repo_url.as_deref(),
            branch: fixed.branch.as_deref(),
            opens_change: fixed.open_change.is_some(),
            pushed: None,
            model: &fixed.model,
            mock: policy.mock,
            settings: &policy.settings,
            policy_digest: policy.digest,
            available_models: None,
            budget,
            describe,
        }
    }

    /// Sets the branch that was pushed so far.
    pub(super) fn with_pushed(mut self, pushed: Option<&'a str>) -> Self {
        self.pushed = pushed;
        self
    }

    /// Sets the models that the policy may call. Without them, it is told only of the session's
    /// model.
    pub(super) fn with_available_models(mut self, available_models: &'a AvailableModels) -> Self {
        self.available_models = Some(available_models);
        self
    }
}

/// The effect that opens a pull request. It is the host's own: no policy is told of it.
pub(super) const CHANGE: &str = "lucid:change";

/// Work that begins once the round is committed.
#[derive(Debug)]
pub(super) enum StartedWork {
    Model(ModelCall),
    Tool(ToolRun),
    /// Start a timer with this delay in milliseconds.
    Timer(EffectId, u64),
    /// Open a pull request for this branch, with the policy's final message on its task.
    PullRequest(String, String),
    /// Cancel this effect; it ends as cancelled.
    Cancel(EffectId),
    /// Cancel all effects, without reports.
    CancelAll,
    /// Allow a waiting tool to carry out the action that it announced.
    Confirm(oneshot::Sender<()>),
    /// Put this straight back into the mailbox.
    Requeue(ActorMessage),
}

impl StartedWork {
    /// Whether it is work of its own, whose result will be written.
    pub(super) fn is_new(&self) -> bool {
        match self {
            Self::Model(_) | Self::Tool(_) | Self::Timer(..) | Self::PullRequest(..) => true,
            Self::Cancel(_) | Self::CancelAll | Self::Confirm(_) | Self::Requeue(_) => false,
        }
    }

    /// The call or tool that begins at the next start, if this one's host stops before it has begun.
    pub(super) fn waiting_effect(&self) -> Option<EffectId> {
        match self {
            Self::Model(call) => Some(call.effect.as_str().into()),
            Self::Tool(run) => Some(run.effect.as_str().into()),
            _ => None,
        }
    }

    /// Whether there is nothing to wait for: its result is known.
    pub(super) fn ends_at_once(&self) -> bool {
        matches!(self, Self::Timer(_, 0) | Self::Requeue(_))
    }

    /// The result of work that ends at once.
    pub(super) fn result(self) -> Option<ActorMessage> {
        match self {
            Self::Timer(effect, 0) => Some(ActorMessage::Timer(effect)),
            Self::Requeue(message) => Some(message),
            _ => None,
        }
    }
}

/// The last file tree that clients were shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShownTree {
    number: u64,
    digest: [u8; 32],
}

impl ShownTree {
    /// No tree was shown, which is equivalent to an empty one.
    pub(super) fn empty() -> Self {
        Self {
            number: 0,
            digest: Sha256::digest("[]").into(),
        }
    }

    /// The previous host showed a tree, which is unknown.
    pub(super) fn unknown() -> Self {
        Self {
            number: 0,
            digest: [0; 32],
        }
    }
}

/// A round being built.
pub(super) struct RoundBuilder<'a> {
    pub(super) context: &'a RoundContext<'a>,
    pub(super) at: u64,
    row: u64,
    first_seq: u64,
    pub(super) counters: SessionCounters,
    pub(super) open: BTreeMap<EffectId, EffectKind>,
    pub(super) inputs: Vec<Input>,
    /// The digest of the component that decides.
    pub(super) plugin: Digest,
    pub(super) shown_tree: ShownTree,
    /// The agent's last message in the open task, as clients were shown it.
    pub(super) last_message: Option<Arc<str>>,
    frames: Vec<Arc<str>>,
    entries: Vec<(u64, String)>,
    pub(super) lines: Vec<ChatLine>,
    pub(super) calls: Vec<ModelCallRow>,
    closed: Vec<EffectId>,
    /// The new value of the pushed branch, if it changed.
    pub(super) pushed: Option<Option<String>>,
    processed: Vec<u64>,
    opened: Vec<EffectRow>,
    /// The closing event for the action of each tool that runs or waits, in case the step fails.
    pub(super) unanswered: Vec<(EffectId, EventDraft)>,
    /// Open effects that are left for the next start to begin.
    pub(super) not_begun: Vec<EffectId>,
    /// Whether the session is over and its workspace is kept.
    pub(super) retains_workspace: bool,
    /// Whether what earlier rounds left pending in the log has been so long enough.
    pub(super) is_settling: bool,
    started: Vec<StartedWork>,
}

/// A round that is ready to be written.
pub(super) struct CommittedRound {
    pub(super) row: RoundRow,
    pub(super) open: BTreeMap<EffectId, EffectKind>,
    pub(super) state: Option<Snapshot>,
    pub(super) shown_tree: ShownTree,
    pub(super) last_message: Option<Arc<str>>,
    pub(super) started: Vec<StartedWork>,
    pub(super) pushed: Option<Option<String>>,
}

/// Creates an internal error.
pub(super) fn internal_error(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error {
        kind,
        code: None,
        message: message.into(),
        retry_after_ms: None,
    }
}

impl<'a> RoundBuilder<'a> {
    pub(super) fn new(
        context: &'a RoundContext<'a>,
        counters: SessionCounters,
        open: BTreeMap<EffectId, EffectKind>,
        at: u64,
    ) -> Self {
        Self {
            context,
            at,
            row: counters.next_row,
            first_seq: counters.next_seq,
            counters,
            open,
            inputs: Vec::new(),
            plugin: context.policy_digest,
            shown_tree: ShownTree::unknown(),
            last_message: None,
            frames: Vec::new(),
            entries: Vec::new(),
            lines: Vec::new(),
            calls: Vec::new(),
            closed: Vec::new(),
            pushed: None,
            processed: Vec::new(),
            opened: Vec::new(),
            unanswered: Vec::new(),
            not_begun: Vec::new(),
            retains_workspace: false,
            is_settling: false,
            started: Vec::new(),
        }
    }

    /// Adds a frame that does not come from the policy.
    pub(super) fn frame(&mut self, frame: String) {
        self.frames.push(frame.into());
        self.counters.next_seq += 1;
    }

    /// Shows a file tree, unless it is the same as the last one shown or older.
    pub(super) fn tree(&mut self, tree: &Tree) {
        let digest = Sha256::digest(&tree.json).into();
        if tree.number < self.shown_tree.number || digest == self.shown_tree.digest {
            return;
        }
        self.shown_tree = ShownTree {
            number: tree.number,
            digest,
        };
        self.frame(frames::file_tree(&tree.json, self.at));
    }

    pub(super) fn event(&mut self, event: EventDraft) {
        if event.is_message() {
            self.last_message = Some(event.content.as_str().into());
        }
        self.frame(event.frame(self.at));
        self.lines.extend(event.into_line());
    }

    /// Announces a tool's action. A tool that was cancelled meanwhile does not carry it out.
    pub(super) fn announce(
        &mut self,
        effect: &EffectId,
        event: EventDraft,
        confirm: oneshot::Sender<()>,
    ) {
        if self.open.get(effect) == Some(&EffectKind::Tool) {
            self.event(event);
            self.started.push(StartedWork::Confirm(confirm));
        }
    }

    pub(super) fn entry(&mut self, message: &Message) -> u64 {
        let entry = self.counters.next_entry;
        self.counters.next_entry += 1;
        // A message consists of texts and numbers, so serialization cannot fail.
        self.entries
            .push((entry, serde_json::to_string(message).unwrap_or_default()));
        entry
    }

    /// Writes the first lines of a session: its task, and that it begins. Everything else follows
    /// `start`.
    pub(super) fn open_session(&mut self) {
        let task = self.context.task.to_owned();
        self.entry(&user_message(&task));
        self.lines.push(ChatLine {
            role: "user",
            content: task,
            event_type: "InitialTask".to_owned(),
            metadata: None,
        });
        self.frame(frames::status(
            "initializing",
            "Setting up the session.",
            Some(self.context.session),
        ));
    }

    pub(super) fn open_task(&mut self, task: &str) {
        self.counters.task_open = true;
        self.counters.task_started_at = self.at;
        self.counters.task_used_ms = 0;
        self.counters.iterations = 0;
        self.counters.tokens = 0;
        self.last_message = None;
        // A branch pushed by an earlier task has already had its pull request.
        if self.pushed_branch().is_some() {
            self.pushed = Some(None);
        }
        if !self.context.mock {
            self.frame(frames::task_start(task, self.at));
        }
    }

    /// The branch that the open task pushed.
    fn pushed_branch(&self) -> Option<&str> {
        match &self.pushed {
            Some(pushed) => pushed.as_deref(),
            None => self.context.pushed,
        }
    }

    /// Closes an effect. Returns `false` if it is not open, so that its result is too late.
    pub(super) fn close_effect(&mut self, effect: &EffectId, kind: Option<EffectKind>) -> bool {
        match self.open.get(effect) {
            Some(EffectKind::Orphan) => false,
            Some(found) if kind.is_none_or(|kind| kind == *found) => {
                self.open.remove(effect);
                self.closed.push(effect.clone());
                true
            }
            _ => false,
        }
    }

    /// Marks a message of the user as processed: it need not be kept any longer.
    pub(super) fn mark_processed(&mut self, message: u64) {
        self.processed.push(message);
    }

    /// Tells the policy of every effect that ended without its knowledge: it may be waiting for
    /// them.
    pub(super) fn report_orphans(&mut self) {
        let orphans = self
            .open
            .extract_if(.., |_, kind| *kind == EffectKind::Orphan);
        for (effect, _) in orphans {
            self.closed.push(effect.clone());
            self.inputs.push(Input::EffectLost(effect.into()));
        }
    }

    /// Returns whether what arrived had no consequence.
    pub(super) fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.frames.is_empty() && self.pushed.is_none()
    }

    /// Builds a round without a policy step: frames, and the session's status.
    pub(super) fn close_round(
        self,
        status: SessionStatus,
        end_reason: Option<String>,
    ) -> CommittedRound {
        self.round(None, None, status, end_reason)
    }

    /// Adds the policy's decision and builds the round.
    pub(super) fn decide(mut self, context: &Context, stepped: StepOutcome) -> CommittedRound {
        let mut decision = PolicyDecision {
            step: self.counters.step,
            context: serde_json::to_string(context).unwrap_or_default(),
            inputs: serde_json::to_string(&self.inputs).unwrap_or_default(),
            plugin: self.plugin,
            fuel: stepped.fuel,
            memory: stepped.memory,
            micros: stepped.micros,
            commands: None,
            error: None,
            state: None,
            state_digest: None,
        };
        self.counters.step += 1;
        self.counters.steps_alone = self.counters.steps_alone.saturating_add(1);
        let state = match stepped.result {
            Ok(transition) => {
                decision.commands = serde_json::to_string(&transition.commands).ok();
                for command in transition.commands {
                    self.command(command);
                }
                let state = transition.state;
                decision.state_digest = Some(Sha256::digest(&state.bytes).into());
                decision.state = Some((state.schema, state.bytes.clone().into()));
                Some(state)
            }
            Err(error) => {
                let reason = error.sentence();
                self.fail(&reason);
                decision.error = Some(reason);
                None
            }
        };
        self.round(Some(decision), state, SessionStatus::Running, None)
    }

    /// Reports that the task failed to the client, and records it.
    fn error(&mut self, reason: &str) {
        self.frame(frames::error(reason));
        let line = EventDraft::text("AgentErrorObservation", reason).into_line();
        // The failed effect may just have reported this.
        let is_said = |chat_line: &ChatLine| {
            chat_line.event_type == "AgentErrorObservation" && chat_line.content == reason
        };
        self.lines
            .extend(line.filter(|_| !self.lines.iter().any(is_said)));
    }

    /// Ends the open task and everything it began; clients that were shown a tool's action see that
    /// it ended. The policy's state remains what it was before this step, so it still waits for the
    /// results in this step and for what is cancelled here; it is told of them with the user's next
    /// message. Giving it the same inputs again would only make it fail again.
    fn fail(&mut self, reason: &str) {
        for (effect, answer) in std::mem::take(&mut self.unanswered) {
            if self.open.get(&effect) == Some(&EffectKind::Tool) {
                self.event(answer);
            }
        }
        self.error(reason);
        self.counters.task_open = false;
        self.started.push(StartedWork::CancelAll);
        // A pull request that is being opened does not belong to a policy.
        let changes = self
            .open
            .extract_if(.., |_, kind| *kind == EffectKind::Change);
        let changes: Vec<_> = changes.collect();
        let told = std::mem::take(&mut self.inputs);
        let told = told.into_iter().filter_map(of_effect);
        self.closed.extend(self.open.keys().cloned());
        let open = std::mem::take(&mut self.open).into_keys();
        for id in told.chain(open).collect::<Vec<_>>() {
            self.open_effect(&id, EffectKind::Orphan, None);
        }
        self.open.extend(changes);
    }

    /// Opens an effect. Its name is taken while it is open.
    fn open_effect(&mut self, effect: &EffectId, kind: EffectKind, delay_ms: Option<u64>) -> bool {
        if self.open.contains_key(effect) {
            tracing::warn!(session = %self.context.session, %effect, "the policy named two open effects alike");
            return false;
        }
        self.open.insert(effect.clone(), kind);
        self.opened.push(EffectRow {
            id: effect.clone(),
            kind,
            due_at: delay_ms.map(|delay| self.at.saturating_add(delay)),
            delay_ms,
            begun: true,
        });
        true
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::CallModel(call) => {
                let effect = EffectId::from(call.effect.as_str());
                if self.open_effect(&effect, EffectKind::Model, None) {
                    if let Some(reason) = self.context.budget.refusal(&self.counters) {
                        let error = internal_error(ErrorKind::Deadline, reason);
                        self.started
                            .push(StartedWork::Requeue(ActorMessage::Failed(effect, error)));
                    } else {
                        self.counters.iterations += 1;
                        self.started.push(StartedWork::Model(call));
                    }
                }
            }
            Command::RunTool(run) => {
                if self.open_effect(&run.effect.as_str().into(), EffectKind::Tool, None) {
                    self.event((self.context.describe)(&run.call));
                    self.started.push(StartedWork::Tool(run));
                }
            }
            Command::Ask(question) => {
                if self.open_effect(&question.effect.into(), EffectKind::Ask, None) {
                    self.event(EventDraft::text("AgentMessageAction", question.title));
                }
            }
            Command::SetTimer(timer) => {
                let (effect, delay) = (EffectId::from(timer.effect), timer.delay_ms);
                if self.open_effect(&effect, EffectKind::Timer, Some(delay)) {
                    self.started.push(StartedWork::Timer(effect, delay));
                }
            }
            Command::Cancel(effect) => {
                let effect = EffectId::from(effect);
                let open = self.open.get(&effect);
                if open.is_some_and(|kind| *kind != EffectKind::Change) {
                    self.started.push(StartedWork::Cancel(effect));
                }
            }
            Command::Append(message) => {
                self.entry(&message);
            }
            Command::Emit(event) => {
                let event = EventDraft::from_policy(&event);
                let last_message = self.last_message.as_deref();
                // Models often repeat in their last call what they said beside it.
                if !event.is_message() || last_message.map(str::trim) != Some(event.content.trim())
                {
                    self.event(event);
                }
            }
            Command::Finish(outcome) => self.finish(outcome),
            Command::Other(custom) => {
                tracing::info!(session = %self.context.session, kind = custom.kind, "passed over a command that this version does not know");
            }
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.counters.task_open, false) {
            return;
        }
        match outcome {
            Outcome::Succeeded(text) => {
                let last_message = self.last_message.take();
                let words = final_message(&text, last_message.as_deref());
                if let Some(unseen) = words.event {
                    self.event(EventDraft::text("AgentMessageAction", unseen));
                }
                self.frame(frames::status("completed", words.sentence, None));
                if self.context.opens_change
                    && let Some(branch) = self.pushed_branch().map(str::to_owned)
                    && self.open_effect(&CHANGE.into(), EffectKind::Change, None)
                {
                    self.started.push(StartedWork::PullRequest(branch, text));
                }
            }
            Outcome::Failed(error) => self.error(&error.message),
            Outcome::Cancelled => {
                self.frame(frames::status("completed", "The task was cancelled.", None))
            }
        }
    }

    fn round(
        mut self,
        decision: Option<PolicyDecision>,
        state: Option<Snapshot>,
        status: SessionStatus,
        end_reason: Option<String>,
    ) -> CommittedRound {
        self.counters.next_row += 1;
        // Opened and closed in the same round because the step failed: there was never anything to
        // store.
        self.opened
            .retain(|effect| self.open.contains_key(&effect.id));
        // A session that waits for its user and for nothing else leaves nothing pending, since it does so for long.
        let mut open = self.open.values();
        let goes_on = status == SessionStatus::Created
            || open.any(|kind| !matches!(kind, EffectKind::Ask | EffectKind::Orphan));
        let row = RoundRow {
            may_stay_pending: goes_on && !self.is_settling,
            session: self.context.session,
            user: self.context.user.clone(),
            chat: self.context.chat.clone(),
            row: self.row,
            at: self.at,
            decision,
            first_seq: self.first_seq,
            frames: self.frames,
            entries: self.entries,
            calls: self.calls,
            chat_lines: self.lines,
            opened: self.opened,
            not_begun: self.not_begun,
            closed: self.closed,
            processed: self.processed,
            pushed: self.pushed.clone(),
            counters: self.counters,
            status,
            end_reason,
            retains_workspace: self.retains_workspace,
        };
        CommittedRound {
            row,
            open: self.open,
            state,
            shown_tree: self.shown_tree,
            last_message: self.last_message,
            started: self.started,
            pushed: self.pushed,
        }
    }
}

/// The effect that an input reports on.
pub(super) fn of_effect(input: Input) -> Option<EffectId> {
    match input {
        Input::ModelReplied(ModelReply { effect, .. })
        | Input::ToolReplied(ToolReply { effect, .. })
        | Input::Answered(Answer { effect, .. })
        | Input::EffectFailed(Failure { effect, .. })
        | Input::TimerFired(effect)
        | Input::EffectLost(effect) => Some(effect.into()),
        _ => None,
    }
}
