//! The git gateway: a sandbox's way out for git.
//!
//! Each session has one socket, through which the helper in the sandbox fetches from and pushes to
//! that session's repository, and to others of the same owner where the operator allowed that.
//!
//! # Invariants
//! - The token stays here, never in the sandbox, in a log line or in an error. It goes to the
//!   repository's own server and to no other, redirects included.
//! - Addresses of the host's own networks are refused unless the operator allowed them; those of
//!   cloud metadata services always.
//! - A push changes the branches that the operator named and no other ref.
//! - What a server sends is bounded in size and in time.

mod branch_policy;
mod clone;
mod connection;
mod error;
mod http;
mod receive_pack;
#[cfg(test)]
mod tests;
mod tracking;
mod upstream;
mod url;

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use lucid_exec::protocol::{Frame, FrameKind};

pub use self::branch_policy::BranchPolicy;
pub use self::clone::{Checkout, CloneError, clone_into};
use self::connection::serve;
pub use self::http::client;
pub use self::tracking::CloneState;
pub use self::upstream::GitCredentials;
use self::upstream::{LastPush, UpstreamRemote};
pub use self::url::gateway_prefix;
use lucid_types::repository_url::{RepositoryUrlError, repository_url};

/// The most helpers that a session may have at a time.
const MAX_HELPERS: usize = 4;

/// An error in opening a gateway.
#[derive(Debug, thiserror::Error)]
pub enum GitGatewayError {
    /// The repository's URL cannot be used.
    #[error(transparent)]
    Url(#[from] RepositoryUrlError),
    /// The socket could not be created.
    #[error("the git gateway's socket {path} cannot be made: {cause}")]
    Socket {
        /// The socket's path.
        path: String,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// The HTTP client could not be created.
    #[error("the git gateway's HTTP client cannot be made: {0}")]
    Client(#[source] reqwest::Error),
}

/// The operator's rules for what sessions may do with git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitRules {
    /// Whether repositories at private addresses may be reached, and a token may go over http.
    pub allow_private: bool,
    /// Whether other repositories of the same owner may be reached, with the same token.
    pub allow_owner: bool,
    /// The branches that sessions may push to.
    pub branches: BranchPolicy,
    /// How many commits of history a clone fetches; `None` fetches all.
    pub depth: Option<u32>,
    /// Maximum size in bytes of one fetch, of one push, and of the session's first checkout.
    pub largest: u64,
    /// How long the initial clone may take, and one response of the server.
    pub longest: Duration,
}

/// A session's open gateway. Dropping it closes it.
pub struct GitGateway {
    task: tokio::task::JoinHandle<()>,
    socket: PathBuf,
    pushed: LastPush,
}

impl fmt::Debug for GitGateway {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Gateway")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl GitGateway {
    /// Listens in the session's runtime folder ([`Sandbox::runtime_dir`]) for helpers that want the
    /// repository. `user` is the sandbox's, if it
    /// is not the host's own ([`Sandbox::user`]). `client` is one from [`client`], created with the same `allow_private`.
    ///
    /// [`Sandbox::runtime_dir`]: crate::Sandbox::runtime_dir
    /// [`Sandbox::user`]: crate::Sandbox::user
    pub fn start(
        folder: &Path,
        user: Option<u32>,
        repository: &str,
        login: Option<GitCredentials>,
        rules: GitRules,
        client: Client,
    ) -> Result<Self, GitGatewayError> {
        let url = repository_url(repository)?;
        let socket = folder.join("git.sock");
        let failed = |cause| GitGatewayError::Socket {
            path: socket.display().to_string(),
            cause,
        };
        let key = uuid::Uuid::new_v4().simple().to_string();
        let key_file = folder.join("git.key");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        std::fs::write(&key_file, &key).map_err(failed)?;
        for path in [&socket, &key_file] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .map_err(failed)?;
            if let Some(user) = user {
                std::os::unix::fs::chown(path, Some(user), Some(user)).map_err(failed)?;
            }
        }
        let pushed = LastPush::default();
        let remote = Arc::new(UpstreamRemote {
            client,
            url,
            login,
            pushed: pushed.clone(),
            rules,
            key,
        });
        Ok(Self {
            task: tokio::spawn(listen(listener, remote)),
            socket,
            pushed,
        })
    }

    /// The branch of the session's repository that was pushed since the last call; the last one, if
    /// there were several.
    pub fn take_pushed(&self) -> Option<String> {
        let mut pushed = self.pushed.lock();
        pushed.take()
    }
}

impl Drop for GitGateway {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("key"));
    }
}

async fn listen(listener: UnixListener, remote: Arc<UpstreamRemote>) {
    let slots = Arc::new(Semaphore::new(MAX_HELPERS));
    // Dropping the gateway closes its connections too.
    let mut helpers = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!(%error, "a git helper could not be let in");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while helpers.try_join_next().is_some() {}
        let remote = Arc::clone(&remote);
        helpers.spawn(async move {
            let _place = permit;
            let mut connection = connection;
            if let Err(error) = serve(&mut connection, &remote).await {
                let frame = Frame::new(FrameKind::GitError, 0, error.to_string()).encode();
                // One that does not read is not waited for: its slot is needed for another.
                let sent = connection.write_all(&frame);
                let _ = tokio::time::timeout(Duration::from_secs(10), sent).await;
            }
        });
    }
}
