//! The engine's port for pull requests.

use std::error::Error;

use futures::future::BoxFuture;

use lucid_types::secret::Secret;
use lucid_types::user::UserId;

/// A pull request that is to be opened for what a session pushed.
#[derive(Debug, Clone)]
pub struct NewPullRequest {
    /// The user that owns the session.
    pub user: UserId,
    /// The repository's URL.
    pub repository: String,
    /// The session's token for the repository.
    pub token: Option<Secret>,
    /// The branch that was pushed.
    pub branch: String,
    /// The branch to merge into; the repository's default branch if there is none.
    pub base: Option<String>,
    /// The title, one line.
    pub title: String,
    /// The description, in Markdown.
    pub body: String,
    /// Whether it is not ready for review.
    pub draft: bool,
}

/// An open pull request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedPullRequest {
    /// The address of its page.
    pub url: String,
    /// Its number in the repository.
    pub number: u64,
    /// The title, one line.
    pub title: String,
    /// Whether it had been open before.
    pub existed: bool,
}

/// Why a pull request was not opened.
#[derive(Debug, thiserror::Error)]
pub enum PullRequestError {
    /// The provider refused it or did not respond, or there is no account to open it with.
    #[error("{sentence}")]
    Failed {
        /// What a person reads of it.
        sentence: String,
        /// The error itself.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// Its implementation panicked.
    #[error("the server's own work came to grief")]
    Panicked,
    /// The log no longer says what was pushed.
    #[error("what was pushed is not known any more")]
    UnknownBranch,
}

/// Opens pull requests at the repositories' providers. Idempotent: a second call returns the same
/// pull request.
pub trait PullRequests: Send + Sync {
    /// Opens a pull request. Takes seconds.
    fn open(
        &self,
        request: NewPullRequest,
    ) -> BoxFuture<'static, Result<OpenedPullRequest, PullRequestError>>;
}
