//! The route for what a session's programs connected to.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{Json, Path, Problem};
use super::sessions::details_of;
use crate::api::identity::Authenticated;
use lucid_store::ConnectionTotals;

/// Connections to one server that ended in one way.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionView {
    /// The server's name or address. Empty for all servers after the first thousand.
    #[schema(example = "pypi.org")]
    host: String,
    /// 0 for all servers after the first thousand.
    port: u16,
    /// `connected`; `refused`, since sandboxes may not reach its address; or `failed`.
    #[schema(example = "connected")]
    outcome: String,
    /// How many connections.
    count: u64,
    /// Bytes that programs sent.
    sent: u64,
    /// Bytes that programs received.
    received: u64,
    /// When the first of them ended.
    first_at: DateTime<Utc>,
    /// When the last of them ended.
    last_at: DateTime<Utc>,
}

/// What a session's programs connected to.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConnectionsView {
    /// The server that was asked last comes first.
    connections: Vec<ConnectionView>,
}

/// List a session's connections
///
/// Programs in a sandbox reach the network through the server's proxy, which counts their connections when
/// they end. Git's own, which go through the git gateway, are not among them.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}/connections", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 200, body = ConnectionsView),
        (status = 401, body = Problem),
        (status = 403, description = "Another user's", body = Problem),
        (status = 404, body = Problem),
        (status = 503, description = "The log cannot be read at the moment", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(id): Path<String>,
) -> Result<Json<ConnectionsView>, Problem> {
    let (session, _) = details_of(&api, &who, &id).await?;
    let found = api.parts.connections.read(session, &who.user).await;
    let found = found.map_err(|cause| Problem::store(&cause))?;
    Ok(Json(ConnectionsView {
        connections: found.into_iter().map(ConnectionView::from).collect(),
    }))
}

impl From<ConnectionTotals> for ConnectionView {
    fn from(totals: ConnectionTotals) -> Self {
        Self {
            host: totals.host,
            port: totals.port,
            outcome: totals.outcome,
            count: totals.count,
            sent: totals.sent,
            received: totals.received,
            first_at: totals.first_at,
            last_at: totals.last_at,
        }
    }
}
