//! Environment variables that are not settings, for the keys that a manifest names.
//!
//! # Invariants
//!
//! - A value is a secret from the start and is never shown.
//! - The host's own secrets are not among them, so no manifest can name one.

use std::collections::HashMap;

use super::ConfigError;
use super::known::{is_host_secret, is_variable};
use lucid_types::secret::Secret;

/// Variables by name, as of the start of the process.
#[derive(Debug, Clone, Default)]
pub struct Variables(HashMap<String, Secret>);

impl Variables {
    /// If a name occurs twice, the last non-empty value counts.
    pub(super) fn new(pairs: &[(String, String)]) -> Self {
        let fits = |name: &str, value: &str| {
            is_variable(name) && !is_host_secret(name) && !value.trim().is_empty()
        };
        let pairs = pairs.iter().filter(|(name, value)| fits(name, value));
        Self(
            pairs
                .map(|(name, value)| (name.clone(), Secret::from(value.trim())))
                .collect(),
        )
    }

    /// The key in a variable. `None` if it is not set.
    ///
    /// # Errors
    ///
    /// Fails if a header cannot carry it.
    pub fn key(&self, name: &str) -> Result<Option<Secret>, ConfigError> {
        let Some(secret) = self.0.get(name) else {
            return Ok(None);
        };
        if secret.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Some(secret.clone()));
        }
        Err(ConfigError::BadKey {
            name: name.to_owned(),
        })
    }
}
