//! The state behind the routes, and what `GET /` says of a server.

use super::App;
use crate::api::{Api, ApiParts, DeploymentInfo, PluginView};
use lucid_sandbox::docker::Transport;
use lucid_sandbox::{BackendKind, Sandboxes};
use lucid_wasm::PluginInfo;

impl App {
    /// What the routes work with.
    pub fn api(&self) -> Api {
        let (fixed, sessions) = (self.about.clone(), self.sessions.clone());
        let sandboxes = self.sandboxes.clone();
        let deployment = self.deployment.clone();
        let (store, reserve) = (self.store.clone(), self.reserve.clone());
        let about = move || {
            let snapshot = deployment.now().snapshot;
            let (policy, model) = snapshot.defaults();
            let unwritten = store.health().failure();
            let unwritten = unwritten.map(|reason| {
                format!("The log cannot be written, because {reason}. Sessions wait until it can.")
            });
            DeploymentInfo {
                degraded: unwritten.or_else(|| reserve.shortage()),
                sandbox: sandbox_name(&sandboxes),
                sandbox_notice: sandbox_notice(&sandboxes),
                active_sessions: sessions.count(),
                active_sandboxes: sessions.count_with_workspace(),
                llm_model: model,
                default_policy: policy.to_owned(),
                real_agent: snapshot.policies.default_is_real(),
                plugins: snapshot.plugins.list().into_iter().map(view).collect(),
                ..fixed.clone()
            }
        };
        let parts = ApiParts {
            auth: self.auth.clone(),
            sessions: self.sessions.clone(),
            workspaces: self.workspaces.clone(),
            user_work: self.user_work.clone(),
            chat_reads: self.chat_reads.clone(),
            connections: self.connections.clone(),
            chats: self.chats.clone(),
            accounts: self.accounts.clone(),
            deployment: self.deployment.clone(),
        };
        Api::new(parts, about, self.readiness(), self.scrape())
    }
}

/// What `GET /` calls it.
fn sandbox_name(sandboxes: &Sandboxes) -> String {
    match (sandboxes.kind(), sandboxes.transport()) {
        _ if sandboxes.refusal().is_some() => "unavailable".to_owned(),
        (BackendKind::Docker, Some(Transport::Exec)) => "docker-exec".to_owned(),
        (kind, _) => kind.to_string(),
    }
}

/// What `GET /` says of it, which anybody reads: the reasons hold paths and addresses.
fn sandbox_notice(sandboxes: &Sandboxes) -> Option<String> {
    let kind = sandboxes.kind();
    sandboxes.refusal().is_none().then_some(())?;
    sandboxes.shortcoming().map(|_| {
        format!(
            "Sandboxes are not as good as they could be: {kind} is used. The server's log and `lucid doctor` say why."
        )
    })
}

fn view(info: PluginInfo) -> PluginView {
    PluginView {
        kind: info.kind.to_string(),
        name: info.name,
        version: info.version,
    }
}
