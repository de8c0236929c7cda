//! The messages in a session's mailbox.

use tokio::sync::{mpsc, oneshot};

use crate::ports::{
    CallCost, ModelAnswer, ModelFailure, OpenedPullRequest, PullRequestError, ToolResultWithEvent,
};
use crate::stream::frames::EventDraft;
use lucid_types::ids::EffectId;
use lucid_types::wit::types::{Error, ToolDefinition};

/// A message to a session's actor. Effects are named by their ids.
#[derive(Debug)]
pub(crate) enum ActorMessage {
    /// The environment is ready, or none is needed.
    Started(Started),
    /// The user's message, with its number in the inbox.
    Message(u64, String),
    /// The cost of a model call whose answer nobody waits for.
    CallCost(EffectId, CallCost),
    /// A model call ended.
    Model(EffectId, Result<ModelAnswer, ModelFailure>),
    /// Something about a running model call that the user should know.
    ModelNotice(EffectId, String),
    /// A tool ended, with the file tree after it.
    Tool(
        EffectId,
        Result<Box<ToolResultWithEvent>, Error>,
        Option<Tree>,
    ),
    /// A tool announces its next action, and waits until that is committed.
    Announcement(EffectId, Box<EventDraft>, oneshot::Sender<()>),
    /// Something about the environment or its tools that the user should know.
    Notice(String),
    /// The session's files are gone.
    WorkspaceLost,
    /// The git server accepted a push of this branch.
    Pushed(String),
    /// The pull request that was to be opened.
    PullRequest(Result<OpenedPullRequest, PullRequestError>),
    /// The file tree, after a change that no tool made.
    Tree(Tree),
    /// A timer expired.
    Timer(EffectId),
    /// The host stopped while this effect ran.
    Lost(EffectId),
    /// An effect failed before it ran: a question, or what a budget forbids.
    Failed(EffectId, Error),
}

/// What a policy's first input needs beside the task.
#[derive(Debug, Default)]
pub(crate) struct Started {
    /// The workspace's path, as commands see it.
    pub(crate) workspace: String,
    /// The repository's instructions to agents.
    pub(crate) instructions: Vec<String>,
    /// The available tools.
    pub(crate) tools: Vec<ToolDefinition>,
    /// The file tree.
    pub(crate) tree: Option<Tree>,
}

/// A workspace's file tree.
#[derive(Debug)]
pub(crate) struct Tree {
    /// A tree with a larger number was begun later, and includes everything that an earlier one
    /// does.
    pub(crate) number: u64,
    /// A JSON array of nodes.
    pub(crate) json: String,
}

/// The sender of a session's mailbox. Messages are boxed, so that an idle mailbox is small.
pub(crate) type Mailbox = mpsc::Sender<Box<ActorMessage>>;
