//! Owns the record of chats, and users' git accounts, in a Supabase project, over its REST API (PostgREST).
//!
//! What always holds: a request is made by [`client::Acting`] alone, which is one caller's way in: it
//! puts in the key, the token and the filter by user, so none of them can be left out or mixed up;
//! nothing of one request is kept for the next. Another user's chat is not there, whichever way a
//! caller comes. What the database says is for the log, never for a client.
//!
//! It is a thin client over the host's own reqwest. The crate `postgrest` (1.6.0) would bring a second
//! HTTP and TLS stack (reqwest 0.11) with known advisories, takes an HTTP error for a success, waits
//! for a connection without a limit and panics on a header with a bad character; what is left of it is
//! the spelling of a query, which are a few lines here.

mod accounts;
mod chats;
mod client;
mod response;
mod rows;

use std::fmt;
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::{Client, redirect};
use url::Url;

pub use self::chats::SupabaseRecords;
use super::RecordError;
use crate::types::secret::Secret;

/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// For a request as a whole.
const WHOLE: Duration = Duration::from_secs(20);

/// Where a project is, and what opens it.
#[derive(Debug, Clone)]
pub struct SupabaseSettings {
    /// Such as `https://abc.supabase.co`, without `/rest/v1`.
    pub url: Url,
    /// What everybody may know; it goes along with a user's token.
    pub anon_key: Secret,
    /// What reads and writes everything, where this host may have that.
    pub service_key: Option<Secret>,
}

/// A Supabase project. Nothing is asked of it before it is used.
pub struct Supabase {
    client: Client,
    /// With a slash at its end.
    rest: Url,
    anon_key: HeaderValue,
    /// As a key and as a Bearer token.
    service_key: Option<(HeaderValue, HeaderValue)>,
}

impl fmt::Debug for Supabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supabase")
            .field("rest", &self.rest.as_str())
            .finish_non_exhaustive()
    }
}

impl Supabase {
    /// A client for a project. Its settings were checked; what a header cannot carry is refused.
    pub fn new(settings: &SupabaseSettings) -> Result<Self, RecordError> {
        let unusable = |_| RecordError::Refused {
            code: "a key that no header can carry".to_owned(),
        };
        let key = |secret: &Secret| sensitive(secret.expose()).map_err(unusable);
        let service_key = match &settings.service_key {
            Some(secret) => Some((key(secret)?, bearer(secret).map_err(unusable)?)),
            None => None,
        };
        crate::net::egress::prepare_tls();
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            // A redirect would take the keys along to wherever it leads.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|_| RecordError::Unavailable { answered: false })?;
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
        })
    }

    /// Whether it can be asked for users who sent no token.
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
