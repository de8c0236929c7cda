//! The admin route that loads the deployment again.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::view::LastErrorView;
use crate::api::Api;
use crate::api::problem::{Json, Problem};
use crate::auth::Admin;
use crate::deployment::manager::BuildChangeError;

/// A load that was asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReloadedView {
    /// The generation that new sessions get.
    pub(crate) generation: u64,
    /// An active build that cannot be loaded, while the server runs on the one before; null where all
    /// is as it should be.
    #[schema(required = true)]
    pub(crate) last_error: Option<LastErrorView>,
}

/// Load the manifest and the components again
///
/// As the server does by itself when it notices that a file changed. Tags in registries are asked for
/// anew, which the server does by itself when it starts and at no other time.
#[utoipa::path(
    post, path = "/api/v1/plugins/reload", tag = "plugins",
    responses(
        (status = 200, body = ReloadedView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 422, description = "Something is wrong; nothing changed", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(in crate::api) async fn reload(
    State(api): State<Api>,
    _who: Admin,
) -> Result<Json<ReloadedView>, Problem> {
    let deployment = api.parts.deployment.clone();
    // Runs to completion even if the client disconnects.
    let loaded = tokio::spawn(async move {
        let loaded = deployment.reload().await;
        loaded.map(|generation| ReloadedView {
            generation,
            last_error: deployment.last_error(),
        })
    });
    match loaded.await {
        Ok(Ok(view)) => Ok(Json(view)),
        Ok(Err(problems)) => Err(BuildChangeError::Refused(problems).into()),
        Err(error) => Err(Problem::internal(&error)),
    }
}
