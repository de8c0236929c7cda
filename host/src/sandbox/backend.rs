//! The sandbox backends, what an operator can ask for, and which backend results from that.
//!
//! # Invariants
//! - An automatic choice never yields a backend that does not isolate users where several are
//!   served.
//! - An explicit choice yields that backend or an error.

use std::fmt;

use super::SandboxError;

/// What keeps a session's commands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A container of a Docker engine.
    Docker,
    /// Namespaces made by `bwrap`.
    Bubblewrap,
    /// The kernel's Landlock with a system call filter and resource limits.
    Landlock,
    /// Nothing: commands can do all that the user can whom they run as.
    Local,
    /// No box: nothing is run.
    #[default]
    None,
}

impl Kind {
    /// Whether commands of one box see nothing of another box's processes. Landlock boxes have one
    /// user id and one `/proc`: in it stand the command lines of all of them.
    pub(super) fn keeps_users_apart(self) -> bool {
        match self {
            Self::Docker | Self::Bubblewrap => true,
            Self::Landlock | Self::Local | Self::None => false,
        }
    }
}

impl fmt::Display for Kind {
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

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The best kind that works here, for one user; without any, sessions are refused.
    #[default]
    Auto,
    /// As `Auto`; and without any kind that works, commands run with nothing around them.
    AutoOrLocal,
    /// Docker or nothing.
    Docker,
    /// The best kind that also keeps several users apart, which Landlock does not; without any,
    /// sessions are refused.
    AutoForMany,
    /// Bubblewrap or nothing.
    Bubblewrap,
    /// Landlock or nothing.
    Landlock,
    /// Commands run with nothing around them.
    Local,
    /// No box. Sessions whose policy can do without one still run.
    None,
}

/// Whether a kind works on this machine.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The kind that was tried.
    pub kind: Kind,
    /// Why it does not work; `None` where it does.
    pub problem: Option<String>,
    /// What it does not have here, though it works.
    pub remark: Option<String>,
}

impl Choice {
    /// The kinds it allows, the best first.
    pub(super) fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Auto | Self::AutoForMany => &[Kind::Docker, Kind::Bubblewrap, Kind::Landlock],
            Self::AutoOrLocal => &[Kind::Docker, Kind::Bubblewrap, Kind::Landlock, Kind::Local],
            Self::Docker => &[Kind::Docker],
            Self::Bubblewrap => &[Kind::Bubblewrap],
            Self::Landlock => &[Kind::Landlock],
            Self::Local => &[Kind::Local],
            Self::None => &[],
        }
    }

    /// The place of a kind among those it allows; the best has the lowest.
    pub(super) fn rank(self, kind: Kind) -> usize {
        let kinds = self.kinds();
        let place = kinds.iter().position(|it| *it == kind);
        place.unwrap_or(kinds.len())
    }

    /// Whether another kind may take the place of one that does not work any more while sessions run
    /// and nobody looks: one that keeps users apart, or any where there is one user.
    pub(super) fn may_become(self, kind: Kind) -> bool {
        kind.keeps_users_apart() || self == Self::Auto
    }
}

/// Of what was tried, in order of preference, the kind to use, and why sessions are refused where none
/// is.
pub(super) fn pick(
    choice: Choice,
    findings: &[Finding],
) -> Result<(Kind, Option<String>), SandboxError> {
    let mut working = findings.iter().filter(|finding| finding.problem.is_none());
    let reasons = || {
        let reasons: Vec<String> = findings
            .iter()
            .filter_map(|finding| Some(format!("{}: {}", finding.kind, finding.problem.as_ref()?)))
            .collect();
        reasons.join(" ")
    };
    let refused = |sentence| Ok((Kind::None, Some(sentence)));
    match (choice, working.next()) {
        (Choice::AutoForMany, Some(first)) if !first.kind.keeps_users_apart() => {
            let kind = first.kind;
            refused(format!(
                "{} {kind} works, but its sandboxes see the command lines of each other's processes, so it is not used by itself where several users are served: install bubblewrap (`apt-get install bubblewrap`), or set SANDBOX_BACKEND={kind} to accept that.",
                reasons()
            ))
        }
        (_, Some(first)) => Ok((first.kind, None)),
        (Choice::None, None) => {
            refused("SANDBOX_BACKEND is none: this deployment runs no commands.".to_owned())
        }
        (Choice::Auto | Choice::AutoForMany | Choice::AutoOrLocal, None) => refused(reasons()),
        (Choice::Docker | Choice::Bubblewrap | Choice::Landlock | Choice::Local, None) => {
            Err(SandboxError::Unavailable(reasons()))
        }
    }
}
