//! The effects of a session: model calls and timers run concurrently; tools, the environment's and
//! the deployment's alike, run one after the other.
//!
//! # Invariants
//! - An effect reports exactly once, into the session's mailbox, even if its work panics. A
//!   cancelled effect does not report: the canceller answers for it and says what it cost.
//! - Nothing here decides or writes.
//! - Dropping [`Effects`] ends all effects.

pub(crate) mod deltas;
pub(crate) mod environment;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::deltas::DeltaStream;
use self::environment::{EnvironmentEvents, EnvironmentHandle, SessionToolsSlot};
use super::handle::Session;
use super::message::{ActorMessage, Tree};
use super::ports::tools::{SEPARATOR, SessionTools, ToolOutput, ToolProvider};
use super::ports::{
    CallCost, Environment, EnvironmentError, EnvironmentSpec, Generation, ModelFailure,
    ModelRequest, Models, NewPullRequest, NoticeSink, PullRequestError, UsageMeter,
};
use super::round::{internal_error, prompt};
use super::shared::SessionsShared;
use super::stream::delta::DeltaSink;
use super::stream::frames::EventDraft;
use lucid_types::ids::EffectId;
use lucid_types::log::{EffectKind, SessionConfig};
use lucid_types::log_label::PluginCaller;
use lucid_types::metrics;
use lucid_types::secret::Secret;
use lucid_types::sentence::sentence;
use lucid_types::text::cut;
use lucid_types::wit::policy::{ModelCall, ToolRun};
use lucid_types::wit::types::{Error, ErrorKind, ToolCall};

/// Maximum length of a call in the host's log, in characters.
const LOGGED_CALL: usize = 120;

/// The result of a tool that was cancelled.
const CANCELLED: &str = "The agent cancelled this before it was done.";
const FAILED_WITH_AGENT: &str = "This was given up before it was done, since the agent failed.";

pub(super) struct Effects {
    shared: Arc<SessionsShared>,
    session: Arc<Session>,
    fixed: Arc<SessionConfig>,
    /// The models that answer requests from here on.
    models: Arc<dyn Models>,
    spec: EnvironmentSpec,
    api_key: Option<Secret>,
    running: HashMap<EffectId, RunningEffect>,
    waiting: VecDeque<ToolRun>,
    /// The running tool's effect and description.
    tool: Option<(EffectId, String)>,
    /// Actions shown to clients for tools that run or wait, by effect.
    actions: HashMap<EffectId, EventDraft>,
    /// The host is coming to rest: no new effect begins.
    paused: bool,
    /// Model calls that did not begin because of that.
    not_begun_calls: Vec<EffectId>,
    /// Filled once, by provisioning or by the first tool after a restart.
    environment: Arc<tokio::sync::OnceCell<Arc<dyn Environment>>>,
    /// Whether the repository must be cloned again when the environment is opened.
    fetch: Arc<AtomicBool>,
    /// The deployment's tools, for calls from here on.
    tools_slot: SessionToolsSlot,
    /// Tools of older generations, which are closed before the next tool begins.
    old_tools: Vec<SessionToolsSlot>,
    listener: EnvironmentEvents,
    /// The task that opens a pull request, if one is to be opened.
    change: Option<AbortOnDropHandle<()>>,
    /// The step for which effects are started.
    step: u64,
}

/// A started effect.
struct RunningEffect {
    work: AbortHandle,
    stream: Arc<DeltaStream>,
    meter: UsageMeter,
    /// When it expires, if it is a timer.
    due: Option<Instant>,
}

impl RunningEffect {
    /// Cancels the effect and returns what it has cost so far. Returns `None` if its own report is
    /// in the mailbox or on its way there.
    fn cancel(&self) -> Option<Option<CallCost>> {
        self.stream.finish(false).then(|| {
            self.work.abort();
            self.meter.latest()
        })
    }
}

impl Drop for Effects {
    fn drop(&mut self) {
        self.cancel_all();
        self.listener.closed.cancel();
    }
}

impl Effects {
    pub(super) fn new(
        shared: Arc<SessionsShared>,
        session: Arc<Session>,
        generation: &Generation,
        spec: EnvironmentSpec,
        api_key: Option<Secret>,
        fixed: Arc<SessionConfig>,
    ) -> Self {
        let listener = EnvironmentEvents {
            mailbox: session.mailbox.clone(),
            tree_counter: Arc::default(),
            closed: CancellationToken::new(),
        };
        Self {
            listener,
            shared,
            session,
            fixed,
            models: generation.models.clone(),
            tools_slot: SessionToolsSlot::new(generation.tools.clone()),
            old_tools: Vec::new(),
            spec,
            api_key,
            running: HashMap::new(),
            waiting: VecDeque::new(),
            tool: None,
            actions: HashMap::new(),
            paused: false,
            not_begun_calls: Vec::new(),
            environment: Arc::default(),
            fetch: Arc::default(),
            change: None,
            step: 0,
        }
    }

    /// Opens a pull request with the session's token or its user's account. It is not an effect of
    /// the policy, and continues when those are cancelled.
    pub(super) fn change(&mut self, request: NewPullRequest) {
        if self.paused {
            // It is open in the log, so the next start opens it.
            return;
        }
        let request = NewPullRequest {
            token: self.spec.git_token.clone(),
            ..request
        };
        let (changes, mailbox) = (
            self.shared.deps.pull_requests.clone(),
            self.session.mailbox.clone(),
        );
        let work = async move {
            let opened = AssertUnwindSafe(changes.open(request)).catch_unwind().await;
            let opened = opened.unwrap_or(Err(PullRequestError::Panicked));
            let message = ActorMessage::PullRequest(opened);
            let _ = mailbox.send(Box::new(message)).await;
        };
        let caller = PluginCaller::session(self.spec.session).at_step(self.step);
        self.change = Some(AbortOnDropHandle::new(tokio::spawn(caller.scope(work))));
    }

    /// Attributes what is started from here on to this step.
    pub(super) fn at_step(&mut self, step: u64) {
        self.step = step;
    }

    /// Creates a new, empty environment for the session, which is closed at the session's end from
    /// here on.
    pub(super) async fn provision(&mut self) -> Result<Arc<dyn Environment>, EnvironmentError> {
        let environment = self
            .shared
            .deps
            .environments
            .provision(self.spec.clone())
            .await?;
        // Nothing else fills it: tools begin later.
        let _ = self.environment.set(environment.clone());
        Ok(environment)
    }

    /// Makes the files available at once after a restart; the sandbox is created for the first
    /// tool.
    pub(super) fn reopen_workspace(&mut self) {
        if self.shared.deps.environments.has_workspace(&self.spec) {
            self.session.show_workspace();
        }
    }

    /// Replaces lost files: from here on the session has an empty folder, and its repository is
    /// cloned again.
    pub(super) fn renew_workspace(&mut self) {
        if self.shared.deps.environments.recreate_workspace(&self.spec) {
            self.session.show_workspace();
        }
        self.fetch.store(true, Ordering::Relaxed);
    }

    /// Uses this generation from here on. Running effects are not disturbed, and tools that are the
    /// same in both generations stay open.
    pub(super) fn adopt(&mut self, generation: &Generation) {
        self.models = generation.models.clone();
        if !Arc::ptr_eq(&self.tools_slot.tools, &generation.tools) {
            let tools_slot = SessionToolsSlot::new(generation.tools.clone());
            let old = std::mem::replace(&mut self.tools_slot, tools_slot);
            // A tool that runs may be opening them just now.
            if old.is_open() || self.tool.is_some() {
                self.old_tools.push(old);
            }
        }
    }

    /// The deployment's tools beside the environment's.
    pub(super) fn tools(&self) -> &Arc<dyn ToolProvider> {
        &self.tools_slot.tools
    }

    /// Opens the tools for a session that begins; `None` if its policy has none.
    pub(super) fn open_tools(
        &self,
        environment: Option<Arc<dyn Environment>>,
    ) -> impl Future<Output = Option<Arc<dyn SessionTools>>> + Send + 'static {
        let any = self.tools_slot.tools.any_for(&self.fixed.policy);
        let handle = any.then(|| self.environment_handle());
        async move {
            match handle {
                Some(handle) => Some(handle.tools(environment).await),
                None => None,
            }
        }
    }

    /// Reads the current file tree.
    pub(super) async fn tree(&self, environment: &dyn Environment) -> Option<Tree> {
        self.listener.tree(environment).await
    }

    /// Shows changes of the file tree from here on, even while no tool runs.
    pub(super) fn listen(&self, environment: Arc<dyn Environment>) {
        self.listener.listen(environment);
    }

    fn spawn(
        &mut self,
        stream: Arc<DeltaStream>,
        effect: EffectId,
        meter: UsageMeter,
        work: impl Future<Output = ActorMessage> + Send + 'static,
    ) {
        let mailbox = self.session.mailbox.clone();
        let running = (effect.clone(), stream.clone(), meter.clone());
        let caller = PluginCaller::session(self.spec.session).at_step(self.step);
        let task = tokio::spawn(caller.scope(async move {
            let message = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(message) => message,
                Err(_) => {
                    let what = "The server could not carry this out: its own work came to grief.";
                    word_of(
                        effect,
                        internal_error(ErrorKind::Internal, what),
                        meter.latest(),
                    )
                }
            };
            let stands = !matches!(
                message,
                ActorMessage::Model(_, Err(_))
                    | ActorMessage::Tool(_, Err(_), _)
                    | ActorMessage::Failed(..)
            );
            if stream.finish(stands) {
                // The session may be over.
                let _ = mailbox.send(Box::new(message)).await;
            }
        }));
        let (effect, stream, meter) = running;
        let running = RunningEffect {
            work: task.abort_handle(),
            stream,
            meter,
            due: None,
        };
        self.running.insert(effect, running);
    }

    fn stream(&self, effect: &EffectId) -> Arc<DeltaStream> {
        DeltaStream::new(self.session.clone(), effect.clone())
    }

    /// Starts a timer that expires after `left`.
    pub(super) fn timer(&mut self, effect: EffectId, left: Duration) {
        let (name, timer) = (effect.clone(), effect.clone());
        let due = Instant::now().checked_add(left);
        let stream = self.stream(&effect);
        self.spawn(stream, effect, UsageMeter::default(), async move {
            if !left.is_zero() {
                tokio::time::sleep(left).await;
            }
            ActorMessage::Timer(name)
        });
        if let Some(running) = self.running.get_mut(&timer) {
            running.due = due;
        }
    }

    /// When the next timer expires.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.running.values().filter_map(|effect| effect.due).min()
    }

    /// Returns whether nothing runs but timers, and nothing is held that a restart would not bring back.
    pub(super) fn are_at_rest(&self) -> bool {
        let runs = !self.running.values().all(|effect| effect.due.is_some())
            || self.tool.is_some()
            || !self.waiting.is_empty()
            || !self.not_begun_calls.is_empty();
        let is_to_fetch = self.fetch.load(Ordering::Relaxed);
        let lives = || self.shared.deps.environments.is_alive(&self.spec);
        !runs && !self.hold_anything() && !is_to_fetch && !lives()
    }

    /// Returns whether an environment or tools of the deployment are open.
    pub(super) fn hold_anything(&self) -> bool {
        self.has_environment() || self.tools_slot.is_open() || !self.old_tools.is_empty()
    }

    pub(super) fn model(&mut self, mut call: ModelCall, last_entry: u64) {
        let effect = EffectId::from(call.effect.as_str());
        if self.paused {
            return self.not_begun_calls.push(effect);
        }
        let (shared, session) = (self.shared.clone(), self.fixed.clone());
        let models = self.models.clone();
        let stream = self.stream(&effect);
        let sink: DeltaSink = if call.aside {
            Arc::new(|_, _: &str| {})
        } else {
            sink(&stream)
        };
        let meter = UsageMeter::default();
        let notices = self.notices(&effect);
        let api_key = self.api_key.clone();
        self.spawn(stream, effect.clone(), meter.clone(), async move {
            let parts = std::mem::take(&mut call.prompt);
            if call.model.is_empty() {
                call.model.clone_from(&session.model);
            }
            let answer = match prompt::resolve(
                &*shared.deps.log,
                (session.id, &session.user),
                parts,
                last_entry,
            )
            .await
            {
                Ok(messages) => {
                    let request = ModelRequest {
                        session: session.id,
                        provider: session.provider.clone(),
                        model: session.model.clone(),
                        api_key,
                        cost_limited: session.cost_limit.is_some(),
                        call,
                        messages,
                        meter,
                        notices,
                    };
                    models.call(request, sink).await
                }
                Err(cause) => Err(internal_error(ErrorKind::Internal, cause.to_string()).into()),
            };
            ActorMessage::Model(effect, answer)
        });
    }

    /// Returns a sink into the session's mailbox. Sending does nothing if the session is over.
    fn notices(&self, effect: &EffectId) -> NoticeSink {
        let (mailbox, effect) = (self.session.mailbox.clone(), effect.clone());
        Arc::new(move |text| {
            let (mailbox, effect) = (mailbox.clone(), effect.clone());
            async move {
                let message = Box::new(ActorMessage::ModelNotice(effect, text));
                let _ = mailbox.send(message).await;
            }
            .boxed()
        })
    }

    pub(super) fn tool(&mut self, run: ToolRun) {
        let beside = self
            .tools_slot
            .tools
            .describe(&self.fixed.policy, &run.call);
        let action = beside.unwrap_or_else(|| self.shared.deps.environments.describe(&run.call));
        self.actions.insert(run.effect.as_str().into(), action);
        self.waiting.push_back(run);
    }

    /// Forgets finished effects, and begins the next tool if none runs.
    pub(super) fn prune_finished(&mut self, open: &BTreeMap<EffectId, EffectKind>) {
        self.running.retain(|effect, _| open.contains_key(effect));
        self.actions.retain(|effect, _| open.contains_key(effect));
        self.tool.take_if(|(effect, _)| !open.contains_key(effect));
        if self.tool.is_none()
            && !self.paused
            && let Some(run) = self.waiting.pop_front()
        {
            self.tool = Some((run.effect.as_str().into(), summary(&run.call)));
            self.begin_tool(run);
        }
        if self.running.is_empty() {
            self.running.shrink_to_fit();
        }
    }

    /// Stops starting effects; running ones continue.
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    /// Returns whether this effect runs, or ran and its result is still to be written.
    pub(super) fn runs(&self, effect: &EffectId) -> bool {
        self.running.contains_key(effect)
    }

    /// Returns whether a tool is running or its result is still to be written.
    pub(super) fn runs_tool(&self) -> bool {
        self.tool.is_some()
    }

    /// Returns whether this effect is the running tool.
    pub(super) fn is_tool(&self, effect: &EffectId) -> bool {
        self.tool.as_ref().is_some_and(|(tool, _)| tool == effect)
    }

    /// Returns the description of the running tool.
    pub(super) fn running_tool(&self) -> Option<String> {
        self.tool.as_ref().map(|(_, what)| what.clone())
    }

    /// Returns the open effects that did not begin before the pause.
    pub(super) fn not_begun(&self, open: &BTreeMap<EffectId, EffectKind>) -> Vec<EffectId> {
        let waiting = self.waiting.iter().map(|run| run.effect.as_str().into());
        let all = self.not_begun_calls.iter().cloned().chain(waiting);
        all.filter(|effect| open.contains_key(effect)).collect()
    }

    /// Listens again to a sandbox that survived a restart of the host. A failure is reported by the
    /// next tool, which tries again.
    pub(super) fn resume_listening(&mut self) {
        if self.shared.deps.environments.is_alive(&self.spec) {
            let (handle, over) = (self.environment_handle(), self.listener.closed.clone());
            tokio::spawn(over.run_until_cancelled_owned(async move {
                let _ = handle.open().await;
            }));
        }
    }

    fn environment_handle(&self) -> EnvironmentHandle {
        EnvironmentHandle {
            shared: self.shared.clone(),
            session: self.session.clone(),
            spec: self.spec.clone(),
            policy: self.fixed.policy.clone(),
            environment: self.environment.clone(),
            fetch: self.fetch.clone(),
            tools_slot: self.tools_slot.clone(),
            listener: self.listener.clone(),
        }
    }

    /// Returns whether a call addresses one of the deployment's tools and none of the
    /// environment's.
    fn is_deployment_tool(&self, call: &ToolCall) -> bool {
        let (tools, policy) = (&self.tools_slot.tools, &self.fixed.policy);
        call.name.contains(SEPARATOR) && tools.describe(policy, call).is_some()
    }

    fn begin_tool(&mut self, run: ToolRun) {
        let effect = EffectId::from(run.effect.as_str());
        let (handle, stream) = (self.environment_handle(), self.stream(&effect));
        let deltas = sink(&stream);
        let is_deployment_tool = self.is_deployment_tool(&run.call);
        let left = std::mem::take(&mut self.old_tools);
        let name = run.call.name.clone();
        self.spawn(stream, effect.clone(), UsageMeter::default(), async move {
            for tools_slot in left {
                tools_slot.close().await;
            }
            let begun = Instant::now();
            let opened = if is_deployment_tool {
                handle.try_open().await
            } else {
                handle.open().await.map(Some)
            };
            let environment = match opened {
                Ok(environment) => environment,
                Err(error) => {
                    metrics::tool(&name, false, begun.elapsed());
                    let error = internal_error(ErrorKind::Unsupported, sentence(error));
                    return ActorMessage::Tool(effect, Err(error), None);
                }
            };
            // The first of a session also opened its sandbox.
            let begun = Instant::now();
            let done = match &environment {
                Some(environment) if !is_deployment_tool => {
                    environment.run(run.call, run.timeout_ms, deltas).await
                }
                _ => {
                    let tools = handle.tools(environment.clone()).await;
                    let events = handle.events(&effect);
                    let showing = ToolOutput { deltas, events };
                    let done = tools.run(run.call, run.timeout_ms, showing).await;
                    handle.forward_notices(&*tools).await;
                    done
                }
            };
            let succeeded = done.as_ref().is_ok_and(|done| !done.result.is_error);
            metrics::tool(&name, succeeded, begun.elapsed());
            // Before the tool's result, so that it is known when the task ends.
            if let Some(environment) = &environment
                && let Some(branch) = environment.pushed().await
            {
                let pushed = Box::new(ActorMessage::Pushed(branch));
                let _ = handle.listener.mailbox.send(pushed).await;
            }
            let tree = match &environment {
                Some(environment) if !environment.tree_can_wait() => {
                    handle.listener.tree(&**environment).await
                }
                _ => None,
            };
            ActorMessage::Tool(effect, done.map(Box::new), tree)
        });
    }

    /// Cancels an effect. The returned messages go into the mailbox in this order; there are none
    /// if the effect finished first, since its own result is then in the mailbox already.
    pub(super) fn cancel(&mut self, effect: EffectId) -> Vec<ActorMessage> {
        let mut cost = None;
        if let Some(running) = self.running.get(&effect) {
            let Some(told) = running.cancel() else {
                return Vec::new();
            };
            cost = told;
        }
        self.waiting.retain(|run| run.effect != effect.as_str());
        self.not_begun_calls.retain(|held| *held != effect);
        let mut message = Vec::new();
        // Clients that were shown the action wait for its outcome.
        if let Some(action) = self.actions.remove(&effect) {
            let (told, _) = oneshot::channel();
            let event = Box::new(closing_event(action, CANCELLED));
            message.push(ActorMessage::Announcement(effect.clone(), event, told));
        }
        let error = internal_error(ErrorKind::Cancelled, "It was given up.");
        message.push(word_of(effect, error, cost));
        message
    }

    /// Returns the closing event for the action of each tool that runs or waits, for use when the
    /// agent fails.
    pub(super) fn closing_events(&self) -> Vec<(EffectId, EventDraft)> {
        let answered = |(effect, action): (&EffectId, &EventDraft)| {
            (
                effect.clone(),
                closing_event(action.clone(), FAILED_WITH_AGENT),
            )
        };
        let mut all: Vec<_> = self.actions.iter().map(answered).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// Cancels all effects, and returns what the model calls among them have cost so far.
    pub(super) fn cancel_all(&mut self) -> Vec<(EffectId, CallCost)> {
        self.waiting.clear();
        self.not_begun_calls.clear();
        self.tool = None;
        let given_up = self.running.drain();
        given_up
            .filter_map(|(effect, running)| Some((effect, running.cancel()??)))
            .collect()
    }

    /// Returns whether the session brought its own API key.
    pub(super) fn has_key(&self) -> bool {
        self.api_key.is_some()
    }

    pub(super) fn has_environment(&self) -> bool {
        self.environment.initialized()
    }

    /// Closes the deployment's tools, and then the environment that they may live in.
    pub(super) async fn close_environment(&mut self) {
        self.listener.closed.cancel();
        for tools_slot in self.old_tools.drain(..) {
            tools_slot.close().await;
        }
        self.tools_slot.close().await;
        if let Some(environment) = self.environment.get() {
            environment.close().await;
        }
    }

    /// Releases the sandbox and what the deployment's tools hold. The next call that needs a
    /// sandbox opens another one over the same workspace.
    pub(super) async fn release_sandbox(&mut self) {
        self.close_environment().await;
        self.environment = Arc::default();
        self.tools_slot = SessionToolsSlot::new(self.tools_slot.tools.clone());
        self.listener.closed = CancellationToken::new();
    }

    /// Removes what is stored for the session beside its files.
    pub(super) async fn release(&mut self) {
        self.shared
            .deps
            .environments
            .release(self.spec.clone())
            .await;
    }

    pub(super) async fn remove_environment(&mut self) -> Result<(), EnvironmentError> {
        self.shared
            .deps
            .environments
            .remove(self.spec.clone())
            .await
    }
}

/// The closing event of an action whose tool was cancelled.
fn closing_event(action: EventDraft, sentence: &str) -> EventDraft {
    let kind = action.event_type.strip_suffix("Action");
    let answer = match kind {
        Some(file) if file.starts_with("File") => format!("{file}Observation"),
        _ => "CmdOutputObservation".to_owned(),
    };
    EventDraft {
        path: action.path,
        ..EventDraft::text(&answer, sentence)
    }
}

/// A tool's name and the beginning of its arguments, for the host's log.
fn summary(call: &ToolCall) -> String {
    let whole = format!("{} {}", call.name, call.arguments);
    let line = whole.lines().next().unwrap_or_default();
    cut(line, LOGGED_CALL).to_owned()
}

fn sink(stream: &Arc<DeltaStream>) -> DeltaSink {
    let stream = stream.clone();
    Arc::new(move |kind, text| stream.push(kind, text))
}

/// The report of an effect that has no result, with what it cost nevertheless.
fn word_of(effect: EffectId, error: Error, cost: Option<CallCost>) -> ActorMessage {
    match cost {
        None => ActorMessage::Failed(effect, error),
        Some(cost) => {
            let cost = Some(Box::new(cost));
            ActorMessage::Model(effect, Err(ModelFailure { error, cost }))
        }
    }
}
