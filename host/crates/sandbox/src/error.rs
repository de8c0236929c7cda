//! The errors of sandboxes.

use lucid_types::exec::ExecError;

/// An error in starting or using a sandbox. Each is a sentence for the operator or the user.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The machine does not support what was asked for.
    #[error("no sandbox of the kind asked for works on this machine. {0}")]
    Unavailable(String),
    /// A sandbox could not be started.
    #[error("the sandbox could not be started: {0}")]
    Start(String),
    /// The sandbox no longer exists: it was closed, or it died.
    #[error("the sandbox is gone: {0}")]
    Gone(String),
    /// The Docker engine does not answer. Another backend may still work.
    #[error("{0}")]
    Engine(String),
    /// The sandbox works, but this command could not be started in it.
    #[error("{0}")]
    Refused(String),
    /// The sandbox has no room for another process.
    #[error("{0}")]
    Full(String),
    /// All user ids for sandboxes are taken.
    #[error(
        "no further sandbox can be started: this server has a user id for each session, and all of them are taken. Close a session that is not needed any more, or ask the operator"
    )]
    NoUser,
    /// The user ids that were asked for cannot be had.
    #[error("{0}")]
    Users(String),
    /// An operation on the host's own files failed.
    #[error("{what}: {cause}")]
    Io {
        /// The failed operation.
        what: String,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
}

impl From<SandboxError> for ExecError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Refused(sentence) => Self::Refused(sentence),
            error => Self::Sandbox(Box::new(error)),
        }
    }
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> SandboxError {
    let what = what.into();
    move |cause| SandboxError::Io { what, cause }
}
