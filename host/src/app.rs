//! Owns how the parts are put together: settings, plugins, store, sandboxes, sessions, routes.
//!
//! What always holds: nothing is served before all of them are there; what does not start says which
//! part it was and why. Each part's folder is below `WORKSPACE_BASE_PATH`, in `.lucid`, a name that
//! no user's folder has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;

use crate::api::{self, About, Api, PluginView};
use crate::auth::Authenticator;
use crate::builtin;
use crate::config::{Config, ConfigError, SandboxBackend, SandboxNetwork};
use crate::plugins::{Engine, EngineError, EngineOptions, LoadError, Plugins};
use crate::sandbox::{Choice, Network, SandboxError, Sandboxes, Settings};
use crate::seal::Sealer;
use crate::session::{Deps, Sessions};
use crate::store::{Chats, Store, StoreError};

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The plugins' engine.
    #[error("The plugins cannot be run: {0}.")]
    Engine(#[from] EngineError),
    /// A plugin.
    #[error("A plugin was not loaded: {0}.")]
    Plugin(#[from] LoadError),
    /// The database.
    #[error("The store cannot be used: {0}.")]
    Store(#[from] StoreError),
    /// The sandbox that was asked for.
    #[error("{0}")]
    Sandbox(#[from] SandboxError),
    /// The folder everything is in.
    #[error("The folder {path} cannot be made ({cause}). Is WORKSPACE_BASE_PATH a place this user can write to?")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// Everything, running.
pub struct App {
    config: Arc<Config>,
    auth: Arc<Authenticator>,
    sessions: Sessions,
    chats: Chats,
    about: Arc<Fixed>,
}

/// What `GET /` says that stays as it is while the server runs.
struct Fixed {
    about: About,
    sessions: Sessions,
}

/// The folders below one base.
pub(crate) struct Folders {
    own: PathBuf,
    data: PathBuf,
    cache: PathBuf,
    run: PathBuf,
}

impl Folders {
    pub(crate) fn below(base: &Path) -> Self {
        let own = base.join(".lucid");
        Self { data: own.join("data"), cache: own.join("cache"), run: own.join("run"), own }
    }
}

impl App {
    /// Starts every part, on the storage folder of the settings.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let base = config.workspace_base_path.clone();
        Self::start_in(config, &base).await
    }

    /// Starts every part with the log and the workspaces in `storage`. What belongs to the machine
    /// (secrets, compiled plugins, the sandboxes' programs) stays below `WORKSPACE_BASE_PATH`.
    pub async fn start_in(mut config: Config, storage: &Path) -> Result<Self, StartError> {
        let machine = Folders::below(&config.workspace_base_path);
        let own = Folders::below(storage);
        // Made here, so that it is not made by whoever needs a folder inside, with its mode.
        for folder in [&config.workspace_base_path, storage] {
            make(folder)?;
        }
        let keys = config.keys()?;
        let store = open_store(&own)?;
        let (plugins, sandboxes) = tokio::try_join!(load_plugins(&machine), find_sandboxes(&config, &machine))?;
        config.workspace_base_path = storage.to_owned();
        let config = Arc::new(config);
        let auth = Arc::new(Authenticator::new(&keys.jwt, config.internal_api_key.clone()));
        let chats = Chats::new(store.clone());
        let plugin_views = views(&plugins);
        let about = About {
            sandbox: sandboxes.kind().to_string(),
            store: store.kind().to_owned(),
            plugins: plugin_views,
            ..About::default()
        };
        let sessions = Sessions::new(Deps {
            config: config.clone(),
            store,
            plugins: Arc::new(plugins),
            sandboxes,
            sealer: Sealer::new(&keys.seal),
        });
        let about = About {
            llm_model: sessions.default_model().unwrap_or_default(),
            real_agent: sessions.default_policy() != "mock",
            default_policy: sessions.default_policy().to_owned(),
            ..about
        };
        let about = Arc::new(Fixed { about, sessions: sessions.clone() });
        Ok(Self { config, auth, sessions, chats, about })
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

    /// What the routes work with.
    pub fn api(&self) -> Api {
        let fixed = self.about.clone();
        let about = move || {
            let counts = fixed.sessions.counts();
            About { active_sessions: counts.sessions, active_sandboxes: counts.sandboxes, ..fixed.about.clone() }
        };
        Api::new(self.auth.clone(), self.sessions.clone(), self.chats.clone(), about)
    }

    /// The routes.
    pub fn router(&self, api: Api) -> Router {
        api::router(api, &self.config.allowed_origins)
    }
}

fn make(folder: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(folder).map_err(|cause| StartError::Folder { path: folder.to_owned(), cause })
}

/// The log and the chats.
pub(crate) fn open_store(folders: &Folders) -> Result<Store, StoreError> {
    Store::open(&folders.data)
}

/// The default plugins, compiled or taken from the cache.
pub(crate) async fn load_plugins(folders: &Folders) -> Result<Plugins, StartError> {
    make(&folders.own)?;
    let engine = Engine::new(EngineOptions { cache: Some(folders.cache.clone()), ..EngineOptions::default() })?;
    let plugins = Plugins::builder(engine)
        .policy("mock", builtin::MOCK)
        .policy("coder", builtin::CODER)
        .llm("openai", builtin::OPENAI)
        .build();
    Ok(Box::pin(plugins).await?)
}

/// What commands can be run in.
pub(crate) async fn find_sandboxes(config: &Config, folders: &Folders) -> Result<Sandboxes, StartError> {
    let choice = match config.sandbox_backend {
        SandboxBackend::Auto => Choice::Auto,
        SandboxBackend::Bubblewrap => Choice::Bubblewrap,
        SandboxBackend::Landlock => Choice::Landlock,
        SandboxBackend::None => Choice::None,
    };
    let network = match config.sandbox_network {
        SandboxNetwork::None => Network::None,
        SandboxNetwork::Host => Network::Host,
    };
    let settings = Settings {
        run_dir: folders.run.clone(),
        memory_bytes: config.sandbox_memory_limit,
        network,
        workspace_mount: config.workspace_mount_path.clone(),
    };
    Ok(Box::pin(Sandboxes::detect(choice, settings, builtin::EXEC)).await?)
}

fn views(plugins: &Plugins) -> Vec<PluginView> {
    let view = |info: crate::plugins::PluginInfo| PluginView {
        kind: info.kind.to_string(),
        name: info.name,
        version: info.version,
    };
    plugins.list().into_iter().map(view).collect()
}
