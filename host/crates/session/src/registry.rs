//! The registry of sessions that have not ended: by id, by user, and by the work they do.
//!
//! # Invariants
//! - A session that sleeps and has a time at which it wakes is in the order of these times, until it
//!   is woken or that time has come.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::handle::{IdleState, Session, SessionHandle, SessionPlugins};
use super::ports::Generation;
use super::types::LookupError;
use lucid_types::ids::SessionId;
use lucid_types::user::UserId;

/// User, project, task and repository.
pub(super) type WorkKey<'a> = (&'a UserId, Option<&'a str>, &'a str, Option<&'a str>);

/// The number of different sets of plugins from which on those that no session has are forgotten.
const PLUGIN_SETS: usize = 64;

/// The sessions that have not ended, by what they are looked up by.
#[derive(Default)]
pub(super) struct SessionRegistry {
    by_id: HashMap<SessionId, SessionEntry>,
    by_user: HashMap<UserId, HashSet<SessionId>>,
    /// The newest session for each user, project, task and repository.
    by_work: HashMap<u64, SessionId>,
    /// When sessions that sleep wake by themselves.
    wakes: BTreeSet<(Instant, SessionId)>,
    /// The sets of plugins that sleeping sessions work with, one copy of each.
    plugins: HashSet<Arc<SessionPlugins>>,
}

/// A session in the registry.
pub(super) enum SessionEntry {
    /// It is in memory.
    Live(Arc<SessionHandle>),
    /// It is in the log, and this is all that is in memory.
    Asleep(Box<SleepingSession>),
}

/// What is in memory of a session that sleeps.
#[derive(Clone)]
pub(super) struct SleepingSession {
    /// Tells this sleep from others of the session.
    pub(super) number: u64,
    /// The generation that it had.
    pub(super) generation: Arc<Generation>,
    pub(super) plugins: Arc<SessionPlugins>,
    pub(super) idle_state: IdleState,
    pub(super) unattended_since: Instant,
    /// When it wakes by itself.
    pub(super) wakes_at: Option<Instant>,
    /// What the log does not know to the moment.
    pub(super) clocks: SleepingClocks,
    pub(super) has_workspace: bool,
}

/// The clocks of a session that sleeps.
#[derive(Clone, Copy, Default)]
pub(super) struct SleepingClocks {
    /// When its next timer expires.
    pub(super) next_timer: Option<Instant>,
    /// Since when the time of its open task runs, and the milliseconds that it used before.
    pub(super) task: Option<(Instant, u64)>,
}

impl Session {
    pub(super) fn work(&self) -> WorkKey<'_> {
        (
            &self.info.user,
            self.info.project_id.as_deref(),
            &self.info.task,
            self.info.repo_url.as_deref(),
        )
    }
}

impl SessionRegistry {
    /// A session of this user, in memory or asleep.
    pub(super) fn find(&self, id: &SessionId, user: &UserId) -> Result<&SessionEntry, LookupError> {
        let entry = self.by_id.get(id).ok_or(LookupError::NotFound)?;
        let is_theirs = self.by_user.get(user).is_some_and(|ids| ids.contains(id));
        is_theirs.then_some(entry).ok_or(LookupError::NotYours)
    }

    pub(super) fn get(&self, id: &SessionId) -> Option<&SessionEntry> {
        self.by_id.get(id)
    }

    /// Whether the session of its id that is in memory is this one.
    pub(super) fn has(&self, session: &Session) -> bool {
        match self.by_id.get(&session.info.id) {
            Some(SessionEntry::Live(handle)) => std::ptr::eq(&*handle.session, session),
            _ => false,
        }
    }

    /// The newest session whose work has this hash.
    pub(super) fn newest(&self, work: u64) -> Option<SessionId> {
        self.by_work.get(&work).copied()
    }

    /// The sessions of a user, in memory and asleep.
    pub(super) fn of_user(
        &self,
        user: &UserId,
    ) -> impl Iterator<Item = (SessionId, &SessionEntry)> {
        let ids = self.by_user.get(user).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.by_id.get(id)?)))
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The sessions in memory.
    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<SessionHandle>> {
        self.by_id.values().filter_map(|entry| match entry {
            SessionEntry::Live(handle) => Some(handle),
            SessionEntry::Asleep(_) => None,
        })
    }

    /// The sessions that sleep.
    pub(super) fn asleep(&self) -> impl Iterator<Item = (SessionId, &SleepingSession)> {
        self.by_id.iter().filter_map(|(id, entry)| match entry {
            SessionEntry::Asleep(sleeping) => Some((*id, &**sleeping)),
            SessionEntry::Live(_) => None,
        })
    }

    /// The sleeping sessions that have another generation than this one, but for those that are held until
    /// their users come back, and move then.
    pub(super) fn outdated(&self, current: u64) -> Vec<SessionId> {
        let outdated = self.asleep().filter(|(_, sleeping)| {
            sleeping.generation.number != current && sleeping.idle_state != IdleState::Held
        });
        outdated.map(|(id, _)| id).collect()
    }

    /// Forgets the sessions that sleep, and returns how many there were.
    pub(super) fn take_asleep(&mut self) -> usize {
        let before = self.by_id.len();
        self.by_id
            .retain(|_, entry| matches!(entry, SessionEntry::Live(_)));
        self.wakes.clear();
        before - self.by_id.len()
    }

    /// When the next session wakes by itself.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Takes the sessions whose time to wake has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<SessionId> {
        let later = match self.wakes.iter().find(|(at, _)| *at > now) {
            Some(first) => self.wakes.split_off(&first.clone()),
            None => BTreeSet::new(),
        };
        let due = std::mem::replace(&mut self.wakes, later);
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Has a session that sleeps wake by itself at another time.
    pub(super) fn wake_at(&mut self, id: SessionId, at: Instant) {
        let Some(SessionEntry::Asleep(sleeping)) = self.by_id.get_mut(&id) else {
            return;
        };
        if let Some(before) = sleeping.wakes_at.replace(at) {
            self.wakes.remove(&(before, id));
        }
        self.wakes.insert((at, id));
    }

    /// The one copy of a set of plugins that all who sleep have.
    pub(super) fn shared_plugins(&mut self, plugins: SessionPlugins) -> Arc<SessionPlugins> {
        if let Some(known) = self.plugins.get(&plugins) {
            return known.clone();
        }
        if self.plugins.len() >= PLUGIN_SETS {
            self.plugins.retain(|known| Arc::strong_count(known) > 1);
        }
        let plugins = Arc::new(plugins);
        self.plugins.insert(plugins.clone());
        plugins
    }

    /// Adds a session.
    pub(super) fn insert(&mut self, id: SessionId, user: &UserId, work: u64, entry: SessionEntry) {
        self.by_user.entry(user.clone()).or_default().insert(id);
        self.by_work.insert(work, id);
        self.replace(id, entry);
    }

    /// Puts another entry in the place of a session's.
    pub(super) fn replace(&mut self, id: SessionId, entry: SessionEntry) {
        if let SessionEntry::Asleep(sleeping) = &entry
            && let Some(at) = sleeping.wakes_at
        {
            self.wakes.insert((at, id));
        }
        let before = self.by_id.insert(id, entry);
        if let Some(SessionEntry::Asleep(sleeping)) = before
            && let Some(at) = sleeping.wakes_at
        {
            self.wakes.remove(&(at, id));
        }
    }

    /// Forgets a session.
    pub(super) fn remove(&mut self, id: &SessionId, user: &UserId, work: u64) {
        self.by_id.remove(id);
        if self.by_work.get(&work) == Some(id) {
            self.by_work.remove(&work);
        }
        self.release(user, id);
    }

    /// Takes one of a user's slots, of which there are `most`.
    pub(super) fn claim(&mut self, user: &UserId, id: SessionId, most: usize) -> bool {
        let of_user = self.by_user.entry(user.clone()).or_default();
        of_user.len() < most && of_user.insert(id)
    }

    /// Gives back a slot if it has no session.
    pub(super) fn unclaim(&mut self, user: &UserId, id: &SessionId) {
        if !self.by_id.contains_key(id) {
            self.release(user, id);
        }
    }

    fn release(&mut self, user: &UserId, id: &SessionId) {
        if let Some(of_user) = self.by_user.get_mut(user) {
            of_user.remove(id);
            if of_user.is_empty() {
                self.by_user.remove(user);
            }
        }
    }
}
