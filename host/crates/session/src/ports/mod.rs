//! What the engine needs of the rest of the host, as small traits. What it needs of tools beside the sandbox's
//! own is in `tools`.
//!
//! # Invariants
//!
//! - The engine reaches policies, models and environments only through these, so it runs in a test with none of
//!   them.
//! - A failure is a sentence or an [`Error`]; nothing here panics.
//! - Dropping a returned future abandons the work.

pub(crate) mod tools;

use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use lucid_types::exec::{ExecError, ExecRequest, ExecResult, Process};
use lucid_types::secret::Secret;
use lucid_types::transient::Transient;
use lucid_types::wit::policy::{Context, Input, ModelCall, ModelOffer, Snapshot, Transition};
use lucid_types::wit::types::{
    Error, Message, StopReason, ToolCall, ToolDefinition, ToolResult, Usage,
};

use self::tools::ToolProvider;
use super::CreateError;
use super::handle::held;
use super::stream::frames::EventDraft;
use super::traffic_split::SplitSlot;

/// What the engine must know of a policy.
#[derive(Debug, Clone, Default)]
pub struct PolicyInfo {
    /// Lower case, such as `coder`.
    pub name: String,
    /// Names the very component that decides, in the log.
    pub digest: String,
    /// A session needs a provider and a key.
    pub calls_models: bool,
    /// A session is refused where there is no sandbox.
    pub needs_sandbox: bool,
    /// It is the rehearsal: clients are told `mock_mode`.
    pub mock: bool,
    /// The deployment's settings for it, a JSON object.
    pub settings: String,
    /// The schema of the states it writes.
    pub schema: u32,
    /// The oldest schema it can take over.
    pub oldest_schema: u32,
}

/// What a step gave, and what it cost.
#[derive(Debug)]
pub struct StepOutcome {
    /// The transition, or a sentence.
    pub result: Result<Transition, String>,
    /// Instructions, roughly.
    pub fuel: u64,
    /// In bytes.
    pub memory: u64,
    /// In microseconds.
    pub micros: u64,
}

/// One policy. Pure: the same arguments give the same transition.
pub trait SessionPolicy: Send + Sync {
    /// What it is.
    fn info(&self) -> &PolicyInfo;
    /// One step.
    fn step<'a>(
        &'a self,
        context: &'a Context,
        state: Option<&'a Snapshot>,
        inputs: &'a [Input],
    ) -> BoxFuture<'a, StepOutcome>;
    /// What becomes of the state that an older build left, or a sentence.
    fn migrate<'a>(&'a self, old: &'a Snapshot) -> BoxFuture<'a, Result<Snapshot, String>>;
}

/// The policies of the deployment.
pub trait Policies: Send + Sync {
    /// The one of that name, or the deployment's default.
    fn find(&self, name: Option<&str>) -> Result<Arc<dyn SessionPolicy>, CreateError>;
    /// The one that goes on with a session of the policy of this name, which the component of this
    /// digest had so far: that very component where it is still there, or else its successor.
    fn successor(&self, name: &str, digest: &str) -> Option<Arc<dyn SessionPolicy>>;
    /// The build that a new session begins with: of a policy with a candidate, the one whose turn it is.
    fn assign(&self, name: Option<&str>) -> Result<BuildAssignment, CreateError>;
    /// The build that was there before the one of this digest, while that is on probation: it takes a
    /// step that this one fails.
    fn fallback(&self, name: &str, digest: &str) -> Option<Arc<dyn SessionPolicy>>;
    /// Tells how a step of a session went with the build of this digest.
    fn record_step(&self, name: &str, digest: &str, session: &str, verdict: StepVerdict);
    /// The name of the one that this user or this project gets in place of the deployment's default.
    fn assigned(&self, user: &str, project: Option<&str>) -> Option<&str>;
}

/// The build for a new session.
pub struct BuildAssignment {
    /// The build.
    pub policy: Arc<dyn SessionPolicy>,
    /// Whose turn it was, where there are two.
    pub slot: Option<SplitSlot>,
}

impl From<Arc<dyn SessionPolicy>> for BuildAssignment {
    fn from(policy: Arc<dyn SessionPolicy>) -> Self {
        Self { policy, slot: None }
    }
}

/// How a step went with a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepVerdict {
    /// Well.
    Ok,
    /// It failed: it broke down, refused, or met a limit. No other build that was asked failed as well,
    /// so it is the build's fault.
    Failed,
}

/// The deployment as it is at some time: who decides, and who answers. It never changes; another one
/// takes its place.
pub struct Generation {
    /// Counted up from 1.
    pub number: u64,
    /// Who decides.
    pub policies: Arc<dyn Policies>,
    /// Who answers.
    pub models: Arc<dyn Models>,
    /// What sessions can run beside what their sandbox has. The very same one as in the generation
    /// before where nothing about it changed: sessions then keep what they have open.
    pub tools: Arc<dyn ToolProvider>,
}

/// The deployment, whose generations follow one another.
pub type Deployment = watch::Receiver<Arc<Generation>>;

/// Who answers a session's model calls.
#[derive(Debug, Clone, Default)]
pub struct ModelSelection {
    /// Its name in this deployment.
    pub name: String,
    /// The model, where the policy names none.
    pub model: String,
}

/// The models that a session's policy may call.
#[derive(Debug, Clone)]
pub struct AvailableModels {
    /// The session's own.
    pub model: ModelOffer,
    /// A cheaper one of the same provider; the session's own where there is none.
    pub small: ModelOffer,
    /// The names of all.
    pub names: Vec<String>,
}

impl AvailableModels {
    /// One model, of which nothing is known but its name.
    pub fn only(model: &str) -> Self {
        let offer = ModelOffer {
            name: model.to_owned(),
            context_tokens: 0,
            output_tokens: 0,
            images: false,
        };
        Self {
            model: offer.clone(),
            small: offer,
            names: vec![model.to_owned()],
        }
    }
}

/// A model call with its prompt resolved.
pub struct ModelRequest {
    /// Whose.
    pub session: String,
    /// Who answers, unless the policy names a model of another provider.
    pub provider: String,
    /// The session's model, which is always allowed.
    pub model: String,
    /// The session's own key; without one the deployment's is used.
    pub api_key: Option<Secret>,
    /// The session has a limit for its cost, so no model is asked whose price nobody knows.
    pub cost_limited: bool,
    /// As the policy asked, with the model's name filled in.
    pub call: ModelCall,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Where to say what it took so far.
    pub meter: UsageMeter,
    /// Where to say that the provider is down, or answers again.
    pub notices: NoticeSink,
}

/// What a model call took as far as the provider has told: all that is known of one that is given up.
#[derive(Debug, Clone, Default)]
pub struct UsageMeter(Arc<Mutex<Option<CallCost>>>);

impl UsageMeter {
    /// So much it is by now, all tries together.
    pub fn report(&self, cost: CallCost) {
        *held(&self.0) = Some(cost);
    }

    pub(super) fn latest(&self) -> Option<CallCost> {
        held(&self.0).clone()
    }
}

/// What a model call gave.
#[derive(Debug)]
pub struct ModelAnswer {
    /// What the model said.
    pub message: Message,
    /// Why it stopped.
    pub stop: StopReason,
    /// What the answer itself used: it tells a policy how long its prompt was.
    pub usage: Usage,
    /// What it took, tries that broke off included.
    pub cost: CallCost,
    /// It is for the policy, not for the user.
    pub aside: bool,
}

/// What a model call took, whether or not an answer came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct CallCost {
    /// What it used, all tries together.
    pub usage: Usage,
    /// What that cost, in millionths of a US dollar; none where nobody knows the model's prices.
    pub cost: Option<u64>,
    /// Who answered.
    pub provider: String,
    /// Which model answered.
    pub model: String,
    /// How often the provider was asked.
    pub tries: u32,
}

/// Why no answer came.
#[derive(Debug)]
pub struct ModelFailure {
    /// What went wrong.
    pub error: Error,
    /// What tries that broke off took, as far as the provider said.
    pub cost: Option<Box<CallCost>>,
}

impl From<Error> for ModelFailure {
    fn from(error: Error) -> Self {
        Self { error, cost: None }
    }
}

/// A piece of something that is still going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaKind {
    /// The model's text.
    Text,
    /// The model's reasoning.
    Thinking,
    /// What a command prints.
    Terminal,
    /// No piece: what was shown of the effect so far is void, since it begins again.
    Reset,
}

/// Takes what can be shown before an effect is done. Never waits; may lose.
pub type DeltaSink = Arc<dyn Fn(DeltaKind, &str) + Send + Sync>;

/// Tells people of something about an effect while it goes on. Done when it is in the session's queue.
pub type NoticeSink = Arc<dyn Fn(String) -> BoxFuture<'static, ()> + Send + Sync>;

/// The deployment's model providers.
pub trait Models: Send + Sync {
    /// The provider of that name, or the default one, and the model of that name, or its default one.
    /// Fails where either is unknown or not allowed, or where neither the caller nor the deployment
    /// has a key.
    fn find(
        &self,
        name: Option<&str>,
        model: Option<&str>,
        has_key: bool,
    ) -> Result<ModelSelection, CreateError>;
    /// The server that a user's own key for this provider goes to, as `https://host:port`; none where
    /// there is no such provider.
    fn server(&self, provider: &str) -> Option<String>;
    /// Why a session with a limit for its cost cannot have this model: nobody knows its price.
    fn check_priced(&self, provider: &str, model: &str, has_key: bool) -> Option<CreateError>;
    /// What the policy of a session with this provider and model may call; of models whose price is
    /// known alone where `priced` is set. The session has a key of its own, or none.
    fn available(
        &self,
        provider: &str,
        model: &str,
        priced: bool,
        has_key: bool,
    ) -> AvailableModels;
    /// Asks the provider, where that is cheap, whether it takes the key. Only a clear no fails.
    fn check(
        &self,
        provider: &str,
        api_key: Option<Secret>,
    ) -> BoxFuture<'static, Result<(), CreateError>>;
    /// Asks the model.
    fn call(
        &self,
        request: ModelRequest,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ModelAnswer, ModelFailure>>;
}

/// What a place is made for.
#[derive(Debug, Clone, Default)]
pub struct EnvironmentSpec {
    /// The session.
    pub session: String,
    /// Whose it is.
    pub user: String,
    /// What to clone.
    pub repo_url: Option<String>,
    /// With which token.
    pub git_token: Option<Secret>,
    /// Which branch.
    pub branch: Option<String>,
    /// For commits.
    pub git_user_name: Option<String>,
    /// For commits.
    pub git_user_email: Option<String>,
    /// The session's model sees pictures.
    pub images: bool,
}

/// Why there is no place.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{sentence}")]
pub struct EnvironmentError {
    sentence: String,
    /// Why it failed now, where the same may succeed later.
    pub transient: Option<Transient>,
}

impl EnvironmentError {
    /// What an error says. It passes where an error of the operating system below it does; a disk that may
    /// not be written at all stays so.
    pub fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut causes = std::iter::successors(Some(error), |cause| cause.source());
        let system = causes.find_map(|cause| cause.downcast_ref::<std::io::Error>());
        Self {
            sentence: error.to_string(),
            transient: system
                .and_then(Transient::of_io)
                .filter(|reason| *reason != Transient::ReadOnly),
        }
    }
}

impl From<String> for EnvironmentError {
    fn from(sentence: String) -> Self {
        Self {
            sentence,
            transient: None,
        }
    }
}

/// Where work happens.
pub trait EnvironmentProvider: Send + Sync {
    /// Why there can be none; none where there can.
    fn refusal(&self) -> Option<String>;
    /// What a tool call looks like before it runs. Pure.
    fn describe(&self, call: &ToolCall) -> EventDraft;
    /// A new, empty place: what was left of an earlier try is wiped. Takes moments, and is not given
    /// up half way.
    fn provision(
        &self,
        spec: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, EnvironmentError>>;
    /// A sandbox over the workspace that is there.
    fn reopen(
        &self,
        spec: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, String>>;
    /// Whether the session's sandbox lived on while the host was away, so that somebody must listen
    /// to it.
    fn is_alive(&self, spec: &EnvironmentSpec) -> bool;
    /// What keeps a session's commands in now, such as `bubblewrap`; none while it has no sandbox.
    fn sandbox_of(&self, session: &str) -> Option<String>;
    /// Returns whether a session's workspace exists.
    fn has_workspace(&self, spec: &EnvironmentSpec) -> bool;
    /// Creates an empty workspace in place of one that is gone, and returns whether it exists.
    fn recreate_workspace(&self, spec: &EnvironmentSpec) -> bool;
    /// Gives back what is kept for a session that is over, and leaves its files.
    fn release(&self, spec: EnvironmentSpec) -> BoxFuture<'static, ()>;
    /// Whether the disk is so short of space that files of sessions that are over should go.
    fn is_disk_short(&self) -> BoxFuture<'static, bool>;
    /// Removes what a session left. Nothing left is fine.
    fn remove(&self, spec: EnvironmentSpec) -> BoxFuture<'static, Result<(), String>>;
}

/// What a tool gave.
#[derive(Debug)]
pub struct ToolResultWithEvent {
    /// What the model reads.
    pub result: ToolResult,
    /// What a person sees.
    pub event: EventDraft,
    /// What a person is to know besides, such as that the workspace is full.
    pub notices: Vec<EventDraft>,
}

impl ToolResultWithEvent {
    /// A call that came to nothing; the sentence is for the model and the person alike.
    pub fn failed(call: &ToolCall, sentence: impl Into<String>) -> Self {
        let text = sentence.into();
        Self {
            event: EventDraft::text("AgentErrorObservation", &text),
            result: ToolResult {
                call_id: call.id.clone(),
                is_error: true,
                text,
                exit_code: None,
                blobs: Vec::new(),
            },
            notices: Vec::new(),
        }
    }
}

/// Takes what a command writes, as it comes.
pub type OutputSink = Box<dyn FnMut(&[u8]) + Send>;

/// A sandbox over a workspace.
pub trait Environment: Send + Sync {
    /// The folder, as commands see it.
    fn root(&self) -> String;
    /// Brings the session's repository into it, where it has one. Given up, it leaves a place that
    /// can only be closed.
    fn fetch(&self) -> BoxFuture<'static, Result<(), String>>;
    /// Waits for something about the place that a person should know: that its sandbox was lost, or is
    /// another kind than this deployment's. None where there is nothing more to come.
    fn notice(&self) -> BoxFuture<'static, Option<String>>;
    /// What the repository tells agents.
    fn instructions(&self) -> BoxFuture<'static, Vec<String>>;
    /// What can be run.
    fn definitions(&self) -> Vec<ToolDefinition>;
    /// Runs a tool. A tool that fails is a result, an error is the host's own.
    fn run(
        &self,
        call: ToolCall,
        timeout_ms: Option<u32>,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>>;
    /// Runs a program in the sandbox to its end, for one of the deployment's tools. Nobody is shown it:
    /// that is for whoever calls, and comes first. Dropping the future kills it.
    fn exec(
        &self,
        request: ExecRequest,
        output: OutputSink,
    ) -> BoxFuture<'static, Result<ExecResult, ExecError>>;
    /// Starts a program in the sandbox that stays open, for one of the deployment's tools. It ends when
    /// its output is dropped, and with the sandbox.
    fn spawn(&self, request: ExecRequest) -> BoxFuture<'static, Result<Process, ExecError>>;
    /// The branch of its repository that was pushed since this was last asked.
    fn pushed(&self) -> BoxFuture<'static, Option<String>>;
    /// The workspace's tree, as the JSON of a list of nodes.
    fn tree(&self) -> BoxFuture<'static, Option<String>>;
    /// Waits until the tree may be another than the last one that was given, and until another one
    /// may be given: two in a second, and fewer of a large one. False where that cannot be known.
    fn changed(&self) -> BoxFuture<'static, bool>;
    /// Whether another tree is not to be given yet, and `changed` will tell when it is.
    fn tree_can_wait(&self) -> bool;
    /// Ends all that runs, and the sandbox. The workspace stays.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// A change that a session's user wants to be opened of what was pushed.
#[derive(Debug, Clone)]
pub struct NewPullRequest {
    /// Whose session it is.
    pub user: String,
    /// The repository, as git knows it.
    pub repository: String,
    /// The session's token for it.
    pub token: Option<Secret>,
    /// What was pushed.
    pub branch: String,
    /// Where it is to go; the repository's default branch where not given.
    pub base: Option<String>,
    /// One line.
    pub title: String,
    /// Markdown.
    pub body: String,
    /// Not ready for review.
    pub draft: bool,
}

/// A change that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedPullRequest {
    /// For people.
    pub url: String,
    /// Its number in the repository.
    pub number: u64,
    /// One line.
    pub title: String,
    /// It was there already.
    pub existed: bool,
}

/// Opens changes at the repositories' providers. Opening one twice gives the same one.
pub trait PullRequests: Send + Sync {
    /// Opens it, or says why not in a sentence. Takes seconds.
    fn open(
        &self,
        request: NewPullRequest,
    ) -> BoxFuture<'static, Result<OpenedPullRequest, String>>;
}

/// What a session's queue takes.
#[derive(Debug)]
pub(super) enum ActorMessage {
    /// The place is ready, or none is needed.
    Started(StartInputs),
    /// The user says something; its number in the inbox.
    Message(u64, String),
    /// A model call of which nobody waits to hear took this.
    CallCost(String, CallCost),
    /// A model call ended.
    Model(String, Result<ModelAnswer, ModelFailure>),
    /// Something about a model call that goes on which a person should know.
    ModelNotice(String, String),
    /// A tool ended, and the tree after it.
    Tool(
        String,
        Result<Box<ToolResultWithEvent>, Error>,
        Option<WorkspaceTree>,
    ),
    /// A tool is about to do this; whoever waits is told once that is written down.
    Announcement(String, Box<EventDraft>, oneshot::Sender<()>),
    /// Something about the place or its tools that a person should know.
    Notice(String),
    /// The session's files are gone.
    WorkspaceLost,
    /// The server took a push of this branch.
    Pushed(String),
    /// The change that was to be opened.
    PullRequest(Result<OpenedPullRequest, String>),
    /// The tree, as it is now without any tool.
    Tree(WorkspaceTree),
    /// A timer ran out.
    Timer(String),
    /// The host stopped while this ran.
    Lost(String),
    /// It was given up before it ran: a question, or what a budget forbids.
    Failed(String, Error),
}

/// What the first input needs beside the task.
#[derive(Debug, Default)]
pub(super) struct StartInputs {
    pub(super) workspace: String,
    pub(super) instructions: Vec<String>,
    pub(super) tools: Vec<ToolDefinition>,
    pub(super) tree: Option<WorkspaceTree>,
}

/// A workspace's tree.
#[derive(Debug)]
pub(super) struct WorkspaceTree {
    /// Trees that were begun later have a larger number, and know more.
    pub(super) number: u64,
    /// A list of nodes.
    pub(super) json: String,
}

/// Into a session's queue. Boxed, so that an idle queue is small.
pub(super) type Mailbox = mpsc::Sender<Box<ActorMessage>>;

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_full_disk_passes_and_one_that_may_not_be_written_does_not() {
        let passing =
            |cause: Errno| EnvironmentError::from_error(&std::io::Error::from(cause)).transient;
        assert_eq!(passing(Errno::NOSPC), Some(Transient::DiskFull));
        assert_eq!(passing(Errno::MFILE), Some(Transient::NoDescriptor));
        assert_eq!(passing(Errno::ROFS), None);
    }
}
