//! Why a session was not created, or is not handed out.

use std::borrow::Cow;

use crate::types::LookupError;
use crate::user_logs::UserLogExceeded;
use lucid_types::log::LogError;
use lucid_types::plural;
use lucid_types::repository_url::RepositoryUrlError;
use lucid_types::sentence::with_advice;
use lucid_types::transient::TransientFailure;

/// Why a session could not be woken.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// This host cannot continue the session. Holds the reason.
    #[error("{0}")]
    Resume(String),
    /// The host is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a session is not handed out.
#[derive(Debug, thiserror::Error)]
pub enum GetSessionError {
    /// There is none of that id, or not for this user.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It sleeps, and cannot be woken.
    #[error(transparent)]
    Wake(#[from] WakeError),
}

/// Why a session was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The deployment has no such provider. Holds its name and the list of those that exist.
    #[error("unknown model provider '{0}': {1}")]
    UnknownProvider(String, String),
    /// Neither the caller nor the deployment has an API key.
    #[error("no API key for the model provider '{provider}'")]
    MissingKey {
        /// The provider's name.
        provider: String,
        /// The name of the missing setting.
        variable: String,
    },
    /// The deployment does not offer this model.
    #[error("the model '{model}' of the provider '{provider}' is not offered here")]
    UnknownModel {
        /// The requested model, truncated.
        model: String,
        /// The provider's name.
        provider: String,
        /// A sentence that names the models on offer.
        offered: String,
    },
    /// The model has no configured price, and the session has a cost limit.
    #[error(
        "nobody knows the price of the model '{model}' of the provider '{provider}', and the session has a limit for its cost"
    )]
    UnpricedModel {
        /// The model, truncated.
        model: String,
        /// The provider's name.
        provider: String,
    },
    /// The provider rejected the API key. Holds the provider's name.
    #[error("the model provider '{0}' refused the API key")]
    KeyRefused(String),
    /// The repository's URL is invalid.
    #[error(transparent)]
    Repository(#[from] RepositoryUrlError),
    /// The deployment has no such policy. Holds its name and the list of those that exist.
    #[error("unknown policy '{0}': {1}")]
    UnknownPolicy(String, String),
    /// The policy needs a sandbox, and none is available. Holds the reason.
    #[error("there is no sandbox to work in: {0}")]
    NoSandbox(String),
    /// The user has reached the limit of live sessions. Holds the limit.
    #[error("you have {} already, which is as many as you may have", plural::count(.0.to_owned(), "session"))]
    TooManySessions(usize),
    /// The user has written as much as one may.
    #[error(transparent)]
    UserLog(#[from] UserLogExceeded),
    /// The host is shutting down.
    #[error("the server is about to restart")]
    ShuttingDown,
    /// The log cannot be written at the moment.
    #[error("no session can begin at the moment: the server's log cannot be written, because {0}")]
    Paused(TransientFailure),
    /// The remaining disk space is reserved for the log. Holds an explanation, a sentence.
    #[error("no session can begin at the moment")]
    DiskShort(String),
    /// The log can never be written.
    #[error("the session could not be written down")]
    Log(LogError),
}

impl From<LogError> for CreateError {
    fn from(error: LogError) -> Self {
        match error.transient() {
            Some(reason) => Self::Paused(reason),
            None => Self::Log(error),
        }
    }
}

impl CreateError {
    /// Returns whether the same request may succeed in a moment without any change by its user.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Self::ShuttingDown
                | Self::Paused(_)
                | Self::DiskShort(_)
                | Self::UserLog(UserLogExceeded::Rate(_))
        )
    }

    /// The text for a user: a sentence, and what to do.
    pub fn to_user(&self) -> String {
        with_advice(self, self.advice().as_deref())
    }

    /// The text for an operator, who has the settings at hand and no request to change.
    pub fn to_operator(&self) -> String {
        match self {
            Self::MissingKey { provider, variable } => {
                format!("No API key for the model provider '{provider}': set {variable}.")
            }
            Self::UnpricedModel { model, provider } => format!(
                "Nobody knows the price of the model '{model}' of the provider '{provider}', and SESSION_COST_LIMIT is set. Choose another model, or set its `prices` in the manifest."
            ),
            Self::KeyRefused(provider) => {
                format!("The model provider '{provider}' refused the API key that is set for it.")
            }
            other => other.to_user(),
        }
    }

    /// What a user can do about it.
    fn advice(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::MissingKey { variable, .. } => Some(Cow::Owned(format!(
                "Send one with the request (api_key), or ask the operator to set {variable}."
            ))),
            Self::UnknownModel { offered, .. } => Some(Cow::Borrowed(offered.as_str())),
            Self::UnpricedModel { .. } => Some(Cow::Borrowed(
                "Choose another model, or ask the operator to set its `prices` in the deployment's manifest.",
            )),
            Self::TooManySessions(_) => Some(Cow::Borrowed("Stop one first.")),
            Self::UserLog(exceeded) => Some(Cow::Borrowed(exceeded.advice())),
            Self::ShuttingDown | Self::Paused(_) => Some(Cow::Borrowed("Try again in a moment.")),
            Self::DiskShort(why) => Some(Cow::Borrowed(why.as_str())),
            Self::UnknownProvider(..)
            | Self::KeyRefused(_)
            | Self::Repository(_)
            | Self::UnknownPolicy(..)
            | Self::NoSandbox(_)
            | Self::Log(_) => None,
        }
    }
}
