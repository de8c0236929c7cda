//! Owns one model provider of this deployment: where it is, with which key, and whether a key is good.
//!
//! What always holds: the key of the deployment goes to the endpoint it was set for and to no other.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use url::Url;

use super::choice::{Basis, Choice};
use super::{ModelsError, SETTINGS, sendable};
use crate::config::ModelSettings;
use crate::egress::{Answer, Egress, Endpoint, Injection};
use crate::plugins::LlmPlugin;
use crate::plugins::llm_types::Framing;
use crate::plugins::types::ErrorKind;
use crate::secret::Secret;
use crate::session::CreateError;

/// How long a session waits to hear whether its key is good.
const CHECK: Duration = Duration::from_secs(5);
/// How many good keys are remembered for each provider.
const REMEMBERED: usize = 1024;
/// The adapter that speaks the protocol which `LLM_BASE_URL` is for.
pub(super) const COMPATIBLE: &str = "openai";
/// The key for any provider.
const ANY_KEY: &str = "LLM_API_KEY";

/// A provider.
pub(super) struct Served {
    pub(super) name: String,
    pub(super) llm: LlmPlugin,
    pub(super) endpoint: Endpoint,
    /// The deployment's.
    pub(super) key: Option<SecretString>,
    /// The setting that `key` is missing from, where it is.
    pub(super) variable: &'static str,
    pub(super) choice: Choice,
    /// A server of the operator's own may want no key.
    keyless: bool,
    /// Digests of keys the provider took, so that each is asked about once.
    taken: Mutex<HashSet<[u8; 32]>>,
}

impl Served {
    /// The provider that an adapter is for.
    pub(super) fn new(
        llm: &LlmPlugin,
        settings: &ModelSettings,
        is_default: bool,
    ) -> Result<Self, ModelsError> {
        let name = llm.name().to_owned();
        let descriptor = llm.descriptor();
        let bad = || ModelsError::BaseUrl(name.clone());
        let usual = Url::parse(&descriptor.default_base_url).map_err(|_| bad())?;
        let injection = Injection::of(&descriptor.key)?;
        let own = settings.of(&name);
        let at = own.and_then(|own| own.base_url.clone());
        let general = settings.base_url.clone().filter(|_| name == COMPATIBLE);
        // Where there is LLM_BASE_URL, LLM_API_KEY is for that one alone.
        let any_key = || {
            settings
                .api_key
                .as_ref()
                .filter(|_| settings.base_url.is_none())
        };
        let own_key = own.and_then(|own| own.api_key.as_ref());
        let (url, key) = match (at, general) {
            (Some(url), _) => (Some(url), own_key.or_else(any_key)),
            (None, Some(url)) => (Some(url), settings.api_key.as_ref()),
            (None, None) => (None, own_key.or_else(any_key)),
        };
        let elsewhere = url.as_ref().is_some_and(|url| url.host() != usual.host());
        let endpoint = match url {
            Some(url) => Endpoint::new(url, injection)?,
            None => Endpoint::public(usual, injection)?,
        };
        let choice = Choice::new(&Basis {
            name: &name,
            descriptor,
            known: llm.known_models(),
            settings,
            own,
            is_default,
            elsewhere,
        });
        Ok(Self {
            llm: llm.clone(),
            endpoint,
            key: key.map(sendable),
            variable: own.map_or(ANY_KEY, |own| own.key_variable),
            choice,
            keyless: elsewhere,
            taken: Mutex::default(),
            name,
        })
    }

    /// Whether it can be asked, by a session with a key of its own or without.
    pub(super) fn usable(&self, own_key: bool) -> bool {
        own_key || self.keyless || self.key.is_some()
    }

    /// Fails where the provider says that it does not know the key. A provider that is slow, down or
    /// answers oddly is no reason to refuse a session: the first call says more.
    pub(super) async fn check(
        &self,
        egress: &Egress,
        api_key: Option<Secret>,
    ) -> Result<(), CreateError> {
        let own = api_key.as_ref().map(sendable);
        let Some(key) = own.as_ref().or(self.key.as_ref()) else {
            return Ok(());
        };
        let digest: [u8; 32] = Sha256::digest(key.expose_secret().as_bytes()).into();
        if self.taken().contains(&digest) {
            return Ok(());
        }
        let asked = tokio::time::timeout(CHECK, async {
            let request = self.llm.probe(SETTINGS).await.result.ok()??;
            let framing = Framing::WholeBody;
            match egress
                .send(&self.endpoint, Some(key), &request, framing)
                .await
                .ok()?
            {
                Answer::Frames(_) => Some(true),
                Answer::Refused(no) => {
                    let means = self.llm.classify(no.status, &no.headers, &no.body).await;
                    let unknown = means.result.ok()?.kind == ErrorKind::Unauthenticated;
                    unknown.then_some(false)
                }
            }
        });
        match asked.await {
            Ok(Some(false)) => Err(CreateError::KeyRefused(self.name.clone())),
            Ok(Some(true)) => {
                let mut taken = self.taken();
                if taken.len() >= REMEMBERED {
                    taken.clear();
                }
                taken.insert(digest);
                Ok(())
            }
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
