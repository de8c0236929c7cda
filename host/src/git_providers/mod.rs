//! The deployment's git providers: where each one's servers are, which repositories they have, and
//! how an operation is carried out.
//!
//! # Invariants
//!
//! - A token goes to the server it is for and to no other.
//! - A row of an account names a server of its user's own only if this host wrote it.
//! - The deployment's servers are at the addresses in the manifest. A user's own is where the user
//!   says, and may be in a private network only if repositories may be at private addresses too.
//! - A plugin's output is checked before anything else sees it.

mod account_mac;
pub mod accounts;
mod instance;
mod operation;
pub(crate) mod pull_requests;
#[cfg(test)]
mod tests;
pub(crate) mod token_cipher;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use url::Url;

pub use self::instance::GitInstanceError;
use self::instance::{GitEndpoint, path_below};
use crate::manifest::LoadedGit;
use lucid_net::egress::{Egress, EgressError, EgressLimits, Endpoint};
use lucid_types::repository_url::repository_url;
use lucid_types::secret::Secret;
use lucid_types::wit::git::{Account, Change, NewChange, Repository};
use lucid_types::wit::types::Error;
use lucid_wasm::{GitPlugin, Plugin};

/// The maximum number of concurrent operations, and as many at servers that users name: one that
/// never responds does not delay the deployment's own.
const AT_ONCE: usize = 16;

/// The git providers of a deployment. Immutable.
pub struct GitProviders {
    all: BTreeMap<String, Arc<GitProvider>>,
    egress: Egress,
    /// The egress for servers that users name.
    open: Egress,
    /// Whether those may be at private addresses, and without TLS.
    private: bool,
    slots: Arc<Semaphore>,
    open_slots: Arc<Semaphore>,
}

/// A provider of this deployment.
struct GitProvider {
    plugin: GitPlugin,
    /// The deployment's settings for it, as JSON.
    settings: String,
    endpoint: GitEndpoint,
}

/// One server of a provider, ready for operations.
#[derive(Clone)]
pub struct GitInstance {
    provider: Arc<GitProvider>,
    endpoint: GitEndpoint,
    /// Whether a user named it.
    named_by_user: bool,
    egress: Egress,
    slots: Arc<Semaphore>,
}

impl GitProviders {
    /// The loaded providers, and the name and error of each that cannot be used. `private` lets
    /// users name servers at private addresses. Connections of those `before` are reused where
    /// possible.
    pub fn new(
        loaded: Vec<LoadedGit>,
        private: bool,
        before: Option<&Self>,
    ) -> Result<Self, Vec<(String, String)>> {
        let (mut all, mut wrong) = (BTreeMap::new(), Vec::new());
        for one in loaded {
            let name = one.plugin.name().to_owned();
            let stated = one.base_url.is_some() || one.web_url.is_some();
            // The next build of such a component could name another server, and users' tokens would
            // go there.
            if !stated && !one.builtin {
                let why = "its component is none of the built-in ones, and no token goes to an address that such a component chooses: `base_url` must say where it is";
                wrong.push((name, why.to_owned()));
                continue;
            }
            match GitEndpoint::of(
                one.plugin.descriptor(),
                one.base_url,
                one.web_url,
                one.builtin,
            ) {
                Ok(endpoint) => {
                    let provider = GitProvider {
                        plugin: one.plugin,
                        settings: one.settings,
                        endpoint,
                    };
                    all.insert(name, Arc::new(provider));
                }
                Err(why) => wrong.push((name, why.to_string())),
            }
        }
        let endpoints: Vec<&Endpoint> = all
            .values()
            .map(|provider| &provider.endpoint.api)
            .collect();
        let known = before.map(|before| &before.egress);
        let egress = Egress::reuse_or_new(known, limits(), &endpoints);
        let unmade = |why: EgressError| vec![(String::new(), why.to_string())];
        let egress = egress.map_err(unmade)?;
        let open = match before.filter(|before| before.private == private) {
            Some(before) => before.open.clone(),
            None => Egress::open(limits(), private).map_err(unmade)?,
        };
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Self {
            all,
            egress,
            open,
            private,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            open_slots: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.keys().map(String::as_str)
    }

    /// The addresses of a provider's API and of its repositories.
    pub fn addresses(&self, name: &str) -> Option<(String, String)> {
        let endpoint = &self.all.get(name)?.endpoint;
        Some((
            endpoint.api.base_url().to_string(),
            endpoint.web.to_string(),
        ))
    }

    /// The provider of a name, at the deployment's server, or at the user's own.
    pub fn find_instance(
        &self,
        name: &str,
        own: Option<&str>,
    ) -> Result<GitInstance, GitInstanceError> {
        let provider = self
            .all
            .get(name)
            .ok_or_else(|| GitInstanceError::Unknown {
                given: name.chars().take(64).collect(),
                known: self.names().map(str::to_owned).collect(),
            })?;
        let Some(own) = own else {
            return Ok(self.instance(provider, provider.endpoint.clone(), false));
        };
        let endpoint = GitEndpoint::for_user(provider.plugin.descriptor(), own, self.private)?;
        if endpoint.is_same_server(&provider.endpoint) {
            return Ok(self.instance(provider, provider.endpoint.clone(), false));
        }
        Ok(self.instance(provider, endpoint, true))
    }

    /// The deployment's server that hosts a repository.
    pub fn of_repository(&self, url: &str) -> Option<GitInstance> {
        let provider = self.all.values();
        let mut found: Vec<_> = provider
            .filter(|provider| path_below(&provider.endpoint.web, url).is_some())
            .collect();
        // The longest path is the most specific.
        found.sort_by_key(|provider| std::cmp::Reverse(provider.endpoint.web.path().len()));
        let provider = found.first()?;
        Some(self.instance(provider, provider.endpoint.clone(), false))
    }

    /// The user name that git sends with a token for this repository.
    pub fn git_user(&self, url: &str) -> Option<String> {
        let instance = self.of_repository(url)?;
        Some(instance.provider.plugin.descriptor().git_user.clone())
    }

    fn instance(
        &self,
        provider: &Arc<GitProvider>,
        endpoint: GitEndpoint,
        own: bool,
    ) -> GitInstance {
        GitInstance {
            provider: provider.clone(),
            endpoint,
            named_by_user: own,
            egress: if own { &self.open } else { &self.egress }.clone(),
            slots: if own { &self.open_slots } else { &self.slots }.clone(),
        }
    }
}

impl GitInstance {
    /// The provider's name in this deployment.
    pub fn provider(&self) -> &str {
        self.provider.plugin.name()
    }

    /// The scopes that a token needs here.
    pub fn scopes(&self) -> &[String] {
        &self.provider.plugin.descriptor().scopes
    }

    /// The web address of a user's own server. `None` for the deployment's.
    pub fn own_url(&self) -> Option<&Url> {
        self.named_by_user.then_some(&self.endpoint.web)
    }

    /// The server's host name, for display.
    pub fn host(&self) -> &str {
        self.endpoint.web.host_str().unwrap_or_default()
    }

    /// The path of a repository on this server. `None` for one hosted elsewhere.
    pub fn path_of(&self, url: &str) -> Option<String> {
        path_below(&self.endpoint.web, &repository_url(url).ok()?)
    }

    /// The account that a token belongs to.
    pub async fn account(&self, token: &Secret) -> Result<Account, Error> {
        operation::account(self, token).await
    }

    /// All repositories that the token can access.
    pub async fn repositories(&self, token: &Secret) -> Result<Vec<Repository>, Error> {
        operation::repositories(self, token).await
    }

    /// Opens a pull request, or finds the open one of the same branches.
    pub async fn open_change(&self, token: &Secret, change: NewChange) -> Result<Change, Error> {
        operation::open_change(self, token, change).await
    }
}

/// The limits of a response: a page of a hundred repositories has some hundred kilobytes.
fn limits() -> EgressLimits {
    EgressLimits {
        first_byte: operation::LONGEST,
        idle: operation::LONGEST,
        response: 8 << 20,
        ..EgressLimits::default()
    }
}
