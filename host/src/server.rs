//! The composition root: settings, deployment, store, sandboxes, sessions and routes become one server.
//!
//! Each part's folder is below `WORKSPACE_BASE_PATH`, in `.lucid`, a name that no user's folder has.
//!
//! # Invariants
//!
//! - Nothing is served before all parts are there.
//! - A start that fails says which part failed and why.

mod origin;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use crate::api::{self, Api, DeploymentInfo, PluginView};
use crate::auth::{Authenticator, Jwks, JwksError};
use crate::builtin;
use crate::config::{Config, ConfigError, SandboxBackend, SandboxNetwork};
use crate::deployment::manager::DeploymentManager;
use crate::deployment::snapshot::DeploymentSnapshot;
use crate::deployment::uploads::UploadStore;
use crate::environment::disk_guard::{self, OpenEnvironments};
use crate::environment::factory::EnvironmentFactory;
use crate::environment::log_reserve;
use crate::environment::workspaces::Workspaces;
use crate::git_providers::accounts::{Accounts, TokenCipher};
use crate::git_providers::pull_requests::PullRequestOpener;
use crate::manifest::ManifestProblems;
use lucid_net::oci::ComponentStore;
use lucid_sandbox::docker::{self, Adopted, Transport};
use lucid_sandbox::git::{self, GitGatewayError};
use lucid_sandbox::workspace::Watcher;
use lucid_sandbox::{
    BackendChoice, BackendKind, Network, SandboxError, SandboxSettings, Sandboxes,
};
use lucid_session::{PausedSessions, Sealer, SessionDeps, SessionLimits, Sessions};
use lucid_store::blobs::Blobs;
use lucid_store::{
    ChatStoreError, Chats, Integrations, Outbox, Store, StoreError, Supabase, SupabaseChatStore,
};
use lucid_types::disk_reserve::DiskReserve;
use lucid_types::log::LogError;
use lucid_types::sentence::{full_stop, sentence, with_advice};
use lucid_types::transient::TransientFailure;
use lucid_wasm::{Engine, EngineError, EngineOptions, PluginInfo};

/// How much of the time for a shutdown is kept for what comes behind the sessions: the last of the record of
/// chats, and the sandboxes.
const AFTER_SESSIONS: f64 = 0.35;
/// How much of what is then left the record of chats may take.
const LAST_RECORDS: f64 = 0.4;

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity provider's keys.
    #[error("the keys that tokens are checked with cannot be used: {0}")]
    Jwks(#[from] JwksError),
    /// The plugins' engine.
    #[error("the plugins cannot be run: {0}")]
    Engine(#[from] EngineError),
    /// The manifest, a plugin, or a model provider. A line for each thing that is wrong.
    #[error("{0}")]
    Deployment(#[from] ManifestProblems),
    /// The database.
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    /// The session log.
    #[error("the store cannot be used: {0}")]
    Log(#[from] LogError),
    /// Supabase.
    #[error("SUPABASE_URL cannot be used: {0}")]
    Supabase(#[from] ChatStoreError),
    /// Git's gateway.
    #[error("{0}")]
    Git(#[from] GitGatewayError),
    /// The sandbox that was asked for.
    #[error("{0}")]
    Sandbox(#[from] SandboxError),
    /// The folder everything is in.
    #[error("the folder {path} cannot be made ({cause})")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

impl StartError {
    /// The error as the operator reads it.
    pub(crate) fn sentence(&self) -> String {
        match self {
            // Its first word may be a path's.
            Self::Config(error) => full_stop(error),
            // Lines that each begin with a position.
            Self::Deployment(problems) => problems.to_string(),
            Self::Folder { .. } => with_advice(
                self,
                Some("Is WORKSPACE_BASE_PATH a place this user can write to?"),
            ),
            other => sentence(other),
        }
    }

    /// Whether the same start may succeed later: a disk is full, or another process holds the database's
    /// lock. What may not be written at all stays so.
    pub fn is_transient(&self) -> bool {
        lucid_store::transient_cause(self)
            .is_some_and(|reason| reason != TransientFailure::ReadOnly)
    }
}

/// Everything, running.
pub struct App {
    config: Config,
    auth: Arc<Authenticator>,
    sessions: Sessions,
    workspaces: Workspaces,
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

/// What becomes of the sessions of the last run at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeMode {
    /// They go on, unless the database comes from elsewhere.
    Default,
    /// They go on, wherever it comes from.
    All,
    /// They wait for their users.
    None,
}

/// The folders below one base.
pub(crate) struct DataDirs {
    root: PathBuf,
    data: PathBuf,
    cache: PathBuf,
    run: PathBuf,
}

impl DataDirs {
    pub(crate) fn under(base: &Path) -> Self {
        let own = base.join(".lucid");
        Self {
            data: own.join("data"),
            cache: own.join("cache"),
            run: own.join("run"),
            root: own,
        }
    }

    /// Where the store is.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }
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
        let mut auth = Authenticator::new(keys.jwt.as_ref(), config.internal_api_key.clone());
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
            git_user: Arc::new(move |url| git.now().snapshot.git.git_user(url)),
            keep: keep == WorkspaceRetention::Workspaces,
            watcher: watcher(storage),
            disk_limit: config.sandbox_disk_limit,
            quota_reserve: reserve.for_folder(storage),
            reserve: reserve.clone(),
            open: OpenEnvironments::default(),
        };
        disk_guard::watch(storage, factory.disk_limit, &factory.open);
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
                retention: config.workspace_retention,
                sessions_per_user: usize::try_from(config.max_sessions_per_user)
                    .unwrap_or(usize::MAX),
            },
        });
        Ok(Self {
            config,
            auth: Arc::new(auth),
            sessions,
            workspaces,
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

    /// Goes on with the sessions of the last run, and with the containers that are theirs. Where that run
    /// was on another machine or in another folder, its sessions wait for their users instead, unless
    /// `resume` says otherwise. For the one process that serves, before anything is served; again only where
    /// it failed.
    pub async fn recover(&self, resume: ResumeMode) -> Result<(), StartError> {
        // Once: what it finds is not there for another attempt.
        let begin = || origin::begin(&self.store, &self.config.workspace_base_path);
        let elsewhere = self.relocation.get_or_try_init(begin).await?;
        if resume == ResumeMode::All {
            let release = |connection: &_| lucid_store::release_sessions(connection, None);
            self.store.write(release).await?;
        }
        let alive = self.sessions.in_log().await?;
        let adopted = self.sandboxes.adopt(|session| {
            let id = session.parse();
            id.is_ok_and(|id| alive.contains(&id))
        });
        match adopted.await {
            Ok(none) if none == Adopted::default() => {}
            Ok(Adopted { kept, removed }) => {
                tracing::info!(kept, removed, "containers of the last run");
            }
            // Sessions get new ones.
            Err(cause) => tracing::warn!(%cause, "the containers of the last run stay as they are"),
        }
        if resume == ResumeMode::None {
            self.sessions.recover_held().await?;
        } else {
            let count = self.sessions.recover().await?;
            if count > 0 {
                tracing::info!(count, "sessions of the last run go on");
            }
        }
        let waiting = self.sessions.count_held();
        match elsewhere {
            Some(how) if waiting > 0 => {
                tracing::warn!(
                    count = waiting,
                    "the database {how}, so its sessions do not go on by themselves: each does when its user comes back, or all of them after `lucid serve --resume`"
                );
            }
            _ if waiting > 0 => {
                tracing::info!(
                    count = waiting,
                    "sessions wait for their users to come back; `lucid serve --resume` goes on with all of them"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// Brings everything to rest by `end`: no session ends, and no sandbox stays. Commands that run may come
    /// to their end for most of the time. Sandboxes are removed also where a session does not come to rest
    /// in time. What is left is said in the log.
    pub async fn shutdown(&self, end: Instant) {
        let left = || end.saturating_duration_since(Instant::now());
        let patience = left().mul_f64(1.0 - AFTER_SESSIONS);
        // The last rounds are written when the time for commands is up.
        let rest = self.sessions.shut_down_within(patience.mul_f64(0.9));
        match timeout(patience, rest).await {
            Ok(paused) => report_paused(&paused),
            Err(_) => {
                tracing::warn!("some sessions did not come to rest; they go on at the next start");
                report_paused(&self.sessions.take_paused());
            }
        }
        // What does not go now goes after the next start.
        if let Some(outbox) = &self.outbox {
            outbox.flush(left().mul_f64(LAST_RECORDS)).await;
        }
        let removed = timeout(left().mul_f64(0.95), self.sandboxes.shut_down());
        if removed.await.is_err() {
            tracing::warn!("some containers were not removed; the next start removes them");
        }
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

    /// What the routes work with.
    pub fn api(&self) -> Api {
        let (fixed, sessions) = (self.about.clone(), self.sessions.clone());
        let sandboxes = self.sandboxes.clone();
        let deployment = self.deployment.clone();
        let (store, reserve) = (self.store.clone(), self.reserve.clone());
        let about = move || {
            let snapshot = deployment.now().snapshot;
            let (policy, model) = snapshot.defaults();
            let unwritten = store.health().failure();
            let unwritten = unwritten.map(|reason| {
                format!("The log cannot be written, because {reason}. Sessions wait until it can.")
            });
            DeploymentInfo {
                degraded: unwritten.or_else(|| reserve.shortage()),
                sandbox: sandbox_name(&sandboxes),
                sandbox_notice: sandbox_notice(&sandboxes),
                active_sessions: sessions.count(),
                active_sandboxes: sessions.count_with_workspace(),
                llm_model: model,
                default_policy: policy.to_owned(),
                real_agent: snapshot.policies.default_is_real(),
                plugins: snapshot.plugins.list().into_iter().map(view).collect(),
                ..fixed.clone()
            }
        };
        Api::new(
            self.auth.clone(),
            self.sessions.clone(),
            self.workspaces.clone(),
            self.chats.clone(),
            self.accounts.clone(),
            self.deployment.clone(),
            about,
        )
    }

    /// The routes.
    pub fn router(&self, api: Api) -> Router {
        api::router(api, &self.config.allowed_origins)
    }
}

fn report_paused(paused: &PausedSessions) {
    for (session, command) in &paused.commands {
        tracing::warn!(%session, command, "a command was cut off by the shutdown; its agent is told at the next start");
    }
    if paused.sessions > 0 {
        let (sessions, cut_off) = (paused.sessions, paused.commands.len());
        tracing::info!(
            sessions,
            cut_off,
            "sessions are paused, and go on at the next start"
        );
    }
}

/// A folder that others may pass through, as sandboxes must, and not look into.
pub(crate) fn create_dir(folder: &Path) -> Result<(), StartError> {
    let made = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o711)));
    made.map_err(|cause| StartError::Folder {
        path: folder.to_owned(),
        cause,
    })
}

/// What notices changes in workspaces, where this machine has one.
fn watcher(base: &Path) -> Option<Watcher> {
    Watcher::start(base)
        .inspect_err(|cause| {
            tracing::warn!(%cause, "workspaces cannot be watched (inotify): their trees are looked at after each tool only");
        })
        .ok()
}

/// The log and the chats.
pub(crate) fn open_store(folders: &DataDirs) -> Result<Store, StartError> {
    create_dir(&folders.root)?;
    Ok(Store::open(&folders.data)?)
}

/// What is kept for users beside the log.
struct UserStores {
    chats: Chats,
    outbox: Option<Outbox>,
    integrations: Arc<dyn Integrations>,
}

/// The records where the settings say, or in the local database. A single run at a terminal
/// (`WorkspaceRetention::Workspaces`) is this machine's own.
async fn open_user_stores(
    config: &Config,
    store: &Store,
    keep: WorkspaceRetention,
) -> Result<UserStores, StartError> {
    let Some(settings) = config
        .supabase
        .as_ref()
        .filter(|_| keep == WorkspaceRetention::No)
    else {
        return Ok(UserStores {
            chats: Chats::new(store.clone()),
            outbox: None,
            integrations: Arc::new(store.clone()),
        });
    };
    let stores = Arc::new(SupabaseChatStore::new(Supabase::new(settings)?));
    let outbox = Outbox::start(store.clone(), SupabaseChatStore::clone(&stores)).await?;
    Ok(UserStores {
        chats: Chats::remote(store.clone(), stores.clone(), outbox.clone()),
        outbox: Some(outbox),
        integrations: stores,
    })
}

/// The deployment that the manifest and the environment say, with the plugins compiled or taken from
/// the cache. `blobs` has the files of conversations.
async fn start_deployment(
    config: &Config,
    folders: &DataDirs,
    blobs: Blobs,
) -> Result<DeploymentManager, StartError> {
    let engine = engine(folders)?;
    let largest = EngineOptions::default().largest_component as u64;
    let components = ComponentStore::new(folders.data.join("components"), largest);
    let first = DeploymentManager::start(
        config,
        engine,
        blobs,
        open_upload_store(folders),
        components,
    );
    Ok(Box::pin(first).await?)
}

/// What was uploaded on this machine.
pub(crate) fn open_upload_store(folders: &DataDirs) -> UploadStore {
    UploadStore::new(folders.data.join("plugins"))
}

/// The same for a look at it: nothing takes its place.
pub(crate) async fn deploy(
    config: &Config,
    folders: &DataDirs,
    blobs: Blobs,
) -> Result<Arc<DeploymentSnapshot>, StartError> {
    let now = start_deployment(config, folders, blobs).await?.now();
    match now.last_failure {
        // A server would start without it, and whoever looks is to know.
        Some((_, problems)) => Err(StartError::Deployment((*problems).clone())),
        None => Ok(now.snapshot),
    }
}

fn engine(folders: &DataDirs) -> Result<Engine, StartError> {
    create_dir(&folders.root)?;
    Ok(Engine::new(EngineOptions {
        cache: Some(folders.cache.clone()),
        ..EngineOptions::default()
    })?)
}

/// What commands can be run in.
pub(crate) async fn find_sandboxes(
    config: &Config,
    folders: &DataDirs,
) -> Result<Sandboxes, StartError> {
    create_dir(&folders.root)?;
    let choice = match config.sandbox_backend {
        SandboxBackend::Docker => BackendChoice::Docker,
        SandboxBackend::Auto if config.sandbox_allow_local => BackendChoice::AutoOrLocal,
        SandboxBackend::Auto if config.local => BackendChoice::Auto,
        SandboxBackend::Auto => BackendChoice::AutoForMany,
        SandboxBackend::Bubblewrap => BackendChoice::Bubblewrap,
        SandboxBackend::Landlock => BackendChoice::Landlock,
        SandboxBackend::Local => BackendChoice::Local,
        SandboxBackend::None => BackendChoice::None,
    };
    let network = match config.sandbox_network {
        SandboxNetwork::None => Network::None,
        SandboxNetwork::Host => Network::Host,
    };
    // Workspaces are named by their real path.
    let inner = std::fs::canonicalize(&config.workspace_base_path)
        .unwrap_or_else(|_| config.workspace_base_path.clone());
    let settings = SandboxSettings {
        run_dir: folders.run.clone(),
        memory_bytes: config.sandbox_memory_limit,
        network,
        workspace_mount: config.workspace_mount_path.clone(),
        docker: Some(docker::DockerSettings {
            host: config.docker_host.clone(),
            image: config.sandbox_image.clone(),
            cpus: config.sandbox_cpu_limit,
            prefix: config.sandbox_container_prefix.clone(),
            network: config.docker_network.clone(),
            host_path: config
                .host_workspace_path
                .clone()
                .map(|outer| (inner, outer)),
            pool: usize::try_from(config.sandbox_pool_size).unwrap_or(0),
            ..docker::DockerSettings::default()
        }),
    };
    Ok(Box::pin(Sandboxes::detect(choice, settings, builtin::EXEC)).await?)
}

/// What `GET /` calls it.
fn sandbox_name(sandboxes: &Sandboxes) -> String {
    match (sandboxes.kind(), sandboxes.transport()) {
        _ if sandboxes.refusal().is_some() => "unavailable".to_owned(),
        (BackendKind::Docker, Some(Transport::Exec)) => "docker-exec".to_owned(),
        (kind, _) => kind.to_string(),
    }
}

/// What `GET /` says of it, which anybody reads: the reasons hold paths and addresses.
fn sandbox_notice(sandboxes: &Sandboxes) -> Option<String> {
    let kind = sandboxes.kind();
    sandboxes.refusal().is_none().then_some(())?;
    sandboxes.shortcoming().map(|_| {
        format!(
            "Sandboxes are not as good as they could be: {kind} is used. The server's log and `lucid doctor` say why."
        )
    })
}

fn view(info: PluginInfo) -> PluginView {
    PluginView {
        kind: info.kind.to_string(),
        name: info.name,
        version: info.version,
    }
}
