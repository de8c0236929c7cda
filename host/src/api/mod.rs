//! The HTTP API: the routes, and the layers around all of them.
//!
//! # Invariants
//!
//! - Every response that is not a success is a problem, including an unknown path and a handler
//!   that panicked.
//! - No query string is logged, since a token may be in it.
//! - A body is at most 1 MiB, except for an uploaded plugin, and the time for it is limited.
//! - What requests and answers take up in memory while their clients take time is bounded by user.
//! - Every answer names its request by an id, which the log's lines about it name as well.
//! - `Authenticated` decides once who the caller is, and every lookup names that user.

pub(crate) mod identity;
pub mod problem;

mod chats;
mod connections;
mod description;
mod docs;
mod downloads;
mod files;
mod held_answers;
mod integrations;
mod metrics;
pub(crate) mod plugins;
pub(crate) mod request_id;
mod root;
mod session_request;
mod sessions;
mod ws;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::{DefaultOnFailure, TraceLayer};
use tracing::{Level, Span};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::description::Description;
use self::downloads::ArchiveSlots;
use self::plugins::shadow;
pub use self::plugins::{
    ActivationView, BuildView, CandidateView, GrantsView, KeptView, LastErrorView, LimitsView,
    LoadedView, LoadingView, PluginsView, ProbationView, ProblemView, RolledBackView,
    TakenBackView,
};
use self::problem::Problem;
use self::request_id::{RequestId, X_REQUEST_ID};
pub use self::root::{DeploymentInfo, NotReady, PluginView};
use crate::auth::Authenticator;
use crate::config::AllowedOrigins;
use crate::deployment::manager::DeploymentManager;
use crate::deployment::rollout::shadow::ShadowRuns;
use crate::environment::connections::ConnectionLog;
use crate::environment::workspaces::Workspaces;
use crate::git_providers::accounts::Accounts;
use lucid_session::Sessions;
use lucid_store::Chats;
use lucid_types::user_work::UserWork;

/// The maximum size of a body, and of a WebSocket message, in bytes.
const LARGEST_BODY: usize = 1024 * 1024;

/// The state shared by all routes. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    parts: Arc<ApiState>,
}

struct ApiState {
    auth: Arc<Authenticator>,
    sessions: Sessions,
    workspaces: Workspaces,
    connections: ConnectionLog,
    chats: Chats,
    accounts: Accounts,
    deployment: DeploymentManager,
    /// Allows one upload at a time.
    uploads: Semaphore,
    shadows: ShadowRuns,
    about: Box<dyn Fn() -> DeploymentInfo + Send + Sync>,
    readiness: Box<dyn Fn() -> Result<(), NotReady> + Send + Sync>,
    metrics: Option<metrics::Render>,
    archives: ArchiveSlots,
    user_work: UserWork,
    chat_reads: UserWork,
    stop: CancellationToken,
    sockets: TaskTracker,
}

/// The parts of the server that routes work with.
pub(crate) struct ApiParts {
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) sessions: Sessions,
    pub(crate) workspaces: Workspaces,
    pub(crate) user_work: UserWork,
    /// Turns for reading whole chats, which may be large.
    pub(crate) chat_reads: UserWork,
    pub(crate) connections: ConnectionLog,
    pub(crate) chats: Chats,
    pub(crate) accounts: Accounts,
    pub(crate) deployment: DeploymentManager,
}

impl Api {
    /// Assembles the API. `about` is called for each `GET /`, `readiness` for each `GET /ready`, `metrics` for each
    /// `GET /metrics`, where there are any.
    pub(crate) fn new(
        parts: ApiParts,
        about: impl Fn() -> DeploymentInfo + Send + Sync + 'static,
        readiness: impl Fn() -> Result<(), NotReady> + Send + Sync + 'static,
        metrics: Option<impl Fn() -> String + Send + Sync + 'static>,
    ) -> Self {
        let ApiParts {
            auth,
            sessions,
            workspaces,
            user_work,
            chat_reads,
            connections,
            chats,
            accounts,
            deployment,
        } = parts;
        let parts = ApiState {
            auth,
            sessions,
            workspaces,
            connections,
            chats,
            accounts,
            deployment,
            uploads: Semaphore::new(1),
            shadows: ShadowRuns::default(),
            about: Box::new(about),
            readiness: Box::new(readiness),
            metrics: metrics.map(|render| Box::new(render) as metrics::Render),
            archives: ArchiveSlots::default(),
            user_work,
            chat_reads,
            stop: CancellationToken::new(),
            sockets: TaskTracker::new(),
        };
        Self {
            parts: Arc::new(parts),
        }
    }

    /// Takes no new sessions from here on, and says so at `GET /ready`. All else is served as before.
    pub fn drain(&self) {
        self.parts.sessions.drain();
    }

    /// Tells every WebSocket client that the server is shutting down, and waits until each was
    /// told. The sessions themselves are left alone: a client that reconnects later finds its own
    /// again.
    pub async fn close_sockets(&self) {
        self.parts.stop.cancel();
        self.parts.sockets.close();
        self.parts.sockets.wait().await;
    }
}

impl FromRef<Api> for Arc<Authenticator> {
    fn from_ref(api: &Api) -> Self {
        api.parts.auth.clone()
    }
}

/// All routes with their descriptions. Each group has its own file.
fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(root::root))
        .routes(routes!(root::health))
        .routes(routes!(root::ready))
        .routes(routes!(metrics::metrics))
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::get, sessions::stop))
        .routes(routes!(connections::list))
        .routes(routes!(chats::list))
        .routes(routes!(chats::get, chats::rename, chats::delete))
        .routes(routes!(files::list))
        .routes(routes!(files::read))
        .routes(routes!(downloads::file))
        .routes(routes!(downloads::archive))
        .routes(routes!(integrations::connect, integrations::list))
        .routes(routes!(integrations::disconnect))
        .routes(routes!(integrations::repositories))
        .routes(routes!(integrations::open_change))
        .routes(routes!(plugins::list::list, plugins::uploads::upload))
        .routes(routes!(plugins::reload::reload))
        .routes(routes!(plugins::builds::activate))
        .routes(routes!(plugins::builds::roll_back))
        .routes(routes!(shadow::begin, shadow::report))
        .routes(routes!(ws::open))
}

/// The complete router, ready to be served.
pub fn router(api: Api, origins: &AllowedOrigins) -> Router {
    let (router, description) = described().split_for_parts();
    let description = description::completed(description);
    router
        .merge(docs::router(description))
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .with_state(api)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(axum::middleware::from_fn(held_answers::hold))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn(metrics::measure))
        .layer(fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(fixed(header::X_FRAME_OPTIONS, "DENY"))
        .layer(fixed(header::REFERRER_POLICY, "no-referrer"))
        // A response is for one user only, so nothing in between may cache it.
        .layer(fixed(header::CACHE_CONTROL, "no-store"))
        .layer(cors(origins))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                // A refusal is no fault, and a fault has a line of its own that says what happened.
                .on_failure(DefaultOnFailure::new().level(Level::DEBUG)),
        )
        .layer(axum::middleware::from_fn(request_id::identify))
}

fn fixed(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}

/// The path only: the query may contain a token.
fn span<B>(request: &Request<B>) -> Span {
    let id = request.extensions().get().map(RequestId::as_str);
    tracing::info_span!("request", id, method = %request.method(), path = request.uri().path())
}

fn cors(origins: &AllowedOrigins) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([X_REQUEST_ID, header::RETRY_AFTER]);
    match origins {
        AllowedOrigins::Any => layer.allow_origin(AllowOrigin::any()),
        // A frontend may send its requests with credentials, although none are read here.
        AllowedOrigins::List(list) => layer
            .allow_origin(AllowOrigin::list(
                list.iter()
                    .filter_map(|origin| HeaderValue::from_str(origin).ok()),
            ))
            .allow_credentials(true),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the layer hands the panic over"
)]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    Problem::internal(&std::io::Error::other(format!(
        "a handler panicked: {text}"
    )))
    .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_of_the_contract_is_described() {
        let api = described().into_openapi();
        let paths: Vec<&str> = api.paths.paths.keys().map(String::as_str).collect();
        for path in [
            "/",
            "/health",
            "/ready",
            "/metrics",
            "/api/v1/sessions",
            "/api/v1/sessions/{id}",
            "/api/v1/sessions/{id}/connections",
            "/api/v1/chats",
            "/api/v1/chats/{id}",
            "/api/v1/files/list",
            "/api/v1/files/read",
            "/api/v1/files/download",
            "/api/v1/files/archive",
            "/api/v1/integrations",
            "/api/v1/integrations/{provider}",
            "/api/v1/integrations/{provider}/repos",
            "/api/v1/integrations/{provider}/pr",
            "/api/v1/plugins",
            "/api/v1/plugins/reload",
            "/api/v1/plugins/{kind}/{name}/activate",
            "/api/v1/plugins/{kind}/{name}/rollback",
            "/api/v1/plugins/{kind}/{name}/shadow",
            "/api/v1/ws",
        ] {
            assert!(paths.contains(&path), "{path} is missing from {paths:?}");
        }
        assert!(api.to_json().is_ok());
    }

    #[test]
    fn a_panic_is_answered_with_a_plain_sentence() {
        let response = panicked(Box::new("secret"));
        assert_eq!(response.status(), 500);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "application/problem+json"
        );
    }
}
