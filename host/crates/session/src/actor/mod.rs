//! The session actor: one task that owns a session's life. Each round drains the mailbox, steps the
//! policy, commits, publishes and starts effects, in this order, one round after the other.
//!
//! # Invariants
//! - Nothing is shown or started before the round that says so is committed.
//! - The actor ends with its session and takes its effects, sandbox and workspace with it. At a
//!   shutdown it leaves the log and the workspace, from which the session resumes.

pub(crate) mod budget;
mod halting;
pub(crate) mod idle;
mod persist;
mod provision;
mod resume;
mod shutdown;
pub(crate) mod task_clock;
mod upgrade;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep_until;

use lucid_types::log::{Counters, EffectKind, EffectRow, NewSessionRow, Status};
use lucid_types::text::cut;
use lucid_types::wit::policy::{Context, Input, Snapshot};

use self::budget::Budget;
use self::idle::{IdleState, PUT_AWAY};
use self::task_clock::{TaskClock, now};
use super::SessionsShared;
use super::create::{OpenChange, ResumeState};
use super::effects::Effects;
use super::handle::SessionHandle;
use super::ports::tools::SEPARATOR;
use super::ports::{
    ActorMessage, AvailableModels, Deployment, Environment, EnvironmentSpec, Generation,
    NewPullRequest, SessionPolicy, StartInputs, StepOutcome,
};
use super::retry::when_possible;
use super::round::{
    CommittedRound, RoundBuilder, RoundContext, STEPS_ALONE, ShownTree, StartedWork,
};

/// The maximum number of messages taken into one round.
const ROUND: usize = 64;

/// Why the loop of rounds ended.
#[derive(Debug)]
enum ActorEnd {
    /// The session was asked to end.
    Stopped,
    /// The host is shutting down; the session lives on.
    Halted,
    /// The open task exceeded its time limit.
    TimedOut,
    /// No execution environment could be provided. Holds the reason.
    NoPlace(String),
    /// The log can never be written. Holds the reason.
    Broken(String),
}

pub(super) use self::resume::workspace_lost;
#[cfg(test)]
pub(super) use self::shutdown::took_longer;
use self::upgrade::offers_of;
pub(super) use self::upgrade::takes_over;

pub(super) struct Actor {
    shared: Arc<SessionsShared>,
    session: Arc<SessionHandle>,
    fixed: Arc<NewSessionRow>,
    deployment: Deployment,
    /// The number of the last generation that was examined.
    looked_at: u64,
    /// Held during a round that only moves the session to another generation.
    turn: Option<OwnedSemaphorePermit>,
    generation: Arc<Generation>,
    policy: Arc<dyn SessionPolicy>,
    /// The policy build that left the state, if it is a different build and this one has yet to
    /// take the state over.
    taken_over: Option<String>,
    /// The number of the generation that this session cannot move to.
    passed_over: Option<u64>,
    offers: Arc<AvailableModels>,
    id: Arc<str>,
    chat: Arc<str>,
    counters: Counters,
    open: BTreeMap<String, EffectKind>,
    state: Option<Snapshot>,
    /// The branch that the session's task pushed.
    pushed: Option<String>,
    shown: ShownTree,
    /// The agent's last message in the open task.
    said: Option<Arc<str>>,
    queue: VecDeque<ActorMessage>,
    /// Effects in the log that the previous host did not begin.
    paused: Vec<String>,
    /// The session was held until its user came back.
    was_held: bool,
    news: mpsc::Receiver<Box<ActorMessage>>,
    effects: Effects,
    clock: TaskClock,
}

/// The maximum length of a pull request's title, in characters.
const TITLE: usize = 120;

/// Runs a session from where the log left it until its end.
pub(super) async fn live(
    shared: Arc<SessionsShared>,
    session: Arc<SessionHandle>,
    found: ResumeState,
    news: mpsc::Receiver<Box<ActorMessage>>,
) {
    let _last = shutdown::ActorGuard::new(&shared, &session);
    let id: Arc<str> = found.fixed.id.as_str().into();
    let offers = offers_of(&found.generation, &found.fixed);
    let spec = EnvironmentSpec {
        images: offers.model.images,
        session: found.fixed.id.clone(),
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
        looked_at: found.generation.number,
        turn: None,
        generation: found.generation,
        policy: found.policy,
        taken_over: found.taken_over,
        passed_over: None,
        offers,
        counters: found.counters,
        open,
        state: found.state,
        pushed: found.pushed,
        shown: if begun {
            ShownTree::unknown()
        } else {
            ShownTree::empty()
        },
        said: None,
        queue: VecDeque::new(),
        paused: Vec::new(),
        was_held: found.held,
        news,
        clock: TaskClock::start(),
        shared,
        session,
    };
    if begun {
        actor.say_what_it_does();
        actor.resume(found.open);
    } else {
        actor.session.stands(IdleState::Works);
    }
    let unread = found.unread.into_iter();
    actor
        .queue
        .extend(unread.map(|message| ActorMessage::Message(message.number, message.text)));
    let end = if found.status == Status::Stopping {
        ActorEnd::Stopped
    } else {
        Box::pin(actor.run(begun)).await
    };
    Box::pin(actor.end(end, found.status)).await;
}

impl Actor {
    /// Reports what was running when the host stopped to the policy as lost; what was waiting
    /// continues to wait.
    fn resume(&mut self, open: Vec<EffectRow>) {
        self.effects.reopen_workspace();
        self.effects.listen_again();
        for effect in open {
            match effect.kind {
                EffectKind::Model | EffectKind::Tool if !effect.begun => {
                    self.paused.push(effect.id);
                }
                EffectKind::Model | EffectKind::Tool => {
                    self.queue.push_back(ActorMessage::Lost(effect.id))
                }
                EffectKind::Timer => {
                    // Only the wall clock can say how long the host was away, and it may be wrong.
                    let left = effect.due_at.unwrap_or(0).saturating_sub(now());
                    let left = left.min(effect.delay_ms.unwrap_or(u64::MAX));
                    self.effects.timer(effect.id, Duration::from_millis(left));
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
            self.come_back().await
        } else {
            self.provision().await
        };
        if let Err(end) = ready {
            return end;
        }
        loop {
            match self.wait().await {
                Some(ActorEnd::Halted) => return self.come_to_rest().await,
                Some(end) => return end,
                None => {}
            }
            let round = self.round().await;
            self.turn = None;
            if let Err(end) = round {
                return end;
            }
        }
    }

    async fn provision(&mut self) -> Result<(), ActorEnd> {
        let mut started = StartInputs {
            workspace: "/workspace".to_owned(),
            ..StartInputs::default()
        };
        let mut room = None;
        if self.shared.deps.places.refusal().is_none() {
            // A clone takes time, and the host may stop meanwhile.
            let id = self.id.clone();
            let stop = self.session.stop.clone();
            let noted = self.persist(move |log| log.mark_started(&id));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(ActorEnd::Stopped),
                noted = noted => noted?,
            };
            // From here on the end of the session closes the environment, even while the repository
            // is being cloned.
            let place = self.place().await?;
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Err(ActorEnd::Stopped),
                () = self.shared.halt.cancelled() => return Err(ActorEnd::Halted),
                fetched = place.fetch() => fetched.map_err(ActorEnd::NoPlace)?,
            }
            // Only now does the environment have its files.
            self.session.show_workspace();
            started = self.describe_place(&*place).await;
            self.effects.listen(place.clone());
            room = Some(place);
        }
        let notices = self.add_tools(&mut started, room).await?;
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
        started: &mut StartInputs,
        place: Option<Arc<dyn Environment>>,
    ) -> Result<Vec<String>, ActorEnd> {
        let opened = tokio::select! {
            biased;
            () = self.session.stop.cancelled() => return Err(ActorEnd::Stopped),
            () = self.shared.halt.cancelled() => return Err(ActorEnd::Halted),
            opened = self.effects.open_tools(place) => opened,
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

    async fn describe_place(&mut self, place: &dyn Environment) -> StartInputs {
        StartInputs {
            workspace: place.root(),
            instructions: place.instructions().await,
            tools: place.definitions(),
            tree: self.effects.tree(place).await,
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) -> Option<ActorEnd> {
        let waits = self.waits_for_user();
        self.count_time();
        let limit = self.shared.deps.limits.task_time;
        let deadline = self.clock.deadline(&self.counters, limit).into();
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
            news = self.news.recv() => self.queue.extend(news.map(|news| *news)),
            turn = upgrade::turn(&mut self.deployment, self.looked_at, &self.shared.moves) => {
                self.turn = turn;
            }
            () = self.session.unattended.notified(), if waits => {
                self.put_away().await;
            }
        }
        while self.queue.len() < ROUND
            && let Ok(news) = self.news.try_recv()
        {
            self.queue.push_back(*news);
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
    fn say_what_it_does(&self) {
        self.session.stands(if self.waits_for_user() {
            IdleState::Asks(self.counters.uptime_ms)
        } else if self.counters.task_open {
            IdleState::Works
        } else {
            IdleState::Idle(std::time::Instant::now())
        });
        let waits = self.waits_for_user();
        let shown = self.counters.next_seq.saturating_sub(1);
        self.session.question.send_if_modified(|question| {
            let changes = waits != (*question > 0);
            if changes {
                *question = if waits { shown } else { 0 };
            }
            changes
        });
    }

    /// Releases the sandbox, unless a client has attached meanwhile.
    async fn put_away(&mut self) {
        let grace = self.shared.deps.limits.grace;
        let alone = self.session.alone_for().is_some_and(|alone| alone >= grace);
        // Checked now: an environment that survived a restart is subscribed to while the actor
        // waits.
        if alone && self.effects.holds_place() {
            self.effects.put_away().await;
            self.queue
                .push_back(ActorMessage::Notice(PUT_AWAY.to_owned()));
        }
    }

    /// Runs one round: takes messages, steps the policy, commits, publishes, starts effects.
    async fn round(&mut self) -> Result<(), ActorEnd> {
        let at = now();
        let limit = self.shared.deps.limits.task_time;
        self.count_time();
        let mut counters = self.counters;
        counters.uptime_ms = self.shared.deps.log.uptime();
        if task_clock::left(&counters, limit).is_zero() {
            // So that no policy is stepped with no time left.
            return Err(ActorEnd::TimedOut);
        }
        let next = self.next().await;
        let (policy, fixed, places, offers, tools) = (
            self.policy.clone(),
            self.fixed.clone(),
            self.shared.deps.places.clone(),
            self.offers.clone(),
            self.effects.tools().clone(),
        );
        let of = fixed.policy.clone();
        let describe = move |call: &_| {
            let beside = tools.describe(&of, call);
            beside.unwrap_or_else(|| places.describe(call))
        };
        let names = (self.id.clone(), self.chat.clone());
        let budget = Budget::new(&fixed, self.shared.deps.limits.iterations);
        let scene = RoundContext::new(&names, &fixed, policy.info(), budget, &describe);
        let pushed = self.pushed.clone();
        let scene = scene.with_offers(&offers).with_pushed(pushed.as_deref());
        let mut draft = RoundBuilder::new(&scene, counters, self.open.clone(), at);
        draft.shown = self.shown;
        draft.said = self.said.clone();
        if let Some(start) = self.start_again().await {
            draft.inputs.push(start);
        }
        let mut taken = 0;
        while taken < ROUND
            && let Some(news) = self.queue.pop_front()
        {
            draft.take(news);
            taken += 1;
        }
        if draft.is_empty() && next.is_none() {
            // Everything that arrived was too late.
            return Ok(());
        }
        if draft.inputs.is_empty() && next.is_none() {
            // Something to show, and nothing to decide.
            let round = draft.close_round(Status::Running, None);
            return self.commit(round).await;
        }
        let left = task_clock::left(&draft.counters, limit);
        let context = Context {
            session: self.id.to_string(),
            step: draft.counters.step,
            now_ms: at,
            seed: rand::random(),
            iterations_left: budget.iterations_left(&draft.counters),
            tokens_left: budget.tokens_left(&draft.counters),
            cost_left: budget.cost_left(&draft.counters),
            millis_left: u64::try_from(left.as_millis()).ok(),
        };
        let stepped = if draft.counters.steps_alone >= STEPS_ALONE {
            let result = Err(format!(
                "The agent took {STEPS_ALONE} steps without a word of the user, and was stopped."
            ));
            StepOutcome {
                result,
                fuel: 0,
                memory: 0,
                micros: 0,
            }
        } else {
            match self.step(&context, &mut draft, next).await {
                Some(stepped) => stepped,
                // The newer build failed, and there is nothing for the older one to decide.
                None if draft.is_empty() => return Ok(()),
                None => {
                    let round = draft.close_round(Status::Running, None);
                    return self.commit(round).await;
                }
            }
        };
        if stepped.result.is_err() {
            draft.unanswered = self.effects.answers_to_all();
        }
        let round = draft.decide(&context, stepped);
        self.commit(round).await
    }

    /// Returns the first input again if the step that took it failed and the user now sends a
    /// message: a policy without a state knows nothing of its task.
    async fn start_again(&self) -> Option<Input> {
        let begun = self.state.is_some() || self.counters.step == 0;
        let said = |news: &ActorMessage| matches!(news, ActorMessage::Message(..));
        if begun || !self.queue.iter().take(ROUND).any(said) {
            return None;
        }
        self.first_input().await
    }

    /// Reads the input that began the session from the log.
    async fn first_input(&self) -> Option<Input> {
        let log = &self.shared.deps.log;
        let steps = when_possible(|| log.steps_from(&self.id, 0)).await.ok()?;
        let inputs: Vec<Input> = serde_json::from_str(&steps.first()?.inputs).ok()?;
        inputs
            .into_iter()
            .find(|input| matches!(input, Input::Started(_)))
    }

    async fn commit(&mut self, round: CommittedRound) -> Result<(), ActorEnd> {
        let CommittedRound {
            row,
            open,
            state,
            shown,
            said,
            begin,
            pushed,
        } = round;
        let (first, frames, counters) = (row.first_seq, row.frames.clone(), row.counters);
        let row = Arc::new(row);
        let waited = self.persist(move |log| log.append(row.clone())).await?;
        self.counters = counters;
        if waited {
            // Time during which the log could not be written is not charged to the task.
            self.clock.count(&mut self.counters, true);
        }
        self.open = open;
        self.say_what_it_does();
        self.shown = shown;
        self.said = said;
        if let Some(pushed) = pushed {
            self.pushed = pushed;
        }
        if state.is_some() {
            self.state = state;
        }
        self.session.feed.publish(first, &frames);
        if waited && self.session.stop.is_cancelled() {
            // Everything it held has already been released.
            return Ok(());
        }
        self.effects.at_step(self.counters.step.saturating_sub(1));
        for begin in begin {
            match begin {
                StartedWork::Model(call) => self
                    .effects
                    .model(call, self.counters.next_entry.saturating_sub(1)),
                StartedWork::Tool(run) => self.effects.tool(run),
                StartedWork::Timer(effect, delay) => {
                    self.effects.timer(effect, Duration::from_millis(delay));
                }
                StartedWork::Change(branch, said) => self.open_change(Some(branch), said),
                StartedWork::Cancel(effect) => self.cancel(effect),
                StartedWork::CancelAll => {
                    let spent = self.effects.cancel_all().into_iter();
                    self.queue
                        .extend(spent.map(|(effect, spent)| ActorMessage::Spent(effect, spent)));
                }
                // The tool may be gone meanwhile.
                StartedWork::Told(told) => drop(told.send(())),
                StartedWork::News(news) => self.queue.push_back(news),
            }
        }
        self.effects.settle(&self.open);
        Ok(())
    }

    fn open_change(&mut self, branch: Option<String>, said: String) {
        let (Some(branch), Some(repository)) = (branch, self.fixed.repo_url.clone()) else {
            let gone = "what was pushed is not known any more".to_owned();
            return self.queue.push_back(ActorMessage::Change(Err(gone)));
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
            body: if said.trim().is_empty() {
                task.clone()
            } else {
                said
            },
            draft: self.fixed.open_change.as_deref() == Some(OpenChange::Draft.text()),
        });
    }

    /// Cancels an effect, and reports it once: a second report could be taken for a later effect of
    /// the same name.
    fn cancel(&mut self, effect: String) {
        let told =
            |news: &ActorMessage| matches!(news, ActorMessage::Failed(name, _) if *name == effect);
        if !self.queue.iter().any(told) {
            self.queue.extend(self.effects.cancel(effect));
        }
    }
}
