//! The decisions about builds on probation, each applied as a change like any other.

use tokio_util::task::AbortOnDropHandle;

use super::DeploymentManager;
use super::change::BuildChange;
use crate::deployment::rollout::probation::{ProbationDecision, ProbationVerdict};
use lucid_wasm::PluginKind;

impl DeploymentManager {
    /// Rolls back builds that fail on probation, and confirms those that do not, until the handle
    /// is dropped.
    pub fn watch_probations(&self) -> AbortOnDropHandle<()> {
        let deployment = self.clone();
        let decisions = deployment.0.decisions.lock().take();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let Some(mut decisions) = decisions else {
                return;
            };
            while let Some(decision) = decisions.recv().await {
                deployment.apply_decision(decision).await;
            }
        }))
    }

    async fn apply_decision(&self, decision: ProbationDecision) {
        let (digest, since) = (decision.digest, decision.since);
        let why = decision.why.clone();
        let change = match decision.verdict {
            ProbationVerdict::Undecided => return,
            ProbationVerdict::Confirmed => BuildChange::Confirm { digest, since, why },
            ProbationVerdict::RolledBack => BuildChange::AutoRollBack { digest, since, why },
        };
        if let Err(error) = self
            .change(PluginKind::Policy, &decision.name, change)
            .await
        {
            tracing::error!(
                name = decision.name,
                digest = %decision.digest,
                why = decision.why,
                "what a build's probation showed has no consequence yet: {error}"
            );
            decision.reopen();
        }
    }
}
