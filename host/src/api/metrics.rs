//! The metrics, for Prometheus: at an address of their own, or here for callers with the internal key.
//!
//! # Invariants
//!
//! - Nobody else reads them: they say how much a deployment is used.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::problem::{Problem, no_such_method, no_such_route};
use super::{Api, request_id};
use lucid_types::metrics::{SOCKETS, http_request};

/// Prometheus' text format.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders all metrics.
pub(super) type Render = Box<dyn Fn() -> String + Send + Sync>;

/// All metrics, in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "status",
    security(("internal_key" = [])),
    responses(
        (status = 200, content_type = "text/plain", body = String),
        (status = 401, body = Problem, description = "The internal key is missing or wrong, or this server has none"),
        (status = 503, body = Problem, description = "This server records no metrics"),
    ),
)]
pub(super) async fn metrics(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if api.parts.auth.internal_key.is_none() {
        return Err(Problem::unauthorized(
            "Metrics are served here if INTERNAL_API_KEY is set, and where METRICS_LISTEN says.",
        ));
    }
    api.parts.auth.internal(&headers)?;
    api.rendered()
}

impl Api {
    /// The routes of `METRICS_LISTEN`, which need no key.
    pub fn metrics_router(self) -> Router {
        let rendered = |State(api): State<Self>| async move { api.rendered() };
        Router::new()
            .route("/metrics", get(rendered))
            .fallback(no_such_route)
            .method_not_allowed_fallback(no_such_method)
            .with_state(self)
            .layer(axum::middleware::from_fn(request_id::identify))
    }

    fn rendered(&self) -> Result<Response, Problem> {
        let Some(render) = &self.parts.metrics else {
            return Err(Problem::unavailable(
                "This server records no metrics; its log says why.",
            ));
        };
        metrics::gauge!(SOCKETS).set(self.parts.sockets.len() as f64);
        Ok(([(header::CONTENT_TYPE, FORMAT)], render()).into_response())
    }
}

/// Measures how long a request takes, by its route.
pub(super) async fn measure(request: Request, next: Next) -> Response {
    let (method, begun) = (name(request.method()), Instant::now());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    http_request(method, route, response.status().as_u16(), begun.elapsed());
    response
}

/// A method that is known, so that nobody makes series by naming others.
fn name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}
