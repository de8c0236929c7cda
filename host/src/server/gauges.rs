//! The metrics that are looked up when somebody asks for them.
//!
//! # Invariants
//!
//! - What there is none of any more is 0, not what it was.

use std::collections::HashMap;

use metrics::gauge;
use parking_lot::Mutex;

use super::App;
use crate::prometheus::Recorder;
use lucid_types::metrics::{
    BUILD, GENERATION, LOG_WRITABLE, READY, SESSIONS, WORKSPACES, policy_label,
};

impl App {
    /// Makes what all metrics are rendered with. `None` if they are not served.
    pub(super) fn scrape(&self) -> Option<impl Fn() -> String + Send + Sync + 'static> {
        let recorder = Recorder::installed()?;
        let sessions = self.sessions.clone();
        let (store, deployment) = (self.store.clone(), self.deployment.clone());
        let readiness = self.readiness();
        let known = Mutex::<HashMap<_, usize>>::default();
        Some(move || {
            gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1);
            gauge!(READY).set(f64::from(u8::from(readiness().is_ok())));
            gauge!(GENERATION).set(deployment.now().number as f64);
            let is_writable = store.health().failure().is_none();
            gauge!(LOG_WRITABLE).set(f64::from(u8::from(is_writable)));
            gauge!(WORKSPACES).set(sessions.count_with_workspace() as f64);
            let mut counts = known.lock();
            counts.values_mut().for_each(|count| *count = 0);
            for ((policy, state), count) in sessions.count_by_state() {
                *counts.entry((policy_label(&policy), state)).or_default() += count;
            }
            for ((policy, state), count) in &*counts {
                let labels = [("policy", policy.clone()), ("state", (*state).into())];
                gauge!(SESSIONS, &labels).set(*count as f64);
            }
            drop(counts);
            recorder.render()
        })
    }
}
