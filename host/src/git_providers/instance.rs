//! Where a git provider is: its web address, below which its repositories are, and its API.
//!
//! # Invariants
//!
//! - The one is derived from the other in one way only, by the path that the integration names.
//! - No address holds a credential.
//! - Of a repository only its path is known further in, and the parts of that are plain.

use url::Url;

use lucid_net::egress::{BaseUrlError, EgressError, Endpoint, KeyInjection, server};
use lucid_types::repository_url::parse_repository_url;
use lucid_types::wit::git::Descriptor;

/// Why a server cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitInstanceError {
    /// The deployment has no such provider.
    #[error("unsupported provider '{given}'")]
    Unknown {
        /// What was asked for, cut.
        given: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The address of a user's own server.
    #[error("the server's address cannot be used: {0}")]
    Address(String),
}

/// Why a provider of the deployment has no place.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitEndpointError {
    /// The integration names an invalid URL.
    #[error("it names an address of its own that is none: report it to its author")]
    OwnAddress(#[source] url::ParseError),
    /// The address of the API does not tell where the repositories are. With the path that it lacks.
    #[error("its `base_url` does not end in {0}, so `web_url` must say where its repositories are")]
    NoWebUrl(String),
    /// The endpoint, or the placement of the token, is invalid.
    #[error(transparent)]
    Egress(#[from] EgressError),
}

/// Where a provider is.
#[derive(Debug, Clone)]
pub(super) struct GitEndpoint {
    pub(super) web: Url,
    pub(super) api: Endpoint,
}

impl GitEndpoint {
    /// Where the deployment has it; what it leaves open, the integration says.
    pub(super) fn of(
        descriptor: &Descriptor,
        api: Option<Url>,
        web: Option<Url>,
        is_builtin: bool,
    ) -> Result<Self, GitEndpointError> {
        let usual = |text: &str| Url::parse(text).map_err(GitEndpointError::OwnAddress);
        let injection = injection(descriptor)?;
        let stated = api.is_some() || web.is_some();
        let (api, web) = match (api, web) {
            (None, None) => (
                usual(&descriptor.default_base_url)?,
                usual(&descriptor.default_web_url)?,
            ),
            (Some(api), Some(web)) => (api, web_of(&web, descriptor).unwrap_or(web)),
            // Of any other component, no address is taken that it names itself.
            (Some(one), None) | (None, Some(one)) if is_builtin && is_default(&one, descriptor) => {
                (
                    usual(&descriptor.default_base_url)?,
                    usual(&descriptor.default_web_url)?,
                )
            }
            (None, Some(web)) => {
                let web = web_of(&web, descriptor).unwrap_or(web);
                (api_of(&web, descriptor), web)
            }
            (Some(api), None) => match web_of(&api, descriptor) {
                Some(web) => (api, web),
                // A server's own address, as a browser shows it.
                None if is_web(&api) => (api_of(&api, descriptor), api),
                None => {
                    return Err(GitEndpointError::NoWebUrl(descriptor.api_path.clone()));
                }
            },
        };
        let api = if stated {
            Endpoint::new(api, injection)
        } else {
            Endpoint::public(api, injection)
        };
        let api = api?.with_escaped_slashes();
        Ok(Self {
            web: rooted(web),
            api,
        })
    }

    /// Where a user's own server is, by its web address.
    pub(super) fn for_user(
        descriptor: &Descriptor,
        address: &str,
        private: bool,
    ) -> Result<Self, GitInstanceError> {
        let refused = |why: &str| GitInstanceError::Address(why.to_owned());
        let web = match server(address) {
            // An SSH remote of it.
            Err(BaseUrlError::NoUrl) => server(&parse_repository_url(address)).map(root),
            read => read,
        };
        let web = web.map_err(|why| match why {
            BaseUrlError::NoUrl => refused("give one like https://gitlab.example.com"),
            why => refused(&why.to_string()),
        })?;
        let web = strip_page_path(web_of(&web, descriptor).unwrap_or(web));
        if web.scheme() != "https" && !(private && web.scheme() == "http") {
            return Err(refused(
                "it must begin with https://, since the token goes there",
            ));
        }
        if web.query().is_some() || web.fragment().is_some() || address.len() > 500 {
            return Err(refused("it has more than a host and a path"));
        }
        let injection = injection(descriptor).map_err(|why| refused(&why.to_string()))?;
        let api = api_of(&web, descriptor);
        let api = if private {
            Endpoint::new(api, injection)
        } else {
            Endpoint::public(api, injection)
        };
        let api = api.map_err(|why| match why {
            EgressError::BaseUrl { reason } => refused(reason),
            other => refused(&other.to_string()),
        })?;
        Ok(Self {
            web: rooted(web),
            api: api.with_escaped_slashes(),
        })
    }

    /// Whether it is the same server.
    pub(super) fn is_same_server(&self, other: &Self) -> bool {
        self.web == other.web
    }
}

/// Whether this is where the integration has its provider, by either of its addresses.
fn is_default(url: &Url, descriptor: &Descriptor) -> bool {
    is_same(url, &descriptor.default_base_url) || is_same(url, &descriptor.default_web_url)
}

fn is_same(url: &Url, text: &str) -> bool {
    let url = url.as_str().replacen("://www.", "://", 1);
    url.trim_end_matches('/') == text.trim_end_matches('/')
}

/// Whether an address can only be one that a browser is given.
fn is_web(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    !host.starts_with("api.") && !url.path().split('/').any(|part| part == "api")
}

/// A server's address without what a browser shows behind it: its pages stand below `-`, or are of its users.
fn strip_page_path(mut url: Url) -> Url {
    let path = url.path().to_owned();
    let end = ["/-/", "/users/", "/dashboard", "/explore"]
        .iter()
        .filter_map(|page| path.find(page))
        .min();
    if let Some(end) = end {
        url.set_path(&path[..end]);
    }
    url
}

fn root(mut url: Url) -> Url {
    url.set_path("");
    url
}

fn injection(descriptor: &Descriptor) -> Result<KeyInjection, EgressError> {
    KeyInjection::of(&descriptor.key.clone().into())
}

fn api_of(web: &Url, descriptor: &Descriptor) -> Url {
    let mut api = web.clone();
    let below = web.path().trim_end_matches('/');
    api.set_path(&format!("{below}{}", descriptor.api_path));
    api
}

fn web_of(api: &Url, descriptor: &Descriptor) -> Option<Url> {
    let path = api.path().trim_end_matches('/');
    let path = path.strip_suffix(&descriptor.api_path)?.to_owned();
    let mut web = api.clone();
    web.set_path(&path);
    Some(web)
}

/// Without a slash at its end, so that addresses can be compared.
fn rooted(mut web: Url) -> Url {
    let path = web.path().trim_end_matches('/').to_owned();
    web.set_path(&path);
    web
}

/// The path of a repository below a web address, without `.git`: two parts at least, all of them plain.
pub(super) fn path_below(web: &Url, repository: &str) -> Option<String> {
    let url = Url::parse(repository).ok()?;
    if url.origin() != web.origin() {
        return None;
    }
    let below = web.path().trim_end_matches('/');
    let path = url.path().strip_prefix(below)?.strip_prefix('/')?;
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~+".contains(c);
    let fits = |part: &str| !matches!(part, "" | "." | ".." | "-") && part.chars().all(plain);
    let parts = path.split('/').count();
    (parts >= 2 && path.len() <= 500 && path.split('/').all(fits)).then(|| path.to_owned())
}
