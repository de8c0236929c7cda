//! The composition root: settings, deployment, store, sandboxes, sessions and routes become one server.
//!
//! Each part's folder is below `WORKSPACE_BASE_PATH`, in `.lucid`, a name that no user's folder has.
//!
//! # Invariants
//!
//! - Nothing is served before all parts are there.
//! - A start that fails says which part failed and why.

mod about;
mod deployment;
mod error;
mod folders;
mod gauges;
mod origin;
mod readiness;
mod recovery;
mod sandboxes;
mod shutdown;
mod stores;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::OnceCell;

use self::deployment::start_deployment;
pub(crate) use self::deployment::{deploy, open_upload_store};
pub use self::error::StartError;
pub(crate) use self::folders::{DataDirs, create_dir};
pub use self::recovery::ResumeMode;
pub(crate) use self::sandboxes::find_sandboxes;
use self::sandboxes::proxy_rules;
pub(crate) use self::stores::open_store;
use self::stores::{UserStores, open_user_stores};
use crate::api::{self, Api, DeploymentInfo};
use crate::auth::{Authenticator, Jwks};
use crate::config::Config;
use crate::deployment::manager::DeploymentManager;
use crate::environment::connections::ConnectionLog;
use crate::environment::disk_guard::{self, OpenEnvironments};
use crate::environment::factory::{EnvironmentFactory, FileLimits};
use crate::environment::log_reserve;
use crate::environment::workspaces::Workspaces;
use crate::git_providers::accounts::{Accounts, TokenCipher};
use crate::git_providers::pull_requests::PullRequestOpener;
use lucid_sandbox::proxy::ProxyRules;
use lucid_sandbox::workspace::Watcher;
use lucid_sandbox::{Sandboxes, git};
use lucid_session::{Sealer, SessionDeps, SessionLimits, Sessions, UserLogLimits};
use lucid_store::blobs::Blobs;
use lucid_store::{Chats, Outbox, Store};
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::user_work::UserWork;

/// How long everybody has left a session that waits before it sleeps: longer than a page takes to be loaded
/// again.
const SLEEP_AFTER: Duration = Duration::from_secs(1);

/// Everything, running.
pub struct App {
    config: Config,
    auth: Arc<Authenticator>,
    sessions: Sessions,
    workspaces: Workspaces,
    user_work: UserWork,
    chat_reads: UserWork,
    connections: ConnectionLog,
    proxy: ProxyRules,
    sandboxes: Sandboxes,
    chats: Chats,
    accounts: Accounts,
    outbox: Option<Outbox>,
    store: Store,
    reserve: DiskReserve,
    /// What of it never changes.
    about: DeploymentInfo,
    deployment: DeploymentManager,
    /// How the last start was on another machine or in another folder; empty until this one is noted.
    relocation: OnceCell<Option<String>>,
}

/// Whether workspaces outlive their sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkspaceRetention {
    /// They go with them.
    No,
    /// They stay.
    Workspaces,
}

impl App {
    /// Starts every part, on the storage folder of the settings.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let storage = config.workspace_base_path.clone();
        Self::start_in(config, &storage, WorkspaceRetention::No).await
    }

    /// Starts every part with the log and the workspaces in `storage`. What belongs to the machine
    /// (secrets, compiled plugins, the sandboxes' programs) stays below `WORKSPACE_BASE_PATH`.
    pub async fn start_in(
        config: Config,
        storage: &Path,
        keep: WorkspaceRetention,
    ) -> Result<Self, StartError> {
        let machine = DataDirs::under(&config.workspace_base_path);
        create_dir(&config.workspace_base_path)?;
        create_dir(storage)?;
        let keys = config.keys()?;
        let mut auth = Authenticator::new(keys.jwt.as_ref(), config.internal_api_key.clone())
            .expecting(&config.jwt_audiences, config.jwt_issuer.as_deref());
        if let Some(url) = &config.jwks_url {
            auth = auth.with_jwks(Arc::new(
                Jwks::new(url.clone())?.with_shared_secret(config.jwt_secret.is_some()),
            ));
        }
        let store = open_store(&DataDirs::under(storage))?;
        let reserve = DiskReserve::new(store.folder(), config.disk_reserve);
        let blobs = Blobs::new(&DataDirs::under(storage).data.join("blobs"));
        let (deployment, sandboxes) = tokio::try_join!(
            start_deployment(&config, &machine, blobs.clone()),
            find_sandboxes(&config, &machine)
        )?;
        // A single run is refused with this reason itself.
        if let Some(reason) = sandboxes
            .refusal()
            .filter(|_| keep == WorkspaceRetention::No)
        {
            tracing::warn!("sessions that need a sandbox are refused: {reason}");
        } else if let Some(shortfall) = sandboxes.shortcoming() {
            tracing::warn!("{shortfall}");
        }
        sandboxes.start_monitoring();
        for warning in &deployment.now().snapshot.warnings {
            tracing::warn!("{warning}");
        }
        let UserStores {
            chats,
            outbox,
            integrations,
        } = open_user_stores(&config, &store, keep).await?;
        if let Some(outbox) = outbox.clone() {
            auth = auth.on_authenticated(move |who| outbox.remember_token(who));
        }
        let about = DeploymentInfo {
            store: store.kind().to_owned(),
            ..DeploymentInfo::default()
        };
        let snapshot = deployment.clone();
        let accounts = Accounts::new(integrations, TokenCipher::new(&keys.seal), move || {
            snapshot.now().snapshot.git.clone()
        });
        let git = deployment.clone();
        let workspaces = Workspaces::new(storage);
        let user_work = UserWork::start().map_err(StartError::Threads)?;
        let chat_reads = UserWork::start().map_err(StartError::Threads)?;
        let removals = UserWork::start_for_removals().map_err(StartError::Threads)?;
        let connections = ConnectionLog::start(store.clone());
        let proxy = proxy_rules(&config);
        let disks = [storage, &machine.run];
        let factory = EnvironmentFactory {
            sandboxes: sandboxes.clone(),
            workspaces: workspaces.clone(),
            blobs,
            client: git::client(config.allow_private_repositories)?,
            git: git::GitRules {
                allow_private: config.allow_private_repositories,
                allow_owner: config.git_allow_owner,
                branches: config.git_push_branches.clone(),
                depth: config.git_clone_depth,
                largest: config.git_size_limit,
                longest: config.git_timeout,
            },
            proxy: proxy.clone(),
            connections: connections.clone(),
            git_user: Arc::new(move |url| git.now().snapshot.git.git_user(url)),
            keep: keep == WorkspaceRetention::Workspaces,
            watcher: watcher(storage),
            limits: FileLimits::on_disks_of(
                &disks,
                config.sandbox_disk_limit,
                config.sandbox_file_limit,
            ),
            quota_reserve: reserve.for_folder(storage),
            reserve: reserve.clone(),
            open: OpenEnvironments::default(),
            user_work: user_work.clone(),
            removals,
        };
        disk_guard::watch(&disks, factory.limits, &factory.open);
        log_reserve::watch(reserve.clone(), store.clone(), &factory.open);
        let sessions = Sessions::new(SessionDeps {
            log: Arc::new(store.clone()),
            sealer: Sealer::new(&keys.seal),
            deployment: deployment.deployment(),
            environments: Arc::new(factory),
            pull_requests: Arc::new(PullRequestOpener {
                accounts: accounts.clone(),
                outbox: outbox.clone(),
            }),
            reserve: reserve.clone(),
            limits: SessionLimits {
                iterations: config.max_iterations,
                session_tokens: config.session_token_limit,
                session_cost: config.session_cost_limit,
                task_time: config.conversation_timeout,
                grace: config.session_grace,
                sleep_after: SLEEP_AFTER,
                retention: config.workspace_retention,
                sessions_per_user: usize::try_from(config.max_sessions_per_user)
                    .unwrap_or(usize::MAX),
            },
            user_logs: UserLogLimits {
                rate: config.user_log_rate,
                total: config.user_log_limit,
            },
        });
        Ok(Self {
            config,
            auth: Arc::new(auth),
            sessions,
            workspaces,
            user_work,
            chat_reads,
            connections,
            proxy,
            sandboxes,
            chats,
            accounts,
            outbox,
            store,
            reserve,
            about,
            deployment,
            relocation: OnceCell::new(),
        })
    }

    /// The settings it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who decides who a caller is.
    pub fn auth(&self) -> &Authenticator {
        &self.auth
    }

    /// The live work.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The sessions' workspaces.
    pub(crate) fn workspaces(&self) -> &Workspaces {
        &self.workspaces
    }

    /// What the deployment is by now.
    pub fn deployment(&self) -> &DeploymentManager {
        &self.deployment
    }

    /// The routes.
    pub fn router(&self, api: Api) -> Router {
        api::router(api, &self.config.allowed_origins)
    }
}

/// What notices changes in workspaces, where this machine has one.
fn watcher(base: &Path) -> Option<Watcher> {
    Watcher::start(base)
        .inspect_err(|cause| {
            tracing::warn!(%cause, "workspaces cannot be watched (inotify): their trees are looked at after each tool only");
        })
        .ok()
}
