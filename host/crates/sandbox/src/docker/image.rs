//! What the host must know about the image that containers are created from.
//!
//! Any image with a shell will do. What else it contains is found out by looking, inside a
//! container configured as a session's is.

use std::collections::BTreeMap;

use super::engine::{DockerEngine, DockerError};
use crate::connection::Connection;
use crate::error::SandboxError;
use crate::exec;
use lucid_types::exec::ExecRequest;

/// An image's own configuration.
pub(super) struct ImageConfig {
    /// Its environment, as `NAME=value`.
    pub(super) environment: Vec<String>,
    /// The folders that an engine creates a volume for, in each container.
    pub(super) volumes: Vec<String>,
}

/// Reads an image's configuration. If the image does not exist, the error says what to do.
pub(super) async fn image_config(
    engine: &DockerEngine,
    name: &str,
) -> Result<ImageConfig, SandboxError> {
    let image = match engine.image(name).await {
        Err(DockerError::Refused { status: 404, .. }) => {
            return Err(SandboxError::Start(format!(
                "the Docker engine has no image {name}. Run `docker pull {name}`, build it with sandbox-image/build, or set SANDBOX_IMAGE to one it has"
            )));
        }
        other => other?,
    };
    let config = image.config.unwrap_or_default();
    Ok(ImageConfig {
        environment: config.env.unwrap_or_default(),
        volumes: config.volumes.unwrap_or_default(),
    })
}

/// The tools found in an image.
pub(super) struct ImageTools {
    /// The path of bash.
    pub(super) bash: Option<String>,
    /// The path of python3, in an image without a `python`.
    pub(super) python: Option<String>,
}

/// Tries a container with a command and a file in the workspace, and looks for the tools it has.
pub(super) async fn probe_image(
    connection: &Connection,
    workspace: &str,
) -> Result<ImageTools, SandboxError> {
    let command = "touch .lucid-probe && rm .lucid-probe || exit 1
        echo bash:$(command -v bash); echo python:$(command -v python); echo python3:$(command -v python3)";
    let request = ExecRequest::argv(["/bin/sh", "-c", command]);
    let start = exec::start_message(request, "sh", workspace, &BTreeMap::new());
    let ran = exec::run(connection, None, &start, |_| {}).await?;
    if ran.exit_code != 0 {
        return Err(SandboxError::Start(format!(
            "a first command in a container cannot write the workspace: {}. An engine with user name spaces of its own (userns-remap) needs the host to run as the same user",
            ran.output.trim()
        )));
    }
    let found = |name: &str| {
        let line = ran.output.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.strip_prefix(':'))
            .filter(|path| path.starts_with('/'))
            .map(str::to_owned)
    };
    Ok(ImageTools {
        bash: found("bash"),
        python: found("python3").filter(|_| found("python").is_none()),
    })
}
