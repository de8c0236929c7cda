//! The rule for which addresses a client may connect to, and the resolver that applies it.
//!
//! A client that uses a proxy sends it the name, so the proxy resolves it, and its checks apply instead.
//!
//! # Invariants
//! - Cloud metadata, unspecified and multicast addresses are refused.
//! - Link-local addresses are refused unless the deployment's base URL is that very address.
//! - Private and loopback addresses, and public ones of this machine, are refused unless the client's policy
//!   allows them.
//! - A connection goes to the very addresses that were checked.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::address::{address_allowed, is_of_this_machine};

/// A name resolves to no allowed address.
#[derive(Debug, thiserror::Error)]
#[error("its address is one that is not asked")]
struct NoAllowedAddress;

/// Whether a request was not sent because its host resolves to blocked addresses.
pub fn was_refused(cause: &reqwest::Error) -> bool {
    let mut deeper = cause.source();
    while let Some(found) = deeper {
        if found.is::<NoAllowedAddress>() {
            return true;
        }
        deeper = found.source();
    }
    false
}

/// Whether a base URL that is a literal address may be used. Names are checked when they are
/// resolved.
pub(crate) fn literal_allowed(url: &Url, named: bool) -> bool {
    literal(url).is_none_or(|address| {
        address_allowed(address, named) || (named && plain_link_local(address))
    })
}

/// The address that a URL's host is, if it is a literal one.
fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// A link-local address, unless clouds hand out credentials there.
fn plain_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() && !matches!(v4.octets()[2], 169 | 170),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Which addresses a client may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressPolicy {
    /// Public addresses of other machines.
    Public {
        /// Hosts that may have private addresses too, in lower case: those that the deployment named itself.
        private_hosts: BTreeSet<String>,
    },
    /// Public and private addresses.
    PublicAndPrivate,
    /// Private and loopback addresses only.
    PrivateOnly,
    /// Any address: the operator named the server, and nobody else has a say in what is sent there.
    Any,
}

impl AddressPolicy {
    /// Public addresses, whatever the host.
    #[must_use]
    pub fn public_only() -> Self {
        Self::Public {
            private_hosts: BTreeSet::new(),
        }
    }

    /// Public addresses, and private ones if `private` is set, whatever the host.
    #[must_use]
    pub fn public_or_private(private: bool) -> Self {
        if private {
            Self::PublicAndPrivate
        } else {
            Self::public_only()
        }
    }

    /// Lets these hosts, in lower case, have private addresses.
    pub(super) fn allow_private(&mut self, hosts: BTreeSet<String>) {
        if let Self::Public { private_hosts } = self {
            private_hosts.extend(hosts);
        }
    }

    fn allows(&self, host: &str, address: IpAddr) -> bool {
        match self {
            Self::Public { private_hosts } => {
                let is_named = private_hosts.contains(&host.to_ascii_lowercase());
                address_allowed(address, is_named) && (is_named || !is_of_this_machine(address))
            }
            Self::PublicAndPrivate => address_allowed(address, true),
            Self::PrivateOnly => address_allowed(address, true) && !address_allowed(address, false),
            Self::Any => true,
        }
    }

    /// Whether a URL's host is allowed, if it is a literal address, which no resolver sees. A name is checked when
    /// it is resolved.
    #[must_use]
    pub fn allows_literal(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        literal(url).is_none_or(|address| self.allows(host, address))
    }

    fn allowed(&self, host: &str, found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        found
            .filter(|address| self.allows(host, address.ip()))
            .collect()
    }
}

/// Why a host has no address to connect to.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It has addresses, and none is allowed.
    #[error("its address is one that is not asked")]
    NotAllowed,
    /// It has none.
    #[error("its name cannot be resolved: {0}")]
    Lookup(#[source] io::Error),
}

/// Resolves a name or an address, without brackets, to the addresses that a policy allows. Takes one
/// of the runtime's threads for blocking work for as long as a name takes.
///
/// # Errors
/// If there is none.
pub async fn resolve(
    policy: &AddressPolicy,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let found = tokio::net::lookup_host((host, port))
        .await
        .map_err(ResolveError::Lookup)?;
    let allowed = policy.allowed(host, found);
    if allowed.is_empty() {
        return Err(ResolveError::NotAllowed);
    }
    Ok(allowed)
}

/// Resolves names to the addresses that a policy allows.
pub(super) struct PolicyResolver(pub(super) AddressPolicy);

impl reqwest::dns::Resolve for PolicyResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = policy.allowed(name.as_str(), found);
            if allowed.is_empty() {
                return Err(NoAllowedAddress.into());
            }
            // The client connects to these very addresses, so a name cannot resolve differently in between.
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
        let policy = AddressPolicy::Public {
            private_hosts: BTreeSet::from(["ollama".to_owned()]),
        };
        let found = || {
            ["169.254.169.254", "10.0.0.7", "203.0.113.7"]
                .map(|text| SocketAddr::new(text.parse().unwrap(), 0))
                .into_iter()
        };
        let told = |name: &str| -> Vec<String> {
            let allowed = policy.allowed(name, found());
            allowed.iter().map(|a| a.ip().to_string()).collect()
        };
        assert_eq!(told("Ollama"), ["10.0.0.7", "203.0.113.7"]);
        assert_eq!(told("api.example.com"), ["203.0.113.7"]);
    }

    #[test]
    fn a_name_of_the_operators_leads_to_a_public_address_over_https_only() {
        let allowed =
            |policy: &AddressPolicy, address: &str| policy.allows("auth", address.parse().unwrap());
        let (any, private) = (AddressPolicy::PublicAndPrivate, AddressPolicy::PrivateOnly);
        for address in ["10.0.0.7", "127.0.0.1", "::1", "fd12::1"] {
            assert!(
                allowed(&any, address) && allowed(&private, address),
                "{address}"
            );
        }
        for address in ["203.0.113.7", "2001:db8::7", "64:ff9b::cb00:7107"] {
            assert!(
                allowed(&any, address) && !allowed(&private, address),
                "{address}"
            );
        }
        for address in ["169.254.169.254", "fd00:ec2::254", "0.0.0.0"] {
            assert!(
                !allowed(&any, address) && !allowed(&private, address),
                "{address}"
            );
        }
    }
}
