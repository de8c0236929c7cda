//! Detection of the sandbox backends that this machine supports, at startup and while the server
//! runs.
//!
//! # Invariants
//! - A backend is used only after a sandbox of it really ran here.
//! - A change applies to new sandboxes; a running one keeps its backend.
//! - An engine that was found is kept for the life of the process, even while it does not answer,
//!   since containers on it may still belong to a session.
//! - While the server runs, a weaker backend replaces the first only where the choice allows it;
//!   otherwise sessions are refused until an acceptable backend works again.

use std::sync::Arc;

use crate::backend::{BackendChoice, BackendKind, BackendStatus, pick};
use crate::bubblewrap::{BubblewrapError, InstalledBwrap};
use crate::docker::DockerBackend;
use crate::error::SandboxError;
use crate::landlock::Isolation;
use crate::launch::{FoundBackend, SandboxLauncher};
use crate::runtime_dir::give_to;
use crate::settings::{Network, SandboxSpec, Transport};
use crate::trace_right;
use crate::workspace::{remove_tree, sandbox_user};
use lucid_types::exec::ExecRequest;
use lucid_types::ids::SessionId;
use lucid_types::sentence::{full_stop, sentence};

/// How often an engine must fail to answer before it counts as gone: it may only be restarting.
const FAILURES: u32 = 3;

/// Said of sandboxes that the proxy cannot be the only way out of.
const NO_PROXY: &str =
    "Its sandboxes have no network, since they cannot be kept to the server's proxy here.";

/// Said of sandboxes whose programs can do nothing but ask the proxy, though more is opened.
const NO_DIRECT: &str =
    "Its sandboxes have the proxy and no sockets of their own, so SANDBOX_DIRECT opens nothing";
/// What helps, where it is a kind that could have them.
const NO_TUNNEL: &str =
    "load the kernel's module `tun`, and let the server's user open /dev/net/tun";
/// Where it is not.
const NO_NAMESPACE: &str = "that takes bubblewrap, Docker on this kernel, or a machine that lets the server's user make namespaces";
/// Where bwrap keeps its rights to itself.
const NO_RIGHTS: &str = "this bwrap gives no rights to what it starts; one of version 0.7 or later does if it is not set to root";

/// Why a backend does not work here.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    /// Bubblewrap is missing or unfit.
    #[error(transparent)]
    Bubblewrap(#[from] BubblewrapError),
    /// A sandbox of it could not be started, or ran no command.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A command in a sandbox of it failed.
    #[error("a first command ended with code {code}: {output}")]
    Command {
        /// Its exit code.
        code: i32,
        /// What it wrote.
        output: String,
    },
}

impl ProbeError {
    /// The error as an operator reads it.
    fn sentence(&self) -> String {
        match self {
            Self::Sandbox(error) => sentence(error),
            // Their first word is a program's, or follows the backend's name.
            error => full_stop(error),
        }
    }
}

/// The backends known to work on this machine.
#[derive(Clone, Default)]
pub(super) struct DetectedBackends {
    /// The backend of new sandboxes.
    pub(super) kind: BackendKind,
    /// Another working backend, for when the Docker engine dies.
    pub(super) fallback: Option<BackendKind>,
    /// The reason why sessions are refused, if they are.
    pub(super) refusal: Option<String>,
    /// The best backend used so far.
    best: Option<BackendKind>,
    /// The backend chosen first, so that no weaker one is taken unasked.
    accepted: Option<BackendKind>,
    /// The reason why the best backend used so far is not used any more.
    pub(super) lost: Option<String>,
    pub(super) findings: Vec<BackendStatus>,
    bubblewrap: Option<Arc<InstalledBwrap>>,
    /// The isolation of Landlock sandboxes.
    pub(super) landlock: Option<Isolation>,
    pub(super) docker: Option<Arc<DockerBackend>>,
}

impl DetectedBackends {
    /// Why new sandboxes do not have the backend that an automatic choice prefers, or lack
    /// something.
    pub(super) fn shortcoming(&self, choice: BackendChoice) -> Option<String> {
        let mut reasons = Vec::new();
        let used = self.findings.iter().find(|it| it.kind == self.kind)?;
        if choice.kinds().len() > 1 {
            let problems = self.problems();
            if !problems.is_empty() {
                reasons.push(format!(
                    "SANDBOX_BACKEND=auto uses {}, which is not the kind that it prefers. {problems}",
                    self.kind,
                ));
            }
        }
        reasons.extend(used.remark.clone());
        (!reasons.is_empty()).then(|| reasons.join(" "))
    }

    /// The shortcomings here of the backend in use.
    pub(super) fn remark(&self) -> Option<String> {
        let used = self.findings.iter().find(|it| it.kind == self.kind)?;
        used.remark.clone()
    }

    /// The reasons why the backends preferred to the one in use do not work.
    fn problems(&self) -> String {
        let better = self.findings.iter().take_while(|it| it.kind != self.kind);
        let problems: Vec<String> = better
            .filter_map(|it| {
                let problem = it.problem.as_ref()?.trim_end_matches('.');
                Some(format!("{}: {problem}.", it.kind))
            })
            .collect();
        problems.join(" ")
    }

    /// What starting a sandbox of a backend takes.
    pub(super) fn backend(&self, kind: BackendKind) -> Result<FoundBackend, SandboxError> {
        let missing = |why: &str| SandboxError::Start(why.to_owned());
        match kind {
            BackendKind::Docker => {
                let docker = self.docker.clone().map(FoundBackend::Docker);
                docker.ok_or_else(|| missing("there is no Docker engine here"))
            }
            BackendKind::Bubblewrap => {
                let program = self.bubblewrap.clone().map(FoundBackend::Bubblewrap);
                program.ok_or_else(|| missing("bwrap was not found"))
            }
            BackendKind::Landlock => {
                let isolation = self.landlock.unwrap_or(Isolation::HostRoot);
                Ok(FoundBackend::Landlock(isolation))
            }
            BackendKind::Local => Ok(FoundBackend::Local),
            BackendKind::None => Err(missing("no sandbox backend works here")),
        }
    }

    fn record(&mut self, kind: BackendKind, tried: Result<Option<String>, ProbeError>) {
        let (remark, problem) = match tried {
            Ok(remark) => (remark, None),
            Err(error) => (None, Some(error.sentence())),
        };
        let finding = BackendStatus {
            kind,
            problem,
            remark,
        };
        match self.findings.iter_mut().find(|it| it.kind == kind) {
            Some(before) => *before = finding,
            None => self.findings.push(finding),
        }
    }

    fn is_usable(&self, kind: BackendKind) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|it| it.kind == kind && it.problem.is_none())
    }

    /// Chooses among the working backends.
    pub(super) fn choose(&mut self, choice: BackendChoice) -> Result<(), SandboxError> {
        (self.kind, self.refusal) = pick(choice, &self.findings)?;
        let kind = self.kind;
        if kind != BackendKind::None {
            let accepted = *self.accepted.get_or_insert(kind);
            let weaker = choice.rank(kind) > choice.rank(accepted);
            if weaker && !choice.may_replace_with(kind) {
                self.refusal = Some(format!(
                    "{} {kind} works, but is weaker, and is not taken while the server runs: repair what worked before, or start the server again.",
                    self.problems()
                ));
                self.kind = BackendKind::None;
            } else if self
                .best
                .is_none_or(|best| choice.rank(kind) < choice.rank(best))
            {
                self.best = Some(kind);
            }
        }
        let lost = self.findings.iter().find(|it| Some(it.kind) == self.best);
        self.lost = lost.and_then(|it| it.problem.clone());
        self.fallback = self.findings.iter().find_map(|it| {
            let other = it.kind != BackendKind::Docker && it.problem.is_none();
            (self.kind == BackendKind::Docker && other && choice.may_replace_with(it.kind))
                .then_some(it.kind)
        });
        Ok(())
    }
}

/// Tries the backends of an operator's choice.
pub(super) struct BackendDetector {
    choice: BackendChoice,
    launcher: SandboxLauncher,
}

impl BackendDetector {
    pub(super) fn new(choice: BackendChoice, launcher: SandboxLauncher) -> Self {
        Self { choice, launcher }
    }

    pub(super) fn choice(&self) -> BackendChoice {
        self.choice
    }

    pub(super) fn launcher(&self) -> &SandboxLauncher {
        &self.launcher
    }

    /// Whether the choice leaves another backend to change to.
    pub(super) fn has_alternatives(&self) -> bool {
        self.choice.kinds().len() > 1
    }

    /// The backends worth trying: containers only if the deployment has settings for them.
    fn kinds(&self) -> Vec<BackendKind> {
        let without_docker =
            self.choice != BackendChoice::Docker && self.launcher.settings.docker.is_none();
        let kinds = self.choice.kinds().iter().copied();
        kinds
            .filter(|kind| !(without_docker && *kind == BackendKind::Docker))
            .collect()
    }

    /// Tries all of them, and chooses one.
    pub(super) async fn detect(&self) -> Result<DetectedBackends, SandboxError> {
        let mut found = DetectedBackends::default();
        for kind in self.kinds() {
            let tried = Box::pin(self.attempt(&mut found, kind)).await;
            found.record(kind, tried);
        }
        found.choose(self.choice)?;
        Ok(found)
    }

    /// Tries what does not work so far, and checks the engine. `failures` counts how often in a row
    /// the engine did not answer.
    pub(super) async fn recheck(&self, found: &mut DetectedBackends, failures: &mut u32) {
        for kind in self.kinds() {
            if kind == BackendKind::Docker
                && let Some(docker) = found.docker.clone()
            {
                let answer = docker.check().await;
                *failures = if answer.is_ok() { 0 } else { *failures + 1 };
                if answer.is_ok() || *failures >= FAILURES {
                    let remark = answer.map(|()| self.remark_on(&docker));
                    found.record(kind, remark.map_err(ProbeError::from));
                }
            } else if !found.is_usable(kind) {
                let tried = self.attempt(found, kind).await;
                found.record(kind, tried);
            }
            // Backends weaker than a working one are checked only when that is lost.
            if found.is_usable(kind) {
                break;
            }
        }
    }

    /// Retries a backend with which a sandbox could not be started. Returns whether it works.
    pub(super) async fn retry(&self, found: &mut DetectedBackends, kind: BackendKind) -> bool {
        let tried = match found.docker.clone().filter(|_| kind == BackendKind::Docker) {
            Some(docker) => docker
                .check()
                .await
                .map(|()| self.remark_on(&docker))
                .map_err(ProbeError::from),
            None => Box::pin(self.attempt(found, kind)).await,
        };
        let works = tried.is_ok();
        found.record(kind, tried);
        works
    }

    /// Tries to run a sandbox. Returns what the backend lacks here, or why it does not work.
    async fn attempt(
        &self,
        found: &mut DetectedBackends,
        kind: BackendKind,
    ) -> Result<Option<String>, ProbeError> {
        match kind {
            BackendKind::Docker => {
                let docker = Box::pin(self.find_docker()).await?;
                let remark = self.remark_on(&docker);
                found.docker = Some(Arc::new(docker));
                Ok(remark)
            }
            BackendKind::Bubblewrap => {
                let mut program = InstalledBwrap::find().await?;
                found.bubblewrap = Some(Arc::new(program.clone()));
                let tried = self.run_one(found, kind).await;
                if tried.is_ok() || !self.launcher.settings.direct || !program.gives_rights {
                    return tried;
                }
                // One that is itself set to root gives nobody any rights.
                program.gives_rights = false;
                found.bubblewrap = Some(Arc::new(program));
                self.run_one(found, kind).await
            }
            BackendKind::Landlock => {
                found.landlock = Some(Isolation::PrivateRoot);
                let why = match self.run_one(found, kind).await {
                    Ok(remark) => return Ok(remark),
                    Err(why) => why,
                };
                found.landlock = Some(Isolation::HostRoot);
                let network = self.run_one(found, kind).await?;
                let own = format!(
                    "Its sandboxes have no /tmp, terminals and shared memory of their own, only TMPDIR, since this machine does not let it make them: {}",
                    reason(&why.to_string())
                );
                Ok(Some(
                    [Some(own), network]
                        .into_iter()
                        .flatten()
                        .collect::<Vec<_>>()
                        .join(" "),
                ))
            }
            BackendKind::Local => self.run_one(found, kind).await.map(|_| None),
            BackendKind::None => self.run_one(found, kind).await,
        }
    }

    async fn find_docker(&self) -> Result<DockerBackend, SandboxError> {
        let SandboxLauncher {
            settings, runtime, ..
        } = &self.launcher;
        let workspace = runtime.probe_workspace()?;
        let found = async {
            give_to(&workspace, sandbox_user())?;
            DockerBackend::find(settings, runtime.exec(), &workspace).await
        };
        let found = Box::pin(found).await;
        let _ = std::fs::remove_dir_all(&workspace);
        found
    }

    /// What containers lack on this engine.
    fn remark_on(&self, docker: &DockerBackend) -> Option<String> {
        let has_proxy = docker.transport() == Transport::Socket;
        let lacks_proxy = self.launcher.settings.network == Network::Proxy && !has_proxy;
        let lacks_direct = self.launcher.settings.direct && !docker.has_interfaces();
        let remarks = lacks_proxy
            .then(|| NO_PROXY.to_owned())
            .into_iter()
            .chain(lacks_direct.then(|| no_direct(docker.no_interface())));
        let remarks: Vec<String> = remarks.collect();
        (!remarks.is_empty()).then(|| remarks.join(" "))
    }

    /// Runs a sandbox. Returns what it lacks.
    async fn run_one(
        &self,
        found: &DetectedBackends,
        kind: BackendKind,
    ) -> Result<Option<String>, ProbeError> {
        let workspace = self.launcher.runtime.probe_workspace()?;
        let spec = SandboxSpec {
            session: SessionId::new(),
            workspace: &workspace,
            repository: None,
        };
        let outcome = async {
            let sandbox = self
                .launcher
                .start(&found.backend(kind)?, spec, None)
                .await?;
            let is_counted = !self.launcher.groups.limit_memory();
            let hidden = trace_right::hidden_remark(sandbox.sees_its_processes().await, is_counted);
            let ran = sandbox.exec(ExecRequest::shell("true"), |_| {}).await;
            let lacks_proxy = self.launcher.settings.network == Network::Proxy
                && sandbox.take_proxy_listener().is_none();
            let lacks_direct = self.launcher.settings.direct && sandbox.take_interface().is_none();
            let reason = sandbox.no_interface();
            let keeps_rights = kind == BackendKind::Bubblewrap
                && found.bubblewrap.as_ref().is_some_and(|it| !it.gives_rights);
            let lacks_direct = lacks_direct.then(|| match reason {
                None if keeps_rights => format!("{NO_DIRECT}: {NO_RIGHTS}."),
                reason => no_direct(reason),
            });
            sandbox.close().await;
            let remarks = lacks_proxy
                .then(|| NO_PROXY.to_owned())
                .into_iter()
                .chain(lacks_direct)
                .chain(self.launcher.groups.shortcoming())
                .chain(self.launcher.users.shortcoming())
                .chain(hidden);
            let remarks: Vec<String> = remarks.collect();
            ran.map(|ran| (ran, (!remarks.is_empty()).then(|| remarks.join(" "))))
        };
        let outcome = Box::pin(outcome).await;
        let _ = remove_tree(&workspace);
        match outcome? {
            (result, remark) if result.exit_code == 0 => Ok(remark),
            (result, _) => Err(ProbeError::Command {
                code: result.exit_code,
                output: result.output.trim_end().to_owned(),
            }),
        }
    }
}

/// The sentence that says so, with a reason where a sandbox that could have had sockets gave one.
fn no_direct(reason: Option<String>) -> String {
    match reason {
        Some(reason) => format!("{NO_DIRECT}: {reason}; {NO_TUNNEL}."),
        None => format!("{NO_DIRECT}: {NO_NAMESPACE}."),
    }
}

/// The first sentence of the output of a sandbox that did not start.
fn reason(message: &str) -> &str {
    let message = message.split("It said: ").last().unwrap_or(message);
    let line = message.lines().next().unwrap_or_default();
    line.trim_start_matches("lucid-exec: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The findings when only these backends work, given earlier findings.
    fn found(
        before: &DetectedBackends,
        choice: BackendChoice,
        working: &[BackendKind],
    ) -> DetectedBackends {
        let mut found = before.clone();
        for kind in choice.kinds() {
            let works = working.contains(kind);
            let why = SandboxError::Engine(format!("no {kind} here"));
            let tried = works.then_some(None).ok_or(why.into());
            found.record(*kind, tried);
        }
        found.choose(choice).unwrap();
        found
    }

    #[test]
    fn a_better_kind_that_works_later_is_used_and_one_that_is_lost_is_said() {
        for choice in [
            BackendChoice::Auto,
            BackendChoice::AutoForMany,
            BackendChoice::AutoOrLocal,
        ] {
            let first = found(
                &DetectedBackends::default(),
                choice,
                &[BackendKind::Bubblewrap],
            );
            assert_eq!(first.kind, BackendKind::Bubblewrap);
            assert_eq!(first.lost, None, "nothing was lost");
            let message = first.shortcoming(choice).unwrap();
            assert!(
                message.contains("uses bubblewrap") && message.contains("No docker here."),
                "{message}"
            );

            let both = [BackendKind::Docker, BackendKind::Bubblewrap];
            let better = found(&first, choice, &both);
            assert_eq!(
                (better.kind, better.fallback),
                (BackendKind::Docker, Some(BackendKind::Bubblewrap))
            );
            assert_eq!(better.shortcoming(choice), None);

            let worse = found(&better, choice, &[BackendKind::Bubblewrap]);
            assert_eq!(
                (worse.kind, worse.refusal.as_ref()),
                (BackendKind::Bubblewrap, None)
            );
            assert_eq!(worse.lost.as_deref(), Some("No docker here."));
            assert_eq!(found(&worse, choice, &both).lost, None);
        }
    }

    #[test]
    fn while_the_server_runs_no_kind_that_is_weaker_than_the_first_is_taken_unless_it_keeps_users_apart()
     {
        let weak = [BackendKind::Landlock, BackendKind::Local];
        for choice in [BackendChoice::AutoOrLocal, BackendChoice::AutoForMany] {
            let first = found(
                &DetectedBackends::default(),
                choice,
                &[BackendKind::Docker, BackendKind::Landlock],
            );
            assert_eq!((first.kind, first.fallback), (BackendKind::Docker, None));
            let lost = found(&first, choice, &weak);
            assert_eq!(lost.kind, BackendKind::None, "{choice:?}");
            assert!(
                lost.refusal.unwrap().contains("No docker here."),
                "{choice:?}"
            );
        }
        // A backend accepted at the start is accepted again, and a single user has nobody to be
        // isolated from.
        let first = found(
            &DetectedBackends::default(),
            BackendChoice::AutoOrLocal,
            &weak,
        );
        let better = found(
            &first,
            BackendChoice::AutoOrLocal,
            &[BackendKind::Docker, BackendKind::Landlock],
        );
        assert_eq!(
            found(&better, BackendChoice::AutoOrLocal, &weak).kind,
            BackendKind::Landlock
        );
        let first = found(
            &DetectedBackends::default(),
            BackendChoice::Auto,
            &[BackendKind::Docker],
        );
        assert_eq!(
            found(&first, BackendChoice::Auto, &weak).kind,
            BackendKind::Landlock
        );
    }

    #[test]
    fn of_what_a_sandbox_said_the_first_sentence_is_told() {
        let message = "The sandbox could not be started: it ended at once. It said: lucid-exec: no: EPERM\nlucid-exec: the server ended badly";
        assert_eq!(reason(message), "no: EPERM");
        assert_eq!(reason("other"), "other");
    }
}
