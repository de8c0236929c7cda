//! The positions of clients that do not count frames themselves, so that a client whose connection
//! broke continues where it was.
//!
//! Such a client comes back by sending its first message again. Nothing in that message says which
//! connection it had, so if several are possible, positions are handed out such that none of the
//! clients misses a frame.
//!
//! A connection has taken what was written to it before its client ended it in an orderly way: a
//! client that closes a socket properly has read what arrived. If a connection was reset or went
//! silent, only what the client acknowledged counts: a ping sent after a frame carries the frame's
//! number, and its pong proves that everything before it arrived.
//!
//! # Invariants
//! - No client misses a frame that its connection may not have delivered; if that cannot be known,
//!   the client gets the frame again.
//! - A position is handed out once, to a client with the same features, and for no longer than a
//!   client keeps retrying.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::frames::Features;

/// How long a lost client may take to come back. An old client tries three times, two seconds
/// apart; one that comes later is a different page.
const RETURNS_WITHIN: Duration = Duration::from_secs(30);
/// A client that has not answered a ping for this long is not reading what it is sent.
const UNANSWERED: Duration = Duration::from_secs(10);
/// How long a returning client may be ahead of the report that its connection broke.
const OVERTAKEN: Duration = Duration::from_millis(200);
/// The number of lost clients remembered per session.
const REMEMBERED: usize = 64;

/// How a connection was lost without a close frame from its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionLoss {
    /// The client's side ended it in an orderly way.
    Ended,
    /// It was reset, or nothing more arrived on it.
    Broken,
}

/// The position of one connection.
#[derive(Debug)]
pub struct ClientPosition {
    features: Features,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The last frame that was written to it.
    sent: u64,
    /// The last frame that its client has certainly received.
    acknowledged: u64,
    /// The last frame that was followed by a ping.
    pinged: u64,
    /// Since when a ping has been unanswered, if one is.
    ping_sent: Option<Instant>,
    /// Whether another client has come back in place of this one.
    replaced: bool,
}

impl State {
    /// The last frame that counts as received.
    fn taken(&self, loss: ConnectionLoss, now: Instant) -> u64 {
        match loss {
            ConnectionLoss::Ended if !self.is_silent(now) => self.sent,
            _ => self.acknowledged,
        }
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.ping_sent
            .is_some_and(|since| now.saturating_duration_since(since) >= UNANSWERED)
    }
}

impl ClientPosition {
    /// Creates the position of a connection that is given everything after frame `from`.
    fn new(features: Features, from: u64) -> Self {
        Self {
            features,
            state: Mutex::new(State {
                sent: from,
                acknowledged: from,
                pinged: from,
                ping_sent: None,
                replaced: false,
            }),
        }
    }

    /// The payload of a ping after this frame.
    pub fn ping(&self, seq: u64) -> [u8; 8] {
        let mut state = self.state.lock();
        state.pinged = seq;
        state.ping_sent.get_or_insert_with(Instant::now);
        seq.to_be_bytes()
    }

    /// Records the client's answer to a ping.
    pub fn pong(&self, payload: &[u8]) {
        let Ok(payload) = payload.try_into() else {
            return;
        };
        let seq = u64::from_be_bytes(payload);
        let mut state = self.state.lock();
        if (state.acknowledged + 1..=state.pinged).contains(&seq) {
            state.acknowledged = seq;
            state.ping_sent = (seq < state.pinged).then(Instant::now);
        }
    }

    /// Records that the frames up to this one were written.
    pub fn sent(&self, seq: u64) {
        self.state.lock().sent = seq;
    }
}

/// The connections of a session whose clients do not count frames.
#[derive(Debug, Default)]
pub(crate) struct ClientPositions {
    known: Mutex<KnownClient>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct KnownClient {
    open: Vec<Arc<ClientPosition>>,
    lost: Vec<LostClient>,
}

/// A client whose connection broke.
#[derive(Debug)]
struct LostClient {
    features: Features,
    acknowledged: u64,
    at: Instant,
}

impl LostClient {
    fn may_return(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < RETURNS_WITHIN
    }
}

impl ClientPositions {
    /// Registers the connection of a client that is given everything after a frame.
    pub(crate) fn open(&self, features: Features, from: u64) -> Arc<ClientPosition> {
        let position = Arc::new(ClientPosition::new(features, from));
        self.known.lock().open.push(position.clone());
        position
    }

    /// Removes a connection that was lost, or that its client closed; the latter starts afresh when
    /// it comes back.
    pub(crate) fn close(&self, position: &Arc<ClientPosition>, loss: Option<ConnectionLoss>) {
        let mut known = self.known.lock();
        known.open.retain(|open| !Arc::ptr_eq(open, position));
        let state = position.state.lock();
        let Some(loss) = loss.filter(|_| !state.replaced) else {
            return;
        };
        let taken = state.taken(loss, Instant::now());
        drop(state);
        drop(known);
        self.record_lost(position.features, taken);
    }

    /// The last frame that each client has certainly received, for open connections and lost ones.
    pub(crate) fn acknowledged(&self) -> Vec<(Features, u64)> {
        let now = Instant::now();
        let known = self.known.lock();
        let open = known.open.iter().filter_map(|position| {
            let state = position.state.lock();
            (!state.replaced).then_some((position.features, state.acknowledged))
        });
        let lost = known.lost.iter().filter(|lost| lost.may_return(now));
        open.chain(lost.map(|lost| (lost.features, lost.acknowledged)))
            .collect()
    }

    /// Records a lost client, to be continued after this frame.
    pub(crate) fn record_lost(&self, features: Features, taken: u64) {
        let mut known = self.known.lock();
        known.lost.push(LostClient {
            features,
            acknowledged: taken,
            at: Instant::now(),
        });
        if known.lost.len() > REMEMBERED {
            known.forget_furthest(features);
        }
        drop(known);
        self.changed.notify_waiters();
    }

    /// Returns the last frame that a returning client has, if one was lost. If another connection
    /// is open that may be the same client's, waits a moment for the news that it is lost.
    pub(crate) async fn find(&self, features: Features) -> Option<u64> {
        let deadline = Instant::now() + OVERTAKEN;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let found = self.claim(features);
            let alike = |open: &Arc<ClientPosition>| open.features == features;
            if found.is_some() || !self.known.lock().open.iter().any(alike) {
                return found;
            }
            timeout_at(deadline.into(), changed).await.ok()?;
        }
    }

    /// Takes the last frame of a lost client.
    ///
    /// If several are possible, the client is given the earliest position, and the furthest one is
    /// forgotten: whichever client comes next then misses nothing either.
    fn claim(&self, features: Features) -> Option<u64> {
        self.claim_at(features, Instant::now())
    }

    fn claim_at(&self, features: Features, now: Instant) -> Option<u64> {
        let mut known = self.known.lock();
        known.lost.retain(|lost| lost.may_return(now));
        known.drop_silent(features, now);
        let alike = known.lost.iter().filter(|lost| lost.features == features);
        let least = alike.map(|lost| lost.acknowledged).min()?;
        known.forget_furthest(features);
        Some(least)
    }
}

impl KnownClient {
    /// Treats a connection whose client does not answer as lost, though nothing has reported it
    /// yet.
    fn drop_silent(&mut self, features: Features, now: Instant) {
        for position in &self.open {
            let mut state = position.state.lock();
            if position.features == features && !state.replaced && state.is_silent(now) {
                state.replaced = true;
                self.lost.push(LostClient {
                    features,
                    acknowledged: state.acknowledged,
                    at: now,
                });
            }
        }
    }

    fn forget_furthest(&mut self, features: Features) {
        let alike = self.lost.iter().enumerate();
        let alike = alike.filter(|(_, lost)| lost.features == features);
        if let Some((furthest, _)) = alike.max_by_key(|(_, lost)| lost.acknowledged) {
            self.lost.swap_remove(furthest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Features = Features {
        seq: false,
        deltas: false,
        diffs: false,
        usage: false,
    };

    fn lost(positions: &ClientPositions, features: Features, sent: u64, loss: ConnectionLoss) {
        let position = positions.open(features, 0);
        position.sent(sent);
        positions.close(&position, Some(loss));
    }

    #[test]
    fn who_was_lost_is_continued_once_and_who_closed_begins_anew() {
        let positions = ClientPositions::default();
        assert_eq!(positions.claim(NONE), None);
        lost(&positions, NONE, 7, ConnectionLoss::Ended);
        assert_eq!(positions.claim(NONE), Some(7));
        assert_eq!(positions.claim(NONE), None);
        let closed = positions.open(NONE, 0);
        closed.sent(9);
        positions.close(&closed, None);
        assert_eq!(positions.claim(NONE), None);
    }

    #[test]
    fn what_was_written_to_a_connection_that_broke_counts_only_as_far_as_it_was_acknowledged() {
        let positions = ClientPositions::default();
        let position = positions.open(NONE, 2);
        let pings = [3, 4, 5].map(|seq| position.ping(seq));
        position.sent(5);
        position.pong(b"another");
        position.pong(&9_u64.to_be_bytes());
        assert_eq!(positions.acknowledged(), [(NONE, 2)]);
        // An answer covers the pings before it, and an older one does not move the position back.
        position.pong(&pings[1]);
        position.pong(&pings[0]);
        positions.close(&position, Some(ConnectionLoss::Broken));
        assert_eq!(positions.acknowledged(), [(NONE, 4)]);
        assert_eq!(positions.claim(NONE), Some(4));
    }

    #[tokio::test]
    async fn who_comes_back_before_its_connection_is_known_to_be_lost_is_continued_too() {
        let positions = Arc::new(ClientPositions::default());
        let position = positions.open(NONE, 0);
        position.sent(3);
        let finding = tokio::spawn({
            let positions = positions.clone();
            async move { positions.find(NONE).await }
        });
        tokio::task::yield_now().await;
        positions.close(&position, Some(ConnectionLoss::Ended));
        assert_eq!(finding.await.unwrap(), Some(3));
        // Another connection that stays open is another tab.
        let _open = positions.open(NONE, 0);
        assert_eq!(positions.find(NONE).await, None);
    }

    #[test]
    fn of_several_lost_clients_none_misses_a_frame_whoever_comes_first() {
        let positions = ClientPositions::default();
        for sent in [20, 10, 30] {
            lost(&positions, NONE, sent, ConnectionLoss::Ended);
        }
        let given: Vec<_> = (0..4).map(|_| positions.claim(NONE)).collect();
        assert_eq!(given, [Some(10), Some(10), Some(10), None]);
    }

    #[test]
    fn a_client_with_other_features_is_another_client() {
        let positions = ClientPositions::default();
        let usage = Features {
            usage: true,
            ..NONE
        };
        lost(&positions, usage, 10, ConnectionLoss::Ended);
        assert_eq!(positions.claim(NONE), None);
        assert_eq!(positions.claim(usage), Some(10));
    }

    #[test]
    fn who_comes_too_late_is_another_page() {
        let positions = ClientPositions::default();
        lost(&positions, NONE, 10, ConnectionLoss::Ended);
        let late = Instant::now() + RETURNS_WITHIN;
        assert_eq!(positions.claim_at(NONE, late), None);
    }

    #[test]
    fn a_connection_whose_client_does_not_answer_is_lost_and_one_that_does_is_another_tab() {
        let positions = ClientPositions::default();
        let position = positions.open(NONE, 0);
        let ping = position.ping(4);
        position.sent(4);
        position.pong(&ping);
        position.ping(8);
        position.sent(8);
        assert_eq!(positions.claim(NONE), None, "it may still answer");
        let later = Instant::now() + UNANSWERED;
        assert_eq!(positions.claim_at(NONE, later), Some(4));
        assert_eq!(positions.claim_at(NONE, later), None);
        positions.close(&position, Some(ConnectionLoss::Ended));
        assert_eq!(positions.claim(NONE), None, "its client is back already");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_least_stays() {
        let positions = ClientPositions::default();
        for sent in 0..200 {
            lost(&positions, NONE, 200 - sent, ConnectionLoss::Ended);
        }
        assert_eq!(positions.known.lock().lost.len(), REMEMBERED);
        assert_eq!(positions.claim(NONE), Some(1));
    }
}
