//! Owns a session's life: one task that takes what arrives, lets the policy decide, writes, shows and
//! begins, in this order and one round after the other.
//!
//! What always holds: nothing is shown or begun before the round that says so is committed. The actor
//! ends with its session, and takes effects, sandbox and workspace along; at a shutdown it leaves
//! the log and the workspace, from which it goes on.

mod ending;
mod halting;
mod moving;
mod persist;
mod placing;
mod returning;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep_until;

use crate::plugins::policy_types::{Context, Input, Snapshot};
use crate::store::{self, Counters, EffectKind, EffectRow, NewSessionRow, Status};

use super::budget::Budget;
use super::clock::{TaskClock, now};
use super::create::{Found, OpenChange};
use super::effects::Effects;
use super::grace::{PUT_AWAY, Standing};
use super::live::Session;
use super::ports::{
    ChangeRequest, Deployment, Generation, News, Offers, Place, PlaceSpec, Policy, Started, Stepped,
};
use super::record::{Begin, Draft, Round, STEPS_ALONE, Scene, ShownTree};
use super::tools::SEPARATOR;
use super::{Shared, clock};

/// How much is taken into one round.
const ROUND: usize = 64;

/// Why the rounds ended.
#[derive(Debug)]
enum End {
    /// Somebody wants it to end.
    Stopped,
    /// The host goes down; the session does not.
    Halted,
    /// The open task took too long.
    TimedOut,
    /// There is no place to work in.
    NoPlace(String),
    /// The log can never be written, and why.
    Broken(String),
}

#[cfg(test)]
pub(super) use ending::took_longer;
use moving::offers_of;
pub(super) use moving::takes_over;
pub(super) use returning::workspace_lost;

pub(super) struct Actor {
    shared: Arc<Shared>,
    session: Arc<Session>,
    fixed: Arc<NewSessionRow>,
    deployment: Deployment,
    /// The number of the generation that was looked at last.
    looked_at: u64,
    /// Held for a round that is there only to move.
    turn: Option<OwnedSemaphorePermit>,
    generation: Arc<Generation>,
    policy: Arc<dyn Policy>,
    /// The build of the policy that left the state, where that is another and this one has yet to take
    /// it over.
    taken_over: Option<String>,
    /// The number of the generation that this session cannot move to.
    passed_over: Option<u64>,
    offers: Arc<Offers>,
    id: Arc<str>,
    chat: Arc<str>,
    counters: Counters,
    open: BTreeMap<String, EffectKind>,
    state: Option<Snapshot>,
    /// The branch that its task pushed.
    pushed: Option<String>,
    shown: ShownTree,
    /// What the agent said last in its open task.
    said: Option<Arc<str>>,
    queue: VecDeque<News>,
    /// Effects that the log has, and that the last host did not begin any more.
    paused: Vec<String>,
    /// It waited for its user to come back.
    was_held: bool,
    news: mpsc::Receiver<Box<News>>,
    effects: Effects,
    clock: TaskClock,
}

/// Characters of a change's title.
const TITLE: usize = 120;

/// Lives a session from where the log left it until its end.
pub(super) async fn live(
    shared: Arc<Shared>,
    session: Arc<Session>,
    found: Found,
    news: mpsc::Receiver<Box<News>>,
) {
    let _last = ending::Last::new(&shared, &session);
    let id: Arc<str> = found.fixed.id.as_str().into();
    let offers = offers_of(&found.generation, &found.fixed);
    let spec = PlaceSpec {
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
    // A session that has stepped went through provisioning.
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
        actor.session.stands(Standing::Works);
    }
    let unread = found.unread.into_iter();
    actor
        .queue
        .extend(unread.map(|(number, text)| News::Message(number, text)));
    let end = if found.status == Status::Stopping {
        End::Stopped
    } else {
        Box::pin(actor.run(begun)).await
    };
    Box::pin(actor.end(end, found.status)).await;
}

impl Actor {
    /// What was running when the host stopped is lost, and its policy is told; what waited, waits on.
    fn resume(&mut self, open: Vec<EffectRow>) {
        self.effects.reopen_workspace();
        self.effects.listen_again();
        for effect in open {
            match effect.kind {
                EffectKind::Model | EffectKind::Tool if !effect.begun => {
                    self.paused.push(effect.id);
                }
                EffectKind::Model | EffectKind::Tool => self.queue.push_back(News::Lost(effect.id)),
                EffectKind::Timer => {
                    // How long the host was away only the wall clock can say, and that may be wrong.
                    let left = effect.due_at.unwrap_or(0).saturating_sub(now());
                    let left = left.min(effect.delay_ms.unwrap_or(u64::MAX));
                    self.effects.timer(effect.id, Duration::from_millis(left));
                }
                // Opening one that is open gives that one, so nothing is done twice.
                EffectKind::Change => self.open_change(self.pushed.clone(), String::new()),
                EffectKind::Ask | EffectKind::Orphan => {}
            }
        }
    }

    async fn run(&mut self, begun: bool) -> End {
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
                Some(End::Halted) => return self.come_to_rest().await,
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

    async fn provision(&mut self) -> Result<(), End> {
        let mut started = Started {
            workspace: "/workspace".to_owned(),
            ..Started::default()
        };
        let mut room = None;
        if self.shared.deps.places.refusal().is_none() {
            // A clone takes its time, and the host may stop meanwhile.
            let id = self.id.clone();
            let stop = self.session.stop.clone();
            let noted = self.persist(move |connection| store::mark_started(connection, &id));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(End::Stopped),
                noted = noted => noted?,
            };
            // From here on the end of the session closes it, also while the repository comes.
            let place = self.place().await?;
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Err(End::Stopped),
                () = self.shared.halt.cancelled() => return Err(End::Halted),
                fetched = place.fetch() => fetched.map_err(End::NoPlace)?,
            }
            self.effects.show_workspace(&*place);
            started = self.describe_place(&*place).await;
            self.effects.listen(place.clone());
            room = Some(place);
        }
        let notices = self.add_tools(&mut started, room).await?;
        // A person reads first that the session is there, and then what it lacks.
        for notice in notices.into_iter().rev() {
            self.queue.push_front(News::Notice(notice));
        }
        self.queue.push_front(News::Started(started));
        Ok(())
    }

    /// Opens the deployment's tools, and puts them behind the place's own, whose names stay theirs.
    async fn add_tools(
        &mut self,
        started: &mut Started,
        place: Option<Arc<dyn Place>>,
    ) -> Result<Vec<String>, End> {
        let opened = tokio::select! {
            biased;
            () = self.session.stop.cancelled() => return Err(End::Stopped),
            () = self.shared.halt.cancelled() => return Err(End::Halted),
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

    async fn describe_place(&mut self, place: &dyn Place) -> Started {
        Started {
            workspace: place.root(),
            instructions: place.instructions().await,
            tools: place.definitions(),
            tree: self.effects.tree(place).await,
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) -> Option<End> {
        let waits = self.waits_for_user();
        self.count_time();
        let limit = self.shared.deps.limits.task_time;
        let deadline = self.clock.deadline(&self.counters, limit).into();
        tokio::select! {
            biased;
            () = self.session.stop.cancelled() => return Some(End::Stopped),
            () = self.shared.halt.cancelled() => return Some(End::Halted),
            () = sleep_until(deadline), if self.counters.task_open && !waits => {
                // The process may have stood still.
                self.count_time();
                if clock::left(&self.counters, limit).is_zero() {
                    return Some(End::TimedOut);
                }
            }
            () = std::future::ready(()), if !self.queue.is_empty() => {}
            news = self.news.recv() => self.queue.extend(news.map(|news| *news)),
            turn = moving::turn(&mut self.deployment, self.looked_at, &self.shared.moves) => {
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
        clock::waits_for_user(&self.counters, clock::kinds(&self.open))
    }

    /// Counts the time of the open task until now.
    fn count_time(&mut self) {
        let waits = self.waits_for_user();
        self.clock.count(&mut self.counters, waits);
    }

    /// For whoever looks after sessions that are left alone.
    fn say_what_it_does(&self) {
        self.session.stands(if self.waits_for_user() {
            Standing::Asks(self.counters.uptime_ms)
        } else if self.counters.task_open {
            Standing::Works
        } else {
            Standing::Idle(std::time::Instant::now())
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

    /// Gives the sandbox back, unless somebody came meanwhile.
    async fn put_away(&mut self) {
        let grace = self.shared.deps.limits.grace;
        let alone = self.session.alone_for().is_some_and(|alone| alone >= grace);
        // Looked at now: one that lived on over a restart is listened to while the actor waits.
        if alone && self.effects.holds_place() {
            self.effects.put_away().await;
            self.queue.push_back(News::Notice(PUT_AWAY.to_owned()));
        }
    }

    /// Takes what arrived, lets the policy decide, writes, shows, begins.
    async fn round(&mut self) -> Result<(), End> {
        let at = now();
        let limit = self.shared.deps.limits.task_time;
        self.count_time();
        let mut counters = self.counters;
        counters.uptime_ms = self.shared.deps.store.uptime();
        if clock::left(&counters, limit).is_zero() {
            // So no policy is asked what to do with no time left.
            return Err(End::TimedOut);
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
        let scene = Scene::new(&names, &fixed, policy.info(), budget, &describe);
        let pushed = self.pushed.clone();
        let scene = scene.with_offers(&offers).with_pushed(pushed.as_deref());
        let mut draft = Draft::new(&scene, counters, self.open.clone(), at);
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
            // Whatever came was too late.
            return Ok(());
        }
        if draft.inputs.is_empty() && next.is_none() {
            // Something to see, and nothing to decide.
            let round = draft.close_round(Status::Running, None);
            return self.commit(round).await;
        }
        let left = clock::left(&draft.counters, limit);
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
            Stepped {
                result,
                fuel: 0,
                memory: 0,
                micros: 0,
            }
        } else {
            match self.step(&context, &mut draft, next).await {
                Some(stepped) => stepped,
                // The newer build cannot, and the older one has nothing to decide.
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

    /// The first input once more, where the step that took it failed and the user now says something:
    /// a policy without a state knows nothing of its task.
    async fn start_again(&self) -> Option<Input> {
        let begun = self.state.is_some() || self.counters.step == 0;
        let said = |news: &News| matches!(news, News::Message(..));
        if begun || !self.queue.iter().take(ROUND).any(said) {
            return None;
        }
        self.first_input().await
    }

    /// The input that began the session, out of the log.
    async fn first_input(&self) -> Option<Input> {
        let id = self.id.to_string();
        let first = move |connection: &_| store::logged_steps(connection, &id, 0);
        let store = &self.shared.deps.store;
        let steps = store.read_when_possible(first).await.ok()?;
        let inputs: Vec<Input> = serde_json::from_str(&steps.first()?.inputs).ok()?;
        inputs
            .into_iter()
            .find(|input| matches!(input, Input::Started(_)))
    }

    async fn commit(&mut self, round: Round) -> Result<(), End> {
        let Round {
            row,
            open,
            state,
            shown,
            said,
            begin,
            pushed,
        } = round;
        let (first, frames, counters) = (row.first_seq, row.frames.clone(), row.counters);
        let lines = row.chat_lines.len();
        let row = Arc::new(row);
        let written = self.persist(move |connection| row.insert(connection));
        let waited = written.await?;
        self.shared.deps.store.wrote_lines(lines);
        self.counters = counters;
        if waited {
            // The time that the log could not be written is not the task's.
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
            // What it held is given back already.
            return Ok(());
        }
        self.effects.at_step(self.counters.step.saturating_sub(1));
        for begin in begin {
            match begin {
                Begin::Model(call) => self
                    .effects
                    .model(call, self.counters.next_entry.saturating_sub(1)),
                Begin::Tool(run) => self.effects.tool(run),
                Begin::Timer(effect, delay) => {
                    self.effects.timer(effect, Duration::from_millis(delay));
                }
                Begin::Change(branch, said) => self.open_change(Some(branch), said),
                Begin::Cancel(effect) => self.cancel(effect),
                Begin::CancelAll => {
                    let spent = self.effects.cancel_all().into_iter();
                    self.queue
                        .extend(spent.map(|(effect, spent)| News::Spent(effect, spent)));
                }
                // The tool may be gone meanwhile.
                Begin::Told(told) => drop(told.send(())),
                Begin::News(news) => self.queue.push_back(news),
            }
        }
        self.effects.settle(&self.open);
        Ok(())
    }

    fn open_change(&mut self, branch: Option<String>, said: String) {
        let (Some(branch), Some(repository)) = (branch, self.fixed.repo_url.clone()) else {
            let gone = "what was pushed is not known any more".to_owned();
            return self.queue.push_back(News::Change(Err(gone)));
        };
        let task = &self.fixed.task;
        let title = task.lines().find(|line| !line.trim().is_empty());
        let title = store::cut(title.unwrap_or_default().trim(), TITLE);
        let base = self.fixed.branch.clone();
        self.effects.change(ChangeRequest {
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

    /// Once: a second word of the same effect could be taken for another one's of that name.
    fn cancel(&mut self, effect: String) {
        let told = |news: &News| matches!(news, News::Failed(name, _) if *name == effect);
        if !self.queue.iter().any(told) {
            self.queue.extend(self.effects.cancel(effect));
        }
    }
}
