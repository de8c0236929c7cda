//! The unauthenticated routes: the server's description, whether it is up, and whether it can take work.
//!
//! # Invariants
//!
//! - Nothing here names a user or reveals a secret.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{DISK_AGAIN, Json, Problem, RESTARTED_AGAIN};
use lucid_types::sentence::sentence;
use lucid_types::transient::TransientFailure;

/// The parts of a deployment that clients may know about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeploymentInfo {
    /// The model of the default provider. Empty if there is none.
    pub llm_model: String,
    /// The policy of a session that names none.
    pub default_policy: String,
    /// Whether that policy is a real agent rather than the rehearsal.
    pub real_agent: bool,
    /// The kind of sandbox, such as `docker` (`docker-exec` if commands go through `docker exec`)
    /// or `bubblewrap`. `none` if no commands are run, `unavailable` if sessions get none.
    pub sandbox: String,
    /// Set if it is not the one the deployment would prefer.
    pub sandbox_notice: Option<String>,
    /// The current number of sandboxes.
    pub active_sandboxes: usize,
    /// The current number of live sessions.
    pub active_sessions: usize,
    /// A sentence about what does not work at the moment. `None` if everything does.
    pub degraded: Option<String>,
    /// The store of the log and the chats, such as `sqlite`.
    pub store: String,
    /// The loaded plugins.
    pub plugins: Vec<PluginView>,
}

/// A loaded plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PluginView {
    /// `policy` or `llm`.
    #[schema(example = "policy")]
    pub kind: String,
    /// Its name.
    #[schema(example = "coder")]
    pub name: String,
    /// Its version.
    #[schema(example = "0.1.0")]
    pub version: String,
}

/// What this server is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceView {
    service: &'static str,
    version: &'static str,
    /// `healthy`, or `degraded` where something does not work at the moment; `reason` says what.
    #[schema(example = "healthy")]
    status: &'static str,
    /// Why it is degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
    docker_available: bool,
    active_sandboxes: usize,
    active_sessions: usize,
    /// The default provider's model.
    llm_model: String,
    /// True when the default policy is a real agent, false when it is the rehearsal. The name is
    /// what older clients look for.
    openhands_available: bool,
    default_policy: String,
    /// What commands run in.
    #[schema(example = "bubblewrap")]
    sandbox: String,
    /// That commands run in a weaker kind of sandbox than the deployment would prefer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    sandbox_notice: Option<String>,
    #[schema(example = "sqlite")]
    store: String,
    plugins: Vec<PluginView>,
}

impl From<DeploymentInfo> for ServiceView {
    fn from(about: DeploymentInfo) -> Self {
        Self {
            service: "Lucid AI Engine",
            version: env!("CARGO_PKG_VERSION"),
            status: if about.degraded.is_none() {
                "healthy"
            } else {
                "degraded"
            },
            reason: about.degraded,
            docker_available: about.sandbox == "docker",
            active_sandboxes: about.active_sandboxes,
            active_sessions: about.active_sessions,
            llm_model: about.llm_model,
            openhands_available: about.real_agent,
            default_policy: about.default_policy,
            sandbox: about.sandbox,
            sandbox_notice: about.sandbox_notice,
            store: about.store,
            plugins: about.plugins,
        }
    }
}

/// What this server is
#[utoipa::path(get, path = "/", tag = "status", responses((status = 200, body = ServiceView)))]
pub(super) async fn root(State(api): State<Api>) -> Json<ServiceView> {
    Json((api.parts.about)().into())
}

/// That the server is up.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthView {
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether this server is up
#[utoipa::path(get, path = "/health", tag = "status", responses((status = 200, body = HealthView)))]
pub(super) async fn health() -> Json<HealthView> {
    Json(HealthView { status: "ok" })
}

/// Why a server that is up cannot take work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It was told to stop.
    #[error("the server is stopping")]
    Stopping,
    /// The log cannot be written. Sessions wait until it can.
    #[error("the log cannot be written, because {0}")]
    Log(TransientFailure),
    /// The disk is nearly full. Holds a sentence.
    #[error("{0}")]
    Disk(String),
    /// Sessions that need a sandbox get none. The reason holds paths and is in the log.
    #[error("no sandbox can be started; the server's log and `lucid doctor` say why")]
    Sandbox,
}

impl NotReady {
    /// After how many seconds it may have passed.
    fn retry_after(&self) -> u32 {
        match self {
            Self::Stopping | Self::Log(_) => RESTARTED_AGAIN,
            Self::Disk(_) | Self::Sandbox => DISK_AGAIN,
        }
    }
}

/// That the server takes work.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReadyView {
    #[schema(example = "ready")]
    status: &'static str,
}

/// Whether this server can take work: it is not stopping, its log can be written, there is room on the disk, and
/// sandboxes can be started
#[utoipa::path(get, path = "/ready", tag = "status",
    responses((status = 200, body = ReadyView), (status = 503, body = Problem, description = "It cannot; `detail` says why")))]
pub(super) async fn ready(State(api): State<Api>) -> Result<Json<ReadyView>, Problem> {
    match (api.parts.readiness)() {
        Ok(()) => Ok(Json(ReadyView { status: "ready" })),
        Err(reason) => {
            let problem = Problem::unavailable(sentence(&reason));
            Err(problem.retry_after(reason.retry_after()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_client_finds_every_member_it_knows() {
        let about = DeploymentInfo {
            real_agent: true,
            sandbox: "landlock".into(),
            active_sessions: 3,
            ..DeploymentInfo::default()
        };
        let value = serde_json::to_value(ServiceView::from(about)).unwrap();
        assert_eq!(value["service"], "Lucid AI Engine");
        assert_eq!(value["status"], "healthy");
        assert_eq!(value["docker_available"], false);
        assert_eq!(value["openhands_available"], true);
        assert_eq!(value["active_sessions"], 3);
        for name in [
            "version",
            "active_sandboxes",
            "llm_model",
            "sandbox",
            "store",
            "plugins",
        ] {
            assert!(value.get(name).is_some(), "{name}");
        }
    }
}
