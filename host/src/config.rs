//! Owns the settings: where they come from, what each may hold, and what each is when it is not set.
//!
//! Settings are environment variables, over a `.env` file in the working directory. An empty value
//! counts as not set. What always holds: a [`Config`] that exists was checked in full, so nothing
//! that reads it checks again; a value that is not allowed is one sentence that names the setting,
//! what was given and what is allowed, and never shows a secret; a setting that is taken and not
//! used yet is said in [`Config::warnings`]. Without `SUPABASE_JWT_SECRET` the server is in local
//! mode, and can listen on a loopback address only.

mod choices;
mod dotenv;
mod secret_file;
mod values;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use url::Url;

pub use self::choices::{AllowedOrigins, DefaultPolicy, LogFormat, SandboxBackend, SandboxNetwork};
use self::secret_file::secret_file;
use self::values::{
    Values, count, ip, mount_path, number, origins, seconds, shown, size, unprintable,
};
use crate::secret::Secret;

const DAY: f64 = 86_400.0;
const MIB: u64 = 1024 * 1024;

/// Settings that are taken without effect, and why. They are named, so that nobody thinks they work.
const NOT_USED_YET: &[(&str, &str)] = &[
    ("SUPABASE_URL", NO_SUPABASE),
    ("SUPABASE_ANON_KEY", NO_SUPABASE),
    ("SUPABASE_SERVICE_KEY", NO_SUPABASE),
    (
        "ANTHROPIC_API_KEY",
        "there is no adapter for Anthropic's own API",
    ),
    ("GOOGLE_API_KEY", "there is no adapter for Google's own API"),
    ("SANDBOX_IMAGE", NO_DOCKER),
    ("SANDBOX_CPU_LIMIT", NO_DOCKER),
    ("SANDBOX_CONTAINER_PREFIX", NO_DOCKER),
    ("DOCKER_NETWORK", NO_DOCKER),
    ("HOST_WORKSPACE_PATH", NO_DOCKER),
];
const NO_SUPABASE: &str = "chats are kept in the local database";
const NO_DOCKER: &str = "there is no Docker sandbox, see SANDBOX_BACKEND";

/// Settings that are read.
const USED: &[&str] = &[
    "PORT",
    "HOST",
    "SUPABASE_JWT_SECRET",
    "ENCRYPTION_KEY",
    "INTERNAL_API_KEY",
    "ALLOWED_ORIGINS",
    "OPENAI_API_KEY",
    "LLM_API_KEY",
    "LLM_BASE_URL",
    "LLM_MODEL",
    "DEFAULT_MODEL_PROVIDER",
    "DEFAULT_PROVIDER",
    "DEFAULT_POLICY",
    "MAX_ITERATIONS",
    "CONVERSATION_TIMEOUT",
    "SESSION_GRACE_SECONDS",
    "MAX_SESSIONS_PER_USER",
    "SANDBOX_BACKEND",
    "SANDBOX_NETWORK",
    "SANDBOX_MEMORY_LIMIT",
    "WORKSPACE_MOUNT_PATH",
    "WORKSPACE_BASE_PATH",
    "ALLOW_PRIVATE_REPOSITORIES",
    "MOCK_STEP_DELAY_SECONDS",
    "LOG_FORMAT",
];

/// Why there is no configuration. Each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is not one of those allowed.
    #[error("{name} is {given}, but it must be {allowed}.")]
    NotAllowed {
        /// The setting.
        name: &'static str,
        /// What was given, quoted and cut.
        given: String,
        /// What is allowed, as the end of a sentence.
        allowed: &'static str,
    },
    /// A secret, or a value that may hold one, is not usable. What was given is not shown.
    #[error("{name} cannot be used: it must be {allowed} (what was given is not shown here).")]
    BadSecret {
        /// The setting.
        name: &'static str,
        /// What is allowed, as the end of a sentence.
        allowed: &'static str,
    },
    /// A variable of the environment is not text.
    #[error("{name} cannot be used: it must be UTF-8 text (what was given is not shown here).")]
    NotText {
        /// The setting.
        name: String,
    },
    /// Local mode, with an address that others can reach.
    #[error(
        "HOST is {given}, but without SUPABASE_JWT_SECRET the server runs in local mode, which listens on a loopback address only (127.0.0.1 or ::1): set SUPABASE_JWT_SECRET to serve others."
    )]
    LocalModeIsLocal {
        /// What was given, quoted and cut.
        given: String,
    },
    /// The `.env` file is there and cannot be read.
    #[error(".env cannot be read: {0}.")]
    DotEnv(#[source] io::Error),
    /// A line of the `.env` file is no `NAME=value`.
    #[error(
        ".env cannot be read: line {line} is not NAME=value (quote a value that holds spaces or quotes)."
    )]
    DotEnvLine {
        /// The line's number, from 1.
        line: usize,
    },
    /// A secret file can be read by others.
    #[error(
        "{} can be read by other users (mode {mode:04o}): delete it to have a new one made, or run chmod 600 on it if nobody has read it.",
        path.display()
    )]
    OpenSecretFile {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret file does not hold what was written there.
    #[error(
        "{} does not hold 64 hexadecimal digits: put back the original, or delete it to have a new one made (what was made with the old one is then lost).",
        path.display()
    )]
    BadSecretFile {
        /// The file.
        path: PathBuf,
    },
    /// A secret file cannot be read or made.
    #[error("{} cannot be read or made: {source}. Is WORKSPACE_BASE_PATH a folder this user can write to?", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Every setting, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST`: where the server listens. 127.0.0.1 in local mode, else 0.0.0.0.
    pub host: IpAddr,
    /// `PORT` (8000). 0 takes any free one.
    pub port: u16,
    /// Local mode: no identity provider; a secret of this machine signs tokens.
    pub local: bool,
    /// `SUPABASE_JWT_SECRET`; none in local mode. [`Config::keys`] gives what tokens are signed with.
    pub jwt_secret: Option<Secret>,
    /// `ENCRYPTION_KEY`, for stored git tokens and for what a session keeps of its own secrets.
    pub encryption_key: Option<Secret>,
    /// `INTERNAL_API_KEY`; without it servers cannot act for users.
    pub internal_api_key: Option<Secret>,
    /// `ALLOWED_ORIGINS` (`http://localhost:3000`).
    pub allowed_origins: AllowedOrigins,
    /// `OPENAI_API_KEY`.
    pub openai_api_key: Option<Secret>,
    /// `LLM_API_KEY`, for the endpoint at `LLM_BASE_URL`.
    pub llm_api_key: Option<Secret>,
    /// `LLM_BASE_URL`: an endpoint that speaks OpenAI's protocol.
    pub llm_base_url: Option<Url>,
    /// `LLM_MODEL`.
    pub llm_model: Option<String>,
    /// `DEFAULT_MODEL_PROVIDER`, or the older `DEFAULT_PROVIDER`, in lower case.
    pub default_model_provider: Option<String>,
    /// `DEFAULT_POLICY` (`auto`).
    pub default_policy: DefaultPolicy,
    /// `MAX_ITERATIONS` (50) of one session.
    pub max_iterations: u32,
    /// `CONVERSATION_TIMEOUT` (1800 s).
    pub conversation_timeout: Duration,
    /// `SESSION_GRACE_SECONDS` (300): how long a session runs on with no client.
    pub session_grace: Duration,
    /// `MAX_SESSIONS_PER_USER` (20).
    pub max_sessions_per_user: u32,
    /// `SANDBOX_BACKEND` (`auto`).
    pub sandbox_backend: SandboxBackend,
    /// `SANDBOX_NETWORK` (`host`).
    pub sandbox_network: SandboxNetwork,
    /// `SANDBOX_MEMORY_LIMIT` (2g), in bytes.
    pub sandbox_memory_limit: u64,
    /// `WORKSPACE_MOUNT_PATH` (`/workspace`): what commands see the workspace as. Absolute, without
    /// a slash at its end.
    pub workspace_mount_path: String,
    /// `WORKSPACE_BASE_PATH` (`./storage`): workspaces, the database and this machine's secrets.
    pub workspace_base_path: PathBuf,
    /// `ALLOW_PRIVATE_REPOSITORIES` (true in local mode, else false): repositories on private
    /// addresses and on this machine.
    pub allow_private_repositories: bool,
    /// `MOCK_STEP_DELAY_SECONDS` (1.5).
    pub mock_step_delay: Duration,
    /// `LOG_FORMAT` (`text`).
    pub log_format: LogFormat,
    /// What the operator should know: settings without effect, weak secrets. A sentence each.
    pub warnings: Vec<String>,
}

/// The two keys that a running server needs, from the settings or from files of this machine.
#[derive(Debug, Clone)]
pub struct Keys {
    /// What tokens are signed and checked with.
    pub jwt: Secret,
    /// What sessions' own secrets are sealed with.
    pub seal: Secret,
}

impl Config {
    /// Reads the environment and, below it, `.env` in the working directory.
    pub fn load() -> Result<Self, ConfigError> {
        let file = match std::fs::read_to_string(".env") {
            Ok(text) => Some(Zeroizing::new(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(ConfigError::DotEnv(error)),
        };
        Self::merge(file.as_deref().map(String::as_str), std::env::vars_os())
    }

    /// Reads settings from pairs of name and value, and touches nothing else. Of a name that comes
    /// twice, the last one that is not empty counts; unknown names are passed over.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self, ConfigError>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        Self::check(&Values::new(pairs.filter(|(name, _)| known(name))))
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// The keys for tokens and for sealing. What no setting gives is a file below
    /// `WORKSPACE_BASE_PATH`, made at first use and readable by this user only.
    pub fn keys(&self) -> Result<Keys, ConfigError> {
        let jwt = match &self.jwt_secret {
            Some(secret) => secret.clone(),
            None => secret_file(&self.workspace_base_path.join("local-secret"))?,
        };
        let seal = match &self.encryption_key {
            Some(key) => key.clone(),
            None if self.local => jwt.clone(),
            // Not SUPABASE_JWT_SECRET: that one is rotated without us, and what a session sealed
            // would no longer open.
            None => secret_file(&self.workspace_base_path.join("seal-secret"))?,
        };
        Ok(Keys { jwt, seal })
    }

    fn merge(
        file: Option<&str>,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut pairs = file.map(dotenv::pairs).transpose()?.unwrap_or_default();
        for (name, value) in env {
            // Only what is ours: the environment may hold names and values that are no text.
            let Some(name) = name.to_str().filter(|name| known(name)) else {
                continue;
            };
            let value = value.into_string().map_err(|_| ConfigError::NotText {
                name: name.to_owned(),
            })?;
            pairs.push((name.to_owned(), value));
        }
        Self::from_pairs(pairs)
    }

    fn check(values: &Values) -> Result<Self, ConfigError> {
        let mut warnings: Vec<String> = NOT_USED_YET
            .iter()
            .filter(|(name, _)| values.raw(name).is_some())
            .map(|(name, why)| {
                format!("{name} is set, but this version does not use it yet: {why}.")
            })
            .collect();

        let jwt_secret = values.raw("SUPABASE_JWT_SECRET").map(Secret::from);
        let encryption_key = values.raw("ENCRYPTION_KEY").map(Secret::from);
        let internal_api_key = values.header_secret("INTERNAL_API_KEY")?;
        for (name, secret, least) in [
            ("SUPABASE_JWT_SECRET", &jwt_secret, 32),
            ("ENCRYPTION_KEY", &encryption_key, 16),
            ("INTERNAL_API_KEY", &internal_api_key, 16),
        ] {
            if secret.as_ref().is_some_and(|secret| secret.len() < least) {
                warnings.push(format!(
                    "{name} is shorter than {least} bytes, so it can be guessed; use a longer one."
                ));
            }
        }

        let local = jwt_secret.is_none();
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
                given: shown(values.text("HOST").unwrap_or_default()),
            });
        }

        let sandbox_backend = values.choice("SANDBOX_BACKEND", SandboxBackend::Auto)?;

        let newer = values.provider("DEFAULT_MODEL_PROVIDER")?;
        let older = values.provider("DEFAULT_PROVIDER")?;
        if let (Some(newer), Some(older)) = (&newer, &older)
            && newer != older
        {
            warnings.push(format!(
                "DEFAULT_PROVIDER ({older}) is not used, because DEFAULT_MODEL_PROVIDER ({newer}) is set."
            ));
        }

        Ok(Self {
            host,
            port: values.parsed("PORT", 8000, "a port number from 0 to 65535 (0 takes any free one)", number)?,
            local,
            jwt_secret,
            encryption_key,
            internal_api_key,
            allowed_origins: values.parsed(
                "ALLOWED_ORIGINS",
                AllowedOrigins::List(vec!["http://localhost:3000".to_owned()]),
                "a comma-separated list of origins such as https://app.example.com (scheme, host and port, no path), or * alone",
                origins,
            )?,
            openai_api_key: values.header_secret("OPENAI_API_KEY")?,
            llm_api_key: values.header_secret("LLM_API_KEY")?,
            llm_base_url: values.base_url("LLM_BASE_URL")?,
            llm_model: values.optional(
                "LLM_MODEL",
                "a model's name, at most 200 characters and none of them a space or a control character",
                |text| (text.len() <= 200 && !text.contains(unprintable)).then(|| text.to_owned()),
            )?,
            default_model_provider: newer.or(older),
            default_policy: values.choice("DEFAULT_POLICY", DefaultPolicy::Auto)?,
            max_iterations: values.parsed("MAX_ITERATIONS", 50, "a whole number from 1 to 10000", count)?,
            conversation_timeout: values.parsed(
                "CONVERSATION_TIMEOUT",
                Duration::from_secs(1800),
                "a number of seconds from 1 to 2592000 (30 days)",
                |text| seconds(text, 1.0, 30.0 * DAY),
            )?,
            session_grace: values.parsed(
                "SESSION_GRACE_SECONDS",
                Duration::from_secs(300),
                "a number of seconds from 0 to 86400 (a day)",
                |text| seconds(text, 0.0, DAY),
            )?,
            max_sessions_per_user: values.parsed(
                "MAX_SESSIONS_PER_USER",
                20,
                "a whole number from 1 to 10000",
                count,
            )?,
            sandbox_backend,
            sandbox_network: values.choice("SANDBOX_NETWORK", SandboxNetwork::Host)?,
            sandbox_memory_limit: values.parsed(
                "SANDBOX_MEMORY_LIMIT",
                2048 * MIB,
                "a size from 16m to 1t, such as 512m or 2g",
                |text| size(text).filter(|bytes| (16 * MIB..=MIB * MIB).contains(bytes)),
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
            mock_step_delay: values.parsed(
                "MOCK_STEP_DELAY_SECONDS",
                Duration::from_millis(1500),
                "a number of seconds from 0 to 60",
                |text| seconds(text, 0.0, 60.0),
            )?,
            log_format: values.choice("LOG_FORMAT", LogFormat::Text)?,
            warnings,
        })
    }
}

fn known(name: &str) -> bool {
    USED.contains(&name) || NOT_USED_YET.iter().any(|(known, _)| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    const LONG: &str = "a-secret-that-is-long-enough-for-hs256";

    fn config(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_pairs(pairs.iter().copied())
    }

    fn good(pairs: &[(&str, &str)]) -> Config {
        config(pairs).unwrap()
    }

    fn refused(name: &str, value: &str) -> String {
        let sentence = config(&[("SUPABASE_JWT_SECRET", LONG), (name, value)])
            .unwrap_err()
            .to_string();
        assert!(sentence.contains(name), "{sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        sentence
    }

    #[test]
    fn with_nothing_set_it_is_local_and_has_the_defaults() {
        let config = good(&[]);
        assert!(config.local && config.jwt_secret.is_none());
        assert_eq!(config.address().to_string(), "127.0.0.1:8000");
        assert_eq!(
            config.allowed_origins,
            AllowedOrigins::List(vec!["http://localhost:3000".to_owned()])
        );
        assert_eq!(config.default_policy, DefaultPolicy::Auto);
        assert_eq!(config.max_iterations, 50);
        assert_eq!(config.conversation_timeout, Duration::from_secs(1800));
        assert_eq!(config.session_grace, Duration::from_secs(300));
        assert_eq!(config.max_sessions_per_user, 20);
        assert_eq!(config.sandbox_backend, SandboxBackend::Auto);
        assert_eq!(config.sandbox_network, SandboxNetwork::Host);
        assert_eq!(config.sandbox_memory_limit, 2 << 30);
        assert_eq!(config.workspace_mount_path, "/workspace");
        assert_eq!(config.workspace_base_path, PathBuf::from("./storage"));
        assert!(config.allow_private_repositories);
        assert_eq!(config.mock_step_delay, Duration::from_millis(1500));
        assert_eq!(config.log_format, LogFormat::Text);
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn with_a_jwt_secret_it_serves_others() {
        let config = good(&[("SUPABASE_JWT_SECRET", LONG)]);
        assert!(!config.local && !config.allow_private_repositories);
        assert_eq!(config.address().to_string(), "0.0.0.0:8000");
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn local_mode_listens_on_a_loopback_address_only() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "[::1]",
            "localhost",
            "::ffff:127.0.0.1",
        ] {
            assert!(config(&[("HOST", host)]).is_ok(), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.168.1.4"] {
            let sentence = config(&[("HOST", host)]).unwrap_err().to_string();
            assert!(
                sentence.contains(host) && sentence.contains("set SUPABASE_JWT_SECRET"),
                "{sentence}"
            );
            assert!(config(&[("HOST", host), ("SUPABASE_JWT_SECRET", LONG)]).is_ok());
        }
    }

    #[test]
    fn an_empty_value_is_not_set() {
        let config = good(&[
            ("PORT", ""),
            ("SUPABASE_JWT_SECRET", "  "),
            ("SUPABASE_URL", ""),
            ("HOST", " "),
        ]);
        assert!(config.local);
        assert_eq!(config.port, 8000);
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn what_is_set_is_read() {
        let config = good(&[
            ("PORT", " 9001 "),
            ("LLM_BASE_URL", "http://localhost:11434/v1"),
            ("LLM_MODEL", "qwen/qwen3:8b"),
            ("LLM_API_KEY", " key "),
            ("DEFAULT_MODEL_PROVIDER", "OpenAI"),
            ("DEFAULT_POLICY", "Mock"),
            ("MAX_ITERATIONS", "7"),
            ("CONVERSATION_TIMEOUT", "12.5"),
            ("SANDBOX_BACKEND", "landlock"),
            ("SANDBOX_NETWORK", "none"),
            ("WORKSPACE_MOUNT_PATH", "/work/space/"),
            ("MOCK_STEP_DELAY_SECONDS", "0"),
            ("ALLOW_PRIVATE_REPOSITORIES", "no"),
            ("LOG_FORMAT", "json"),
            ("PATH", "/usr/bin"),
        ]);
        assert_eq!(config.port, 9001);
        assert_eq!(
            config.llm_base_url.unwrap().as_str(),
            "http://localhost:11434/v1"
        );
        assert_eq!(config.llm_model.unwrap(), "qwen/qwen3:8b");
        assert_eq!(config.llm_api_key.unwrap().expose(), "key");
        assert_eq!(config.default_model_provider.unwrap(), "openai");
        assert_eq!(config.default_policy, DefaultPolicy::Mock);
        assert_eq!(config.max_iterations, 7);
        assert_eq!(config.conversation_timeout, Duration::from_millis(12_500));
        assert_eq!(config.sandbox_backend.to_string(), "landlock");
        assert_eq!(config.sandbox_network, SandboxNetwork::None);
        assert_eq!(config.workspace_mount_path, "/work/space");
        assert_eq!(config.mock_step_delay, Duration::ZERO);
        assert!(!config.allow_private_repositories);
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn a_value_that_is_not_allowed_is_one_sentence_that_names_it() {
        for (name, values) in [
            ("PORT", &["65536", "-1", "+80", "http", "80 80", "8\n0"][..]),
            ("HOST", &["example.com", "127.0.0.1:80", "1.2.3"]),
            (
                "ALLOWED_ORIGINS",
                &[
                    "*, http://a",
                    "a.example",
                    "ftp://a",
                    "http://a/b",
                    "http://u@a",
                    "https://*.a",
                    ",",
                ],
            ),
            (
                "LLM_BASE_URL",
                &["api.example.com", "file:///etc", "http://"],
            ),
            ("LLM_MODEL", &["a b", "a\tb"]),
            ("DEFAULT_MODEL_PROVIDER", &["open ai", "../x"]),
            ("DEFAULT_PROVIDER", &["open ai"]),
            ("DEFAULT_POLICY", &["agent"]),
            ("MAX_ITERATIONS", &["0", "10001", "1.5", "many"]),
            (
                "CONVERSATION_TIMEOUT",
                &["0", "-1", "inf", "NaN", "1e9", "30m"],
            ),
            ("SESSION_GRACE_SECONDS", &["-1", "86401", "nan"]),
            ("MAX_SESSIONS_PER_USER", &["0", "x"]),
            ("SANDBOX_BACKEND", &["docker", "on"]),
            ("SANDBOX_NETWORK", &["bridge"]),
            (
                "SANDBOX_MEMORY_LIMIT",
                &[
                    "2",
                    "1k",
                    "2x",
                    "g",
                    "-2g",
                    "99t",
                    "1..5g",
                    "1.g",
                    "99999999999999999999g",
                ],
            ),
            (
                "WORKSPACE_MOUNT_PATH",
                &["workspace", "/", "/a/../b", "/a//b", "/a:b", "/a\nb"],
            ),
            ("ALLOW_PRIVATE_REPOSITORIES", &["maybe", "2"]),
            ("MOCK_STEP_DELAY_SECONDS", &["-0.5", "61", "slow"]),
            ("LOG_FORMAT", &["xml"]),
        ] {
            for value in values {
                let sentence = refused(name, value);
                assert!(sentence.contains(&shown(value)), "{sentence}");
                assert!(sentence.contains("must be"), "{sentence}");
            }
        }
        assert!(refused("PORT", &"9".repeat(5000)).len() < 250);
    }

    #[test]
    fn a_secret_is_never_shown_in_an_error_or_in_print() {
        for name in ["INTERNAL_API_KEY", "OPENAI_API_KEY", "LLM_API_KEY"] {
            for value in ["hunter2 hunter2", "hunter2\nx", "hunter2é"] {
                assert!(!refused(name, value).contains("hunter2"));
            }
        }
        for value in [
            "https://u:hunter2@host/v1",
            "https://host/v1?key=hunter2",
            "https://host/#hunter2",
        ] {
            assert!(!refused("LLM_BASE_URL", value).contains("hunter2"));
        }
        let all = [
            "SUPABASE_JWT_SECRET",
            "ENCRYPTION_KEY",
            "INTERNAL_API_KEY",
            "OPENAI_API_KEY",
            "LLM_API_KEY",
        ];
        let config = good(&all.map(|name| (name, "hunter2")));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_setting_without_effect_is_said_and_not_shown() {
        let pairs: Vec<(&str, &str)> = NOT_USED_YET
            .iter()
            .map(|(name, _)| (*name, "hunter2"))
            .collect();
        let config = good(&pairs);
        assert_eq!(config.warnings.len(), NOT_USED_YET.len());
        for ((name, _), warning) in NOT_USED_YET.iter().zip(&config.warnings) {
            assert!(warning.starts_with(&format!(
                "{name} is set, but this version does not use it yet: "
            )));
            assert!(!warning.contains("hunter2"));
        }
    }

    #[test]
    fn short_secrets_are_warned_about() {
        let config = good(&[
            ("SUPABASE_JWT_SECRET", "short"),
            ("ENCRYPTION_KEY", "short"),
            ("INTERNAL_API_KEY", "short"),
        ]);
        assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
    }

    #[test]
    fn the_older_name_of_the_provider_counts_where_the_newer_is_not_set() {
        assert_eq!(
            good(&[("DEFAULT_PROVIDER", "openai")])
                .default_model_provider
                .unwrap(),
            "openai"
        );
        let both = good(&[
            ("DEFAULT_PROVIDER", "google"),
            ("DEFAULT_MODEL_PROVIDER", "openai"),
        ]);
        assert_eq!(both.default_model_provider.unwrap(), "openai");
        assert_eq!(both.warnings.len(), 1);
    }

    #[test]
    fn origins_are_written_as_a_browser_writes_them() {
        let list = |text| good(&[("ALLOWED_ORIGINS", text)]).allowed_origins;
        let expected = ["https://app.example.com", "http://localhost:3000"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(
            list("https://App.example.com:443/, http://localhost:3000,,https://app.example.com"),
            AllowedOrigins::List(expected)
        );
        assert_eq!(list("*"), AllowedOrigins::Any);
    }

    #[test]
    fn sizes_are_read_as_docker_writes_them() {
        for (text, bytes) in [
            ("2g", 2 << 30),
            ("2G", 2 << 30),
            ("512m", 512 << 20),
            ("512 MiB", 512 << 20),
            ("1.5gb", 1536 << 20),
            ("0.1g", 107_374_182),
            ("67108864", 64 << 20),
            ("1t", 1 << 40),
            ("65536k", 64 << 20),
        ] {
            assert_eq!(
                good(&[("SANDBOX_MEMORY_LIMIT", text)]).sandbox_memory_limit,
                bytes,
                "{text}"
            );
        }
    }

    fn os(pairs: &[(&str, &[u8])]) -> std::vec::IntoIter<(OsString, OsString)> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from_vec(value.to_vec())))
            .collect();
        pairs.into_iter()
    }

    #[test]
    fn the_environment_wins_over_the_file_but_an_empty_variable_does_not() {
        let file = "# comment\nPORT=1\nexport MAX_ITERATIONS=3 # three\nLLM_MODEL='a$b'\nOTHER=x\n";
        let config = Config::merge(
            Some(file),
            os(&[("PORT", b"2"), ("MAX_ITERATIONS", b""), ("X", b"\xff")]),
        )
        .unwrap();
        assert_eq!((config.port, config.max_iterations), (2, 3));
        assert_eq!(config.llm_model.unwrap(), "a$b");
    }

    #[test]
    fn a_variable_of_ours_that_is_no_text_is_refused() {
        let sentence = Config::merge(None, os(&[("LLM_API_KEY", b"\xff")]))
            .unwrap_err()
            .to_string();
        assert!(sentence.starts_with("LLM_API_KEY"), "{sentence}");
    }
}
