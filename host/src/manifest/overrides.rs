//! Uploaded components that replace those the manifest names.
//!
//! # Invariants
//!
//! - An upload changes the component and nothing else: settings, limits, address and key stay the
//!   manifest's.
//! - A policy may exist by an upload alone, with no settings and the default limits. A provider or
//!   a tool component may not, since only a manifest says which server they send requests to and
//!   with which key.
//!
//! A policy may have a second build beside the active one: a candidate, which gets a share of new
//! sessions, or the previous build, for as long as the active one is on probation.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use super::model::{ComponentSource, Manifest, PluginEntry};
use crate::builtin;
use lucid_types::digest::Digest;
use lucid_wasm::{PluginKind, PluginLimits};

/// The uploads of a deployment, by the name of the plugin that they replace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadOverrides {
    policies: BTreeMap<String, UploadOverride>,
    providers: BTreeMap<String, UploadOverride>,
    tools: BTreeMap<String, UploadOverride>,
    second_builds: BTreeMap<String, SecondBuild>,
    git: BTreeMap<String, UploadOverride>,
}

/// A component that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOverride {
    /// The path of the file.
    pub file: PathBuf,
    /// The expected digest.
    pub digest: Digest,
    /// Whether it exists even if the manifest has no such name. Only policies can.
    pub added: bool,
    /// The start of its probation. `None` if it is on none. Only policies can be.
    pub probation: Option<DateTime<Utc>>,
}

/// A second build of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondBuild {
    /// Its purpose.
    pub role: SecondBuildRole,
    /// The build. `None` for the manifest's own component.
    pub upload: Option<UploadOverride>,
}

/// The purpose of a second build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondBuildRole {
    /// A percentage of new sessions, 1 to 99, get it and keep it.
    Candidate {
        /// The percentage.
        share: u8,
    },
    /// It was active before the build that is on probation now, and takes over where that one
    /// fails.
    Previous,
}

impl UploadOverrides {
    /// The uploads of one kind.
    pub fn of(&self, kind: PluginKind) -> &BTreeMap<String, UploadOverride> {
        match kind {
            PluginKind::Policy => &self.policies,
            PluginKind::Llm => &self.providers,
            PluginKind::Tools => &self.tools,
            PluginKind::Git => &self.git,
        }
    }

    /// Replaces or removes an upload.
    pub fn set(&mut self, kind: PluginKind, name: &str, upload: Option<UploadOverride>) {
        let of_kind = match kind {
            PluginKind::Policy => &mut self.policies,
            PluginKind::Llm => &mut self.providers,
            PluginKind::Tools => &mut self.tools,
            PluginKind::Git => &mut self.git,
        };
        match upload {
            Some(upload) => of_kind.insert(name.to_owned(), upload),
            None => of_kind.remove(name),
        };
    }

    /// Replaces or removes a policy's second build.
    pub fn set_second_build(&mut self, name: &str, second_build: Option<SecondBuild>) {
        match second_build {
            Some(second_build) => self.second_builds.insert(name.to_owned(), second_build),
            None => self.second_builds.remove(name),
        };
    }

    /// All active uploads.
    pub fn iter(&self) -> impl Iterator<Item = (PluginKind, &str, &UploadOverride)> {
        let all = PluginKind::ALL.iter().copied();
        all.flat_map(|kind| {
            let of_kind = self.of(kind).iter();
            of_kind.map(move |(name, upload)| (kind, name.as_str(), upload))
        })
    }
}

impl Manifest {
    /// A copy with these uploads and no others.
    #[must_use]
    pub fn with(&self, uploads: UploadOverrides) -> Self {
        Self {
            uploads,
            ..self.clone()
        }
    }

    /// Whether the manifest itself, or this binary if there is none, has a plugin of this name.
    pub fn names(&self, kind: PluginKind, name: &str) -> bool {
        match kind {
            PluginKind::Policy => self.policy_names().contains(&name),
            PluginKind::Llm => self.provider_names().contains(&name),
            PluginKind::Tools => self.tools.contains_key(name),
            PluginKind::Git => self.git_names().contains(&name),
        }
    }

    /// The upload that replaces a plugin.
    pub fn upload(&self, kind: PluginKind, name: &str) -> Option<&UploadOverride> {
        self.uploads.of(kind).get(name)
    }

    /// The second build of a policy.
    pub fn second_build(&self, name: &str) -> Option<&SecondBuild> {
        self.uploads.second_builds.get(name)
    }

    /// The entry of the manifest, or of this binary, for a name.
    pub fn entry(&self, kind: PluginKind, name: &str) -> Option<PluginEntry> {
        let (stated, none, builtins) = match kind {
            PluginKind::Policy => (
                self.policies.get(name),
                self.policies.is_empty(),
                builtin::POLICIES,
            ),
            PluginKind::Llm => (
                self.providers.get(name).map(|provider| &provider.plugin),
                self.providers.is_empty(),
                builtin::PROVIDERS,
            ),
            PluginKind::Git => (
                self.git.get(name).map(|git| &git.plugin),
                self.git.is_empty(),
                builtin::GIT,
            ),
            // No tool component is built in, so there is none without the manifest.
            PluginKind::Tools => return self.tools.get(name).map(|tools| tools.plugin.clone()),
        };
        let known = || builtins.iter().find(|(known, _)| none && *known == name);
        let built_in = || known().map(|(name, _)| PluginEntry::builtin(name));
        stated.cloned().or_else(built_in)
    }

    /// The widest limits of any plugin of a kind here: whether an upload fits its own limits is
    /// checked when it is activated.
    pub fn widest_limits(&self) -> PluginLimits {
        self.entries().map(|entry| entry.limits.limits()).fold(
            PluginLimits::default(),
            |widest, one| PluginLimits {
                fuel: widest.fuel.max(one.fuel),
                memory_bytes: widest.memory_bytes.max(one.memory_bytes),
                output_bytes: widest.output_bytes.max(one.output_bytes),
                wall: widest.wall.max(one.wall),
            },
        )
    }

    /// All policies with their entries, including those that were only uploaded.
    pub(crate) fn all_policies(&self) -> Vec<(String, PluginEntry)> {
        let names = self.policy_names();
        let stated = names.iter().filter_map(|name| {
            let entry = self.entry(PluginKind::Policy, name)?;
            Some(((*name).to_owned(), entry))
        });
        let uploads = self.uploads.policies.iter();
        let added =
            uploads.filter(|(name, upload)| upload.added && !names.contains(&name.as_str()));
        let added = added.map(|(name, upload)| {
            let source = ComponentSource::File(upload.file.clone());
            (name.clone(), PluginEntry::plain(source))
        });
        stated.chain(added).collect()
    }

    /// Active uploads for a name that the manifest no longer has. A sentence each.
    pub fn idle_uploads(&self) -> Vec<String> {
        let idle = self
            .uploads
            .iter()
            .filter(|(kind, name, upload)| !upload.added && !self.names(*kind, name));
        let active = idle.map(|(kind, name, _)| (kind, name, "active"));
        let candidates = self.uploads.second_builds.keys().map(String::as_str);
        let candidates = candidates.filter(|name| {
            self.upload(PluginKind::Policy, name).is_none() && !self.names(PluginKind::Policy, name)
        });
        let all = active.chain(candidates.map(|name| (PluginKind::Policy, name, "a candidate")));
        all.map(|(kind, name, what)| {
            format!(
                "An uploaded build is {what} for the {kind} plugin `{name}`, which the manifest no longer has: `lucid plugin rollback {kind} {name}` takes it back."
            )
        })
        .collect()
    }
}
