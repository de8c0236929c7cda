//! The settings: where they come from, their permitted values, and their defaults.
//!
//! Settings are environment variables, over a `.env` file in the working directory. An empty value
//! counts as not set. If nothing says how users' tokens are verified, neither `SUPABASE_JWT_SECRET`
//! nor the address of an identity provider's keys, the server is in local mode and can listen on a
//! loopback address only.
//!
//! # Invariants
//!
//! - A [`Config`] that exists was validated in full, so nothing that reads it validates again.
//! - An invalid value is reported in one sentence that names the setting, the value and the
//!   permitted values, and never shows a secret.
//! - A setting that has no effect is reported in [`Config::warnings`].

mod dotenv;
mod enums;
mod error;
mod jwks;
mod known;
mod misspelt;
mod models;
mod parse;
mod secret_file;
mod supabase;
#[cfg(test)]
mod tests;
mod validate;
mod variables;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::enums::{
    AllowedOrigins, DefaultPolicy, LogFormat, PluginLogLevel, SandboxBackend, SandboxNetwork,
};
pub use self::error::ConfigError;
pub(crate) use self::jwks::is_supabase;
pub use self::known::SETTINGS;
use self::known::known;
pub(crate) use self::known::{is_host_secret, is_variable};
pub use self::models::{ModelSettings, ProviderSettings};
use self::parse::SettingValues;
pub(crate) use self::parse::{is_model, size, time};
use self::secret_file::secret_file;
pub use self::variables::Variables;
use lucid_sandbox::UserIdChoice;
use lucid_sandbox::git::BranchPolicy;
use lucid_sandbox::proxy::{DirectPorts, PrivateHosts};
use lucid_store::SupabaseSettings;
use lucid_types::secret::{Secret, Zeroizing};
use url::Url;

/// All settings, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST`: the address the server listens on. 127.0.0.1 in local mode, else 0.0.0.0.
    pub host: IpAddr,
    /// `PORT` (8000). 0 selects any free one.
    pub port: u16,
    /// Local mode: there is no identity provider, and a secret of this machine signs tokens.
    pub local: bool,
    /// `SUPABASE_JWT_SECRET`. `None` in local mode. [`Config::keys`] returns the key that tokens
    /// are signed with.
    pub jwt_secret: Option<Secret>,
    /// `SUPABASE_JWKS_URL`, or the one derived from `SUPABASE_URL`: the public keys that tokens are
    /// verified with.
    pub jwks_url: Option<Url>,
    /// `JWT_AUDIENCE`: the audiences, of which a token must name one. Empty for any.
    pub jwt_audiences: Vec<String>,
    /// `JWT_ISSUER`: the issuer that a token must name. Any if not set.
    pub jwt_issuer: Option<String>,
    /// `ENCRYPTION_KEY`, for stored git tokens and for a session's own secrets.
    pub encryption_key: Option<Secret>,
    /// `INTERNAL_API_KEY`. Without it servers cannot act for users.
    pub internal_api_key: Option<Secret>,
    /// `SUPABASE_URL`, `SUPABASE_ANON_KEY`, `SUPABASE_SERVICE_KEY`: the chat store. The local
    /// database if not set.
    pub supabase: Option<SupabaseSettings>,
    /// `ALLOWED_ORIGINS` (`http://localhost:3000`).
    pub allowed_origins: AllowedOrigins,
    /// The model providers, their addresses and their keys.
    pub models: ModelSettings,
    /// `DEFAULT_POLICY` (`auto`).
    pub default_policy: DefaultPolicy,
    /// `MAX_ITERATIONS` (50) of one session.
    pub max_iterations: u32,
    /// `SESSION_TOKEN_LIMIT`: the maximum number of tokens of one session, including cached ones.
    pub session_token_limit: Option<u64>,
    /// `SESSION_COST_LIMIT`: the maximum cost of one session, in millionths of a US dollar.
    pub session_cost_limit: Option<u64>,
    /// `CONVERSATION_TIMEOUT` (1800 s).
    pub conversation_timeout: Duration,
    /// `SESSION_GRACE_SECONDS` (300): how long a session keeps running with no client.
    pub session_grace: Duration,
    /// `WORKSPACE_RETENTION` (a day): how long the files of a session are kept that its user did
    /// not end.
    pub workspace_retention: Duration,
    /// `METRICS_LISTEN`: an address of its own for metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// `DRAIN_TIME` (0): how long a server that is told to stop serves what it has, before its shutdown begins.
    pub drain_time: Duration,
    /// `SHUTDOWN_TIMEOUT` (25 s): how long a shutdown may take.
    pub shutdown_timeout: Duration,
    /// `MAX_SESSIONS_PER_USER` (20).
    pub max_sessions_per_user: u32,
    /// `USER_LOG_RATE` (32m): how many bytes a user may send into the log in a minute. `None` for
    /// any number, which is 0 in the setting.
    pub user_log_rate: Option<u64>,
    /// `USER_LOG_LIMIT` (4g): how many bytes the log may hold of a user. `None` for any number,
    /// which is 0 in the setting.
    pub user_log_limit: Option<u64>,
    /// `SANDBOX_BACKEND` (`auto`).
    pub sandbox_backend: SandboxBackend,
    /// `SANDBOX_NETWORK` (`proxy`).
    pub sandbox_network: SandboxNetwork,
    /// `SANDBOX_PRIVATE_HOSTS`: the hosts that the proxy connects to at private addresses. None if
    /// not set.
    pub sandbox_private_hosts: PrivateHosts,
    /// `SANDBOX_DIRECT`: the ports that commands reach by sockets of their own, past the proxy. None if
    /// not set.
    pub sandbox_direct: DirectPorts,
    /// `SANDBOX_MEMORY_LIMIT` (2g), in bytes.
    pub sandbox_memory_limit: u64,
    /// `SANDBOX_DISK_LIMIT` (10g): what the files of a session may take of disks, in bytes.
    pub sandbox_disk_limit: u64,
    /// `SANDBOX_FILE_LIMIT` (500000): how many files and folders a session may have.
    pub sandbox_file_limit: u64,
    /// `DISK_RESERVE` (256m): the part of the disk that is reserved for the log, in bytes. 0 for
    /// none.
    pub disk_reserve: u64,
    /// `SANDBOX_ALLOW_LOCAL` (false): if there is no sandbox, commands run without one.
    pub sandbox_allow_local: bool,
    /// `SANDBOX_IMAGE` (`lucid-sandbox:bookworm`).
    pub sandbox_image: String,
    /// `SANDBOX_CPU_LIMIT` (1.0), in CPUs.
    pub sandbox_cpu_limit: f64,
    /// `SANDBOX_UIDS`: the user ids of sandboxes that are no containers.
    pub sandbox_uids: UserIdChoice,
    /// `SANDBOX_CONTAINER_PREFIX` (`lucid-sandbox-`).
    pub sandbox_container_prefix: String,
    /// `SANDBOX_POOL_SIZE` (2): the number of warm containers.
    pub sandbox_pool_size: u32,
    /// `DOCKER_HOST`: the address of the engine. The default socket if not set.
    pub docker_host: Option<String>,
    /// `DOCKER_NETWORK`: the network that containers join with `SANDBOX_NETWORK=host`. The engine's
    /// default if not set.
    pub docker_network: Option<String>,
    /// `HOST_WORKSPACE_PATH`: the path of `WORKSPACE_BASE_PATH` on the engine's machine.
    pub host_workspace_path: Option<PathBuf>,
    /// `WORKSPACE_MOUNT_PATH` (`/workspace`): the path of the workspace as commands see it.
    /// Absolute, without a trailing slash.
    pub workspace_mount_path: String,
    /// `WORKSPACE_BASE_PATH` (`./storage`): workspaces, the database and this machine's secrets.
    pub workspace_base_path: PathBuf,
    /// `ALLOW_PRIVATE_REPOSITORIES` (true in local mode, else false): repositories on private
    /// addresses and on this machine.
    pub allow_private_repositories: bool,
    /// `GIT_CLONE_DEPTH` (20): the number of commits in a session's clone. `None` for all of them,
    /// which is 0 in the setting. The rest can be fetched later.
    pub git_clone_depth: Option<u32>,
    /// `GIT_SIZE_LIMIT` (1g): the maximum size of one clone or fetch, of one push, and of the files
    /// in a session's clone, in bytes.
    pub git_size_limit: u64,
    /// `GIT_TIMEOUT` (600 s): the time limit of a session's clone, and of a single fetch or push.
    pub git_timeout: Duration,
    /// `GIT_ALLOW_OWNER` (false): whether git in a session can also access other repositories of
    /// the same owner, with the same token.
    pub git_allow_owner: bool,
    /// `GIT_PUSH_BRANCHES` (`lucid/*`): the branches that git in a session may push to.
    pub git_push_branches: BranchPolicy,
    /// `MOCK_STEP_DELAY_SECONDS` (1.5).
    pub mock_step_delay: Duration,
    /// `LOG_FORMAT` (`text`).
    pub log_format: LogFormat,
    /// `PLUGIN_LOG_LEVEL`: the level of plugins' lines in the log. As in `RUST_LOG` if not set.
    pub plugin_log_level: Option<PluginLogLevel>,
    /// `LUCID_MANIFEST`: the deployment's manifest. `./lucid.toml` if it is not set and that
    /// exists.
    pub manifest: Option<PathBuf>,
    /// The other environment variables, for the keys that a manifest names.
    pub variables: Variables,
    /// Warnings for the operator, such as settings without effect and weak secrets. A sentence
    /// each. [`Config::notes`] adds those about misspelt settings.
    pub warnings: Vec<String>,
    /// Variables that look like settings but are not, and the setting that was probably meant.
    pub misspelt: Vec<(String, &'static str)>,
}

/// The keys of a running server, from the settings or from files of this machine.
#[derive(Debug, Clone)]
pub struct ServerKeys {
    /// The key that tokens are signed and verified with. `None` if only the identity provider signs
    /// them.
    pub jwt: Option<Secret>,
    /// The key that encrypts sessions' own secrets.
    pub seal: Secret,
}

impl Config {
    /// Reads the environment and, with lower precedence, `.env` in the working directory.
    pub fn load() -> Result<Self, ConfigError> {
        let file = match std::fs::read_to_string(".env") {
            Ok(text) => Some(Zeroizing::new(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(ConfigError::DotEnv(error)),
        };
        Self::merge(file.as_deref().map(String::as_str), std::env::vars_os())
    }

    /// Reads settings from pairs of name and value, and touches nothing else. If a name occurs
    /// twice, the last non-empty value counts. Unknown names are ignored.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self, ConfigError>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs: Vec<(String, String)> = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let variables = Variables::new(&pairs);
        let mut misspelt: Vec<_> = pairs
            .iter()
            .filter(|(_, value)| !value.trim().is_empty())
            .filter_map(|(name, _)| Some((name.clone(), misspelt::suggestion(name)?)))
            .collect();
        misspelt.sort_unstable();
        misspelt.dedup();
        let settings = pairs.into_iter().filter(|(name, _)| known(name));
        let config = Self::check(&SettingValues::new(settings))?;
        Ok(Self {
            variables,
            misspelt,
            ..config
        })
    }

    /// All warnings for the operator, a sentence each. A manifest may name any variable, so one
    /// that it names is not reported as misspelt.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.warnings.clone();
        if self.misspelt.is_empty() {
            return notes;
        }
        let manifest = self.manifest.as_deref().unwrap_or(Path::new("lucid.toml"));
        let manifest = std::fs::read_to_string(manifest).unwrap_or_default();
        let slips = self
            .misspelt
            .iter()
            .filter(|(name, _)| !manifest.contains(&format!("\"{name}\"")));
        notes.extend(slips.map(|(name, meant)| misspelt::warning(name, meant)));
        notes
    }

    /// `LOG_FORMAT` alone, for errors before there is a configuration.
    pub fn log_format() -> LogFormat {
        let name = "LOG_FORMAT";
        let set = std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty());
        let value = set.or_else(|| {
            let file = Zeroizing::new(std::fs::read_to_string(".env").ok()?);
            let pairs = dotenv::pairs(&file).ok()?;
            let mut found = pairs.into_iter().rev().filter(|(known, _)| known == name);
            found.next().map(|(_, value)| value)
        });
        let values = SettingValues::new(value.map(|value| (name.to_owned(), value)).into_iter());
        values
            .choice(name, LogFormat::Text)
            .unwrap_or(LogFormat::Text)
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// The keys for tokens and for encryption. A key without a setting is in a file below
    /// `WORKSPACE_BASE_PATH`, created at first use and readable by this user only.
    pub fn keys(&self) -> Result<ServerKeys, ConfigError> {
        let jwt = match &self.jwt_secret {
            Some(secret) => Some(secret.clone()),
            None if self.local => {
                Some(secret_file(&self.workspace_base_path.join("local-secret"))?)
            }
            // A secret of our own would sign tokens that the store behind us refuses, and a token
            // once printed in local mode would give access to a server.
            None => None,
        };
        let seal = match (&self.encryption_key, &jwt) {
            (Some(key), _) => key.clone(),
            (None, Some(jwt)) if self.local => jwt.clone(),
            // Not SUPABASE_JWT_SECRET: that one is rotated independently, and a session's encrypted
            // secrets could no longer be read.
            (None, _) => secret_file(&self.workspace_base_path.join("seal-secret"))?,
        };
        Ok(ServerKeys { jwt, seal })
    }

    fn merge(
        file: Option<&str>,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut pairs = file.map(dotenv::pairs).transpose()?.unwrap_or_default();
        for (name, value) in env {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => pairs.push((name, value)),
                // A variable that is not a setting may hold anything.
                Err(_) if !known(&name) => {}
                Err(_) => return Err(ConfigError::NotText { name }),
            }
        }
        Self::from_pairs(pairs)
    }
}
