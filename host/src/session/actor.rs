//! Owns a session's life: one task that takes what arrives, lets the policy decide, writes, shows and
//! begins, in this order and one round after the other.
//!
//! What always holds: nothing is shown or begun before the round that says so is committed. The actor
//! ends with its session, and takes effects, sandbox and workspace along; at a shutdown it leaves
//! the log and the workspace, from which it goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::plugins::policy_types::{Context, Input, Snapshot};
use crate::store::{self, Counters, EffectKind, EffectRow, NewSessionRow, Status};

use super::budget::Budget;
use super::create::Found;
use super::effects::Effects;
use super::frames::{self, EventDraft};
use super::live::Session;
use super::ports::{News, Offers, Place, PlaceSpec, Policy, Started, Stepped};
use super::record::{Begin, Draft, Round, STEPS_ALONE, Scene, ShownTree};
use super::{CloseReason, Shared};

/// How much is taken into one round.
const ROUND: usize = 64;

/// Why the rounds ended.
enum End {
    /// Somebody wants it to end.
    Stopped,
    /// The host goes down; the session does not.
    Halted,
    /// The open task took too long.
    TimedOut,
    /// There is no place to work in.
    NoPlace(String),
    /// The log cannot be written.
    Broken,
}

pub(super) struct Actor {
    shared: Arc<Shared>,
    session: Arc<Session>,
    fixed: Arc<NewSessionRow>,
    policy: Arc<dyn Policy>,
    offers: Offers,
    id: Arc<str>,
    chat: Arc<str>,
    counters: Counters,
    open: BTreeMap<String, EffectKind>,
    state: Option<Snapshot>,
    shown: ShownTree,
    queue: VecDeque<News>,
    news: mpsc::Receiver<Box<News>>,
    effects: Effects,
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Lives a session from where the log left it until its end.
pub(super) async fn live(
    shared: Arc<Shared>,
    session: Arc<Session>,
    found: Found,
    news: mpsc::Receiver<Box<News>>,
) {
    let id: Arc<str> = found.fixed.id.as_str().into();
    let models = &shared.deps.models;
    let offers = models.offers(&found.fixed.provider, &found.fixed.model);
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
            spec,
            found.api_key,
            found.fixed.clone(),
        ),
        chat: found.fixed.chat_id.as_str().into(),
        id,
        fixed: found.fixed,
        policy: found.policy,
        offers,
        counters: found.counters,
        open,
        state: found.state,
        shown: if begun {
            ShownTree::unknown()
        } else {
            ShownTree::empty()
        },
        queue: VecDeque::new(),
        news,
        shared,
        session,
    };
    if begun {
        actor.resume(found.open);
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
                EffectKind::Model | EffectKind::Tool => self.queue.push_back(News::Lost(effect.id)),
                EffectKind::Timer => self.effects.timer(effect.id, effect.due_at.unwrap_or(0)),
                EffectKind::Ask | EffectKind::Orphan => {}
            }
        }
    }

    async fn run(&mut self, begun: bool) -> End {
        if !begun && let Err(end) = self.provision().await {
            return end;
        }
        loop {
            if let Some(end) = self.wait().await {
                return end;
            }
            if let Err(end) = self.round().await {
                return end;
            }
        }
    }

    async fn provision(&mut self) -> Result<(), End> {
        let mut started = Started {
            workspace: "/workspace".to_owned(),
            ..Started::default()
        };
        if self.shared.deps.places.refusal().is_none() {
            // A clone takes its time, and the host may stop meanwhile.
            let id = self.id.clone();
            let noted = self
                .shared
                .deps
                .store
                .write(move |connection| store::mark_started(connection, &id));
            if let Err(cause) = noted.await {
                tracing::error!(session = %self.id, %cause, "the session's start could not be written");
                return Err(End::Broken);
            }
            // From here on the end of the session closes it, also while the repository comes.
            let place = self.effects.provision().await.map_err(End::NoPlace)?;
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Err(End::Stopped),
                () = self.shared.halt.cancelled() => return Err(End::Halted),
                fetched = place.fetch() => fetched.map_err(End::NoPlace)?,
            }
            self.effects.show_workspace(&*place);
            started = self.describe_place(&*place).await;
            self.effects.listen(place);
        }
        self.queue.push_front(News::Started(started));
        Ok(())
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
        let deadline = self.deadline();
        tokio::select! {
            biased;
            () = self.session.stop.cancelled() => return Some(End::Stopped),
            () = self.shared.halt.cancelled() => return Some(End::Halted),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                return Some(End::TimedOut);
            }
            () = std::future::ready(()), if !self.queue.is_empty() => {}
            news = self.news.recv() => self.queue.extend(news.map(|news| *news)),
        }
        while self.queue.len() < ROUND
            && let Ok(news) = self.news.try_recv()
        {
            self.queue.push_back(*news);
        }
        None
    }

    fn deadline(&self) -> Option<Instant> {
        self.counters
            .task_open
            .then(|| Instant::now() + self.time_left())
    }

    fn time_left(&self) -> Duration {
        let used = Duration::from_millis(now().saturating_sub(self.counters.task_started_at));
        self.shared.deps.limits.task_time.saturating_sub(used)
    }

    /// Takes what arrived, lets the policy decide, writes, shows, begins.
    async fn round(&mut self) -> Result<(), End> {
        let at = now();
        let (policy, fixed, places) = (
            self.policy.clone(),
            self.fixed.clone(),
            self.shared.deps.places.clone(),
        );
        let describe = move |call: &_| places.describe(call);
        let names = (self.id.clone(), self.chat.clone());
        let budget = Budget::new(&fixed, self.shared.deps.limits.iterations);
        let scene = Scene::new(&names, &fixed, policy.info(), budget, &describe);
        let scene = scene.with_offers(&self.offers);
        let mut draft = Draft::new(&scene, self.counters, self.open.clone(), at);
        draft.shown = self.shown;
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
        if draft.is_empty() {
            // Whatever came was too late.
            return Ok(());
        }
        if draft.inputs.is_empty() {
            // Something to see, and nothing to decide.
            let round = draft.close_round(Status::Running, None);
            return self.commit(round).await;
        }
        let limits = &self.shared.deps.limits;
        let spent = Duration::from_millis(at.saturating_sub(draft.counters.task_started_at));
        let context = Context {
            session: self.id.to_string(),
            step: draft.counters.step,
            now_ms: at,
            seed: rand::random(),
            iterations_left: budget.iterations_left(&draft.counters),
            tokens_left: budget.tokens_left(&draft.counters),
            cost_left: budget.cost_left(&draft.counters),
            millis_left: u64::try_from(limits.task_time.saturating_sub(spent).as_millis()).ok(),
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
            policy
                .step(&context, self.state.as_ref(), &draft.inputs)
                .await
        };
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
        let id = self.id.to_string();
        let first = move |connection: &_| store::logged_steps(connection, &id, 0);
        let steps = self.shared.deps.store.read(first).await.ok()?;
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
            begin,
        } = round;
        let (first, frames, counters) = (row.first_seq, row.frames.clone(), row.counters);
        if let Err(cause) = self
            .shared
            .deps
            .store
            .write(move |connection| row.insert(connection))
            .await
        {
            tracing::error!(session = %self.id, %cause, "a round could not be written; the session pauses until the next start");
            return Err(End::Broken);
        }
        self.counters = counters;
        self.open = open;
        self.shown = shown;
        if state.is_some() {
            self.state = state;
        }
        self.session.publish(first, &frames);
        for begin in begin {
            match begin {
                Begin::Model(call) => self
                    .effects
                    .model(call, self.counters.next_entry.saturating_sub(1)),
                Begin::Tool(run) => self.effects.tool(run),
                Begin::Timer(effect, due) => self.effects.timer(effect, due),
                Begin::Cancel(effect) => self.queue.extend(self.effects.cancel(effect)),
                Begin::CancelAll => self.effects.cancel_all(),
                Begin::News(news) => self.queue.push_back(news),
            }
        }
        self.effects.settle(&self.open);
        Ok(())
    }

    /// Ends the session, or pauses it, and gives back what it held.
    async fn end(mut self, end: End, status: Status) {
        self.effects.cancel_all();
        let (close, frame) = match end {
            End::Halted => {
                self.effects.close_place().await;
                return self.leave(CloseReason::restarting());
            }
            End::Broken => {
                self.effects.close_place().await;
                return self.leave(CloseReason::failed(
                    "The session's log could not be written.",
                ));
            }
            End::Stopped => {
                let reason = self.session.closing.get().cloned().unwrap_or_default();
                let frame = frames::status("stopping", &reason.reason, None);
                (reason, (status != Status::Stopping).then_some(frame))
            }
            End::TimedOut => {
                let limit = self.shared.deps.limits.task_time.as_secs();
                let reason = format!("The task took longer than {limit} seconds, and was ended.");
                (CloseReason::done(&reason), Some(frames::error(&reason)))
            }
            End::NoPlace(reason) => (CloseReason::done(&reason), Some(frames::error(&reason))),
        };
        // In this order: whoever looks now is told why, and what happens below cannot be undone.
        let _ = self.session.closing.set(close.clone());
        let held = self.effects.holds_place() || self.shared.deps.places.refusal().is_none();
        let status = if held {
            Status::Stopping
        } else {
            Status::Ended
        };
        let written = self.last_round(frame, status, &close).await;
        self.effects.close_place().await;
        if held && written {
            // What the log still calls alive goes on at the next start, and needs its workspace.
            match self.effects.wipe().await {
                Ok(()) => {
                    self.last_round(None, Status::Ended, &close).await;
                }
                // Still `stopping` in the log: the next start tries again.
                Err(cause) => {
                    tracing::error!(session = %self.id, cause, "what a session left could not be removed")
                }
            }
        }
        self.leave(close);
    }

    async fn last_round(
        &mut self,
        frame: Option<String>,
        status: Status,
        close: &CloseReason,
    ) -> bool {
        let (policy, fixed) = (self.policy.clone(), self.fixed.clone());
        let names = (self.id.clone(), self.chat.clone());
        let nothing = Budget::default();
        let scene = Scene::new(&names, &fixed, policy.info(), nothing, &|_| {
            EventDraft::default()
        });
        let mut draft = Draft::new(&scene, self.counters, BTreeMap::new(), now());
        if let Some(frame) = frame {
            draft.frame(frame);
        }
        draft.counters.task_open = false;
        let round = draft.close_round(status, Some(close.reason.clone()));
        self.commit(round).await.is_ok()
    }

    fn leave(self, reason: CloseReason) {
        self.shared.forget(&self.session);
        self.session.end(reason);
    }
}
