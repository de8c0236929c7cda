//! Where a program wants to go, whether it may, and the connection to there.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ConnectionOutcome;
use lucid_net::resolver::{AddressPolicy, ResolveError, resolve};

/// How many names of one sandbox are resolved at a time, of one user's, and of all of them.
pub(super) const LOOKUPS_OF_ONE: usize = 8;
pub(super) const LOOKUPS_OF_USER: usize = 16;
pub(super) const LOOKUPS_OF_ALL: usize = 64;
/// How long a name may take to resolve.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long each address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;
/// The longest name, as in DNS.
const MAX_NAME: usize = 253;

/// A server that a program asks for: a name or an address, without brackets, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// In lower case, and an address as it is usually written.
    pub host: String,
    /// The port, of TCP or UDP.
    pub port: u16,
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

impl Destination {
    /// `None` for what cannot be a host's name or address: it is shown and recorded.
    pub(super) fn new(host: &str, port: u16) -> Option<Self> {
        let host = host.strip_prefix('[').unwrap_or(host);
        let host = host.strip_suffix(']').unwrap_or(host);
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        let is_name = !host.is_empty() && host.len() <= MAX_NAME && host.bytes().all(is_plain);
        is_name.then(|| Self {
            // An address of IPv6 can be written in many ways, and is compared.
            host: match host.parse::<IpAddr>() {
                Ok(address) => address.to_string(),
                Err(_) => host.to_ascii_lowercase(),
            },
            port,
        })
    }

    /// Parses `host:port`.
    pub(super) fn parse(authority: &str) -> Option<Self> {
        let (host, port) = authority.rsplit_once(':')?;
        // An address of IPv6 needs its brackets, or its end would be the port.
        if host.contains(':') && !host.starts_with('[') {
            return None;
        }
        Self::new(host, port.parse().ok()?)
    }

    /// The addresses that may be connected to. A name is resolved in its turn, which it keeps for as
    /// long as it takes a thread, even if nobody waits for it any more.
    pub(super) async fn resolve(
        &self,
        private_hosts: &PrivateHosts,
        turns: [&Arc<Semaphore>; 3],
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let is_named = private_hosts.contains(self);
        let policy = AddressPolicy::public_or_private(is_named);
        let mut addresses = if self.host.parse::<IpAddr>().is_ok() {
            resolve(&policy, &self.host, self.port).await?
        } else {
            let resolved = lookup(policy, self.host.clone(), self.port, turns.map(Arc::clone));
            tokio::time::timeout(LOOKUP_TIMEOUT, resolved)
                .await
                .map_err(|_| ConnectError::SlowLookup)??
        };
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }

    /// Connects to the first address that answers.
    pub(super) async fn connect(
        &self,
        addresses: &[SocketAddr],
    ) -> Result<TcpStream, ConnectError> {
        let mut last = ConnectError::SlowConnect;
        for address in addresses {
            last = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(cause)) => ConnectError::Connect(cause),
                Err(_) => ConnectError::SlowConnect,
            };
        }
        Err(last)
    }
}

/// The turn of a lookup, until it is dropped.
pub(super) type LookupTurn = [OwnedSemaphorePermit; 3];

/// Waits for a turn among one sandbox's lookups, then among its user's, and among all.
async fn acquire([own, user, all]: [Arc<Semaphore>; 3]) -> Option<LookupTurn> {
    let own = own.acquire_owned().await.ok()?;
    let user = user.acquire_owned().await.ok()?;
    Some([own, user, all.acquire_owned().await.ok()?])
}

/// The same, for as long as whoever wants to know a name has patience.
pub(super) async fn lookup_turn(turns: [&Arc<Semaphore>; 3]) -> Option<LookupTurn> {
    let acquired = acquire(turns.map(Arc::clone));
    tokio::time::timeout(LOOKUP_TIMEOUT, acquired).await.ok()?
}

async fn lookup(
    policy: AddressPolicy,
    host: String,
    port: u16,
    turns: [Arc<Semaphore>; 3],
) -> Result<Vec<SocketAddr>, ConnectError> {
    let held = acquire(turns).await;
    let resolving = tokio::spawn(async move {
        let resolved = resolve(&policy, &host, port).await;
        drop(held);
        resolved
    });
    let resolved = resolving.await.map_err(|_| ConnectError::SlowLookup)?;
    Ok(resolved?)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(
        "its address is one of this server's networks, which sandboxes do not reach; the operator can allow the host with SANDBOX_PRIVATE_HOSTS"
    )]
    Refused,
    #[error("its name cannot be resolved: {0}")]
    Lookup(#[source] io::Error),
    #[error("its name was not resolved within {} seconds", LOOKUP_TIMEOUT.as_secs())]
    SlowLookup,
    #[error("it cannot be connected to: {0}")]
    Connect(#[source] io::Error),
    #[error("it did not answer within {} seconds", CONNECT_TIMEOUT.as_secs())]
    SlowConnect,
}

impl From<ResolveError> for ConnectError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotAllowed => Self::Refused,
            ResolveError::Lookup(cause) => Self::Lookup(cause),
        }
    }
}

impl ConnectError {
    pub(super) fn outcome(&self) -> ConnectionOutcome {
        match self {
            Self::Refused => ConnectionOutcome::Refused,
            _ => ConnectionOutcome::Failed,
        }
    }
}

/// The hosts that sandboxes may reach though their addresses are private ones: a company's own package
/// registry, say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrivateHosts(BTreeSet<(String, Option<u16>)>);

/// An entry of the list that is no host.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no host and no host:port")]
pub struct PrivateHostsError(String);

impl PrivateHosts {
    pub(super) fn contains(&self, destination: &Destination) -> bool {
        let entry = |port| self.0.contains(&(destination.host.clone(), port));
        !self.0.is_empty() && (entry(None) || entry(Some(destination.port)))
    }
}

impl FromStr for PrivateHosts {
    type Err = PrivateHostsError;

    /// Reads a list of `host` and `host:port`, separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        let entries = entries.map(|entry| {
            let is_address = entry.parse::<IpAddr>().is_ok();
            let host = |host: &str| Destination::new(host, 0).map(|found| (found.host, None));
            let parsed = match Destination::parse(entry) {
                Some(found) if !is_address => Some((found.host, Some(found.port))),
                _ if is_address || !entry.contains(':') || entry.ends_with(']') => host(entry),
                _ => None,
            };
            parsed.ok_or_else(|| PrivateHostsError(entry.to_owned()))
        });
        entries.collect::<Result<_, _>>().map(Self)
    }
}
