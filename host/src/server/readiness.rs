//! Whether a server can take work.
//!
//! # Invariants
//!
//! - It is looked up, not tried: the question costs nothing, however often it is asked.

use super::App;
use crate::api::NotReady;
use crate::config::SandboxBackend;

impl App {
    /// What `GET /ready` asks. A generation is always there: without one there is no server.
    pub(super) fn readiness(&self) -> impl Fn() -> Result<(), NotReady> + Send + Sync + 'static {
        let (sessions, sandboxes) = (self.sessions.clone(), self.sandboxes.clone());
        let (store, reserve) = (self.store.clone(), self.reserve.clone());
        // An operator who wants none misses none.
        let wants_sandboxes = self.config.sandbox_backend != SandboxBackend::None;
        move || {
            if sessions.are_draining() {
                return Err(NotReady::Stopping);
            }
            if let Some(reason) = store.health().failure() {
                return Err(NotReady::Log(reason));
            }
            if let Some(shortage) = reserve.shortage() {
                return Err(NotReady::Disk(shortage));
            }
            if wants_sandboxes && sandboxes.refusal().is_some() {
                return Err(NotReady::Sandbox);
            }
            Ok(())
        }
    }
}
