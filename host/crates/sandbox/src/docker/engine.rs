//! The Docker engine behind its API: finding it, and the few calls that sandboxes need.
//!
//! # Invariants
//! - Every call ends within a time known beforehand.
//! - An engine that does not answer is distinguished from one that answers with a refusal, and is
//!   not given the time that a working one gets.
//! - Something that is already gone counts as removed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummary, ImageInspect, SystemInfo,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures::StreamExt;

use crate::error::SandboxError;

/// Timeout of calls that only look something up.
const QUICK: Duration = Duration::from_secs(10);
/// Timeout of calls that make the engine work, on a machine that is busy with other things.
const SLOW: Duration = Duration::from_secs(120);
/// How much of a container's log is kept for an error, in bytes.
const LOG: usize = 2048;

/// The failure of a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum DockerError {
    /// Nothing answers, or something that is not an engine does.
    #[error("the Docker engine at {address} does not answer: {cause}")]
    Down {
        /// The engine's address.
        address: String,
        /// The cause.
        cause: String,
    },
    /// The engine refused the request.
    #[error("the Docker engine refused to {what}: {message}")]
    Refused {
        /// The operation.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// The engine's own words.
        message: String,
    },
}

impl From<DockerError> for SandboxError {
    fn from(error: DockerError) -> Self {
        match &error {
            DockerError::Down { .. } => Self::Engine(error.to_string()),
            DockerError::Refused { .. } => Self::Start(error.to_string()),
        }
    }
}

impl DockerError {
    /// Whether the named object does not exist.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the name is taken, or the object is being worked on.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }
}

/// A connection to an engine that answered.
#[derive(Debug, Clone)]
pub(super) struct DockerEngine {
    docker: Docker,
    address: String,
    /// How often a busy engine is checked for still answering, and the delay before the first
    /// check.
    check_interval: Duration,
}

impl DockerEngine {
    /// Connects, and negotiates an API version that both support. `host` is as in `DOCKER_HOST`.
    pub(super) async fn connect(host: Option<&str>) -> Result<Self, DockerError> {
        let address = match host {
            Some(host) => host.to_owned(),
            None => usual_address(),
        };
        let down = |cause: String| DockerError::Down {
            address: address.clone(),
            cause,
        };
        let docker = Docker::connect_with_host(&address).map_err(|error| match error {
            ApiError::SocketNotFoundError(_) => down(
                "there is no such socket. Install Docker and start its engine, or set DOCKER_HOST"
                    .to_owned(),
            ),
            ApiError::UnsupportedURISchemeError { .. } => down(
                "only unix:// and tcp:// addresses can be used; forward the engine's socket to reach another machine's"
                    .to_owned(),
            ),
            error => down(cause_of(&error)),
        })?;
        match tokio::time::timeout(QUICK, docker.negotiate_version()).await {
            Ok(Ok(docker)) => Ok(Self {
                docker,
                address,
                check_interval: QUICK,
            }),
            Ok(Err(error)) => Err(down(cause_of(&error))),
            Err(_) => Err(down(format!(
                "it was silent for {} seconds",
                QUICK.as_secs()
            ))),
        }
    }

    async fn call<T>(
        &self,
        what: &'static str,
        patience: Duration,
        answer: impl Future<Output = Result<T, ApiError>> + Send,
    ) -> Result<T, DockerError> {
        let down = |cause| DockerError::Down {
            address: self.address.clone(),
            cause,
        };
        let answer = tokio::time::timeout(patience, answer);
        let answer = tokio::select! {
            answer = answer => answer,
            silence = self.wait_until_unresponsive(), if patience > QUICK => return Err(silence),
        };
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ApiError::DockerResponseServerError {
                status_code,
                message,
            })) => Err(DockerError::Refused {
                what,
                status: status_code,
                message: message.trim_end_matches('.').to_owned(),
            }),
            Ok(Err(error)) => Err(down(cause_of(&error))),
            Err(_) => Err(down(format!(
                "it was silent for {} seconds when asked to {what}",
                patience.as_secs()
            ))),
        }
    }

    /// Waits until the engine, busy with a request, stops answering anything else too.
    async fn wait_until_unresponsive(&self) -> DockerError {
        let cause = loop {
            tokio::time::sleep(self.check_interval).await;
            match tokio::time::timeout(self.check_interval, self.docker.ping()).await {
                Ok(Ok(_) | Err(ApiError::DockerResponseServerError { .. })) => {}
                Ok(Err(error)) => break cause_of(&error),
                Err(_) => break "it fell silent while it was at work".to_owned(),
            }
        };
        DockerError::Down {
            address: self.address.clone(),
            cause,
        }
    }

    /// Checks that the engine answers.
    pub(super) async fn ping(&self) -> Result<(), DockerError> {
        let ping = async { self.docker.ping().await.map(|_| ()) };
        self.call("answer", QUICK, ping).await
    }

    pub(super) async fn info(&self) -> Result<SystemInfo, DockerError> {
        self.call("describe itself", QUICK, self.docker.info())
            .await
    }

    pub(super) async fn image(&self, name: &str) -> Result<ImageInspect, DockerError> {
        self.call("show an image", QUICK, self.docker.inspect_image(name))
            .await
    }

    /// Creates a container and returns its id.
    pub(super) async fn create(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String, DockerError> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let create = self.docker.create_container(Some(options), body);
        let made = self.call("make a container", SLOW, create).await?;
        Ok(made.id)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), DockerError> {
        let start = self.docker.start_container(id, None);
        self.call("start a container", SLOW, start).await
    }

    pub(super) async fn rename(&self, id: &str, name: &str) -> Result<(), DockerError> {
        let options = RenameContainerOptionsBuilder::new().name(name).build();
        let rename = self.docker.rename_container(id, options);
        self.call("rename a container", QUICK, rename).await
    }

    pub(super) async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, DockerError> {
        self.call(
            "show a container",
            QUICK,
            self.docker.inspect_container(id, None),
        )
        .await
    }

    /// All containers with all of these labels, including stopped ones.
    pub(super) async fn labelled(
        &self,
        labels: &[(&str, &str)],
    ) -> Result<Vec<ContainerSummary>, DockerError> {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let list = self.docker.list_containers(Some(options));
        self.call("list containers", QUICK, list).await
    }

    /// Kills and removes a container, with its anonymous volumes. Succeeds if it is already gone.
    pub(super) async fn remove(&self, id: &str) -> Result<(), DockerError> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let remove = self.docker.remove_container(id, Some(options));
        match self.call("remove a container", SLOW, remove).await {
            Err(error) if error.is_missing() => Ok(()),
            // It is already being removed, which is the goal, so wait for that.
            Err(error) if error.is_conflict() => self.removed(id).await,
            other => other,
        }
    }

    async fn removed(&self, id: &str) -> Result<(), DockerError> {
        let options = WaitContainerOptionsBuilder::new()
            .condition("removed")
            .build();
        let mut wait = Box::pin(self.docker.wait_container(id, Some(options)));
        let wait = async {
            // The result may be the exit code, that it is gone, or that it cannot be removed: check
            // which.
            let _ = wait.next().await;
            Ok(())
        };
        self.call("wait for a container's end", SLOW, wait).await?;
        match self.inspect(id).await {
            Err(error) if error.is_missing() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(DockerError::Refused {
                what: "remove a container",
                status: 409,
                message: "somebody else was removing it, and it is still there".to_owned(),
            }),
        }
    }

    /// Waits until a container no longer runs, for as long as that takes.
    pub(super) async fn stopped(&self, id: &str) {
        let options = WaitContainerOptionsBuilder::new()
            .condition("not-running")
            .build();
        let answer = self.docker.wait_container(id, Some(options)).next().await;
        match answer {
            // How it ended makes no difference here, nor does it if the container is gone
            // altogether.
            Some(
                Ok(_)
                | Err(
                    ApiError::DockerContainerWaitError { .. }
                    | ApiError::DockerResponseServerError {
                        status_code: 404, ..
                    },
                ),
            ) => {}
            // The engine cannot tell: callers have a timeout of their own.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    /// The end of the log of a container's main process.
    pub(super) async fn log(&self, id: &str) -> String {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail("20")
            .build();
        let mut lines = self.docker.logs(id, Some(options));
        let mut log = String::new();
        let read = async {
            while let Some(Ok(line)) = lines.next().await {
                if log.len() < LOG {
                    log.push_str(&String::from_utf8_lossy(line.as_ref()));
                }
            }
        };
        let _ = tokio::time::timeout(QUICK, read).await;
        log.chars().take(LOG).collect::<String>().trim().to_owned()
    }

    /// The API itself, for the attached stream of [`super::transport`].
    pub(super) fn api(&self) -> &Docker {
        &self.docker
    }

    /// Runs a call on [`DockerEngine::api`] with the same error handling as the others.
    pub(super) async fn run<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, ApiError>> + Send,
    ) -> Result<T, DockerError> {
        self.call(what, QUICK, answer).await
    }
}

/// The system's socket, or that of a rootless engine of the user's.
fn usual_address() -> String {
    let system = "/var/run/docker.sock";
    let own = std::env::var_os("XDG_RUNTIME_DIR")
        .map(|folder| PathBuf::from(folder).join("docker.sock"))
        .filter(|socket| socket.exists());
    match own {
        Some(own) if !std::path::Path::new(system).exists() => format!("unix://{}", own.display()),
        _ => format!("unix://{system}"),
    }
}

/// The innermost cause: the outer ones only say that there is one.
fn cause_of(error: &ApiError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_fell_silent_is_not_waited_for_as_one_that_works() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
        let address = format!("unix://{}", socket.display());
        let docker = Docker::connect_with_host(&address).unwrap();
        let engine = DockerEngine {
            docker,
            address,
            check_interval: Duration::from_millis(50),
        };
        let begun = std::time::Instant::now();
        let error = engine.remove("it").await.unwrap_err();
        assert!(matches!(error, DockerError::Down { .. }), "{error}");
        assert!(begun.elapsed() < SLOW / 2, "{:?}", begun.elapsed());
    }
}
