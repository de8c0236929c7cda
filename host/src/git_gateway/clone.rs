//! Owns putting the session's repository into its workspace.
//!
//! What always holds: git runs in the box, never on the host; no hook of the repository is run, and
//! no other protocol than the gateway's is used; what a client gave is never taken for an option.

use std::time::Duration;

use super::{GatewayError, repository_url};
use crate::sandbox::{ExecRequest, Sandbox, SandboxError};

/// How long a clone may take.
const CLONE: Duration = Duration::from_secs(600);

/// Why a repository could not be put into a workspace.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The URL will not do.
    #[error(transparent)]
    Url(#[from] GatewayError),
    /// The branch's name will not do.
    #[error("{0:?} is not the name of a branch.")]
    Branch(String),
    /// Git said no.
    #[error("The repository could not be cloned: {0}")]
    Failed(String),
    /// The sandbox is gone, or cannot run git.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Clones the session's repository into its empty workspace, through the gateway.
pub async fn clone_into(
    sandbox: &Sandbox,
    repository: &str,
    branch: Option<&str>,
    user_name: Option<&str>,
    user_email: Option<&str>,
) -> Result<(), CloneError> {
    let url = repository_url(repository)?;
    let mut argv = vec!["git".to_owned()];
    for setting in [
        "protocol.file.allow=never",
        "protocol.ext.allow=never",
        "core.hooksPath=/dev/null",
        "advice.detachedHead=false",
    ] {
        argv.extend(["-c".to_owned(), setting.to_owned()]);
    }
    argv.extend(["clone", "--quiet", "--no-recurse-submodules"].map(str::to_owned));
    if let Some(branch) = branch {
        let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
        if branch.is_empty()
            || branch.len() > 250
            || branch.starts_with('-')
            || branch.contains("..")
            || branch.contains(odd)
        {
            return Err(CloneError::Branch(branch.chars().take(100).collect()));
        }
        argv.extend(["--branch".to_owned(), branch.to_owned()]);
    }
    argv.extend(["--".to_owned(), url, ".".to_owned()]);
    git(sandbox, argv).await?;
    for (key, value) in [("user.name", user_name), ("user.email", user_email)] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            git(
                sandbox,
                ["git", "config", "--replace-all", key, value]
                    .map(str::to_owned)
                    .to_vec(),
            )
            .await?;
        }
    }
    Ok(())
}

async fn git(sandbox: &Sandbox, argv: Vec<String>) -> Result<(), CloneError> {
    let result = sandbox
        .exec(
            ExecRequest::argv(argv).timeout(CLONE).keep(2000, 2000),
            |_| {},
        )
        .await?;
    if result.timed_out {
        return Err(CloneError::Failed(format!(
            "it took longer than {} seconds.",
            CLONE.as_secs()
        )));
    }
    if result.exit_code != 0 {
        return Err(CloneError::Failed(result.output.trim().to_owned()));
    }
    Ok(())
}
