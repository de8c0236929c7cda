//! Shadow runs: the logged inputs of the most recent sessions are replayed through a build of a
//! policy, and its commands are compared with those in the log.
//!
//! # Invariants
//! - A step is pure, and nothing is carried out or written, so no session and no user notices.
//! - A build begins each session from an empty state, as if it had started the session, and
//!   continues with the state that it left.
//! - The amount replayed, its duration and the number of differences kept are limited. One step
//!   runs at a time, so that sessions have the rest of the machine.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::again;
use super::diff::{difference, readable};
use crate::actor::takes_over;
use crate::ports::SessionPolicy;
use crate::sessions::Sessions;
use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;
use lucid_types::log::{LogError, LoggedStep};
use lucid_types::log_label::PluginCaller;
use lucid_types::plural;
use lucid_types::wit::policy::Snapshot;

/// The limits of a shadow run.
#[derive(Debug, Clone, Copy)]
pub struct ShadowLimits {
    /// Steps per session, counted from its first.
    pub session_steps: u64,
    /// Steps of all sessions.
    pub steps: u64,
    /// Wall-clock time, checked between steps.
    pub time: Duration,
    /// Differences kept.
    pub differences: usize,
}

impl Default for ShadowLimits {
    /// A step takes well below a millisecond, so these limits are for unusual builds and sessions.
    fn default() -> Self {
        Self {
            session_steps: 2_000,
            steps: 50_000,
            time: Duration::from_secs(600),
            differences: 40,
        }
    }
}

/// The progress and the findings of a shadow run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShadowReport {
    /// Sessions to be replayed in total.
    pub total: u64,
    /// Sessions replayed. Each is counted in one of the next three.
    pub sessions: u64,
    /// Sessions in which all steps gave the same commands.
    pub same: u64,
    /// Sessions in which a step gave other commands and none failed.
    pub different: u64,
    /// Sessions in which a step failed (a crash, a refusal or a limit) that succeeded when
    /// recorded.
    pub failed: u64,
    /// Sessions whose last state the build cannot take over, whatever their steps did. If still
    /// running, such a session would stay with its current build.
    pub not_migrated: u64,
    /// Sessions skipped because this host cannot read their steps.
    pub unread: u64,
    /// Steps compared.
    pub steps: u64,
    /// Compared steps that differed, whether they failed or not.
    pub steps_different: u64,
    /// Fuel that the compared steps used when they were recorded.
    pub fuel_then: u64,
    /// Fuel that the build used for the same steps.
    pub fuel_now: u64,
    /// The first differences: at most two per session for its steps and one for its state.
    pub differences: Vec<ShadowDifference>,
    /// Why not everything was replayed, as a sentence, if that is so.
    pub cut: Option<String>,
}

/// A difference in the build's behaviour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowDifference {
    /// The session's id.
    pub session: SessionId,
    /// The step's number; `None` if the difference is in the session's last state.
    pub step: Option<u64>,
    /// The kind of difference.
    pub what: DifferenceKind,
    /// The digest of the component that the log names; `None` if there is no step.
    pub recorded_by: Option<Digest>,
    /// The lines that differ, or the build's own reason. Truncated.
    pub text: String,
}

/// How a build differs from the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    /// It gives other commands.
    Commands,
    /// It gives no commands: it crashed, refused or met a limit.
    Failed,
    /// It gives commands where the recorded step failed.
    Mended,
    /// It cannot take over the session's last state.
    NotMigrated,
}

impl Sessions {
    /// Shadows a build with the most recent sessions of the policy of this name. `progress` holds the
    /// progress at any time, and the full result in the end.
    pub async fn shadow(
        &self,
        name: &str,
        build: &dyn SessionPolicy,
        most: u64,
        bounds: ShadowLimits,
        progress: &Mutex<ShadowReport>,
    ) -> Result<(), LogError> {
        let until = Instant::now() + bounds.time;
        let log = &self.shared.deps.log;
        let found = log.last_sessions(name, most).await?;
        progress.lock().total = u64::try_from(found.len()).unwrap_or(u64::MAX);
        if found.is_empty() {
            let nothing =
                "No session of this policy has stepped yet, so there is nothing to replay.";
            progress.lock().cut = Some(nothing.to_owned());
        }
        for session in found {
            let Some(row) = log.find(session, None).await? else {
                continue;
            };
            let mut one = ShadowedSession {
                sessions: self,
                build,
                bounds,
                until,
                progress,
                session,
                first_differs: false,
            };
            let caller = PluginCaller::shadow().in_session(one.session);
            let steps = caller.clone().scope(one.steps(row.counters.step));
            let verdict = match steps.await {
                Err(LogError::Content(cause)) => {
                    tracing::warn!(session = %one.session, cause, "a session cannot be replayed");
                    progress.lock().unread += 1;
                    continue;
                }
                other => other?,
            };
            if let Some((schema, bytes)) = row.state {
                caller.scope(one.migrate(&Snapshot { schema, bytes })).await;
            }
            let mut progress = progress.lock();
            progress.sessions += 1;
            match verdict {
                Verdict::Same => progress.same += 1,
                Verdict::Different => progress.different += 1,
                Verdict::Failed => progress.failed += 1,
            }
            if progress.cut.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The outcome of a session.
#[derive(Clone, Copy)]
enum Verdict {
    Same,
    Different,
    Failed,
}

/// One session of a shadow run.
struct ShadowedSession<'a> {
    sessions: &'a Sessions,
    build: &'a dyn SessionPolicy,
    bounds: ShadowLimits,
    until: Instant,
    progress: &'a Mutex<ShadowReport>,
    session: SessionId,
    /// Whether an earlier step of the session differed.
    first_differs: bool,
}

impl ShadowedSession<'_> {
    /// Replays the first steps, up to this number, so that the replay of a session that is still
    /// running also ends.
    async fn steps(&mut self, end: u64) -> Result<Verdict, LogError> {
        let log = &self.sessions.shared.deps.log;
        let mut state: Option<Snapshot> = None;
        let mut next = 0;
        let end = end.min(self.bounds.session_steps);
        while next < end {
            let piece = log.steps_from(self.session, None, next).await?;
            let Some(last) = piece.last() else { break };
            next = last.step + 1;
            for logged in piece.into_iter().filter(|logged| logged.step < end) {
                // The host ended the step before any build was called.
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
                // Let other work waiting for this thread run first.
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
        let mut progress = self.progress.lock();
        let ShadowLimits { steps, time, .. } = self.bounds;
        if progress.steps >= steps {
            progress.cut = Some(format!(
                "It was ended after {}.",
                plural::count(steps, "step")
            ));
        } else if Instant::now() >= self.until {
            let seconds = plural::count(time.as_secs(), "second");
            progress.cut = Some(format!("It was ended after {seconds}."));
        }
        progress.cut.is_some()
    }

    /// Replays one step and returns the state to continue from: the build's own, or the previous
    /// one if the recorded step failed. Returns `None` if the build fails, as there is nothing to
    /// continue from.
    async fn step(
        &mut self,
        logged: &LoggedStep,
        state: Option<&Snapshot>,
    ) -> Result<Option<Option<Snapshot>>, LogError> {
        let again = again(self.build, logged, state).await?;
        {
            let mut progress = self.progress.lock();
            progress.steps += 1;
            progress.fuel_then = progress.fuel_then.saturating_add(logged.fuel);
            progress.fuel_now = progress.fuel_now.saturating_add(again.fuel);
        }
        match (&logged.commands, &again.commands) {
            // The build's own state is used even if its bytes differ: only commands are visible
            // outside.
            (Some(then), Ok(now)) => {
                if then != now && self.count_difference() {
                    let text = difference(&readable(then), &readable(now));
                    self.record(logged, DifferenceKind::Commands, text);
                }
                Ok(Some(again.state))
            }
            (Some(_), Err(error)) => {
                self.count_difference();
                self.record(logged, DifferenceKind::Failed, error.to_string());
                Ok(None)
            }
            (None, Err(_)) => Ok(Some(None)),
            (None, Ok(now)) => {
                if self.count_difference() {
                    let text = difference("(the step failed)\n", &readable(now));
                    self.record(logged, DifferenceKind::Mended, text);
                }
                // The log continues from the previous state.
                Ok(Some(None))
            }
        }
    }

    /// Counts a step that differs, and returns whether it is the session's first. The inputs of
    /// later steps answer what was recorded, so those are counted and not shown.
    fn count_difference(&mut self) -> bool {
        self.progress.lock().steps_different += 1;
        !std::mem::replace(&mut self.first_differs, true)
    }

    fn record(&self, logged: &LoggedStep, what: DifferenceKind, text: String) {
        self.push(ShadowDifference {
            session: self.session,
            step: Some(logged.step),
            what,
            recorded_by: Some(logged.plugin),
            text,
        });
    }

    fn push(&self, difference: ShadowDifference) {
        let mut progress = self.progress.lock();
        if progress.differences.len() < self.bounds.differences {
            progress.differences.push(difference);
        }
    }

    /// Checks whether the build would take over the session as it stands.
    async fn migrate(&self, last: &Snapshot) {
        let taken = match takes_over(self.build.info(), last) {
            Ok(()) => self.build.migrate(last).await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            self.progress.lock().not_migrated += 1;
            self.push(ShadowDifference {
                session: self.session,
                step: None,
                what: DifferenceKind::NotMigrated,
                recorded_by: None,
                text: error.to_string(),
            });
        }
    }
}
