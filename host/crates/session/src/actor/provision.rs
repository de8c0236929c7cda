//! Gets a session its place, and waits where the machine has no room for one at the moment.
//!
//! # Invariants
//!
//! - What passes (no file descriptor, no process, no inode is left) never ends a session; what does not
//!   ends it with a sentence.
//! - Clients are told when a wait begins and when it ends, outside of the log. A stop, and a host that goes
//!   down, end it at once.

use std::sync::Arc;

use super::{Actor, ActorEnd};
use crate::ports::Environment;
use crate::stream::frames;
use lucid_types::log::pauses;
use lucid_types::sentence::sentence;
use lucid_types::transient::TransientFailure;

impl Actor {
    /// A new place, as soon as there can be one. From here on the end of the session closes it.
    pub(super) async fn open_environment(&mut self) -> Result<Arc<dyn Environment>, ActorEnd> {
        let mut pauses = pauses();
        let mut waits = false;
        loop {
            let failed = match self.effects.provision().await {
                Ok(environment) => {
                    if waits {
                        self.session.feed.resume();
                    }
                    return Ok(environment);
                }
                Err(failed) => failed,
            };
            let Some(reason) = failed.transient() else {
                return Err(ActorEnd::NoEnvironment(sentence(failed)));
            };
            if !std::mem::replace(&mut waits, true) {
                tracing::warn!(session = %self.id, cause = %failed, "a session waits until its workspace and sandbox can be made");
                self.publish_waiting(reason);
            }
            tokio::select! {
                biased;
                () = self.session.stop.cancelled() => return Err(ActorEnd::Stopped),
                () = self.shared.halt.cancelled() => return Err(ActorEnd::Halted),
                () = tokio::time::sleep(pauses.next().unwrap_or_default()) => {}
            }
        }
    }

    fn publish_waiting(&self, reason: TransientFailure) {
        let sentence = format!(
            "The session pauses: its workspace and sandbox cannot be made, because {reason}. It goes on by itself as soon as they can."
        );
        self.session
            .feed
            .pause(frames::status("paused", &sentence, None));
    }
}
