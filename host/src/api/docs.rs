//! The page at `/docs`, which shows the OpenAPI description and sends requests for whoever reads it.
//!
//! # Invariants
//!
//! - The page loads this server's own scripts, styles and images only, runs no inline script, and
//!   connects to this server only. It holds the reader's token while it is open.

use axum::Router;
use axum::http::header::CONTENT_SECURITY_POLICY;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{Api, fixed};

const DESCRIPTION: &str = "/openapi.json";

/// What the page may load. The hash is that of the style element in the page's logo, the only
/// inline style; a test compares the two. Images are also in the style sheet, as `data:`, and in
/// answers that the page shows, as `blob:`.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-RL3ie0nH+Lzz2YNqQN83mnU0J1ot4QL7b99vMdIX99w='; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and the description.
pub(super) fn router(description: OpenApi) -> Router<Api> {
    // Without a setting it would send the description's address to a validator of its author's.
    let config = Config::new([DESCRIPTION]).validator_url("none");
    let page = SwaggerUi::new("/docs").config(config);
    Router::from(page.url(DESCRIPTION, description)).layer(fixed(CONTENT_SECURITY_POLICY, POLICY))
}
