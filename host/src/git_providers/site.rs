//! Owns where a git provider is: its web address, below which its repositories are, and its API.
//!
//! What always holds: one is told from the other in one way only, by the path that the integration names;
//! no address holds a credential; of a repository only a path is known further in, whose parts are plain.

use url::Url;

use crate::egress::{EgressError, Endpoint, Injection};
use crate::plugins::git_types::Descriptor;

/// Why a server cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The deployment has no such provider.
    #[error("Unsupported provider '{given}'. There {}: {}.", if .known.len() == 1 { "is" } else { "are" }, .known.join(", "))]
    Unknown {
        /// What was asked for, cut.
        given: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The address of a user's own server.
    #[error("The server's address cannot be used: {0}.")]
    Address(String),
}

/// Where a provider is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) web: Url,
    pub(super) api: Endpoint,
}

impl Place {
    /// Where the deployment has it; what it leaves open, the integration says.
    pub(super) fn of(
        descriptor: &Descriptor,
        api: Option<Url>,
        web: Option<Url>,
    ) -> Result<Self, String> {
        let usual = |text: &str| {
            Url::parse(text).map_err(|_| {
                "it names an address of its own that is none: report it to its author".to_owned()
            })
        };
        let injection = injection(descriptor).map_err(|why| why.to_string())?;
        let stated = api.is_some() || web.is_some();
        let (api, web) = match (api, web) {
            (None, None) => (
                usual(&descriptor.default_base_url)?,
                usual(&descriptor.default_web_url)?,
            ),
            (None, Some(web)) => (api_of(&web, descriptor), web),
            (Some(api), Some(web)) => (api, web),
            (Some(api), None) => {
                let web = if api.as_str().trim_end_matches('/')
                    == descriptor.default_base_url.trim_end_matches('/')
                {
                    usual(&descriptor.default_web_url)?
                } else {
                    web_of(&api, descriptor).ok_or_else(|| {
                        format!(
                            "its `base_url` does not end in {}, so `web_url` must say where its repositories are",
                            descriptor.api_path
                        )
                    })?
                };
                (api, web)
            }
        };
        let api = if stated {
            Endpoint::new(api, injection)
        } else {
            Endpoint::public(api, injection)
        };
        let api = api.map_err(|why| why.to_string())?.with_escaped_slashes();
        Ok(Self {
            web: rooted(web),
            api,
        })
    }

    /// Where a user's own server is, by its web address.
    pub(super) fn own(
        descriptor: &Descriptor,
        address: &str,
        private: bool,
    ) -> Result<Self, SiteError> {
        let refused = |why: &str| SiteError::Address(why.to_owned());
        let web = Url::parse(address.trim())
            .map_err(|_| refused("give one like https://gitlab.example.com"))?;
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
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.web == other.web
    }
}

fn injection(descriptor: &Descriptor) -> Result<Injection, EgressError> {
    Injection::of(&descriptor.key.clone().into())
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
