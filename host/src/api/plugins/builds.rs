//! The admin routes that change a plugin's build: activation, for all new sessions or a share of them,
//! and rollback.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::params::{digest_of, kind_of};
use crate::api::Api;
use crate::api::problem::{Json, Path, Problem};
use crate::auth::Admin;
use crate::deployment::manager::BuildChange;
use lucid_wasm::{Plugin, PluginKind};

/// Which build.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activate {
    /// SHA-256 in hex, with or without `sha256:` before it.
    #[schema(pattern = "^(sha256:)?[0-9a-fA-F]{64}$")]
    pub(crate) digest: String,
    /// Of a hundred new sessions, 1 to 99; all where there is none. Only of a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 99)]
    pub(crate) share: Option<u8>,
    /// The policy may be one under a name that nobody has yet. Without it such a name is refused, since it
    /// is a slip more often.
    // Left out when false: an older server does not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) new: bool,
}

/// What holds by now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChangedView {
    /// The generation that new sessions get.
    pub(crate) generation: u64,
    /// `policy`, `llm`, `tools` or `git`.
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The build it is now; null where a policy that was only uploaded is gone.
    #[schema(required = true)]
    pub(crate) digest: Option<String>,
    #[schema(required = true)]
    pub(crate) version: Option<String>,
    /// `builtin`, `file`, `registry` or `upload`.
    #[schema(required = true)]
    pub(crate) source: Option<String>,
    /// The build beside it that a share of new sessions gets; null where there is none.
    #[schema(required = true)]
    pub(crate) candidate: Option<String>,
    /// That share, of a hundred.
    #[schema(required = true)]
    pub(crate) share: Option<u8>,
}

/// Activate an uploaded build
///
/// It takes the place of the component that the manifest names for that plugin, also over restarts;
/// settings, limits, address and key stay the manifest's. It is loaded first, and where it cannot be
/// nothing changes. With `new` a policy may have a name that the manifest does not have: it is offered then
/// with no settings.
///
/// With `share` it is a candidate beside the active build: so many of a hundred new sessions get it and
/// keep it. Without, it has all, and a candidate of the same policy has none any more. A policy's new
/// build is on probation: it is taken back by itself when it fails more often than the one before.
#[utoipa::path(
    post, path = "/api/v1/plugins/{kind}/{name}/activate", tag = "plugins",
    params(
        ("kind" = String, Path, description = "`policy`, `llm`, `tools` or `git`"),
        ("name" = String, Path, description = "Its name in this deployment"),
    ),
    request_body = Activate,
    responses(
        (status = 200, body = ChangedView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 404, description = "No such plugin, and not said to be `new`; or no such upload", body = Problem),
        (status = 409, description = "It has all new sessions already, or there is none that could have the rest", body = Problem),
        (status = 422, description = "It cannot be loaded, the share is none, or the body does not fit; nothing changed", body = Problem),
        (status = 507, description = "No room to write down what is active", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(in crate::api) async fn activate(
    State(api): State<Api>,
    Admin(who): Admin,
    Path((kind, name)): Path<(String, String)>,
    Json(request): Json<Activate>,
) -> Result<Json<ChangedView>, Problem> {
    let kind = kind_of(&kind)?;
    let digest = digest_of(&request.digest)?;
    let change = BuildChange::Activate {
        digest,
        by: who.to_string(),
        share: request.share,
        new: request.new,
    };
    changed(&api, kind, name, change).await
}

/// Roll a plugin back
///
/// A candidate loses its share first. Then it goes to the build that was active before the active one, and
/// at last to what the manifest names.
#[utoipa::path(
    post, path = "/api/v1/plugins/{kind}/{name}/rollback", tag = "plugins",
    params(
        ("kind" = String, Path, description = "`policy`, `llm`, `tools` or `git`"),
        ("name" = String, Path, description = "Its name in this deployment"),
    ),
    responses(
        (status = 200, body = ChangedView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 404, description = "No such plugin", body = Problem),
        (status = 409, description = "No uploaded build is active", body = Problem),
        (status = 422, description = "The one before cannot be loaded; nothing changed", body = Problem),
        (status = 507, description = "No room to write down what is active", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(in crate::api) async fn roll_back(
    State(api): State<Api>,
    Admin(who): Admin,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Json<ChangedView>, Problem> {
    let by = who.to_string();
    changed(&api, kind_of(&kind)?, name, BuildChange::RollBack { by }).await
}

async fn changed(
    api: &Api,
    kind: PluginKind,
    name: String,
    change: BuildChange,
) -> Result<Json<ChangedView>, Problem> {
    let deployment = &api.parts.deployment;
    let generation = deployment.change(kind, &name, change).await?;
    let now = deployment.loaded(kind, &name);
    let candidate = deployment.candidate(kind, &name);
    Ok(Json(ChangedView {
        generation,
        kind: kind.to_string(),
        name,
        digest: now.as_ref().map(|(plugin, _)| plugin.digest().to_string()),
        version: now.as_ref().map(|(plugin, _)| plugin.version().to_owned()),
        source: now.map(|(_, source)| source.to_owned()),
        share: candidate.as_ref().map(|(_, share)| *share),
        candidate: candidate.map(|(digest, _)| digest.to_string()),
    }))
}
