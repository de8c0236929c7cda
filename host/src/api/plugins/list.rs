//! The admin route that lists the deployment's plugins.

use axum::extract::State;

use super::view::PluginsView;
use crate::api::Api;
use crate::api::problem::{Json, Problem};
use crate::auth::Admin;

/// List the deployment's plugins
///
/// With digests, grants, limits, sessions and figures, what was uploaded, and the last error.
#[utoipa::path(
    get, path = "/api/v1/plugins", tag = "plugins",
    responses(
        (status = 200, body = PluginsView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(in crate::api) async fn list(
    State(api): State<Api>,
    _who: Admin,
) -> Result<Json<PluginsView>, Problem> {
    // Reads the upload store's folder.
    let listed = tokio::task::spawn_blocking(move || {
        let parts = &api.parts;
        parts.deployment.overview(&parts.sessions)
    });
    listed
        .await
        .map(Json)
        .map_err(|error| Problem::internal(&error))
}
