//! A sandbox's way to the network: a forward proxy, which connects programs in the sandbox to servers
//! that the deployment lets them reach. Where the operator opens ports to programs that cannot ask a
//! proxy, it connects these too, from the packets that they send.
//!
//! It is reached through a listener that the sandbox made on its own loopback interface and handed to
//! the host. Programs speak HTTP with it (`CONNECT`, or a request for an `http:` URL) or SOCKS 5, and
//! find it by the usual variables.
//!
//! # Layout
//! - `request` reads what a program asks for, `destination` resolves and connects, `tunnel` copies.
//! - `direct` serves programs that ask nobody.
//!
//! # Invariants
//! - Names are resolved here, and a connection goes to the very addresses that were checked: none of
//!   this machine, of its networks or of a cloud's metadata service, but for hosts that the operator
//!   named.
//! - Every request is recorded, with what came of it.
//! - What one sandbox can hold open is bounded, and so is what all can.
//! - Dropping the proxy closes its connections.

mod destination;
mod direct;
mod request;
#[cfg(test)]
mod tests;
mod tunnel;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use self::destination::LookupTurn;
pub use self::destination::{Destination, PrivateHosts, PrivateHostsError};
use self::direct::NameServers;
pub use self::direct::{DirectPorts, DirectPortsError, SandboxInterface};
use self::request::RequestError;
use self::tunnel::Traffic;
use lucid_types::user::UserId;

/// The most connections of all sandboxes, whatever the descriptors: each may hold megabytes of the
/// kernel's memory.
const OF_ALL: usize = 4096;
/// The most connections of one sandbox.
const OF_ONE: usize = 256;
/// What part of all connections one user's sandboxes may have, and the least that it is.
const PART_OF_USER: usize = 4;
const LEAST_OF_USER: usize = 64;
/// The pause after an error in accepting, such as a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a program may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How a request for a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionOutcome {
    /// It was connected.
    Connected,
    /// The address is one that sandboxes may not reach.
    Refused,
    /// There is no such name, no answer, or nothing left of the connections that a sandbox, its user
    /// or all may have.
    Failed,
}

/// A connection that is over, or a request for one that was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxiedConnection {
    /// Where to.
    pub destination: Destination,
    /// What came of it.
    pub outcome: ConnectionOutcome,
    /// Bytes that the program sent.
    pub sent: u64,
    /// Bytes that it received.
    pub received: u64,
}

/// Keeps what connections a session made.
pub trait ConnectionRecorder: Send + Sync {
    /// Called once for each connection, when it is over. Must not block.
    fn record(&self, connection: ProxiedConnection);
}

/// What all sandboxes of a host have in common.
#[derive(Debug, Clone)]
pub struct ProxyRules {
    private_hosts: Arc<PrivateHosts>,
    /// The connections that may still be opened.
    connections: Arc<Semaphore>,
    /// The shares of each user that has a sandbox.
    users: Arc<Mutex<HashMap<UserId, Weak<UserShares>>>>,
    of_user: usize,
    /// The connections that are open.
    open: TaskTracker,
    /// Names are resolved on threads that others need too, or by asking the machine's name servers.
    lookups: Arc<Semaphore>,
    /// The ports that programs reach without asking.
    direct: Arc<DirectPorts>,
    names: NameServers,
}

impl ProxyRules {
    /// `connections` is how many all sandboxes together may hold open. Each takes two descriptors, or
    /// three if questions for names come over it.
    #[must_use]
    pub fn new(private_hosts: PrivateHosts, connections: usize) -> Self {
        let connections = connections.min(OF_ALL);
        Self {
            private_hosts: Arc::new(private_hosts),
            connections: Arc::new(Semaphore::new(connections)),
            users: Arc::default(),
            of_user: (connections / PART_OF_USER).max(LEAST_OF_USER),
            open: TaskTracker::new(),
            lookups: Arc::new(Semaphore::new(destination::LOOKUPS_OF_ALL)),
            direct: Arc::default(),
            names: NameServers::of_machine(),
        }
    }

    /// Opens ports to programs that do not ask, where a sandbox has an interface for that.
    #[must_use]
    pub fn with_direct(mut self, ports: DirectPorts) -> Self {
        self.direct = Arc::new(ports);
        self
    }

    /// Asks these name servers, not the machine's.
    #[cfg(test)]
    pub(crate) fn with_name_servers(mut self, servers: Vec<std::net::SocketAddr>) -> Self {
        self.names = NameServers::fixed(servers);
        self
    }

    /// Waits until no connection is open, all of them being recorded. For the end, when no sandbox has a
    /// proxy any more.
    pub async fn ended(&self) {
        self.open.close();
        self.open.wait().await;
    }

    fn shares_of(&self, user: &UserId) -> Arc<UserShares> {
        let mut users = self.users.lock();
        if let Some(known) = users.get(user).and_then(Weak::upgrade) {
            return known;
        }
        users.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(UserShares {
            connections: Arc::new(Semaphore::new(self.of_user)),
            lookups: Arc::new(Semaphore::new(destination::LOOKUPS_OF_USER)),
        });
        users.insert(user.clone(), Arc::downgrade(&new));
        new
    }
}

/// What one user's sandboxes have in common.
#[derive(Debug)]
struct UserShares {
    /// The connections that they may still open.
    connections: Arc<Semaphore>,
    /// Names that never resolve take their time, so no user takes all turns with these.
    lookups: Arc<Semaphore>,
}

/// A sandbox's proxy. Dropping it closes its connections.
pub struct ForwardProxy {
    shared: Arc<Shared>,
    /// Dropping them closes the connections.
    tasks: JoinSet<()>,
}

impl fmt::Debug for ForwardProxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ForwardProxy").finish_non_exhaustive()
    }
}

impl ForwardProxy {
    /// Serves the programs of a user's sandbox, which connect to the listener.
    pub fn start(
        listener: TcpListener,
        user: &UserId,
        rules: ProxyRules,
        recorder: Arc<dyn ConnectionRecorder>,
    ) -> Self {
        let shared = Arc::new(Shared {
            of_user: rules.shares_of(user),
            rules,
            recorder,
            slots: Arc::new(Semaphore::new(OF_ONE)),
            lookups: Arc::new(Semaphore::new(destination::LOOKUPS_OF_ONE)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, Arc::clone(&shared)));
        Self { shared, tasks }
    }

    /// Serves what the sandbox's programs send without asking, too.
    #[must_use]
    pub fn with_direct(mut self, interface: SandboxInterface) -> Self {
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(direct::serve(interface, shared));
        self
    }
}

/// What the connections of one sandbox have in common.
struct Shared {
    rules: ProxyRules,
    /// The connections that this sandbox may still open.
    slots: Arc<Semaphore>,
    of_user: Arc<UserShares>,
    recorder: Arc<dyn ConnectionRecorder>,
    /// This sandbox's own share of the lookups.
    lookups: Arc<Semaphore>,
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        // Whoever finds no slot waits in the listener's queue.
        let Ok(slot) = Arc::clone(&shared.slots).acquire_owned().await else {
            return;
        };
        let mut program = match listener.accept().await {
            Ok((program, _)) => program,
            // The sandbox shut its listener down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "programs of a sandbox cannot be connected to the proxy");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        while connections.try_join_next().is_some() {}
        // Asked for only now: a sandbox without a connection holds none of what others need.
        let shares = shared.try_others_shares();
        let shared = Arc::clone(&shared);
        let open = shared.rules.open.clone();
        connections.spawn(open.track_future(async move {
            let _slot = slot;
            if shares.is_some() {
                serve(program, &shared).await;
            } else {
                request::refuse_unread(&mut program, &RequestError::Busy).await;
            }
            drop(shares);
        }));
    }
}

/// Serves one connection of a program: one request.
async fn serve(mut program: TcpStream, shared: &Shared) {
    let _ = program.set_nodelay(true);
    let read = tokio::time::timeout(REQUEST_TIMEOUT, request::read(&mut program)).await;
    let request = match read.unwrap_or(Err(RequestError::Slow)) {
        Ok(request) => request,
        Err(error) => return request::refuse_unread(&mut program, &error).await,
    };
    // Recorded when this is dropped, however that comes about.
    let destination = request.destination.clone();
    let mut recorded = shared.record(destination, ConnectionOutcome::Failed);
    let server = shared.connect(&request.destination).await;
    let mut server = match server {
        Ok(server) => server,
        Err(error) => {
            recorded.outcome = error.outcome();
            return request.refuse(&mut program, &error).await;
        }
    };
    recorded.outcome = ConnectionOutcome::Connected;
    let _ = server.set_nodelay(true);
    if request.accept(&mut program).await.is_ok() {
        tunnel::copy(&request, &mut program, &mut server, &recorded.traffic).await;
    }
}

impl Shared {
    /// What is taken of the shares that others need too. `None` if there is nothing left of one.
    fn try_others_shares(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let user = Arc::clone(&self.of_user.connections)
            .try_acquire_owned()
            .ok()?;
        let all = Arc::clone(&self.rules.connections).try_acquire_owned();
        Some([user, all.ok()?])
    }

    /// The same, and one of this sandbox's own.
    fn try_shares(&self) -> Option<[OwnedSemaphorePermit; 3]> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let [user, all] = self.try_others_shares()?;
        Some([slot, user, all])
    }

    /// A turn among the lookups, for a question that is asked without a thread. `None` if that takes
    /// too long.
    async fn lookup_turn(&self) -> Option<LookupTurn> {
        destination::lookup_turn(self.lookup_queues()).await
    }

    /// Where a lookup waits for its turn: in its sandbox, among its user's, and among all.
    fn lookup_queues(&self) -> [&Arc<Semaphore>; 3] {
        [&self.lookups, &self.of_user.lookups, &self.rules.lookups]
    }

    /// The addresses of a destination that may be connected to.
    async fn resolve(
        &self,
        destination: &Destination,
    ) -> Result<Vec<SocketAddr>, destination::ConnectError> {
        let turns = self.lookup_queues();
        destination.resolve(&self.rules.private_hosts, turns).await
    }

    async fn connect(
        &self,
        destination: &Destination,
    ) -> Result<TcpStream, destination::ConnectError> {
        let addresses = self.resolve(destination).await?;
        destination.connect(&addresses).await
    }

    /// Puts a connection into the record, once what is returned is dropped.
    fn record(&self, destination: Destination, outcome: ConnectionOutcome) -> Recorded<'_> {
        Recorded {
            recorder: &*self.recorder,
            destination,
            outcome,
            traffic: Traffic::default(),
        }
    }
}

/// A connection on its way into the record.
struct Recorded<'a> {
    recorder: &'a dyn ConnectionRecorder,
    destination: Destination,
    outcome: ConnectionOutcome,
    traffic: Traffic,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        let (sent, received) = self.traffic.totals();
        self.recorder.record(ProxiedConnection {
            destination: self.destination.clone(),
            outcome: self.outcome,
            sent,
            received,
        });
    }
}
