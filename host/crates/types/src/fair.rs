//! A fair scheduler: whose turn it is, of many keys (users) that share a few slots.
//!
//! It decides and does nothing else: no threads, no clock, no I/O.
//!
//! # Invariants
//!
//! - Keys are served in turn, however much each has queued, and within a key whatever came first.
//! - A key never has more slots than [`FairLimits::each`], and all together never more than
//!   [`FairLimits::all`].
//! - What is removed, and a key that has nothing left, leaves nothing behind.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// How many slots there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FairLimits {
    /// Slots that one key may have at the same time.
    pub each: usize,
    /// Slots in all.
    pub all: usize,
}

/// Identifies an entry of a [`FairQueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The queue of everything that waits for a slot, and the count of the slots that are taken.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    limits: FairLimits,
    shares: HashMap<K, Share<T>>,
    /// The keys that have something waiting and may have another slot, each once.
    turns: VecDeque<K>,
    taken: usize,
    next_ticket: u64,
}

/// What one key has.
#[derive(Debug)]
struct Share<T> {
    taken: usize,
    waiting: VecDeque<(Ticket, T)>,
    /// Whether the key is in `turns`.
    in_turns: bool,
}

impl<T> Default for Share<T> {
    fn default() -> Self {
        Self {
            taken: 0,
            waiting: VecDeque::new(),
            in_turns: false,
        }
    }
}

impl<K: Eq + Hash + Clone, T> FairQueue<K, T> {
    /// An empty queue. With a limit of 0, nothing is ever served.
    pub fn new(limits: FairLimits) -> Self {
        Self {
            limits,
            shares: HashMap::new(),
            turns: VecDeque::new(),
            taken: 0,
            next_ticket: 0,
        }
    }

    /// How many entries of a key wait.
    pub fn waiting(&self, key: &K) -> usize {
        self.shares.get(key).map_or(0, |share| share.waiting.len())
    }

    /// Queues an entry behind the others of its key.
    pub fn push(&mut self, key: K, entry: T) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let share = self.shares.entry(key.clone()).or_default();
        share.waiting.push_back((ticket, entry));
        self.queue_turn(key);
        ticket
    }

    /// Takes a slot for a key at once, if there is one that nobody who waits may have. The slot is given
    /// back with [`release`](Self::release).
    pub fn take(&mut self, key: &K) -> bool {
        if self.taken >= self.limits.all || !self.turns.is_empty() {
            return false;
        }
        // What waits of the key itself, if any, waits for slots of its own.
        let taken = self.shares.get(key).map_or(0, |share| share.taken);
        if taken >= self.limits.each {
            return false;
        }
        self.shares.entry(key.clone()).or_default().taken += 1;
        self.taken += 1;
        true
    }

    /// Takes a slot for the entry whose turn it is. The slot is given back with
    /// [`release`](Self::release).
    pub fn pop(&mut self) -> Option<(K, T)> {
        if self.taken >= self.limits.all {
            return None;
        }
        let key = self.turns.pop_front()?;
        let share = self.shares.get_mut(&key)?;
        share.in_turns = false;
        let (_, entry) = share.waiting.pop_front()?;
        share.taken += 1;
        self.taken += 1;
        self.queue_turn(key.clone());
        Some((key, entry))
    }

    /// Gives back a slot of a key.
    pub fn release(&mut self, key: &K) {
        let Some(share) = self.shares.get_mut(key).filter(|share| share.taken > 0) else {
            return;
        };
        share.taken -= 1;
        self.taken -= 1;
        self.queue_turn(key.clone());
        self.forget_idle(key);
    }

    /// Removes an entry that waits; `None` if it does not wait any more.
    pub fn remove(&mut self, key: &K, ticket: Ticket) -> Option<T> {
        let share = self.shares.get_mut(key)?;
        // Tickets rise.
        let at = share
            .waiting
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            .ok()?;
        let (_, entry) = share.waiting.remove(at)?;
        if share.waiting.is_empty() && share.in_turns {
            share.in_turns = false;
            self.turns.retain(|other| other != key);
        }
        self.forget_idle(key);
        Some(entry)
    }

    /// Whether something waits that may have a slot of its key's.
    pub fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Whether nothing waits and no slot is taken.
    pub fn is_idle(&self) -> bool {
        self.shares.is_empty()
    }

    /// Gives a key its place behind the others, if it waits, may have a slot and has no place yet.
    fn queue_turn(&mut self, key: K) {
        if let Some(share) = self.shares.get_mut(&key)
            && !share.in_turns
            && !share.waiting.is_empty()
            && share.taken < self.limits.each
        {
            share.in_turns = true;
            self.turns.push_back(key);
        }
    }

    fn forget_idle(&mut self, key: &K) {
        let is_idle = |share: &Share<T>| share.taken == 0 && share.waiting.is_empty();
        if self.shares.get(key).is_some_and(is_idle) {
            self.shares.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: FairLimits = FairLimits { each: 2, all: 3 };

    #[test]
    fn a_key_that_floods_waits_for_the_others_and_not_they_for_it() {
        let mut queue = FairQueue::new(FairLimits { each: 1, all: 1 });
        for number in 0..100 {
            queue.push("flood", number);
        }
        assert_eq!(queue.pop(), Some(("flood", 0)));
        queue.push("one", 1000);
        queue.push("other", 2000);
        assert_eq!(queue.pop(), None);
        let mut served = Vec::new();
        let mut last = "flood";
        for _ in 0..4 {
            queue.release(&last);
            let (key, _) = queue.pop().unwrap();
            last = key;
            served.push(key);
        }
        // Its next turn was queued when its slot came back, behind those that waited already.
        assert_eq!(served, ["one", "other", "flood", "flood"]);
    }

    /// What happens to a queue.
    #[derive(Debug, Clone)]
    enum Action {
        Push(u8),
        Pop,
        Take(u8),
        /// Gives back one of the slots that are taken.
        Release(usize),
        /// Removes one of the entries that wait.
        Remove(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            3 => (0u8..5).prop_map(Action::Push),
            3 => Just(Action::Pop),
            2 => (0u8..5).prop_map(Action::Take),
            2 => any::<usize>().prop_map(Action::Release),
            1 => any::<usize>().prop_map(Action::Remove),
        ]
    }

    proptest! {
        #[test]
        fn limits_and_order_hold_whatever_happens_and_nothing_is_left_behind(
            actions in proptest::collection::vec(action(), 0..300)
        ) {
            let mut queue = FairQueue::new(LIMITS);
            let mut waiting: Vec<(u8, Ticket)> = Vec::new();
            let mut taken: Vec<u8> = Vec::new();
            let held = |taken: &[u8], key: u8| taken.iter().filter(|other| **other == key).count();
            for (number, action) in actions.into_iter().enumerate() {
                match action {
                    Action::Push(key) => {
                        let ticket = queue.push(key, number);
                        waiting.push((key, ticket));
                    }
                    Action::Pop => match queue.pop() {
                        Some((key, _)) => {
                            // The first of its key.
                            let at = waiting.iter().position(|(other, _)| *other == key).unwrap();
                            waiting.remove(at);
                            taken.push(key);
                            prop_assert!(held(&taken, key) <= LIMITS.each && taken.len() <= LIMITS.all);
                        }
                        // A slot is never left unused.
                        None => prop_assert!(
                            taken.len() == LIMITS.all
                                || waiting.iter().all(|(key, _)| held(&taken, *key) == LIMITS.each)
                        ),
                    },
                    Action::Take(key) => {
                        let nobody_may = waiting.iter().all(|(key, _)| held(&taken, *key) == LIMITS.each);
                        let is_free = taken.len() < LIMITS.all && held(&taken, key) < LIMITS.each;
                        prop_assert_eq!(queue.take(&key), nobody_may && is_free);
                        if nobody_may && is_free {
                            taken.push(key);
                        }
                    }
                    Action::Release(at) if !taken.is_empty() => {
                        let key = taken.remove(at % taken.len());
                        queue.release(&key);
                    }
                    Action::Remove(at) if !waiting.is_empty() => {
                        let (key, ticket) = waiting.remove(at % waiting.len());
                        prop_assert!(queue.remove(&key, ticket).is_some());
                        prop_assert!(queue.remove(&key, ticket).is_none());
                    }
                    Action::Release(_) | Action::Remove(_) => {}
                }
                for key in 0..5 {
                    let own = waiting.iter().filter(|(other, _)| *other == key).count();
                    prop_assert_eq!(queue.waiting(&key), own);
                }
            }
            for (key, ticket) in waiting {
                queue.remove(&key, ticket);
            }
            for key in taken {
                queue.release(&key);
            }
            prop_assert!(queue.is_idle() && queue.turns.is_empty() && queue.taken == 0);
        }

        #[test]
        fn no_key_waits_longer_than_one_turn_of_every_other(
            queued in proptest::collection::vec(1usize..60, 2..8)
        ) {
            let mut queue = FairQueue::new(FairLimits { each: 1, all: 1 });
            for (key, count) in queued.iter().enumerate() {
                for number in 0..*count {
                    queue.push(key, number);
                }
            }
            let mut left = queued.clone();
            let mut since = vec![0usize; queued.len()];
            while let Some((key, _)) = queue.pop() {
                left[key] -= 1;
                since[key] = 0;
                for other in 0..since.len() {
                    if other != key && left[other] > 0 {
                        since[other] += 1;
                        prop_assert!(since[other] <= queued.len(), "{} waits", other);
                    }
                }
                queue.release(&key);
            }
            prop_assert!(left.iter().all(|count| *count == 0));
        }
    }
}
