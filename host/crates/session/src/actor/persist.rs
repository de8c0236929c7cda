//! Writes to the log for a session's actor, and waits while the log cannot be written.
//!
//! # Invariants
//!
//! - A write is prepared once, and each attempt writes the same bytes. Until one succeeds, nothing
//!   of it is shown, started or acknowledged.
//! - A transient failure (a full disk, another process's lock) never ends a session. A permanent
//!   one does, with an explanation.
//! - Clients are told when a wait begins and ends, outside of the log.
//! - A session that is stopped during a wait does no more work; the stop is written as soon as
//!   possible. A host that is shutting down makes one more attempt.

use super::{Actor, ActorEnd};
use crate::message::ActorMessage;
use crate::stream::frames;
use lucid_types::log::{Logged, PausedWriter, SessionLog};
use lucid_types::transient::TransientFailure;

/// An ongoing wait for the log.
struct LogWait {
    attempts: PausedWriter,
    /// The session was stopped during the wait and has released what it held.
    is_quiet: bool,
}

impl Actor {
    /// Writes as soon as that is possible. Returns whether it had to wait.
    pub(super) async fn persist<W>(&mut self, write: W) -> Result<bool, ActorEnd>
    where
        W: Fn(&dyn SessionLog) -> Logged<()>,
    {
        let log = self.shared.deps.log.clone();
        let (stop, halt) = (self.session.stop.clone(), self.shared.halt.clone());
        let mut wait: Option<LogWait> = None;
        loop {
            let last = halt.is_cancelled();
            let failed = match write(&*log).await {
                Ok(()) => {
                    if wait.is_some() {
                        self.session.feed.resume();
                    }
                    return Ok(wait.is_some());
                }
                Err(cause) => cause,
            };
            let Some(reason) = failed.transient() else {
                tracing::error!(session = %self.id, cause = %failed, "a session's log can never be written; the session pauses until the next start");
                return Err(ActorEnd::Broken(failed.to_string()));
            };
            if last {
                return Err(ActorEnd::Halted);
            }
            let mut waiting = match wait.take() {
                Some(wait) => wait,
                None => self.wait_for_log(reason),
            };
            if stop.is_cancelled() && !std::mem::replace(&mut waiting.is_quiet, true) {
                self.stop_running().await;
            }
            tokio::select! {
                biased;
                () = halt.cancelled() => {}
                () = stop.cancelled(), if !waiting.is_quiet => {}
                () = waiting.attempts.pause() => {}
            }
            wait = Some(waiting);
        }
    }

    fn wait_for_log(&self, reason: TransientFailure) -> LogWait {
        tracing::debug!(session = %self.id, %reason, "a session waits until its log can be written");
        let sentence = format!(
            "The session pauses: the server's log cannot be written, because {reason}. It goes on by itself as soon as it can."
        );
        self.session
            .feed
            .pause(frames::status("paused", &sentence, None));
        LogWait {
            attempts: self.shared.deps.log.health().wait(),
            is_quiet: false,
        }
    }

    /// Ends everything that runs: the session is stopped, and only cannot record it yet.
    async fn stop_running(&mut self) {
        let cost = self.effects.cancel_all().into_iter();
        self.queue
            .extend(cost.map(|(effect, cost)| ActorMessage::CallCost(effect, cost)));
        self.effects.close_environment().await;
    }
}
