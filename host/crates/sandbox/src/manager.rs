//! The sandboxes of this host: which backend is used now, and what is done with its sandboxes.
//!
//! # Invariants
//! - Findings are replaced as a whole, by one check at a time.
//! - A session whose sandbox could not be started with one backend gets another where the choice
//!   allows it, and its user is told.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backend::{BackendChoice, BackendKind, BackendStatus};
use crate::cgroup::ControlGroups;
use crate::detect::{BackendDetector, DetectedBackends};
use crate::docker::Adopted;
use crate::error::SandboxError;
use crate::handle::Sandbox;
use crate::launch::SandboxLauncher;
use crate::runtime_dir::RuntimeDir;
use crate::settings::{SandboxSettings, SandboxSpec, Transport};
use crate::users::SandboxUsers;
use lucid_types::ids::SessionId;
use lucid_types::metrics;
use lucid_types::sentence::sentence;

/// Interval between checks for a backend better than the one in use.
const EVERY: Duration = Duration::from_secs(5);

/// State shared by all handles.
pub(crate) struct SandboxesShared {
    detector: BackendDetector,
    /// The current findings.
    detected: Mutex<Arc<DetectedBackends>>,
    /// Held during a check, so that there is one at a time.
    checking: tokio::sync::Mutex<()>,
    /// Whether containers may wait for sessions: true in the process that serves.
    serves: AtomicBool,
}

impl SandboxesShared {
    pub(crate) fn detected(&self) -> Arc<DetectedBackends> {
        Arc::clone(&self.detected.lock())
    }

    pub(crate) fn set_detected(&self, found: DetectedBackends) {
        *self.detected.lock() = Arc::new(found);
    }
}

/// The sandboxes this machine supports.
#[derive(Clone)]
pub struct Sandboxes(pub(crate) Arc<SandboxesShared>);

impl Sandboxes {
    /// Installs the exec server and finds the backend to use by really trying a sandbox of it.
    ///
    /// An automatic choice always succeeds: if nothing works, [`Sandboxes::refusal`] says why and
    /// every start is refused.
    ///
    /// # Errors
    /// If an explicit choice does not work.
    pub async fn detect(
        choice: BackendChoice,
        settings: SandboxSettings,
        exec: &'static [u8],
    ) -> Result<Self, SandboxError> {
        Self::detect_with(choice, settings, exec, ControlGroups::find).await
    }

    /// The same with the control groups that `find` finds for a runtime folder and an exec server.
    pub(crate) async fn detect_with(
        choice: BackendChoice,
        settings: SandboxSettings,
        exec: &'static [u8],
        find: impl FnOnce(&Path, &Path) -> ControlGroups,
    ) -> Result<Self, SandboxError> {
        let users = SandboxUsers::new(settings.users)?;
        let runtime = RuntimeDir::install(&settings.run_dir, exec, users.of_trials())?;
        let groups = find(&settings.run_dir, runtime.exec());
        let launcher = SandboxLauncher::new(settings, runtime, users, groups);
        let detector = BackendDetector::new(choice, launcher);
        let found = detector.detect().await?;
        Ok(Self(Arc::new(SandboxesShared {
            detector,
            detected: Mutex::new(Arc::new(found)),
            checking: tokio::sync::Mutex::default(),
            serves: AtomicBool::new(false),
        })))
    }

    /// The backend of new sandboxes.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        self.0.detected().kind
    }

    /// The reason why no sandbox can be started here, if none can.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.0.detected().refusal.clone()
    }

    /// The backends that were tried, and why those that failed did.
    #[must_use]
    pub fn findings(&self) -> Vec<BackendStatus> {
        self.0.detected().findings.clone()
    }

    /// Why new sandboxes do not have the backend that an automatic choice prefers, or lack
    /// something.
    #[must_use]
    pub fn shortcoming(&self) -> Option<String> {
        self.0.detected().shortcoming(self.0.detector.choice())
    }

    /// The shortcomings here of the backend of new sandboxes.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        self.0.detected().remark()
    }

    /// Starts a sandbox for a session, with another backend if the current one no longer works.
    pub async fn start(&self, spec: SandboxSpec<'_>) -> Result<Sandbox, SandboxError> {
        let found = self.0.detected();
        if let Some(reasons) = &found.refusal {
            return Err(SandboxError::Unavailable(reasons.clone()));
        }
        let instead =
            |why: &str, kind| format!("{why} This session works in a {kind} sandbox instead.");
        let notice = found.lost.as_deref().map(|why| instead(why, found.kind));
        let started = self.start_with(&found, found.kind, spec, notice).await;
        let error = match started {
            // A failure of the host itself says nothing about the backend.
            Ok(_) | Err(SandboxError::Io { .. } | SandboxError::NoUser) => return started,
            Err(error) => error,
        };
        let (found, kind) = match (&error, found.fallback) {
            (SandboxError::Engine(_), Some(kind)) => (found, kind),
            // The cause may be this workspace, or a backend that no longer works.
            _ => match self.recheck_failed(found.kind).await {
                Some(found) => (Arc::clone(&found), found.kind),
                None => return Err(error),
            },
        };
        tracing::warn!(session = %spec.session, why = %error, %kind, "a session gets another kind of sandbox");
        let notice = instead(&sentence(&error), kind);
        self.start_with(&found, kind, spec, Some(notice)).await
    }

    async fn start_with(
        &self,
        found: &DetectedBackends,
        kind: BackendKind,
        spec: SandboxSpec<'_>,
        notice: Option<String>,
    ) -> Result<Sandbox, SandboxError> {
        let backend = found.backend(kind)?;
        let begun = Instant::now();
        let started = Box::pin(self.0.detector.launcher().start(&backend, spec, notice)).await;
        metrics::sandbox_start(&kind.to_string(), started.is_ok(), begun.elapsed());
        started
    }

    /// Starts checking periodically whether a better backend works by now, or the one in use no
    /// longer does. An explicit choice has nothing to change to.
    pub fn start_monitoring(&self) {
        if !self.0.detector.has_alternatives() {
            return;
        }
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut failures = 0;
            loop {
                tokio::time::sleep(EVERY).await;
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                Box::pin(Self(shared).recheck(&mut failures)).await;
            }
        });
    }

    async fn recheck(&self, failures: &mut u32) {
        let _one = self.0.checking.lock().await;
        let before = self.0.detected();
        let mut found = DetectedBackends::clone(&before);
        self.0.detector.recheck(&mut found, failures).await;
        self.apply_findings(found, &before).await;
    }

    /// Retries a backend with which a sandbox could not be started. Returns what to use instead, if
    /// it no longer works and there is an alternative.
    async fn recheck_failed(&self, kind: BackendKind) -> Option<Arc<DetectedBackends>> {
        if !self.0.detector.has_alternatives() {
            return None;
        }
        let _one = self.0.checking.lock().await;
        let before = self.0.detected();
        let mut found = DetectedBackends::clone(&before);
        if !self.0.detector.retry(&mut found, kind).await {
            self.apply_findings(found, &before).await;
        }
        let now = self.0.detected();
        (now.kind != kind && now.refusal.is_none()).then_some(now)
    }

    /// Applies new findings, and logs what changed.
    async fn apply_findings(&self, mut found: DetectedBackends, before: &DetectedBackends) {
        if let Err(error) = found.choose(self.0.detector.choice()) {
            tracing::warn!(%error, "no kind of sandbox could be chosen");
            return;
        }
        if let (Some(docker), None) = (&found.docker, &before.docker)
            && self.0.serves.load(Ordering::Relaxed)
        {
            // Sessions of the last run have other sandboxes by now.
            if let Err(error) = docker.adopt(|_| false).await {
                tracing::warn!(%error, "containers of the last run stay as they are");
            }
        }
        if (found.kind, &found.refusal) != (before.kind, &before.refusal) {
            match &found.refusal {
                Some(reason) => {
                    tracing::warn!("sessions that need a sandbox are refused: {reason}")
                }
                None => tracing::warn!(
                    before = %before.kind,
                    now = %found.kind,
                    why = found.lost.as_deref().unwrap_or("it works by now, and is preferred"),
                    "new sessions get another kind of sandbox"
                ),
            }
        }
        self.0.set_detected(found);
    }

    /// The transport to containers, if sandboxes are containers.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.0.detected().docker.as_ref().map(|it| it.transport())
    }

    /// Adopts the containers of the previous host in this folder, and lets containers wait for
    /// sessions from now on. Must be called once, before any session starts, by the one process
    /// that serves. `is_alive` says whether a session goes on; containers of other sessions are
    /// removed.
    pub async fn adopt(
        &self,
        is_alive: impl Fn(SessionId) -> bool,
    ) -> Result<Adopted, SandboxError> {
        self.0.serves.store(true, Ordering::Relaxed);
        match &self.0.detected().docker {
            Some(docker) => docker.adopt(is_alive).await,
            None => Ok(Adopted::default()),
        }
    }

    /// Gives a session without a workspace the empty one of a waiting container, and reserves that
    /// container for the session's [`Sandboxes::start`]. Must be called before the workspace is
    /// opened, since the folder at that path is replaced. Returns false if nothing was done.
    #[must_use]
    pub fn claim_warm(&self, session: SessionId, workspace: &Path) -> bool {
        let found = self.0.detected();
        let docker = found
            .docker
            .as_ref()
            .filter(|_| found.kind == BackendKind::Docker);
        docker.is_some_and(|docker| docker.claim_warm(session, workspace))
    }

    /// Whether a session's container survived while the host was away, and nobody is connected to
    /// it yet.
    #[must_use]
    pub fn has_container(&self, session: SessionId) -> bool {
        let found = self.0.detected();
        let docker = found.docker.as_ref();
        docker.is_some_and(|docker| docker.has_container(session))
    }

    /// Removes what is kept for a session that ended before it was started again.
    pub async fn discard(&self, session: SessionId) {
        if let Some(docker) = &self.0.detected().docker {
            docker.discard(session).await;
        }
    }

    /// Removes every container of this host, waiting or in use. For shutdown.
    pub async fn shut_down(&self) {
        if let Some(docker) = &self.0.detected().docker {
            docker.shut_down().await;
        }
    }
}
