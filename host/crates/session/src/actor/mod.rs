//! The session actor: one task that owns a session's life. Each round drains the mailbox, steps the
//! policy, commits, publishes and starts effects, in this order, one round after the other. Rounds that lead to one
//! another at once are committed together.
//!
//! # Invariants
//! - Nothing is shown or started before the round that says so is committed.
//! - The actor ends with its session and takes its effects, sandbox and workspace with it. At a
//!   shutdown it leaves the log and the workspace, from which the session resumes.

mod commit;
mod halting;
pub(crate) mod idle;
mod persist;
mod provision;
pub(crate) mod resume;
mod shutdown;
pub(crate) mod sleep;
pub(crate) mod task_clock;
mod upgrade;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep_until;

use self::commit::UnwrittenRounds;
use self::idle::{SANDBOX_RELEASED, idle_state};
use self::resume::{ResumeState, TimerClock};
use self::task_clock::{TaskClock, now};
use super::effects::Effects;
use super::handle::Session;
use super::ports::tools::SEPARATOR;
use super::ports::{
    AvailableModels, Deployment, Environment, EnvironmentSpec, Generation, NewPullRequest,
    PullRequestError, SessionPolicy, StepError, StepOutcome,
};
use super::registry::SleepingClocks;
use super::retry::when_possible;
use super::round::{RoundBuilder, RoundContext, STEPS_ALONE, ShownTree};
use super::shared::SessionsShared;
use super::types::OpenChange;
use crate::budget::Budget;
use crate::handle::IdleState;
use crate::message::{ActorMessage, Started};
use lucid_types::digest::Digest;
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::{EffectKind, EffectRow, SessionConfig, SessionCounters, SessionStatus};
use lucid_types::metrics;
use lucid_types::sentence::sentence;
use lucid_types::text::cut;
use lucid_types::wit::policy::{Context, Input, Snapshot};

/// The maximum number of messages taken into one round.
const ROUND: usize = 64;

/// How long the log may leave pending what rounds change beside their own rows.
const SETTLING: Duration = Duration::from_secs(5);

/// Why the loop of rounds ended.
#[derive(Debug)]
enum ActorEnd {
    /// The session was asked to end.
    Stopped,
    /// It sleeps: all of it is in the log.
    Asleep,
    /// The host is shutting down; the session lives on.
    Halted,
    /// The open task exceeded its time limit.
    TimedOut,
    /// The log holds as much of the session's user as it may. Holds the limit in bytes.
    LogFull(u64),
    /// No execution environment could be provided. Holds the reason.
    NoEnvironment(String),
    /// The log can never be written. Holds the reason.
    Broken(String),
}

#[cfg(test)]
pub(super) use self::shutdown::time_limit_message;
use self::upgrade::offered_models;
pub(super) use self::upgrade::takes_over;

pub(super) struct Actor {
    shared: Arc<SessionsShared>,
    session: Arc<Session>,
    fixed: Arc<SessionConfig>,
    deployment: Deployment,
    /// The number of the last generation that was examined.
    examined_generation: u64,
    /// Held during a round that only moves the session to another generation.
    move_permit: Option<OwnedSemaphorePermit>,
    generation: Arc<Generation>,
    policy: Arc<dyn SessionPolicy>,
    /// The policy build that left the state, if it is a different build and this one has yet to
    /// take the state over.
    previous_build: Option<Digest>,
    /// The number of the generation that this session cannot move to.
    skipped_generation: Option<u64>,
    available_models: Arc<AvailableModels>,
    id: SessionId,
    chat: Arc<str>,
    counters: SessionCounters,
    open: BTreeMap<EffectId, EffectKind>,
    state: Option<Snapshot>,
    /// The branch that the session's task pushed.
    pushed: Option<String>,
    shown_tree: ShownTree,
    /// The agent's last message in the open task.
    last_message: Option<Arc<str>>,
    queue: VecDeque<ActorMessage>,
    /// Effects in the log that the previous host did not begin.
    paused: Vec<EffectId>,
    /// The session was held until its user came back.
    was_held: bool,
    /// Since when nothing has come for the session.
    quiet_since: Instant,
    /// Since when rounds have left something pending in the log.
    pending_since: Option<Instant>,
    unwritten: UnwrittenRounds,
    messages: mpsc::Receiver<Box<ActorMessage>>,
    effects: Effects,
    clock: TaskClock,
}

/// The maximum length of a pull request's title, in characters.
const TITLE: usize = 120;

/// Runs a session from where the log left it until its end.
pub(super) async fn live(
    shared: Arc<SessionsShared>,
    session: Arc<Session>,
    found: ResumeState,
    messages: mpsc::Receiver<Box<ActorMessage>>,
) {
    let _last = shutdown::ActorGuard::new(&shared, &session);
    let id = found.fixed.id;
    let available_models = offered_models(&found.generation, &found.fixed);
    let spec = EnvironmentSpec {
        images: available_models.model.images,
        session: id,
        user: found.fixed.user.clone(),
        repo_url: found.fixed.repo_url.clone(),
        git_token: found.git_token,
        branch: found.fixed.branch.clone(),
        git_user_name: found.fixed.git_user_name.clone(),
        git_user_email: found.fixed.git_user_email.clone(),
    };
    let open: BTreeMap<_, _> = found
        .open
        .iter()
        .map(|effect| (effect.id.clone(), effect.kind))
        .collect();
    // A session that has stepped has already been provisioned.
    let begun = found.counters.step > 0;
    let mut actor = Actor {
        effects: Effects::new(
            shared.clone(),
            session.clone(),
            &found.generation,
            spec,
            found.api_key,
            found.fixed.clone(),
        ),
        chat: found.fixed.chat_id.as_str().into(),
        id,
        fixed: found.fixed,
        deployment: shared.deps.deployment.clone(),
        examined_generation: found.generation.number,
        move_permit: None,
        generation: found.generation,
        policy: found.policy,
        previous_build: found.previous_build,
        skipped_generation: None,
        available_models,
        counters: found.counters,
        open,
        state: found.state,
        pushed: found.pushed,
        shown_tree: if begun {
            ShownTree::unknown()
        } else {
            ShownTree::empty()
        },
        last_message: None,
        queue: VecDeque::new(),
        paused: Vec::new(),
        was_held: found.waits_for_user,
        quiet_since: Instant::now(),
        pending_since: None,
        unwritten: UnwrittenRounds::default(),
        messages,
        clock: match found.clocks.task {
            Some((counted, _)) => TaskClock::since(counted),
            None => TaskClock::start(),
        },
        shared,
        session,
    };
    if begun {
        actor.publish_state();
        actor.resume(found.open, found.clocks);
    } else {
        actor.session.set_idle_state(IdleState::Working);
    }
    let unread = found.inbox.into_iter();
    actor
        .queue
        .extend(unread.map(|message| ActorMessage::Message(message.number, message.text)));
    let end = if found.status == SessionStatus::Stopping {
        ActorEnd::Stopped
    } else {
        Box::pin(actor.run(begun)).await
    };
    Box::pin(actor.end(end, found.status)).await;
}

impl Actor {
    /// Reports what was running when the host stopped to the policy as lost; what was waiting
    /// continues to wait.
    fn resume(&mut self, open: Vec<EffectRow>, clocks: SleepingClocks) {
        if let Some((_, used)) = clocks.task {
            self.counters.task_used_ms = used;
        }
        let timers = TimerClock::new(&open, clocks.next_timer);
        self.effects.reopen_workspace();
        self.effects.resume_listening();
        for effect in open {
            match effect.kind {
                EffectKind::Model | EffectKind::Tool if !effect.begun => {
                    self.paused.push(effect.id);
                }
                EffectKind::Model | EffectKind::Tool => {
                    self.queue.push_back(ActorMessage::Lost(effect.id))
                }
                EffectKind::Timer => {
                    let left = timers.left(&effect);
                    self.effects.timer(effect.id, left);
                }
                // Opening a pull request that is already open returns the existing one, so nothing
                // is done twice.
                EffectKind::Change => self.open_change(self.pushed.clone(), String::new()),
                EffectKind::Ask | EffectKind::Orphan => {}
            }
        }
    }

    async fn run(&mut self, begun: bool) -> ActorEnd {
        let ready = if begun {
            self.restore().await
        } else {
            self.provision().await
        };
        if let Err(end) = ready {
            return end;
        }
        loop {
            match self.wait().await {
                Some(ActorEnd::Halted) => return self.drain().await,
                Some(end) => return end,
                None => {}
            }
            let rounds = self.rounds().await;
            self.move_permit = None;
            if let Err(end) = rounds {
                return end;
            }
        }
    }

    async fn provision(&mut self) -> Result<(), ActorEnd> {
        let mut started = Started {
            workspace: "/workspace".to_owned(),
            ..Started::default()
        };
        let mut opened_environment = None;
        if self.shared.deps.environments.refusal().is_none() {
            // A clone takes time, and the host may stop meanwhile.
            let (id, user) = (self.id, self.fixed.user.clone());
            let stop = self.session.stop.clone();
            let noted = self.persist(move |log| log.mark_started(id, &user));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(ActorEnd::Stopped),
                noted = noted => noted?,
            };
            // From here on the end of the session closes the environment, even while the repository
            // is being cloned.
            let environment = self.open_environment().await?;
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Err(ActorEnd::Stopped),
                () = self.shared.halt.cancelled() => return Err(ActorEnd::Halted),
                fetched = environment.fetch() => {
                    fetched.map_err(|error| ActorEnd::NoEnvironment(sentence(error)))?;
                }
            }
            // Only now does the environment have its files.
            self.session.show_workspace();
            started = self.describe_environment(&*environment).await;
            self.effects.listen(environment.clone());
            opened_environment = Some(environment);
        }
        let notices = self.add_tools(&mut started, opened_environment).await?;
        for tool in &started.tools {
            metrics::list_tool(&tool.name);
        }
        // The client reads first that the session exists, and then what it lacks.
        for notice in notices.into_iter().rev() {
            self.queue.push_front(ActorMessage::Notice(notice));
        }
        self.queue.push_front(ActorMessage::Started(started));
        Ok(())
    }

    /// Opens the deployment's tools and lists them after the environment's own, whose names take
    /// precedence.
    async fn add_tools(
        &mut self,
        started: &mut Started,
        environment: Option<Arc<dyn Environment>>,
    ) -> Result<Vec<String>, ActorEnd> {
        let opened = tokio::select! {
            biased;
            () = self.session.stop.cancelled() => return Err(ActorEnd::Stopped),
            () = self.shared.halt.cancelled() => return Err(ActorEnd::Halted),
            opened = self.effects.open_tools(environment) => opened,
        };
        let Some(tools) = opened else {
            return Ok(Vec::new());
        };
        for tool in tools.definitions() {
            let taken = started.tools.iter().any(|other| other.name == tool.name);
            if !taken && tool.name.contains(SEPARATOR) {
                started.tools.push(tool);
            }
        }
        Ok(tools.notices())
    }

    async fn describe_environment(&mut self, environment: &dyn Environment) -> Started {
        Started {
            workspace: environment.root(),
            instructions: environment.instructions().await,
            tools: environment.definitions(),
            tree: self.effects.tree(environment).await,
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) -> Option<ActorEnd> {
        let waits = self.waits_for_user();
        self.count_time();
        let limit = self.shared.deps.limits.task_time;
        let deadline = self.clock.deadline(&self.counters, limit).into();
        let (settle_at, sleeps_at) = (self.settle_at(), self.sleeps_at());
        tokio::select! {
            biased;
            () = self.session.stop.cancelled() => return Some(ActorEnd::Stopped),
            () = self.shared.halt.cancelled() => return Some(ActorEnd::Halted),
            () = sleep_until(deadline), if self.counters.task_open && !waits => {
                // The process may have been suspended.
                self.count_time();
                if task_clock::left(&self.counters, limit).is_zero() {
                    return Some(ActorEnd::TimedOut);
                }
            }
            () = std::future::ready(()), if !self.queue.is_empty() => {}
            message = self.messages.recv() => self.queue.extend(message.map(|message| *message)),
            turn = upgrade::next_generation(&mut self.deployment, self.examined_generation, &self.shared.move_permits) => {
                self.move_permit = turn;
            }
            () = sleep_until(settle_at.unwrap_or_else(Instant::now).into()), if settle_at.is_some() => {
                self.settle().await;
            }
            () = self.session.unattended.notified(), if waits => {
                self.release_sandbox().await;
            }
            // Now it may sleep.
            () = self.session.left.notified() => {}
            () = sleep_until(sleeps_at.unwrap_or_else(Instant::now).into()), if sleeps_at.is_some() => {
                if self.falls_asleep().await {
                    return Some(ActorEnd::Asleep);
                }
            }
        }
        while self.queue.len() < ROUND
            && let Ok(message) = self.messages.try_recv()
        {
            self.queue.push_back(*message);
        }
        None
    }

    fn waits_for_user(&self) -> bool {
        task_clock::waits_for_user(&self.counters, task_clock::kinds(&self.open))
    }

    /// Counts the open task's time up to now.
    fn count_time(&mut self) {
        let waits = self.waits_for_user();
        self.clock.count(&mut self.counters, waits);
    }

    /// Publishes the session's state for the sweep over unattended sessions.
    fn publish_state(&self) {
        let kinds = task_clock::kinds(&self.open);
        self.session
            .set_idle_state(idle_state(&self.counters, kinds));
        let waits = self.waits_for_user();
        let last_seq = self.counters.next_seq.saturating_sub(1);
        self.session.question.send_if_modified(|question| {
            let changes = waits != (*question > 0);
            if changes {
                *question = if waits { last_seq } else { 0 };
            }
            changes
        });
    }

    /// Releases the sandbox and the deployment's tools, unless a client has attached meanwhile.
    async fn release_sandbox(&mut self) {
        let grace = self.shared.deps.limits.grace;
        let alone = self
            .session
            .unattended_for()
            .is_some_and(|alone| alone >= grace);
        // Checked now: an environment that survived a restart is subscribed to while the actor
        // waits.
        if alone && self.effects.hold_anything() {
            let has_sandbox = self.effects.has_environment();
            self.effects.release_sandbox().await;
            let notice = || ActorMessage::Notice(SANDBOX_RELEASED.to_owned());
            self.queue.extend(has_sandbox.then(notice));
        }
    }

    /// Runs a round, and those that it leads to at once.
    async fn rounds(&mut self) -> Result<(), ActorEnd> {
        loop {
            let before = self.unwritten.rows.len();
            let round = self.round().await;
            let is_joined = round.is_ok() && self.unwritten.rows.len() > before;
            if is_joined {
                continue;
            }
            // No round may have followed.
            if matches!(round, Ok(()) | Err(ActorEnd::TimedOut)) {
                self.write_rounds().await?;
            }
            return round;
        }
    }

    /// Runs one round: takes messages, steps the policy, and commits, publishes and starts effects, unless it leads to
    /// another one at once.
    async fn round(&mut self) -> Result<(), ActorEnd> {
        let at = now();
        let limit = self.shared.deps.limits.task_time;
        if !self.queue.is_empty() {
            self.quiet_since = Instant::now();
        }
        self.count_time();
        let mut counters = self.counters;
        counters.uptime_ms = self.shared.deps.log.uptime();
        if task_clock::left(&counters, limit).is_zero() {
            // So that no policy is stepped with no time left.
            return Err(ActorEnd::TimedOut);
        }
        let next = self.next().await;
        let (policy, fixed, environments, available_models, tools) = (
            self.policy.clone(),
            self.fixed.clone(),
            self.shared.deps.environments.clone(),
            self.available_models.clone(),
            self.effects.tools().clone(),
        );
        let of = fixed.policy.clone();
        let describe = move |call: &_| {
            let beside = tools.describe(&of, call);
            beside.unwrap_or_else(|| environments.describe(call))
        };
        let names = (self.id, self.chat.clone());
        let budget = Budget::new(&fixed, self.shared.deps.limits.iterations);
        let round_context = RoundContext::new(&names, &fixed, policy.info(), budget, &describe);
        let pushed = self.pushed.clone();
        let round_context = round_context
            .with_available_models(&available_models)
            .with_pushed(pushed.as_deref());
        let mut builder = RoundBuilder::new(&round_context, counters, self.open.clone(), at);
        builder.is_settling = self.settle_at().is_some_and(|at| at <= Instant::now());
        builder.shown_tree = self.shown_tree;
        builder.last_message = self.last_message.clone();
        if let Some(start) = self.restart_effects().await {
            builder.inputs.push(start);
        }
        let mut taken = 0;
        while taken < ROUND
            && let Some(message) = self.queue.pop_front()
        {
            builder.apply(message);
            taken += 1;
        }
        if builder.is_empty() && next.is_none() {
            // Everything that arrived was too late.
            return Ok(());
        }
        if builder.inputs.is_empty() && next.is_none() {
            // Something to show, and nothing to decide.
            let round = builder.close_round(SessionStatus::Running, None);
            return self.commit(round).await;
        }
        let left = task_clock::left(&builder.counters, limit);
        let context = Context {
            session: self.id.to_string(),
            step: builder.counters.step,
            now_ms: at,
            seed: rand::random(),
            iterations_left: budget.iterations_left(&builder.counters),
            tokens_left: budget.tokens_left(&builder.counters),
            cost_left: budget.cost_left(&builder.counters),
            millis_left: u64::try_from(left.as_millis()).ok(),
        };
        let stepped = if builder.counters.steps_alone >= STEPS_ALONE {
            StepOutcome::not_called(StepError::TooManySteps(STEPS_ALONE))
        } else {
            match self.step(&context, &mut builder, next).await {
                Some(stepped) => stepped,
                // The newer build failed, and there is nothing for the older one to decide.
                None if builder.is_empty() => return Ok(()),
                None => {
                    let round = builder.close_round(SessionStatus::Running, None);
                    return self.commit(round).await;
                }
            }
        };
        if stepped.result.is_err() {
            builder.unanswered = self.effects.closing_events();
        }
        let round = builder.decide(&context, stepped);
        self.commit(round).await
    }

    /// When what rounds left pending in the log is to be put in its place, if there is any.
    fn settle_at(&self) -> Option<Instant> {
        self.pending_since.map(|since| since + SETTLING)
    }

    /// Has the log put in its place what rounds left pending. What fails is tried again a while later, or done by
    /// a round.
    async fn settle(&mut self) {
        if self.pending_since.take().is_some() {
            let settled = self.shared.deps.log.settle(self.id, &self.fixed.user).await;
            if let Err(cause) = settled {
                tracing::debug!(session = %self.id, %cause, "what rounds left pending in the log cannot be settled now");
                self.pending_since = Some(Instant::now());
            }
        }
    }

    /// Returns the first input again if the step that took it failed and the user now sends a
    /// message: a policy without a state knows nothing of its task.
    async fn restart_effects(&self) -> Option<Input> {
        let begun = self.state.is_some() || self.counters.step == 0;
        let is_user_message = |message: &ActorMessage| matches!(message, ActorMessage::Message(..));
        if begun || !self.queue.iter().take(ROUND).any(is_user_message) {
            return None;
        }
        self.first_input().await
    }

    /// Reads the input that began the session from the log.
    async fn first_input(&self) -> Option<Input> {
        let log = &self.shared.deps.log;
        let steps = when_possible(|| log.steps_from(self.id, Some(&self.fixed.user), 0))
            .await
            .ok()?;
        let inputs: Vec<Input> = serde_json::from_str(&steps.first()?.inputs).ok()?;
        inputs
            .into_iter()
            .find(|input| matches!(input, Input::Started(_)))
    }

    fn open_change(&mut self, branch: Option<String>, final_message: String) {
        let (Some(branch), Some(repository)) = (branch, self.fixed.repo_url.clone()) else {
            let unknown = Err(PullRequestError::UnknownBranch);
            return self.queue.push_back(ActorMessage::PullRequest(unknown));
        };
        let task = &self.fixed.task;
        let title = task.lines().find(|line| !line.trim().is_empty());
        let title = cut(title.unwrap_or_default().trim(), TITLE);
        let base = self.fixed.branch.clone();
        self.effects.change(NewPullRequest {
            user: self.fixed.user.clone(),
            repository,
            token: None,
            base: base.filter(|base| *base != branch),
            branch,
            title: title.to_owned(),
            body: if final_message.trim().is_empty() {
                task.clone()
            } else {
                final_message
            },
            draft: self.fixed.open_change.as_deref() == Some(OpenChange::Draft.text()),
        });
    }

    /// Cancels an effect, and reports it once: a second report could be taken for a later effect of
    /// the same name.
    fn cancel(&mut self, effect: EffectId) {
        // The result of a timer whose round led on waits here, and nothing of it runs.
        if !self.effects.runs(&effect) {
            self.queue
                .retain(|message| !matches!(message, ActorMessage::Timer(name) if *name == effect));
        }
        let is_failure = |message: &ActorMessage| matches!(message, ActorMessage::Failed(name, _) if *name == effect);
        if !self.queue.iter().any(is_failure) {
            self.queue.extend(self.effects.cancel(effect));
        }
    }
}
