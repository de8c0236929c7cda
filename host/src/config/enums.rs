//! The settings that take one of a few names.

use std::fmt;

/// The origins that a browser may call from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `*`: every origin. Cookies are never used, so this gives a page no rights that it does not
    /// have a token for.
    Any,
    /// These, each in the form browsers send: scheme, host, and the port if it is not the default.
    List(Vec<String>),
}

/// The policy of a session that names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// `coder` if any provider has a key, else `mock`.
    Auto,
    /// The agent.
    Coder,
    /// The rehearsal, which calls no model.
    Mock,
}

/// The sandbox that commands run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxBackend {
    /// The strongest that works on this machine. If several users are served, only those that
    /// isolate users from each other.
    Auto,
    /// A Docker engine, or nothing.
    Docker,
    /// bubblewrap, or nothing.
    Bubblewrap,
    /// Landlock, or nothing.
    Landlock,
    /// No sandbox: commands run as the host's own user, and can do all that it can.
    Local,
    /// No sandbox, so no commands are run.
    None,
}

/// The network that commands have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// No network.
    None,
    /// What the server's proxy connects them to.
    Proxy,
    /// The machine's network, in local mode only.
    Host,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// The log levels of plugins' lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginLogLevel {
    /// No lines.
    Off,
    /// Errors.
    Error,
    /// Warnings and errors.
    Warn,
    /// Informational lines and above.
    Info,
    /// All lines.
    Debug,
}

/// The names that a setting accepts, and their values. A type beside its parser would repeat them.
pub(super) trait NamedValues: Sized + Copy + 'static {
    const ALLOWED: &'static str;
    const NAMES: &'static [(&'static str, Self)];

    fn from_name(text: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(text))
            .map(|(_, value)| *value)
    }

    fn name(self) -> &'static str
    where
        Self: PartialEq,
    {
        Self::NAMES
            .iter()
            .find(|(_, value)| *value == self)
            .map_or("", |(name, _)| name)
    }
}

impl NamedValues for DefaultPolicy {
    const ALLOWED: &'static str = "auto, coder or mock";
    const NAMES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("coder", Self::Coder),
        ("mock", Self::Mock),
    ];
}

impl NamedValues for SandboxBackend {
    const ALLOWED: &'static str = "auto, docker, bubblewrap, landlock, local or none";
    const NAMES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("docker", Self::Docker),
        ("bubblewrap", Self::Bubblewrap),
        ("landlock", Self::Landlock),
        ("local", Self::Local),
        ("none", Self::None),
    ];
}

impl NamedValues for SandboxNetwork {
    const ALLOWED: &'static str = "proxy, none or host";
    const NAMES: &'static [(&'static str, Self)] = &[
        ("proxy", Self::Proxy),
        ("none", Self::None),
        ("host", Self::Host),
    ];
}

impl NamedValues for LogFormat {
    const ALLOWED: &'static str = "text or json";
    const NAMES: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

impl NamedValues for PluginLogLevel {
    const ALLOWED: &'static str = "off, error, warn, info or debug";
    const NAMES: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
    ];
}

impl NamedValues for bool {
    const ALLOWED: &'static str = "true or false";
    const NAMES: &'static [(&'static str, Self)] = &[
        ("true", true),
        ("false", false),
        ("1", true),
        ("0", false),
        ("yes", true),
        ("no", false),
        ("on", true),
        ("off", false),
    ];
}

macro_rules! display_as_named {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    )*};
}

display_as_named!(
    DefaultPolicy,
    SandboxBackend,
    SandboxNetwork,
    LogFormat,
    PluginLogLevel
);
