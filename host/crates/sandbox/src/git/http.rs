//! The addresses a gateway may connect to, and the HTTP client that enforces them.
//!
//! # Invariants
//! - Addresses of cloud metadata services are always refused; those of private networks unless the
//!   operator allowed them. Both apply to IPv6 forms of an IPv4 address too.
//! - A connection goes to the very addresses that were checked.

use std::time::Duration;

use reqwest::Client;
use url::Url;

use super::GitGatewayError;
use super::error::UpstreamError;
use lucid_net::client::ClientSpec;
use lucid_net::resolver::AddressPolicy;

/// Timeout for a connection.
const CONNECT: Duration = Duration::from_secs(15);

/// The gateways' HTTP client: no proxy, no decompression. The timeout is set for each request, since sending a push
/// takes longer than the response to it.
///
/// # Errors
/// If the HTTP client cannot be created.
pub fn client(allow_private: bool) -> Result<Client, GitGatewayError> {
    ClientSpec::new(AddressPolicy::public_or_private(allow_private), CONNECT)
        .without_proxy()
        .repeat_refused()
        .build()
        .map_err(GitGatewayError::Client)
}

/// Refuses a URL whose host is an address that is not allowed. A literal address is never resolved,
/// so the client's resolver does not see it.
pub(super) fn check_literal(url: &Url, allow_private: bool) -> Result<(), UpstreamError> {
    if AddressPolicy::public_or_private(allow_private).allows_literal(url) {
        return Ok(());
    }
    let host = url.host_str().unwrap_or_default().to_owned();
    Err(UpstreamError::Address { host })
}
