//! The errors of uploads and of changes of a build, and their sentences for an administrator.

use std::sync::Arc;

use crate::deployment::uploads::UploadStoreError;
use crate::manifest::{ManifestProblem, ManifestProblems, suggest};
use lucid_types::digest::Digest;
use lucid_types::sentence::with_advice;
use lucid_wasm::{AnyPluginError, PluginKind, Plugins};

/// An error that leaves the build unchanged.
#[derive(Debug, thiserror::Error)]
pub enum BuildChangeError {
    /// The deployment has no such plugin.
    #[error("there is no {kind} plugin `{name}`; {available}")]
    NoSuchPlugin {
        /// Its kind.
        kind: PluginKind,
        /// The requested name.
        name: String,
        /// The name probably meant, and the available ones.
        available: String,
    },
    /// The deployment has none of that name, and nothing is to be added.
    #[error("there is no {kind} plugin `{name}`; {available}")]
    UnknownPlugin {
        /// Its kind.
        kind: PluginKind,
        /// The requested name.
        name: String,
        /// The name probably meant, and the available ones.
        available: String,
    },
    /// There is no policy of that name, and none was to be added.
    #[error("no policy is called `{name}`; {available}")]
    NotNew {
        /// The requested name.
        name: String,
        /// The name probably meant, and the available ones.
        available: String,
    },
    /// The name is invalid.
    #[error(
        "a plugin's name is 1 to 64 lower-case letters, digits, - and _, the first of them a letter or digit, and not `auto`"
    )]
    NoName,
    /// Sessions cannot be split between builds of another kind of plugin.
    #[error(
        "only a policy's build can get a share of new sessions: of any other plugin all sessions have the same build"
    )]
    NoShare,
    /// The share is not 1 to 99.
    #[error("a share is 1 to 99 of a hundred new sessions")]
    WrongShare,
    /// There is no active build for the remaining sessions.
    #[error("the policy `{0}` has no active build that could have the other sessions")]
    NoSecondBuild(String),
    /// All sessions get it already.
    #[error("this build is the active one of the policy `{0}` already, and has all new sessions")]
    IsActive(String),
    /// The upload store does not have it.
    #[error("no build sha256:{0} was uploaded, or it made room for later ones")]
    NotUploaded(Digest),
    /// There is no uploaded build to roll back from.
    #[error(
        "the {kind} plugin `{name}` has no uploaded build to go back from: it is the manifest's"
    )]
    NothingActive {
        /// Its kind.
        kind: PluginKind,
        /// Its name.
        name: String,
    },
    /// The deployment could not be loaded with it. The reasons are kept as the last error too.
    #[error("the deployment stays as it is: {}", format_problems(.0))]
    Refused(Arc<ManifestProblems>),
    /// It could not be recorded, so it did not take effect.
    #[error("the deployment stays as it is: {0}")]
    UploadStore(#[from] UploadStoreError),
    /// The server is shutting down.
    #[error("the server goes down, and the deployment may be the one before or the one after")]
    Interrupted,
}

/// A component was not stored.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It is not a plugin, or not one that this host runs.
    #[error("the component was not kept: {0}")]
    NotAdmitted(#[from] AnyPluginError),
    /// It cannot be written.
    #[error("the component was not kept: {0}")]
    UploadStore(#[from] UploadStoreError),
    /// The server is shutting down.
    #[error("the server goes down, and the component may not have been kept")]
    Interrupted,
}

impl BuildChangeError {
    /// The text for an administrator: a sentence, and what to do.
    pub(crate) fn sentence(&self) -> String {
        with_advice(self, self.advice())
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NoSuchPlugin { .. } => Some(
                "A provider needs an entry in the manifest, which says where it is asked and with which key.",
            ),
            Self::NotNew { .. } => Some(
                "To add one under that name, say that it is new: `--new`, or `\"new\": true` in the request.",
            ),
            Self::NoShare => Some("Activate it without a share."),
            Self::WrongShare => Some("Activate the build without a share to give it all."),
            Self::NoSecondBuild(_) => Some("Activate the build without a share."),
            Self::NotUploaded(_) => Some("Upload it again."),
            Self::UnknownPlugin { .. }
            | Self::NoName
            | Self::IsActive(_)
            | Self::NothingActive { .. }
            | Self::Refused(_)
            | Self::UploadStore(_)
            | Self::Interrupted => None,
        }
    }

    /// The error for a name that the deployment does not have.
    pub(in crate::deployment) fn unknown_plugin(
        plugins: &Plugins,
        kind: PluginKind,
        name: &str,
    ) -> Self {
        let (name, there) = (name.to_owned(), available_names(plugins, kind, name));
        Self::UnknownPlugin {
            kind,
            name,
            available: there,
        }
    }
}

/// The name probably meant by an unknown one, and the available ones.
pub(super) fn available_names(plugins: &Plugins, kind: PluginKind, name: &str) -> String {
    let list = plugins.list();
    let of_kind: Vec<&str> = list
        .iter()
        .filter(|one| one.kind == kind)
        .map(|one| one.name.as_str())
        .collect();
    suggest(name, of_kind.iter().copied())
}

fn format_problems(problems: &ManifestProblems) -> String {
    let all: Vec<String> = problems.iter().map(ManifestProblem::to_string).collect();
    all.join("; ")
}
