//! The location of the identity provider's public keys.
//!
//! # Invariants
//!
//! - An explicit URL takes precedence over the one derived from `SUPABASE_URL`.
//! - Plain HTTP is accepted for a private address only, since anyone on the path could sign tokens
//!   of their own.

use url::Url;

use super::ConfigError;
use super::parse::{SettingValues, quoted_value};
use lucid_net::fetch::Document;

/// The path below a Supabase project's URL. A project that still signs with its shared secret alone
/// has an empty key set there.
const OF_A_PROJECT: [&str; 4] = ["auth", "v1", ".well-known", "jwks.json"];

/// Whether these are a Supabase project's own keys, which sign for that project only. Another
/// identity provider's sign for all its applications.
pub(crate) fn is_supabase(url: &Url) -> bool {
    let mut segments = url.path_segments().into_iter().flatten().rev();
    OF_A_PROJECT
        .iter()
        .rev()
        .all(|known| segments.next() == Some(known))
}

/// `SUPABASE_JWKS_URL`, or the project's.
pub(super) fn jwks_url(values: &SettingValues) -> Result<Option<Url>, ConfigError> {
    let project = values.base_url("SUPABASE_URL")?.and_then(|mut url| {
        // An http URL always has a path.
        url.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .extend(OF_A_PROJECT);
        Some(("SUPABASE_URL", url))
    });
    let written = values.base_url("SUPABASE_JWKS_URL")?;
    let written = written.map(|url| ("SUPABASE_JWKS_URL", url));
    let Some((name, url)) = written.or(project) else {
        return Ok(None);
    };
    if Document::is_allowed_url(&url) {
        return Ok(Some(url));
    }
    Err(ConfigError::NotAllowed {
        name,
        value: quoted_value(url.as_str()),
        allowed: "an https URL, or an http URL at an address that is not public and not a metadata service's",
    })
}
