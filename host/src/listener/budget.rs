//! How many connections may be open, in all and for whom, and which one gives way to a new one.
//!
//! A stranger can open connections faster than any timer ends them, so room is made for each new one:
//! the oldest connection that has shown no valid token and has nothing in progress is closed. Who holds
//! connections open without using them thus closes their own, and a user's new connection needs only
//! the moment until its first request is read. A WebSocket that waits for its first message counts as
//! one without a token until its token was checked.
//!
//! # Invariants
//!
//! - A connection counts from when it is accepted until its descriptor is closed or it was told to give
//!   way.
//! - Only a connection with nothing in progress gives way.
//! - An address is limited only in connections without a token: behind a reverse proxy, all users have
//!   the proxy's.
//! - A user is limited in the connections that their requests and WebSockets use at once, so that all
//!   that one token can do leaves room for others.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::held_bytes::{HeldBytes, HeldTotals, TooManyBytes};
use lucid_types::user::UserId;

/// The part of all descriptors that connections may take. The rest is for sandboxes, files and
/// requests to others.
const PART_OF_DESCRIPTORS: (u64, u64) = (3, 5);
/// Connections without a token live for seconds, so more of them than this are no use to anybody.
const MOST_ANONYMOUS: usize = 4096;
/// The part of a user's connections in use that may be WebSockets. The rest is for requests.
const PART_OF_SOCKETS: (usize, usize) = (2, 3);
/// A WebSocket for each tab of a browser is normal.
const MOST_SOCKETS_PER_USER: usize = 100;

/// The largest number of connections, in all and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// In all.
    pub total: usize,
    /// Of these, without a valid token so far.
    pub anonymous: usize,
    /// Of these, from one address, or from one /64 network of IPv6.
    pub anonymous_per_address: usize,
    /// In use for one user at once: requests in progress, and WebSockets.
    pub in_use_per_user: usize,
    /// Of these, WebSockets.
    pub sockets_per_user: usize,
}

impl ConnectionLimits {
    /// The limits of a listener beside the main one, whose clients are few: they take next to nothing from the
    /// process's descriptors.
    pub fn few() -> Self {
        Self {
            total: 16,
            anonymous: 16,
            anonymous_per_address: 8,
            in_use_per_user: 0,
            sockets_per_user: 0,
        }
    }

    /// The limits for a process that may have so many descriptors.
    pub fn for_descriptors(descriptors: u64) -> Self {
        let (part, whole) = PART_OF_DESCRIPTORS;
        let total = usize::try_from(descriptors / whole * part)
            .unwrap_or(usize::MAX)
            .max(8);
        let anonymous = (total / 2).min(MOST_ANONYMOUS);
        let in_use_per_user = total / 4;
        let (part, whole) = PART_OF_SOCKETS;
        Self {
            total,
            anonymous,
            anonymous_per_address: anonymous / 2,
            in_use_per_user,
            sockets_per_user: in_use_per_user
                .saturating_mul(part)
                .div_ceil(whole)
                .min(MOST_SOCKETS_PER_USER),
        }
    }
}

/// The user has as many WebSockets as one may have. Holds the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("you have {0} connections already, which is as many as you may have")]
pub struct TooManySockets(pub usize);

/// The user has as many connections in use as one may have. Holds the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("you have {0} requests and connections in progress, which is as many as you may have")]
pub struct TooManyInUse(pub usize);

/// The connections of a server. Cheap to clone.
#[derive(Clone)]
pub struct ConnectionBudget {
    shared: Arc<Shared>,
}

struct Shared {
    limits: ConnectionLimits,
    open: Mutex<OpenConnections>,
    held: HeldTotals,
}

impl ConnectionBudget {
    /// With nothing open.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                open: Mutex::default(),
                held: HeldTotals::default(),
            }),
        }
    }

    /// Takes a new connection in, and closes another one if it takes that. `None` if there is no room
    /// for it.
    pub fn admit(&self, address: IpAddr) -> Option<ConnectionSlot> {
        let network = network(address);
        let closing = Arc::new(Notify::new());
        let mut open = self.shared.open.lock();
        open.make_room(&self.shared.limits, network)?;
        let number = open.insert(network, closing.clone());
        Some(ConnectionSlot(Arc::new(Slot {
            number,
            closing,
            shared: self.shared.clone(),
        })))
    }

    /// How many connections have nothing in progress.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.shared.open.lock().idle.len()
    }
}

/// Whom connections are counted for. A provider gives each of its customers a /64 network of IPv6, at
/// least.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// What gives way first comes first: connections without a token in the order in which they came, then
/// the others, the one that has been idle for the longest time first.
type Order = (bool, u64);

#[derive(Default)]
struct OpenConnections {
    next: u64,
    all: HashMap<u64, Entry>,
    /// Those with nothing in progress.
    idle: BTreeMap<Order, u64>,
    anonymous: usize,
    anonymous_of: HashMap<IpAddr, usize>,
    in_use: HashMap<UserId, usize>,
    sockets: HashMap<UserId, usize>,
}

struct Entry {
    network: IpAddr,
    is_known: bool,
    /// What it is used for right now.
    uses: u32,
    /// Whose use that is, once it is known.
    user: Option<UserId>,
    /// Its place among those that are idle.
    since: u64,
    closing: Arc<Notify>,
}

impl Entry {
    fn order(&self) -> Order {
        (self.is_known, self.since)
    }
}

impl OpenConnections {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn insert(&mut self, network: IpAddr, closing: Arc<Notify>) -> u64 {
        let number = self.tick();
        let entry = Entry {
            network,
            is_known: false,
            uses: 0,
            user: None,
            since: number,
            closing,
        };
        self.idle.insert(entry.order(), number);
        self.all.insert(number, entry);
        self.anonymous += 1;
        *self.anonymous_of.entry(network).or_default() += 1;
        number
    }

    /// Closes the connection that a new one from `network` takes the place of, if it needs one's place.
    fn make_room(&mut self, limits: &ConnectionLimits, network: IpAddr) -> Option<()> {
        let of_network = self.anonymous_of.get(&network).copied().unwrap_or(0);
        let first = if of_network >= limits.anonymous_per_address {
            self.first_idle(|entry| !entry.is_known && entry.network == network)?
        } else if self.anonymous >= limits.anonymous {
            self.first_idle(|entry| !entry.is_known)?
        } else if self.all.len() >= limits.total {
            self.first_idle(|_| true)?
        } else {
            return Some(());
        };
        let entry = self.remove(first)?;
        entry.closing.notify_one();
        Some(())
    }

    fn first_idle(&self, fits: impl Fn(&Entry) -> bool) -> Option<u64> {
        let mut numbers = self.idle.values();
        numbers
            .find(|number| self.all.get(number).is_some_and(&fits))
            .copied()
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.all.remove(&number)?;
        self.idle.remove(&entry.order());
        if !entry.is_known {
            self.forget_anonymous(entry.network);
        }
        Some(entry)
    }

    fn forget_anonymous(&mut self, network: IpAddr) {
        self.anonymous -= 1;
        decrement(&mut self.anonymous_of, &network);
    }

    /// Returns whether the connection is still there.
    fn begin(&mut self, number: u64) -> bool {
        let Some(entry) = self.all.get_mut(&number) else {
            return false;
        };
        entry.uses += 1;
        self.idle.remove(&entry.order());
        true
    }

    fn end(&mut self, number: u64) {
        let now = self.tick();
        let Some(entry) = self.all.get_mut(&number) else {
            return;
        };
        entry.uses -= 1;
        if entry.uses > 0 {
            return;
        }
        if let Some(user) = entry.user.take() {
            decrement(&mut self.in_use, &user);
        }
        if entry.is_known {
            entry.since = now;
        }
        self.idle.insert(entry.order(), number);
    }

    /// Counts the use of a connection as a user's until it ends, unless it counts already.
    fn count_use(&mut self, number: u64, user: &UserId, most: usize) -> Result<(), TooManyInUse> {
        let in_use = self.all.get_mut(&number).filter(|entry| entry.uses > 0);
        let Some(entry) = in_use.filter(|entry| entry.user.is_none()) else {
            return Ok(());
        };
        let count = self.in_use.entry(user.clone()).or_default();
        if *count >= most {
            return Err(TooManyInUse(most));
        }
        *count += 1;
        entry.user = Some(user.clone());
        Ok(())
    }

    /// For whom a connection is used.
    fn user_of(&self, number: u64) -> Option<UserId> {
        self.all.get(&number)?.user.clone()
    }

    fn authenticate(&mut self, number: u64) {
        let now = self.tick();
        let Some(entry) = self.all.get_mut(&number) else {
            return;
        };
        if entry.is_known {
            return;
        }
        let was_idle = self.idle.remove(&entry.order()).is_some();
        entry.is_known = true;
        entry.since = now;
        let network = entry.network;
        if was_idle {
            self.idle.insert(entry.order(), number);
        }
        self.forget_anonymous(network);
    }
}

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// One connection in the budget, until its last clone is dropped. Requests carry it as an extension.
#[derive(Clone)]
pub struct ConnectionSlot(Arc<Slot>);

struct Slot {
    number: u64,
    closing: Arc<Notify>,
    shared: Arc<Shared>,
}

impl fmt::Debug for ConnectionSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectionSlot")
            .field(&self.0.number)
            .finish()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.open.lock().remove(self.number);
    }
}

impl ConnectionSlot {
    /// A valid token came over this connection.
    pub fn authenticate(&self) {
        self.0.shared.open.lock().authenticate(self.0.number);
    }

    /// What the connection is used for now counts as this user's, until that ends.
    pub fn count_use(&self, user: &UserId) -> Result<(), TooManyInUse> {
        let shared = &self.0.shared;
        let most = shared.limits.in_use_per_user;
        shared.open.lock().count_use(self.0.number, user, most)
    }

    /// Counts so many bytes of a request or its answer as the user's for whom the connection is used, until the
    /// result is dropped. `None` while that is nobody.
    pub fn hold(&self, bytes: u64) -> Result<Option<HeldBytes>, TooManyBytes> {
        let shared = &self.0.shared;
        let user = shared.open.lock().user_of(self.0.number);
        user.map(|user| shared.held.hold(&user, bytes)).transpose()
    }

    /// The connection is in use until this is dropped, and gives way to no other. `None` if it has
    /// already.
    pub fn begin(&self) -> Option<ConnectionUse> {
        let is_there = self.0.shared.open.lock().begin(self.0.number);
        is_there.then(|| ConnectionUse(self.clone()))
    }

    /// Waits until the connection has to give way. For one task at a time.
    pub async fn closed(&self) {
        self.0.closing.notified().await;
    }

    /// Counts this connection as a WebSocket of a user, until the result is dropped.
    pub fn open_socket(&self, user: &UserId) -> Result<UserSocket, TooManySockets> {
        let shared = &self.0.shared;
        let most = shared.limits.sockets_per_user;
        let mut open = shared.open.lock();
        let count = open.sockets.get(user).copied().unwrap_or(0);
        if count >= most {
            return Err(TooManySockets(most));
        }
        open.sockets.insert(user.clone(), count + 1);
        Ok(UserSocket {
            user: user.clone(),
            shared: shared.clone(),
        })
    }
}

/// The use of a connection: a request in progress, or a WebSocket.
#[derive(Debug)]
pub struct ConnectionUse(ConnectionSlot);

impl Drop for ConnectionUse {
    fn drop(&mut self) {
        let slot = &self.0.0;
        slot.shared.open.lock().end(slot.number);
    }
}

/// A WebSocket in its user's budget.
pub struct UserSocket {
    user: UserId,
    shared: Arc<Shared>,
}

impl Drop for UserSocket {
    fn drop(&mut self) {
        decrement(&mut self.shared.open.lock().sockets, &self.user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        total: 8,
        anonymous: 4,
        anonymous_per_address: 2,
        in_use_per_user: 3,
        sockets_per_user: 2,
    };

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn admit(budget: &ConnectionBudget, last: u8) -> ConnectionSlot {
        budget.admit(address(last)).expect("there is no room")
    }

    fn gave_way(slot: &ConnectionSlot) -> bool {
        slot.closed().now_or_never().is_some()
    }

    /// A connection over which a token came.
    fn known(budget: &ConnectionBudget, last: u8) -> ConnectionSlot {
        let slot = admit(budget, last);
        slot.authenticate();
        slot
    }

    #[test]
    fn an_address_that_opens_more_without_a_token_closes_its_own_oldest_one() {
        let budget = ConnectionBudget::new(LIMITS);
        let other = admit(&budget, 9);
        let mut own = vec![admit(&budget, 1), admit(&budget, 1)];
        for round in 0..10 {
            own.push(admit(&budget, 1));
            assert!(gave_way(&own[round]), "{round}");
            assert!(own[round].begin().is_none());
        }
        assert!(!gave_way(&other) && other.begin().is_some());
    }

    #[test]
    fn the_oldest_of_all_without_a_token_gives_way_whatever_it_asked_since() {
        let budget = ConnectionBudget::new(LIMITS);
        let slots: Vec<_> = (1..=4).map(|last| admit(&budget, last)).collect();
        // A request without a token makes it no younger.
        drop(slots[0].begin());
        let _new = admit(&budget, 5);
        assert!(gave_way(&slots[0]));
        assert!(slots[1..].iter().all(|slot| !gave_way(slot)));
    }

    #[test]
    fn what_is_in_use_never_gives_way_and_a_new_connection_is_refused_then() {
        let budget = ConnectionBudget::new(LIMITS);
        let slots = [admit(&budget, 1), admit(&budget, 1)];
        let uses = slots.each_ref().map(|slot| slot.begin().unwrap());
        assert!(budget.admit(address(1)).is_none());
        assert!(budget.admit(address(2)).is_some());
        drop(uses);
        assert!(budget.admit(address(1)).is_some());
        assert!(gave_way(&slots[0]) && !gave_way(&slots[1]));
    }

    #[test]
    fn users_behind_one_proxy_are_limited_in_all_only() {
        let budget = ConnectionBudget::new(LIMITS);
        let users: Vec<_> = (0..8).map(|_| known(&budget, 1)).collect();
        let uses: Vec<_> = users.iter().map(|slot| slot.begin().unwrap()).collect();
        assert!(budget.admit(address(1)).is_none());
        drop(uses);
        assert!(users.iter().all(|slot| !gave_way(slot)));
    }

    #[test]
    fn where_all_is_full_strangers_go_first_and_then_the_user_who_was_idle_the_longest() {
        let budget = ConnectionBudget::new(LIMITS);
        let users: Vec<_> = (1..=7).map(|last| known(&budget, last)).collect();
        let stranger = admit(&budget, 8);
        drop(users[0].begin());
        let newer = known(&budget, 9);
        assert!(gave_way(&stranger));
        let _newest = admit(&budget, 10);
        assert!(gave_way(&users[1]));
        assert!(!gave_way(&users[0]) && !gave_way(&newer));
    }

    #[test]
    fn a_user_has_so_many_sockets_and_another_user_has_their_own() {
        let budget = ConnectionBudget::new(LIMITS);
        let slot = known(&budget, 1);
        let (alice, bob) = (UserId::from("alice"), UserId::from("bob"));
        let first = slot.open_socket(&alice).unwrap();
        let _second = slot.open_socket(&alice).unwrap();
        assert_eq!(slot.open_socket(&alice).err(), Some(TooManySockets(2)));
        assert!(slot.open_socket(&bob).is_ok());
        drop(first);
        assert!(slot.open_socket(&alice).is_ok());
    }

    #[test]
    fn a_user_has_so_many_connections_in_use_and_another_user_has_their_own() {
        let budget = ConnectionBudget::new(LIMITS);
        let (alice, bob) = (UserId::from("alice"), UserId::from("bob"));
        let slots: Vec<_> = (1..=5).map(|last| known(&budget, last)).collect();
        let mut uses: Vec<_> = slots.iter().map(ConnectionSlot::begin).collect();
        for slot in &slots[..3] {
            // One use counts once, whoever asks how often.
            assert_eq!(slot.count_use(&alice), Ok(()));
            assert_eq!(slot.count_use(&alice), Ok(()));
        }
        assert_eq!(slots[3].count_use(&alice), Err(TooManyInUse(3)));
        assert_eq!(slots[4].count_use(&bob), Ok(()));
        // It ends with the use, and the connection's next one may be another user's.
        drop(uses.remove(0));
        assert_eq!(slots[3].count_use(&alice), Ok(()));
        let _next = slots[0].begin();
        assert_eq!(slots[0].count_use(&alice), Err(TooManyInUse(3)));
        assert_eq!(slots[0].count_use(&bob), Ok(()));
    }

    #[test]
    fn a_connection_that_nothing_uses_counts_for_nobody() {
        let budget = ConnectionBudget::new(LIMITS);
        let alice = UserId::from("alice");
        let slots: Vec<_> = (1..=5).map(|last| known(&budget, last)).collect();
        for slot in &slots {
            assert_eq!(slot.count_use(&alice), Ok(()));
        }
        assert!(budget.shared.open.lock().in_use.is_empty());
    }

    #[test]
    fn nothing_is_left_of_connections_that_ended() {
        let budget = ConnectionBudget::new(LIMITS);
        for round in 0..20 {
            let slot = admit(&budget, round);
            if round % 2 == 0 {
                slot.authenticate();
            }
            let using = slot.begin();
            let alice = UserId::from("alice");
            slot.count_use(&alice).unwrap();
            let socket = slot.open_socket(&alice);
            drop(slot);
            drop((using, socket));
        }
        let open = budget.shared.open.lock();
        assert!(open.all.is_empty() && open.idle.is_empty() && open.sockets.is_empty());
        assert!(open.anonymous == 0 && open.anonymous_of.is_empty() && open.in_use.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_an_ipv4_address_is_the_same_in_both_forms() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn limits_leave_descriptors_for_the_rest_and_have_room_for_everybody() {
        for descriptors in [16, 256, 1024, 4096, 20_000, 1 << 20, u64::MAX] {
            let limits = ConnectionLimits::for_descriptors(descriptors);
            assert!(
                limits.total as u64 <= descriptors / 10 * 6 + 8,
                "{limits:?}"
            );
            assert!(limits.anonymous <= limits.total / 2);
            assert!(limits.anonymous_per_address >= 2 && limits.sockets_per_user >= 2);
            assert!(limits.in_use_per_user <= limits.total / 4);
            assert!(limits.sockets_per_user <= limits.in_use_per_user);
        }
        assert_eq!(
            ConnectionLimits::for_descriptors(1024),
            ConnectionLimits {
                total: 612,
                anonymous: 306,
                anonymous_per_address: 153,
                in_use_per_user: 153,
                sockets_per_user: 100,
            }
        );
    }
}
