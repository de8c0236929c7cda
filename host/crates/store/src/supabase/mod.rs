//! Chats and users' git accounts in a Supabase project, over its REST API (PostgREST).
//!
//! This is a thin client over the host's own reqwest. The crate `postgrest` (1.6.0) would bring a
//! second HTTP and TLS stack (reqwest 0.11) with known advisories, treats an HTTP error as a
//! success, waits for a connection without a limit and panics on a header with an invalid
//! character. What is left of it is the syntax of a query, which takes a few lines here.
//!
//! # Invariants
//! - Every request is made by [`client::AuthorizedClient`], the client of one caller. It adds the key, the
//!   token and the filter by user, so none of them can be omitted or mixed up, and nothing is
//!   carried over from one request to the next.
//! - Another user's chat does not exist for a caller, whichever key is used.
//! - What the database says is for the log, never for a client.

mod accounts;
mod chats;
mod client;
mod response;
mod rows;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reqwest::Client;
use reqwest::header::HeaderValue;
use url::Url;

pub use self::chats::SupabaseChatStore;
use crate::chat_store::ChatStoreError;
use lucid_net::client::ClientSpec;
use lucid_net::resolver::AddressPolicy;
use lucid_types::secret::Secret;

/// Timeout for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Timeout for a whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A project's address and keys.
#[derive(Debug, Clone)]
pub struct SupabaseSettings {
    /// The base URL, such as `https://abc.supabase.co`, without `/rest/v1`.
    pub url: Url,
    /// The public key, sent along with a user's token.
    pub anon_key: Secret,
    /// The key that bypasses row-level security, if this host may have it.
    pub service_key: Option<Secret>,
}

/// A Supabase project. No request is made before it is used.
pub struct Supabase {
    client: Client,
    /// The REST endpoint, with a trailing slash.
    rest: Url,
    anon_key: HeaderValue,
    /// The service key, as an API key and as a bearer token.
    service_key: Option<(HeaderValue, HeaderValue)>,
    /// Whether the project turned out to have no column for the code that protects a git account.
    lacks_macs: AtomicBool,
}

impl fmt::Debug for Supabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supabase")
            .field("rest", &self.rest.as_str())
            .finish_non_exhaustive()
    }
}

impl Supabase {
    /// Creates a client for a project. The settings have been validated; a key that a header cannot
    /// carry is refused.
    pub fn new(settings: &SupabaseSettings) -> Result<Self, ChatStoreError> {
        let unusable = |_| ChatStoreError::Refused {
            code: "a key that no header can carry".to_owned(),
        };
        let key = |secret: &Secret| sensitive(secret.expose()).map_err(unusable);
        let service_key = match &settings.service_key {
            Some(secret) => Some((key(secret)?, bearer(secret).map_err(unusable)?)),
            None => None,
        };
        // The operator named the project, which may be in the operator's own network.
        let client = ClientSpec::new(AddressPolicy::Any, CONNECT)
            .repeat_refused()
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|_| ChatStoreError::Unavailable { answered: false })?;
        let mut rest = settings.url.clone();
        rest.set_path(&format!(
            "{}/rest/v1/",
            settings.url.path().trim_end_matches('/')
        ));
        Ok(Self {
            client,
            rest,
            anon_key: key(&settings.anon_key)?,
            service_key,
            lacks_macs: AtomicBool::new(false),
        })
    }

    /// Returns whether requests can be made for users who sent no token.
    pub fn has_service_key(&self) -> bool {
        self.service_key.is_some()
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

fn bearer(token: &Secret) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    sensitive(&format!("Bearer {}", token.expose()))
}
