//! The admin route that takes an upload.
//!
//! # Invariants
//!
//! - One upload is read at a time.
//! - A body that is too large, or is no component by its headers, is refused before it is read.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::view::{CallFiguresView, figures_of};
use crate::api::Api;
use crate::api::problem::{DISK_AGAIN, Json, Problem};
use crate::auth::Admin;
use lucid_wasm::{AnyPlugin, EngineOptions, Plugin};

/// How long an upload's body may take to arrive.
const LONGEST_UPLOAD: Duration = Duration::from_secs(300);
/// The accepted media types of components.
const MEDIA_TYPES: [&str; 2] = ["application/wasm", "application/octet-stream"];

/// A component that was kept.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UploadedView {
    /// `policy`, `llm`, `tools` or `git`.
    #[schema(example = "policy")]
    pub(crate) kind: String,
    /// What it calls itself.
    pub(crate) own_name: String,
    pub(crate) version: String,
    pub(crate) description: String,
    /// SHA-256 in lower-case hex: what `activate` takes.
    pub(crate) digest: String,
    pub(crate) imports: Vec<String>,
    /// What its first calls used.
    pub(crate) calls: Vec<CallFiguresView>,
}

impl From<&AnyPlugin> for UploadedView {
    fn from(plugin: &AnyPlugin) -> Self {
        Self {
            kind: plugin.kind().to_string(),
            own_name: plugin.own_name().to_owned(),
            version: plugin.version().to_owned(),
            description: plugin.description().to_owned(),
            digest: plugin.digest().to_string(),
            imports: plugin.imports(),
            calls: figures_of(plugin),
        }
    }
}

/// Upload a component
///
/// It is let in as a plugin of what it exports, or refused with the reason; what was let in is kept by
/// its digest. No session runs on it before it is activated.
#[utoipa::path(
    post, path = "/api/v1/plugins", tag = "plugins",
    request_body(
        content((Vec<u8> = "application/wasm"), (Vec<u8> = "application/octet-stream")),
        description = "The component",
    ),
    responses(
        (status = 200, body = UploadedView),
        (status = 400, description = "It did not arrive whole", body = Problem),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 408, description = "It took too long to arrive", body = Problem),
        (status = 413, description = "Larger than any component may be", body = Problem),
        (status = 415, description = "Neither application/wasm nor application/octet-stream", body = Problem),
        (status = 422, description = "No plugin, or one that this host does not let in", body = Problem),
        (status = 507, description = "No room to keep it", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(in crate::api) async fn upload(
    State(api): State<Api>,
    Admin(who): Admin,
    mut request: Request,
) -> Result<Json<UploadedView>, Problem> {
    let largest = EngineOptions::default().largest_component;
    announced(request.headers(), largest)?;
    if let Some(shortage) = api.parts.sessions.disk_shortage().await {
        let full = Problem::new(StatusCode::INSUFFICIENT_STORAGE, shortage);
        return Err(full.retry_after(DISK_AGAIN));
    }
    // Held until it is stored: each upload takes its size in memory.
    let Ok(_turn) = api.parts.uploads.acquire().await else {
        return Err(Problem::unavailable("The server is about to restart."));
    };
    DefaultBodyLimit::max(largest).apply(&mut request);
    let wasm = match timeout(LONGEST_UPLOAD, Bytes::from_request(request, &())).await {
        Ok(Ok(wasm)) => wasm,
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return Err(too_large(largest));
        }
        Ok(Err(_)) => return Err(Problem::bad_request("The component did not arrive whole.")),
        Err(_) => {
            return Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "The component took too long to arrive.",
            ));
        }
    };
    let kept = api.parts.deployment.upload(wasm, who.as_str()).await?;
    Ok(Json(UploadedView::from(&kept)))
}

/// Whether a body can be a component, by its headers.
fn announced(headers: &HeaderMap, largest: usize) -> Result<(), Problem> {
    let named = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let media_type = named(header::CONTENT_TYPE).and_then(|value| value.split(';').next());
    let media_type = media_type.unwrap_or_default().trim();
    if !MEDIA_TYPES
        .iter()
        .any(|one| one.eq_ignore_ascii_case(media_type))
    {
        return Err(Problem::unsupported_media_type(
            "A component must be sent with Content-Type: application/wasm.",
        ));
    }
    let length = named(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > largest as u64) {
        return Err(too_large(largest));
    }
    Ok(())
}

fn too_large(largest: usize) -> Problem {
    Problem::too_large(format!(
        "A component may have {largest} bytes, and this one has more."
    ))
}
