//! The permitted values of each setting, the defaults, and the rules between settings.
//!
//! # Invariants
//!
//! - Nothing but the values is looked at, no file and no environment.
//! - The first invalid setting is the error. One that is merely unwise is a warning.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::enums::{
    AllowedOrigins, DefaultPolicy, LogFormat, NamedValues, PluginLogLevel, SandboxBackend,
    SandboxNetwork,
};
use super::jwks::jwks_url;
use super::models::ModelSettings;
use super::parse::{
    SettingValues, audiences, claim, container_name, count, dollars, image, ip, mount_path, number,
    origins, quoted_value, seconds, size, unprintable,
};
use super::{Config, ConfigError, Variables, supabase};
use lucid_sandbox::UserIdChoice;
use lucid_sandbox::git::BranchPolicy;
use lucid_sandbox::proxy::{DirectPorts, PrivateHosts};
use lucid_types::secret::Secret;

const DAY: f64 = 86_400.0;
const MIB: u64 = 1024 * 1024;
/// The shortest secret, in bytes, that gives access to other people's data.
const LEAST_SECRET: usize = 16;

impl Config {
    /// Validates all values.
    pub(super) fn check(values: &SettingValues) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let jwt_secret = values.raw("SUPABASE_JWT_SECRET").map(Secret::from);
        let encryption_key = values.raw("ENCRYPTION_KEY").map(Secret::from);
        let internal_api_key = values.header_secret("INTERNAL_API_KEY")?;
        let jwks_url = jwks_url(values)?;
        let local = jwt_secret.is_none() && jwks_url.is_none();
        for (name, secret, advised, refused) in [
            ("SUPABASE_JWT_SECRET", &jwt_secret, 32, LEAST_SECRET),
            // Other applications have it too, and their rows would no longer open.
            ("ENCRYPTION_KEY", &encryption_key, 16, 0),
            ("INTERNAL_API_KEY", &internal_api_key, 16, LEAST_SECRET),
        ] {
            let length = secret.as_ref().map_or(usize::MAX, Secret::len);
            if length < refused && !local {
                return Err(ConfigError::ShortSecret {
                    name,
                    least: refused,
                });
            }
            if length < advised {
                warnings.push(format!(
                    "{name} is shorter than {advised} bytes, so it can be guessed; use a longer one."
                ));
            }
        }
        let default_host = if local {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        let host = values.parsed(
            "HOST",
            IpAddr::V4(default_host),
            "an IP address, or localhost",
            ip,
        )?;
        if local && !host.to_canonical().is_loopback() {
            return Err(ConfigError::LocalModeIsLocal {
                value: quoted_value(values.text("HOST").unwrap_or_default()),
            });
        }

        let sandbox_backend = values.choice("SANDBOX_BACKEND", SandboxBackend::Auto)?;
        if !local && sandbox_backend == SandboxBackend::Landlock {
            warnings.push(
                "SANDBOX_BACKEND is landlock: users' sandboxes see the command lines of each other's processes; install bubblewrap, and set auto or bubblewrap, to keep them apart."
                    .to_owned(),
            );
        }

        let sandbox_network = values.choice("SANDBOX_NETWORK", SandboxNetwork::Proxy)?;
        match sandbox_network {
            SandboxNetwork::Host if !local => return Err(ConfigError::HostNetworkIsLocal),
            SandboxNetwork::Host => warnings.push(
                "SANDBOX_NETWORK is host: commands reach this machine's own servers, its networks and each other."
                    .to_owned(),
            ),
            SandboxNetwork::Proxy | SandboxNetwork::None => {
                if values.text("DOCKER_NETWORK").is_some() {
                    warnings.push(
                        "DOCKER_NETWORK has no effect: it names the network of SANDBOX_NETWORK=host.".to_owned(),
                    );
                }
            }
        }
        if sandbox_network != SandboxNetwork::Proxy
            && values.text("SANDBOX_PRIVATE_HOSTS").is_some()
        {
            warnings.push(
                "SANDBOX_PRIVATE_HOSTS has no effect: it is for SANDBOX_NETWORK=proxy.".to_owned(),
            );
        }

        let sandbox_direct = values.parsed(
            "SANDBOX_DIRECT",
            DirectPorts::default(),
            "tcp and udp, each alone or with a port or a range of ports, separated by commas, such as tcp:5432,udp:3478-3497",
            |text| text.parse().ok(),
        )?;
        if sandbox_network != SandboxNetwork::Proxy && !sandbox_direct.is_empty() {
            return Err(ConfigError::DirectIsBesideTheProxy);
        }

        let sandbox_allow_local = values.choice("SANDBOX_ALLOW_LOCAL", false)?;
        if sandbox_allow_local || sandbox_backend == SandboxBackend::Local {
            warnings.push(
                "Commands may run without a sandbox: they can read and change all that this server can, its keys and other users' files included."
                    .to_owned(),
            );
        }

        let supabase = supabase::check(values, &mut warnings)?;
        let models = ModelSettings::check(values, &mut warnings)?;

        Ok(Self {
            host,
            port: values.parsed("PORT", 8000, "a port number from 0 to 65535 (0 takes any free one)", number)?,
            local,
            jwt_secret,
            jwks_url,
            jwt_audiences: values.parsed(
                "JWT_AUDIENCE",
                Vec::new(),
                "a comma-separated list of audiences, each at most 255 characters and none of them a space or a control character",
                audiences,
            )?,
            jwt_issuer: values.optional(
                "JWT_ISSUER",
                "an issuer such as https://id.example.com, at most 255 characters and none of them a space or a control character",
                claim,
            )?,
            encryption_key,
            internal_api_key,
            supabase,
            allowed_origins: values.parsed(
                "ALLOWED_ORIGINS",
                AllowedOrigins::List(vec!["http://localhost:3000".to_owned()]),
                "a comma-separated list of origins such as https://app.example.com (scheme, host and port, no path), or * alone",
                origins,
            )?,
            models,
            default_policy: values.choice("DEFAULT_POLICY", DefaultPolicy::Auto)?,
            max_iterations: values.parsed("MAX_ITERATIONS", 50, "a whole number from 1 to 10000", count)?,
            session_token_limit: values.optional(
                "SESSION_TOKEN_LIMIT",
                "a whole number of tokens from 1 to 1000000000000",
                |text| number(text).filter(|tokens| (1..=1_000_000_000_000).contains(tokens)),
            )?,
            session_cost_limit: values.optional(
                "SESSION_COST_LIMIT",
                "a number of US dollars from 0.000001 to 1000000, such as 2.50",
                |text| dollars(text).filter(|micros| (1..=1_000_000_000_000).contains(micros)),
            )?,
            conversation_timeout: values.parsed(
                "CONVERSATION_TIMEOUT",
                Duration::from_secs(1800),
                "a time from 1s to 30d: a number of seconds, or such as 90s, 5m or 1h30m",
                |text| seconds(text, 1.0, 30.0 * DAY),
            )?,
            session_grace: values.parsed(
                "SESSION_GRACE_SECONDS",
                Duration::from_secs(300),
                "a time from 0 to 1d: a number of seconds, or such as 90s, 5m or 1h30m",
                |text| seconds(text, 0.0, DAY),
            )?,
            workspace_retention: values.parsed(
                "WORKSPACE_RETENTION",
                Duration::from_hours(24),
                "a time from 0 to 365d: a number of seconds, or such as 30m, 12h or 2d",
                |text| seconds(text, 0.0, 365.0 * DAY),
            )?,
            metrics_listen: values.optional(
                "METRICS_LISTEN",
                "an IP address and a port, such as 127.0.0.1:9464",
                |text| text.parse().ok(),
            )?,
            drain_time: values.parsed(
                "DRAIN_TIME",
                Duration::ZERO,
                "a time from 0 to 1h: a number of seconds, or such as 10s or 2m",
                |text| seconds(text, 0.0, 3600.0),
            )?,
            shutdown_timeout: values.parsed(
                "SHUTDOWN_TIMEOUT",
                Duration::from_secs(25),
                "a time from 1s to 1h: a number of seconds, or such as 25s or 2m",
                |text| seconds(text, 1.0, 3600.0),
            )?,
            max_sessions_per_user: values.parsed(
                "MAX_SESSIONS_PER_USER",
                20,
                "a whole number from 1 to 10000",
                count,
            )?,
            user_log_rate: limit(values, "USER_LOG_RATE", 32 * MIB)?,
            user_log_limit: limit(values, "USER_LOG_LIMIT", 4096 * MIB)?,
            sandbox_backend,
            sandbox_network,
            sandbox_private_hosts: values.parsed(
                "SANDBOX_PRIVATE_HOSTS",
                PrivateHosts::default(),
                "hosts, or host:port, separated by commas",
                |text| text.parse().ok(),
            )?,
            sandbox_direct,
            sandbox_memory_limit: values.parsed(
                "SANDBOX_MEMORY_LIMIT",
                2048 * MIB,
                "a size from 16m to 1t, such as 512m or 2g",
                |text| size(text).filter(|bytes| (16 * MIB..=MIB * MIB).contains(bytes)),
            )?,
            sandbox_disk_limit: values.parsed(
                "SANDBOX_DISK_LIMIT",
                10 * 1024 * MIB,
                "a size from 1m to 1024t, such as 500m or 10g",
                |text| size(text).filter(|bytes| (MIB..=1024 * MIB * MIB).contains(bytes)),
            )?,
            sandbox_file_limit: values.parsed(
                "SANDBOX_FILE_LIMIT",
                500_000,
                "a whole number from 100 to 2000000",
                |text| text.parse().ok().filter(|count| (100..=2_000_000).contains(count)),
            )?,
            disk_reserve: values.parsed(
                "DISK_RESERVE",
                256 * MIB,
                "a size up to 1024t, such as 100m or 2g, or 0 for none",
                |text| size(text).filter(|bytes| *bytes <= 1024 * MIB * MIB),
            )?,
            sandbox_allow_local,
            sandbox_image: values.parsed(
                "SANDBOX_IMAGE",
                "lucid-sandbox:bookworm".to_owned(),
                "an image's name, at most 255 characters and none of them a space or a control character",
                image,
            )?,
            sandbox_cpu_limit: values.parsed(
                "SANDBOX_CPU_LIMIT",
                1.0,
                "a number of processors from 0.01 to 1024",
                |text| text.parse().ok().filter(|cpus| (0.01..=1024.0).contains(cpus)),
            )?,
            sandbox_uids: values.parsed(
                "SANDBOX_UIDS",
                UserIdChoice::Auto,
                "a range of at least two user ids without 0, such as 200000-265535, or off",
                |text| text.parse().ok(),
            )?,
            sandbox_container_prefix: values.parsed(
                "SANDBOX_CONTAINER_PREFIX",
                "lucid-sandbox-".to_owned(),
                "a letter or digit, then letters, digits, _, . and -, at most 64",
                container_name,
            )?,
            sandbox_pool_size: values.parsed(
                "SANDBOX_POOL_SIZE",
                2,
                "a whole number from 0 to 1000",
                |text| number(text).filter(|size| *size <= 1000),
            )?,
            docker_host: values.optional(
                "DOCKER_HOST",
                "an engine's address such as unix:///var/run/docker.sock or tcp://10.0.0.5:2375",
                |text| {
                    let known = ["unix:///", "tcp://", "http://"];
                    let fits = known.iter().any(|scheme| text.starts_with(scheme));
                    (fits && !text.contains(unprintable)).then(|| text.to_owned())
                },
            )?,
            docker_network: values.optional(
                "DOCKER_NETWORK",
                "a network's name: a letter or digit, then letters, digits, _, . and -, at most 64",
                container_name,
            )?,
            host_workspace_path: values.optional(
                "HOST_WORKSPACE_PATH",
                "an absolute path, without . and .. parts, colons or control characters",
                |text| mount_path(text).map(PathBuf::from),
            )?,
            workspace_mount_path: values.parsed(
                "WORKSPACE_MOUNT_PATH",
                "/workspace".to_owned(),
                "an absolute path below /, without . and .. parts, colons or control characters",
                mount_path,
            )?,
            workspace_base_path: values
                .raw("WORKSPACE_BASE_PATH")
                .map_or_else(|| PathBuf::from("./storage"), PathBuf::from),
            allow_private_repositories: values.choice("ALLOW_PRIVATE_REPOSITORIES", local)?,
            git_clone_depth: values
                .parsed(
                    "GIT_CLONE_DEPTH",
                    20,
                    "a number of commits from 1 to 1000000, or 0 for all of the history",
                    |text| number(text).filter(|depth| *depth <= 1_000_000),
                )
                .map(|depth| (depth > 0).then_some(depth))?,
            git_size_limit: values.parsed(
                "GIT_SIZE_LIMIT",
                1024 * MIB,
                "a size from 1m to 1t, such as 500m or 4g",
                |text| size(text).filter(|bytes| (MIB..=MIB * MIB).contains(bytes)),
            )?,
            git_timeout: values.parsed(
                "GIT_TIMEOUT",
                Duration::from_secs(600),
                "a time from 1s to 1d: a number of seconds, or such as 90s, 5m or 1h30m",
                |text| seconds(text, 1.0, DAY),
            )?,
            git_allow_owner: values.choice("GIT_ALLOW_OWNER", false)?,
            git_push_branches: values.parsed(
                "GIT_PUSH_BRANCHES",
                BranchPolicy::default(),
                "a comma-separated list of branches, * at the end of one for all that begin so, such as lucid/*,feature/*; or * for every branch",
                BranchPolicy::parse,
            )?,
            mock_step_delay: values.parsed(
                "MOCK_STEP_DELAY_SECONDS",
                Duration::from_millis(1500),
                "a time from 0 to 60s: a number of seconds, or such as 2s or 500ms",
                |text| seconds(text, 0.0, 60.0),
            )?,
            log_format: values.choice("LOG_FORMAT", LogFormat::Text)?,
            plugin_log_level: values.optional(
                "PLUGIN_LOG_LEVEL",
                PluginLogLevel::ALLOWED,
                PluginLogLevel::from_name,
            )?,
            manifest: values.raw("LUCID_MANIFEST").map(PathBuf::from),
            variables: Variables::default(),
            warnings,
            misspelt: Vec::new(),
        })
    }
}

/// A size that nothing may exceed; `None` for 0.
fn limit(
    values: &SettingValues,
    name: &'static str,
    default: u64,
) -> Result<Option<u64>, ConfigError> {
    let bytes = values.parsed(
        name,
        default,
        "a size from 1m to 1024t, such as 500m or 10g, or 0 for no limit",
        |text| size(text).filter(|bytes| *bytes == 0 || (MIB..=1024 * MIB * MIB).contains(bytes)),
    )?;
    Ok((bytes > 0).then_some(bytes))
}
