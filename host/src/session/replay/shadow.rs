//! Owns how a build of a policy is shadowed: the last sessions' logged inputs go through it again, and
//! what it commands is set beside what the log has.
//!
//! What always holds: a step is pure, nothing is carried out and nothing is written, so no session and
//! no user notices. A build begins each session from nothing, as it would have begun it itself, and goes
//! on with the state that it left. How much is replayed, for how long, and how much of it is kept has
//! limits; one step runs at a time, so that sessions keep the rest of the machine.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{self, LoggedStep, SessionRow, StoreError};
use crate::types::plural;
use crate::types::wit::policy::Snapshot;
use crate::wasm::Caller;

use super::again;
use super::diff::{difference, readable};
use crate::session::Sessions;
use crate::session::actor::takes_over;
use crate::session::handle::held;
use crate::session::ports::Policy;

/// How much a shadow may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Steps of one session, its first ones.
    pub session_steps: u64,
    /// Steps of all sessions.
    pub steps: u64,
    /// The wall clock, looked at between two steps.
    pub time: Duration,
    /// Differences that are kept.
    pub differences: usize,
}

impl Default for Bounds {
    /// A step takes well below a millisecond, so these are for builds and sessions out of the ordinary.
    fn default() -> Self {
        Self {
            session_steps: 2_000,
            steps: 50_000,
            time: Duration::from_secs(600),
            differences: 40,
        }
    }
}

/// How far a shadow is, and what it showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shadowed {
    /// Sessions that will have been replayed in the end.
    pub wanted: u64,
    /// Sessions that were. Each is one of the next three.
    pub sessions: u64,
    /// All their steps gave the same commands.
    pub same: u64,
    /// A step gave other commands, and none broke down.
    pub different: u64,
    /// A step broke down, refused or met a limit, which did not when it was recorded.
    pub failed: u64,
    /// Sessions whose last state the build does not take over: a running one of these would stay with
    /// the build it has. Whatever became of their steps.
    pub not_migrated: u64,
    /// Sessions that were passed over, since this host cannot read their steps.
    pub unread: u64,
    /// Steps that were compared.
    pub steps: u64,
    /// Those among them that differed, broke down or not.
    pub steps_different: u64,
    /// What the compared steps used when they were recorded.
    pub fuel_then: u64,
    /// What the build used for the same steps.
    pub fuel_now: u64,
    /// The first ones, at most two of a session for its steps and one for its state.
    pub differences: Vec<Difference>,
    /// Why not all of it was replayed, where it was not. A sentence.
    pub cut: Option<String>,
}

/// Something that the build does differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In which session.
    pub session: String,
    /// At which step; none where it is about the session's last state.
    pub step: Option<u64>,
    /// What kind.
    pub what: Differs,
    /// The component that the log names, by its SHA-256 in lower-case hex; empty where there is no step.
    pub recorded_by: String,
    /// The lines that differ, or the build's own reason. Cut.
    pub text: String,
}

/// How a build differs from what was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Differs {
    /// It gives other commands.
    Commands,
    /// It gives none: it broke down, refused, or met a limit.
    Failed,
    /// It gives commands where the recorded step failed.
    Mended,
    /// It does not take the session's last state over.
    NotMigrated,
}

impl Sessions {
    /// Shadows a build with the last sessions of the policy of this name. `told` holds how far it is at
    /// any time, and all of it in the end.
    pub async fn shadow(
        &self,
        name: &str,
        build: &dyn Policy,
        most: u64,
        bounds: Bounds,
        told: &Mutex<Shadowed>,
    ) -> Result<(), StoreError> {
        let until = Instant::now() + bounds.time;
        let store = &self.shared.deps.store;
        let name = name.to_owned();
        let found = store.read(move |connection| store::last_sessions(connection, &name, most));
        let found = found.await?;
        held(told).wanted = u64::try_from(found.len()).unwrap_or(u64::MAX);
        if found.is_empty() {
            let nothing =
                "No session of this policy has stepped yet, so there is nothing to replay.";
            held(told).cut = Some(nothing.to_owned());
        }
        for session in found {
            let id = session.clone();
            let row = store.read(move |connection| SessionRow::find(connection, &id));
            let Some(row) = row.await? else { continue };
            let mut one = One {
                sessions: self,
                build,
                bounds,
                until,
                told,
                session,
                first_differs: false,
            };
            let caller = Caller::shadow().in_session(&one.session);
            let steps = caller.clone().scope(one.steps(row.counters.step));
            let verdict = match steps.await {
                Err(StoreError::Content(cause)) => {
                    tracing::warn!(session = one.session, cause, "a session cannot be replayed");
                    held(told).unread += 1;
                    continue;
                }
                other => other?,
            };
            if let Some((schema, bytes)) = row.state {
                caller.scope(one.migrate(&Snapshot { schema, bytes })).await;
            }
            let mut told = held(told);
            told.sessions += 1;
            match verdict {
                Verdict::Same => told.same += 1,
                Verdict::Different => told.different += 1,
                Verdict::Failed => told.failed += 1,
            }
            if told.cut.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What became of a session.
#[derive(Clone, Copy)]
enum Verdict {
    Same,
    Different,
    Failed,
}

/// One session of a shadow.
struct One<'a> {
    sessions: &'a Sessions,
    build: &'a dyn Policy,
    bounds: Bounds,
    until: Instant,
    told: &'a Mutex<Shadowed>,
    session: String,
    /// A step of it differed already.
    first_differs: bool,
}

impl One<'_> {
    /// Its first steps, up to this number: a session that runs on meanwhile comes to an end here too.
    async fn steps(&mut self, end: u64) -> Result<Verdict, StoreError> {
        let store = &self.sessions.shared.deps.store;
        let mut state: Option<Snapshot> = None;
        let mut next = 0;
        let end = end.min(self.bounds.session_steps);
        while next < end {
            let id = self.session.clone();
            let piece = store.read(move |connection| store::logged_steps(connection, &id, next));
            let piece = piece.await?;
            let Some(last) = piece.last() else { break };
            next = last.step + 1;
            for logged in piece.into_iter().filter(|logged| logged.step < end) {
                // The host ended it, and no build was asked.
                if logged.commands.is_none() && logged.fuel == 0 {
                    continue;
                }
                if self.is_over() {
                    return Ok(self.verdict());
                }
                match self.step(&logged, state.as_ref()).await? {
                    Some(after) => state = after.or(state),
                    None => return Ok(Verdict::Failed),
                }
                // Whatever else waits for this thread comes first.
                tokio::task::yield_now().await;
            }
        }
        Ok(self.verdict())
    }

    fn verdict(&self) -> Verdict {
        if self.first_differs {
            Verdict::Different
        } else {
            Verdict::Same
        }
    }

    fn is_over(&self) -> bool {
        let mut told = held(self.told);
        let Bounds { steps, time, .. } = self.bounds;
        if told.steps >= steps {
            told.cut = Some(format!(
                "It was ended after {}.",
                plural::count(steps, "step")
            ));
        } else if Instant::now() >= self.until {
            let seconds = plural::count(time.as_secs(), "second");
            told.cut = Some(format!("It was ended after {seconds}."));
        }
        told.cut.is_some()
    }

    /// One step, and the state to go on with: the build's own, or what was there before where the
    /// recorded step failed. None where the build fails: there is nothing to go on with.
    async fn step(
        &mut self,
        logged: &LoggedStep,
        state: Option<&Snapshot>,
    ) -> Result<Option<Option<Snapshot>>, StoreError> {
        let again = again(self.build, logged, state).await?;
        {
            let mut told = held(self.told);
            told.steps += 1;
            told.fuel_then = told.fuel_then.saturating_add(logged.fuel);
            told.fuel_now = told.fuel_now.saturating_add(again.fuel);
        }
        match (&logged.commands, &again.commands) {
            // The state is the build's own also where its bytes are others: only commands are seen.
            (Some(then), Ok(now)) => {
                if then != now && self.differs() {
                    let text = difference(&readable(then), &readable(now));
                    self.keep(logged, Differs::Commands, text);
                }
                Ok(Some(again.state))
            }
            (Some(_), Err(reason)) => {
                self.differs();
                self.keep(logged, Differs::Failed, reason.clone());
                Ok(None)
            }
            (None, Err(_)) => Ok(Some(None)),
            (None, Ok(now)) => {
                if self.differs() {
                    let text = difference("(the step failed)\n", &readable(now));
                    self.keep(logged, Differs::Mended, text);
                }
                // What the log goes on with is what was there before.
                Ok(Some(None))
            }
        }
    }

    /// A step differs. Whether it is the session's first: the ones after it are given inputs that
    /// answer what was recorded, so they are counted and not shown.
    fn differs(&mut self) -> bool {
        held(self.told).steps_different += 1;
        !std::mem::replace(&mut self.first_differs, true)
    }

    fn keep(&self, logged: &LoggedStep, what: Differs, text: String) {
        self.push(Difference {
            session: self.session.clone(),
            step: Some(logged.step),
            what,
            recorded_by: logged.plugin.clone(),
            text,
        });
    }

    fn push(&self, difference: Difference) {
        let mut told = held(self.told);
        if told.differences.len() < self.bounds.differences {
            told.differences.push(difference);
        }
    }

    /// Whether the build would take the session over as it stands.
    async fn migrate(&self, last: &Snapshot) {
        let taken = match takes_over(self.build.info(), last) {
            Ok(()) => self.build.migrate(last).await.map(|_| ()),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = taken {
            held(self.told).not_migrated += 1;
            self.push(Difference {
                session: self.session.clone(),
                step: None,
                what: Differs::NotMigrated,
                recorded_by: String::new(),
                text: reason,
            });
        }
    }
}
