//! The addresses a gateway may connect to, and the HTTP client that enforces them.
//!
//! # Invariants
//! - Addresses of cloud metadata services are always refused; those of private networks unless the
//!   operator allowed them. Both apply to IPv6 forms of an IPv4 address too.
//! - A connection goes to the very addresses that were checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::Client;
use url::{Host, Url};

use super::GatewayError;
use lucid_net::address::address_allowed;

/// The gateways' HTTP client: no redirects, no proxy, checked addresses, no decompression. The
/// timeout is set for each request, since sending a push takes longer than the response to it.
///
/// # Errors
/// If the HTTP client cannot be created.
pub fn client(allow_private: bool) -> Result<Client, GatewayError> {
    lucid_net::egress::prepare_tls();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .dns_resolver(Resolver { allow_private })
        .connect_timeout(Duration::from_secs(15))
        .build()
        .map_err(GatewayError::Client)
}

/// Refuses a URL whose host is an address that is not allowed. A literal address is never resolved,
/// so the client's resolver does not see it.
pub(super) fn check_literal(url: &Url, allow_private: bool) -> Result<(), String> {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        _ => return Ok(()),
    };
    if address_allowed(address, allow_private) {
        return Ok(());
    }
    Err(refused_address(url.host_str().unwrap_or_default()))
}

struct Resolver {
    allow_private: bool,
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| address_allowed(address.ip(), allow_private))
                .collect();
            if allowed.is_empty() {
                return Err(refused_address(name.as_str()).into());
            }
            // The client connects to these very addresses, so a name cannot resolve differently in
            // between.
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

fn refused_address(host: &str) -> String {
    format!(
        "{host} is at an address of a private network, which this host does not let sessions reach"
    )
}
