//! The settings that take one of a few names.

use std::fmt;

/// Which origins a browser may call from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `*`: every origin. Cookies are never used, so this gives a page no rights it does not have a
    /// token for.
    Any,
    /// These, each as a browser writes it: scheme, host, and the port where it is not the usual one.
    List(Vec<String>),
}

/// Which policy a session gets that names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// `coder` where any provider has a key, else `mock`.
    Auto,
    /// The agent.
    Coder,
    /// The rehearsal, which calls no model.
    Mock,
}

/// What commands run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxBackend {
    /// The strongest that works on this machine; where several users are served, of those that keep
    /// them apart.
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

/// What network commands see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// No network.
    None,
    /// The machine's network.
    Host,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// Which lines of plugins the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginLogLevel {
    /// None.
    Off,
    /// What failed.
    Error,
    /// And what is off.
    Warn,
    /// And what an operator may want to know.
    Info,
    /// All.
    Debug,
}

/// Names a setting takes, and what each means. A type beside its parser would repeat them.
pub(super) trait Choice: Sized + Copy + 'static {
    const ALLOWED: &'static str;
    const NAMES: &'static [(&'static str, Self)];

    fn named(text: &str) -> Option<Self> {
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

impl Choice for DefaultPolicy {
    const ALLOWED: &'static str = "auto, coder or mock";
    const NAMES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("coder", Self::Coder),
        ("mock", Self::Mock),
    ];
}

impl Choice for SandboxBackend {
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

impl Choice for SandboxNetwork {
    const ALLOWED: &'static str = "none or host";
    const NAMES: &'static [(&'static str, Self)] = &[("none", Self::None), ("host", Self::Host)];
}

impl Choice for LogFormat {
    const ALLOWED: &'static str = "text or json";
    const NAMES: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

impl Choice for PluginLogLevel {
    const ALLOWED: &'static str = "off, error, warn, info or debug";
    const NAMES: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
    ];
}

impl Choice for bool {
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
