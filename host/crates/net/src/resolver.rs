//! DNS resolver that decides which addresses model requests, and requests for the operator's
//! documents, may connect to.
//!
//! Where a proxy is set, the proxy resolves the address, and its checks apply instead.
//!
//! # Invariants
//! - Cloud metadata, unspecified and multicast addresses are refused.
//! - Link-local addresses are refused unless the deployment's base URL is that very address.
//! - Private and loopback addresses are refused unless the deployment named the host.
//! - A connection goes to the very addresses that were checked.

use std::collections::HashSet;
use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::address::address_allowed;

/// The environment variables that name proxies.
const PROXIES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A name resolves to no allowed address.
#[derive(Debug, thiserror::Error)]
#[error("its address is one that is not asked")]
struct Refused;

/// Whether a request was not sent because its host resolves to blocked addresses.
pub(crate) fn was_refused(cause: &reqwest::Error) -> bool {
    let mut deeper = cause.source();
    while let Some(found) = deeper {
        if found.is::<Refused>() {
            return true;
        }
        deeper = found.source();
    }
    false
}

/// Whether a base URL that is a literal address may be used. Names are checked when they are
/// resolved.
pub(crate) fn literal_allowed(url: &Url, named: bool) -> bool {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        _ => return true,
    };
    address_allowed(address, named) || (named && plain_link_local(address))
}

/// A link-local address, unless clouds hand out credentials there.
fn plain_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() && !matches!(v4.octets()[2], 169 | 170),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Resolves names to allowed addresses.
pub struct Resolver {
    /// Hosts that the deployment named itself, in lower case: they may be private.
    named: HashSet<String>,
    /// Whether any host may be private.
    private: bool,
}

impl Resolver {
    /// Creates a resolver that allows private addresses for these hosts, and for the proxies that
    /// the environment names, which are the operator's too.
    pub fn new(named: impl IntoIterator<Item = String>) -> Self {
        let proxies = PROXIES.iter().filter_map(|name| {
            let value = std::env::var(name).ok()?;
            let url = Url::parse(&value).or_else(|_| Url::parse(&format!("http://{value}")));
            url.ok()?.host_str().map(str::to_ascii_lowercase)
        });
        Self {
            named: named.into_iter().chain(proxies).collect(),
            private: false,
        }
    }

    /// Creates a resolver for any host, with private addresses allowed if `private` is set.
    pub(super) fn open(private: bool) -> Self {
        Self {
            private,
            ..Self::new([])
        }
    }

    fn is_named(&self, name: &str) -> bool {
        self.private || self.named.contains(&name.to_ascii_lowercase())
    }
}

fn allowed(named: bool, found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    found
        .filter(|address| address_allowed(address.ip(), named))
        .collect()
}

/// Which addresses a document of the operator's may be at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Public and private addresses.
    Any,
    /// Private and loopback addresses only.
    Private,
}

impl Reach {
    fn allows(self, address: IpAddr) -> bool {
        let public = address_allowed(address, false);
        address_allowed(address, true) && (self == Self::Any || !public)
    }

    /// Whether a URL's host is allowed, if it is a literal address. A name is checked when it is
    /// resolved.
    pub(super) fn allows_literal(self, url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(address)) => self.allows(address.into()),
            Some(Host::Ipv6(address)) => self.allows(address.into()),
            _ => true,
        }
    }
}

/// Resolves names that the operator configured.
pub(super) struct OperatorResolver {
    pub(super) reach: Reach,
}

impl reqwest::dns::Resolve for OperatorResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let reach = self.reach;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|address| reach.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err(Refused.into());
            }
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let named = self.is_named(name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = allowed(named, found);
            if allowed.is_empty() {
                return Err(Refused.into());
            }
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_that_is_an_address_is_used_where_the_deployment_wrote_it() {
        let allowed = |host: &str, named| {
            literal_allowed(&Url::parse(&format!("http://{host}/v1")).unwrap(), named)
        };
        for host in [
            "127.0.0.1:8000",
            "10.1.2.3",
            "[::1]",
            "169.254.7.7",
            "[fe80::1]",
        ] {
            assert!(allowed(host, true), "{host}");
            assert!(!allowed(host, false), "{host}");
        }
        for host in [
            "169.254.169.254",
            "169.254.170.2",
            "0.0.0.0:8000",
            "224.0.0.1",
            "[::]",
            "[ff02::1]",
            "[fd00:ec2::254]",
            "100.100.100.200",
            "[::ffff:169.254.169.254]",
        ] {
            assert!(!allowed(host, true), "{host}");
        }
        assert!(allowed("203.0.113.7", false) && allowed("api.example.com", false));
    }

    #[test]
    fn a_name_is_connected_to_at_the_addresses_that_were_checked() {
        let resolver = Resolver {
            named: HashSet::from(["ollama".to_owned()]),
            private: false,
        };
        let found = || {
            ["169.254.169.254", "10.0.0.7", "203.0.113.7"]
                .map(|text| SocketAddr::new(text.parse().unwrap(), 0))
                .into_iter()
        };
        let told = |name: &str| -> Vec<String> {
            let allowed = allowed(resolver.is_named(name), found());
            allowed.iter().map(|a| a.ip().to_string()).collect()
        };
        assert_eq!(told("Ollama"), ["10.0.0.7", "203.0.113.7"]);
        assert_eq!(told("api.example.com"), ["203.0.113.7"]);
    }

    #[test]
    fn a_name_of_the_operators_leads_to_a_public_address_over_https_only() {
        let allowed = |reach: Reach, address: &str| reach.allows(address.parse().unwrap());
        for address in ["10.0.0.7", "127.0.0.1", "::1", "fd12::1"] {
            assert!(
                allowed(Reach::Any, address) && allowed(Reach::Private, address),
                "{address}"
            );
        }
        for address in ["203.0.113.7", "2001:db8::7", "64:ff9b::cb00:7107"] {
            assert!(
                allowed(Reach::Any, address) && !allowed(Reach::Private, address),
                "{address}"
            );
        }
        for address in ["169.254.169.254", "fd00:ec2::254", "0.0.0.0"] {
            assert!(
                !allowed(Reach::Any, address) && !allowed(Reach::Private, address),
                "{address}"
            );
        }
    }
}
