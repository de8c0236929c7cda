//! The settings of the chat store.
//!
//! # Invariants
//!
//! - A project stores chats only if both its URL and its anon key are known. A key that has no
//!   effect is a warning.

use super::parse::SettingValues;
use super::{ConfigError, Secret};
use lucid_store::SupabaseSettings;

/// Reads the location of the chat store, if it is not the local database.
pub(super) fn check(
    values: &SettingValues,
    warnings: &mut Vec<String>,
) -> Result<Option<SupabaseSettings>, ConfigError> {
    let url = values.base_url("SUPABASE_URL")?;
    let anon_key = values.header_secret("SUPABASE_ANON_KEY")?;
    let has_anon_key = anon_key.is_some();
    let service_key = service_key(values)?;
    // The URL alone gives the location of the keys for tokens, which needs no key.
    let (Some(url), Some(anon_key)) = (url, anon_key) else {
        for (name, set) in [
            ("SUPABASE_ANON_KEY", has_anon_key),
            ("SUPABASE_SERVICE_KEY", service_key.is_some()),
        ] {
            if set {
                warnings.push(format!(
                    "{name} is set without effect: chats are kept in Supabase where SUPABASE_URL and SUPABASE_ANON_KEY are both set, and now in the local database."
                ));
            }
        }
        return Ok(None);
    };
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if url.scheme() == "http" && !loopback {
        warnings.push(
            "SUPABASE_URL is http: keys, tokens and chats go over the network as they are, so use it within a network of your own only."
                .to_owned(),
        );
    }
    Ok(Some(SupabaseSettings {
        url,
        anon_key,
        service_key,
    }))
}

/// The service key, under Lucid's name for it or under Supabase's.
fn service_key(values: &SettingValues) -> Result<Option<Secret>, ConfigError> {
    match values.header_secret("SUPABASE_SERVICE_KEY")? {
        Some(key) => Ok(Some(key)),
        None => values.header_secret("SUPABASE_SERVICE_ROLE_KEY"),
    }
}
