//! Environment variables that are not settings, for the keys that a manifest names.
//!
//! # Invariants
//!
//! - A value is a secret from the start and is never shown.
//! - The host's own secrets are not among them, so no manifest can name one.

use std::collections::HashMap;

use super::ConfigError;
use super::known::{is_host_secret, is_variable};
use crate::types::secret::Secret;

/// Variables by name, as they were at the start.
#[derive(Debug, Clone, Default)]
pub struct Variables(HashMap<String, Secret>);

impl Variables {
    /// Of a name that comes twice, the last one that is not empty counts.
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

    /// The key in a variable; none where it is not set. Fails where no header can hold it.
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
