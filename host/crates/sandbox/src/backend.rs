//! The sandbox backends, what an operator can ask for, and which backend results from that.
//!
//! # Invariants
//! - An automatic choice never yields a backend that does not isolate users where several are
//!   served.
//! - An explicit choice yields that backend or an error.

use std::fmt;

use crate::error::SandboxError;

/// A sandbox backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Containers of a Docker engine.
    Docker,
    /// Namespaces created by `bwrap`.
    Bubblewrap,
    /// The kernel's Landlock, with a system call filter and resource limits.
    Landlock,
    /// No isolation: commands can do everything that the user they run as can.
    Local,
    /// No sandbox: nothing is run.
    #[default]
    None,
}

impl BackendKind {
    /// Whether commands in one sandbox see none of another sandbox's processes. Landlock sandboxes
    /// share one `/proc`, which shows the command lines of all of them.
    pub(super) fn isolates_users(self) -> bool {
        match self {
            Self::Docker | Self::Bubblewrap => true,
            Self::Landlock | Self::Local | Self::None => false,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Docker => "docker",
            Self::Bubblewrap => "bubblewrap",
            Self::Landlock => "landlock",
            Self::Local => "local",
            Self::None => "none",
        })
    }
}

/// The operator's choice of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// The best backend that works here, for a single user; if none does, sessions are refused.
    #[default]
    Auto,
    /// As `Auto`; if no backend works, commands run without isolation.
    AutoOrLocal,
    /// Docker or nothing.
    Docker,
    /// The best backend that also isolates several users from each other, which Landlock does not;
    /// if none works, sessions are refused.
    AutoForMany,
    /// Bubblewrap or nothing.
    Bubblewrap,
    /// Landlock or nothing.
    Landlock,
    /// Commands run without isolation.
    Local,
    /// No sandbox. Sessions whose policy can do without one still run.
    None,
}

/// Whether a backend works on this machine.
#[derive(Debug, Clone)]
pub struct BackendStatus {
    /// The backend that was tried.
    pub kind: BackendKind,
    /// The reason why it does not work; `None` if it does.
    pub problem: Option<String>,
    /// Its shortcomings here although it works.
    pub remark: Option<String>,
}

impl BackendChoice {
    /// The backends it allows, best first.
    pub(super) fn kinds(self) -> &'static [BackendKind] {
        match self {
            Self::Auto | Self::AutoForMany => &[
                BackendKind::Docker,
                BackendKind::Bubblewrap,
                BackendKind::Landlock,
            ],
            Self::AutoOrLocal => &[
                BackendKind::Docker,
                BackendKind::Bubblewrap,
                BackendKind::Landlock,
                BackendKind::Local,
            ],
            Self::Docker => &[BackendKind::Docker],
            Self::Bubblewrap => &[BackendKind::Bubblewrap],
            Self::Landlock => &[BackendKind::Landlock],
            Self::Local => &[BackendKind::Local],
            Self::None => &[],
        }
    }

    /// The rank of a backend among those it allows; the best has the lowest.
    pub(super) fn rank(self, kind: BackendKind) -> usize {
        let kinds = self.kinds();
        let place = kinds.iter().position(|it| *it == kind);
        place.unwrap_or(kinds.len())
    }

    /// Whether this backend may replace one that stopped working while the server runs unattended:
    /// one that isolates users, or any if there is a single user.
    pub(super) fn may_replace_with(self, kind: BackendKind) -> bool {
        kind.isolates_users() || self == Self::Auto
    }
}

/// Picks the backend to use from the findings, which are in order of preference, and says why
/// sessions are refused if none will do.
pub(super) fn pick(
    choice: BackendChoice,
    findings: &[BackendStatus],
) -> Result<(BackendKind, Option<String>), SandboxError> {
    let mut working = findings.iter().filter(|finding| finding.problem.is_none());
    let reasons = || {
        let reasons: Vec<String> = findings
            .iter()
            .filter_map(|finding| Some(format!("{}: {}", finding.kind, finding.problem.as_ref()?)))
            .collect();
        reasons.join(" ")
    };
    let refused = |sentence| Ok((BackendKind::None, Some(sentence)));
    match (choice, working.next()) {
        (BackendChoice::AutoForMany, Some(first)) if !first.kind.isolates_users() => {
            let kind = first.kind;
            refused(format!(
                "{} {kind} works, but its sandboxes see the command lines of each other's processes, so it is not used by itself where several users are served: install bubblewrap (`apt-get install bubblewrap`), or set SANDBOX_BACKEND={kind} to accept that.",
                reasons()
            ))
        }
        (_, Some(first)) => Ok((first.kind, None)),
        (BackendChoice::None, None) => {
            refused("SANDBOX_BACKEND is none: this deployment runs no commands.".to_owned())
        }
        (BackendChoice::Auto | BackendChoice::AutoForMany | BackendChoice::AutoOrLocal, None) => {
            refused(reasons())
        }
        (
            BackendChoice::Docker
            | BackendChoice::Bubblewrap
            | BackendChoice::Landlock
            | BackendChoice::Local,
            None,
        ) => Err(SandboxError::Unavailable(reasons())),
    }
}
