//! Blocking work on behalf of users: at most a few at a time for each, and the users in turn.
//!
//! # Invariants
//!
//! - Work of one user never takes the threads that another's needs: it waits for a slot before it
//!   gets a thread.
//! - A waiter that is dropped leaves nothing behind. A slot comes back when the work ended, even if
//!   whoever wanted it is gone.
//! - Work for a request is told when its client has left ([`CancelFlag`]).
//! - Work of users who had much processor time lately is done in threads of a lower priority than
//!   those that answer requests and run sessions: on a machine whose processors are all in use, it
//!   takes what they leave. Work of the others does not wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinError;

use crate::fair::{FairLimits, FairQueue, Ticket};
use crate::user::UserId;

/// Slots of one user, and in all. More for one would make it faster for those who ask for much, and
/// take the processors from the others.
const SLOTS: FairLimits = FairLimits { each: 2, all: 64 };
/// The same for work that nobody waits for.
const REMOVALS: FairLimits = FairLimits { each: 1, all: 8 };
/// Requests of one user that may wait for a slot.
const LONGEST_QUEUE: usize = 64;
/// How long a refusal takes, so that a client that asks again at once does not make more work than one
/// that waits.
const REFUSAL: Duration = Duration::from_secs(1);

/// By how much the priority of the threads for heavy users is lower, as a nice value: about a tenth of
/// the processor time of a thread that does not sleep either.
const NICE: i32 = 10;
/// The processor time that a user's work may take at once before the user is a heavy one. It is much
/// for a person who looks at files, and the time of a few of the largest trees.
const ALLOWANCE: Duration = Duration::from_millis(200);
/// What part of the time that passes users get back of it: a twentieth of one processor.
const REGAINED: u32 = 20;
/// The most that is remembered, so that somebody who asked for very much is a heavy user for some
/// seconds longer, and not for hours.
const LONGEST_MEMORY: Duration = Duration::from_secs(1);
/// Below this number of users, those who have their whole allowance back are not looked for.
const FEW_USERS: usize = 64;

/// Why work for a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum UserWorkError {
    /// As many requests of the user wait as may.
    #[error("too many requests of this user wait already")]
    QueueFull,
    /// The work panicked.
    #[error("the work ended early")]
    Panicked(#[from] JoinError),
}

/// Says whether the client that work is for has left.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Whether nobody wants the result any more.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the flag when the returned guard is dropped.
    pub fn on_drop(&self) -> CancelGuard {
        CancelGuard(self.clone())
    }
}

/// Sets its [`CancelFlag`] when it is dropped.
#[derive(Debug)]
#[must_use = "dropping it sets the flag"]
pub struct CancelGuard(CancelFlag);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// The slots for blocking work of all users. Cheap to clone.
#[derive(Clone)]
pub struct UserWork {
    queue: Arc<Mutex<FairQueue<UserId, oneshot::Sender<UserSlot>>>>,
    recent: Arc<Mutex<RecentUse>>,
    /// For users who had little lately.
    prompt: Arc<Threads>,
    /// For the heavy ones.
    background: Arc<Threads>,
}

/// The processor time that users' work took lately. It is regained as time passes.
#[derive(Debug)]
struct RecentUse {
    allowance: Duration,
    of: HashMap<UserId, Use>,
    /// The number of users at which those who have their whole allowance are forgotten.
    crowd: usize,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    time: Duration,
    at: Instant,
}

impl Use {
    /// What is left of it.
    fn at(&self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at);
        self.time.saturating_sub(passed / REGAINED)
    }
}

impl RecentUse {
    fn new(allowance: Duration) -> Self {
        Self {
            allowance,
            of: HashMap::new(),
            crowd: FEW_USERS,
        }
    }

    /// Adds what a user's work took.
    fn add(&mut self, user: &UserId, took: Duration, now: Instant) {
        if self.of.len() >= self.crowd {
            self.of.retain(|_, used| used.at(now) > Duration::ZERO);
            self.crowd = (self.of.len() * 2).max(FEW_USERS);
        }
        let before = self
            .of
            .get(user)
            .map_or(Duration::ZERO, |used| used.at(now));
        let time = (before + took).min(LONGEST_MEMORY);
        self.of.insert(user.clone(), Use { time, at: now });
    }

    /// Whether a user had as much as one may at once.
    fn is_heavy(&self, user: &UserId, now: Instant) -> bool {
        let time = self
            .of
            .get(user)
            .map_or(Duration::ZERO, |used| used.at(now));
        time >= self.allowance
    }
}

/// The processor time of the thread that asks.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// A pool of threads for blocking work only, apart from the one that also resolves names and reads
/// files for the host itself.
struct Threads {
    handle: Handle,
    // `None` only while this is being dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    fn start(name: &str, most: usize, nice: i32) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(most)
            .thread_name(name)
            .on_thread_start(move || {
                if nice != 0 {
                    // It stays as it is where that is refused.
                    let _ = rustix::process::setpriority_process(None, nice);
                }
            })
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The last one may be dropped where nothing may block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for UserWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserWork").finish_non_exhaustive()
    }
}

impl UserWork {
    /// Makes the pool for what users wait for. Its threads start when they are needed.
    pub fn start() -> io::Result<Self> {
        Self::with_slots(SLOTS, ALLOWANCE)
    }

    /// Makes a pool for work that nobody waits for and that takes long, such as removing a workspace: it
    /// has no slot that somebody does wait for.
    pub fn start_for_removals() -> io::Result<Self> {
        Self::with_slots(REMOVALS, Duration::ZERO)
    }

    /// With an allowance of nothing, everybody is a heavy user.
    fn with_slots(slots: FairLimits, allowance: Duration) -> io::Result<Self> {
        Ok(Self {
            queue: Arc::new(Mutex::new(FairQueue::new(slots))),
            recent: Arc::new(Mutex::new(RecentUse::new(allowance))),
            prompt: Arc::new(Threads::start("lucid-prompt", slots.all, 0)?),
            background: Arc::new(Threads::start("lucid-user-work", slots.all, NICE)?),
        })
    }

    /// The threads for a user's work that begins now.
    fn threads_for(&self, user: &UserId) -> &Threads {
        if self.recent.lock().is_heavy(user, Instant::now()) {
            &self.background
        } else {
            &self.prompt
        }
    }

    /// Waits for a slot, for a request; refused, after a pause, if too many of the user's wait
    /// already.
    pub async fn slot(&self, user: &UserId) -> Result<UserSlot, UserWorkError> {
        let waiter = {
            let mut queue = self.queue.lock();
            (queue.waiting(user) < LONGEST_QUEUE).then(|| self.waiter(&mut queue, user))
        };
        match waiter {
            Some(waiter) => Ok(waiter.granted().await),
            None => {
                tokio::time::sleep(REFUSAL).await;
                Err(UserWorkError::QueueFull)
            }
        }
    }

    /// Waits for a slot, however many wait: for work whose number something else bounds.
    pub async fn patient_slot(&self, user: &UserId) -> UserSlot {
        let waiter = {
            let mut queue = self.queue.lock();
            self.waiter(&mut queue, user)
        };
        waiter.granted().await
    }

    /// Does blocking work for a request. If this future is dropped, the work either does not begin
    /// or finds its flag set.
    pub async fn run<T, F>(&self, user: &UserId, work: F) -> Result<T, UserWorkError>
    where
        T: Send + 'static,
        F: FnOnce(&CancelFlag) -> T + Send + 'static,
    {
        let slot = self.slot(user).await?;
        let flag = CancelFlag::default();
        let _guard = flag.on_drop();
        Ok(slot.run(move || work(&flag)).await?)
    }

    /// Does blocking work for a session, to its end: also if this future is dropped once it was
    /// polled.
    pub async fn run_to_end<T, F>(&self, user: &UserId, work: F) -> Result<T, JoinError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (slots, user) = (self.clone(), user.clone());
        let working = tokio::spawn(async move {
            let slot = slots.patient_slot(&user).await;
            slot.run(work).await
        });
        working.await?
    }

    fn waiter(
        &self,
        queue: &mut FairQueue<UserId, oneshot::Sender<UserSlot>>,
        user: &UserId,
    ) -> SlotWaiter {
        let (sender, receiver) = oneshot::channel();
        SlotWaiter {
            ticket: queue.push(user.clone(), sender),
            work: self.clone(),
            user: user.clone(),
            receiver,
        }
    }

    /// Gives the free slots to those whose turn it is.
    fn grant(&self) {
        loop {
            // The lock is not held while a slot is sent: one that nobody takes comes back here.
            let next = self.queue.lock().pop();
            let Some((user, sender)) = next else { return };
            let slot = UserSlot {
                work: self.clone(),
                user,
            };
            let _ = sender.send(slot);
        }
    }
}

/// A place in the queue; given up when dropped.
struct SlotWaiter {
    work: UserWork,
    user: UserId,
    ticket: Ticket,
    receiver: oneshot::Receiver<UserSlot>,
}

impl SlotWaiter {
    async fn granted(mut self) -> UserSlot {
        self.work.grant();
        match (&mut self.receiver).await {
            Ok(slot) => slot,
            // Its sender is only ever dropped by this waiter.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for SlotWaiter {
    fn drop(&mut self) {
        // A slot that was granted meanwhile comes back with the receiver.
        self.work.queue.lock().remove(&self.user, self.ticket);
    }
}

/// A slot for blocking work; comes back when dropped.
#[derive(Debug)]
pub struct UserSlot {
    work: UserWork,
    user: UserId,
}

impl UserSlot {
    /// Does the work in a thread of the pool, and gives the slot back.
    pub async fn run<T, F>(self, work: F) -> Result<T, JoinError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let threads = self.work.threads_for(&self.user).handle.clone();
        let working = threads.spawn_blocking(move || {
            let _running = RunningWork {
                slot: self,
                begun: thread_time(),
            };
            work()
        });
        working.await
    }
}

/// Work in a thread. What it took is added to its user's when it ends, before the slot comes back.
struct RunningWork {
    slot: UserSlot,
    /// In processor time of the thread.
    begun: Duration,
}

impl Drop for RunningWork {
    fn drop(&mut self) {
        let took = thread_time().saturating_sub(self.begun);
        let mut recent = self.slot.work.recent.lock();
        recent.add(&self.slot.user, took, Instant::now());
    }
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        self.work.queue.lock().release(&self.user);
        self.work.grant();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    fn few() -> UserWork {
        UserWork::with_slots(FairLimits { each: 2, all: 3 }, ALLOWANCE).unwrap()
    }

    #[test]
    fn who_had_much_time_at_once_is_a_heavy_user_until_it_is_regained() {
        let mut recent = RecentUse::new(ALLOWANCE);
        let (user, other) = (UserId::from("u"), UserId::from("other"));
        let begun = Instant::now();
        let step = Duration::from_millis(1);
        recent.add(&user, ALLOWANCE - step, begun);
        assert!(!recent.is_heavy(&user, begun));
        recent.add(&user, step, begun);
        assert!(recent.is_heavy(&user, begun));
        assert!(!recent.is_heavy(&other, begun));
        assert!(!recent.is_heavy(&user, begun + step * (REGAINED + 1)));
        // However much it was, it is forgotten in the time that the longest memory takes.
        recent.add(&user, Duration::from_secs(3600), begun);
        let later = begun + (LONGEST_MEMORY - ALLOWANCE) * REGAINED;
        assert!(recent.is_heavy(&user, later));
        assert!(!recent.is_heavy(&user, later + step * (REGAINED + 1)));
    }

    #[test]
    fn users_who_have_their_whole_allowance_back_are_forgotten() {
        let mut recent = RecentUse::new(ALLOWANCE);
        let begun = Instant::now();
        for number in 0..1000_u32 {
            let user = UserId::from(format!("u{number}").as_str());
            let now = begun + Duration::from_secs(u64::from(number));
            recent.add(&user, Duration::from_millis(50), now);
        }
        assert!(recent.of.len() <= FEW_USERS, "{}", recent.of.len());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn work_of_a_heavy_user_is_done_in_threads_of_its_own() {
        let work = few();
        let thread = async |user: &str| {
            let name = |_: &CancelFlag| std::thread::current().name().map(str::to_owned);
            work.run(&user.into(), name).await.unwrap().unwrap()
        };
        assert_eq!(thread("flood").await, "lucid-prompt");
        let spin = |_: &CancelFlag| {
            let begun = thread_time();
            while thread_time() - begun < ALLOWANCE * 2 {
                std::hint::spin_loop();
            }
        };
        work.run(&"flood".into(), spin).await.unwrap();
        assert_eq!(thread("flood").await, "lucid-user-work");
        assert_eq!(thread("other").await, "lucid-prompt");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_has_no_more_threads_than_slots_and_another_is_served_meanwhile() {
        let work = few();
        let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let flood = (0..40).map(|_| {
            let (work, busy, most) = (work.clone(), busy.clone(), most.clone());
            tokio::spawn(async move {
                let user = UserId::from("flood");
                let done = work.run(&user, move |_| {
                    most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
                done.await.unwrap();
            })
        });
        let flood: Vec<_> = flood.collect();
        while busy.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        work.run(&"other".into(), |_| ()).await.unwrap();
        assert!(flood.iter().any(|one| !one.is_finished()), "it came last");
        join_all(flood).await;
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert!(work.queue.lock().is_idle());
    }

    #[tokio::test]
    async fn a_queue_that_is_full_refuses_its_user_only() {
        let work = few();
        let user = UserId::from("flood");
        let held = [
            work.slot(&user).await.unwrap(),
            work.slot(&user).await.unwrap(),
        ];
        let mut waiting: Vec<_> = (0..LONGEST_QUEUE)
            .map(|_| Box::pin(work.slot(&user)))
            .collect();
        for waiter in &mut waiting {
            assert!(waiter.now_or_never().is_none());
        }
        let refused = work.slot(&user).await;
        assert!(matches!(refused, Err(UserWorkError::QueueFull)));
        drop(work.slot(&"other".into()).await.unwrap());
        // Those that do not wait any longer make room, also one whose turn has come.
        drop(held);
        drop(waiting);
        assert!(work.queue.lock().is_idle());
        drop(work.slot(&user).await.unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn work_whose_client_has_left_is_told_and_keeps_its_slot_until_it_ends() {
        let work = few();
        let user = UserId::from("u");
        let (begun, has_begun) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let running = tokio::spawn({
            let (work, user) = (work.clone(), user.clone());
            async move {
                work.run(&user, |flag| {
                    begun.send(()).unwrap();
                    while !flag.is_set() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    ended.send(()).unwrap();
                })
                .await
            }
        });
        has_begun.await.unwrap();
        assert!(!work.queue.lock().is_idle());
        running.abort();
        has_ended.await.unwrap();
        while !work.queue.lock().is_idle() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_sessions_work_is_done_even_if_nobody_waits_for_it() {
        let work = few();
        let user = UserId::from("u");
        let held = [
            work.slot(&user).await.unwrap(),
            work.slot(&user).await.unwrap(),
        ];
        let (done, is_done) = oneshot::channel();
        let mut unwanted = Box::pin(work.run_to_end(&user, || done.send(()).unwrap()));
        assert!((&mut unwanted).now_or_never().is_none());
        drop(unwanted);
        drop(held);
        is_done.await.unwrap();
    }
}
