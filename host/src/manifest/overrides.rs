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

use super::model::{Digest, Manifest, PluginEntry, Source};
use crate::builtin;
use lucid_wasm::{Kind, Limits};

/// The uploads of a deployment, by the name of the plugin that they replace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uploads {
    policies: BTreeMap<String, Upload>,
    providers: BTreeMap<String, Upload>,
    tools: BTreeMap<String, Upload>,
    beside: BTreeMap<String, Beside>,
    git: BTreeMap<String, Upload>,
}

/// A component that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
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
pub struct Beside {
    /// Its purpose.
    pub role: Role,
    /// The build. `None` for the manifest's own component.
    pub upload: Option<Upload>,
}

/// The purpose of a second build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A percentage of new sessions, 1 to 99, get it and keep it.
    Candidate {
        /// The percentage.
        share: u8,
    },
    /// It was active before the build that is on probation now, and takes over where that one
    /// fails.
    Before,
}

impl Uploads {
    /// The uploads of one kind.
    pub fn of(&self, kind: Kind) -> &BTreeMap<String, Upload> {
        match kind {
            Kind::Policy => &self.policies,
            Kind::Llm => &self.providers,
            Kind::Tools => &self.tools,
            Kind::Git => &self.git,
        }
    }

    /// Replaces or removes an upload.
    pub fn set(&mut self, kind: Kind, name: &str, upload: Option<Upload>) {
        let of_kind = match kind {
            Kind::Policy => &mut self.policies,
            Kind::Llm => &mut self.providers,
            Kind::Tools => &mut self.tools,
            Kind::Git => &mut self.git,
        };
        match upload {
            Some(upload) => of_kind.insert(name.to_owned(), upload),
            None => of_kind.remove(name),
        };
    }

    /// Replaces or removes a policy's second build.
    pub fn set_beside(&mut self, name: &str, beside: Option<Beside>) {
        match beside {
            Some(beside) => self.beside.insert(name.to_owned(), beside),
            None => self.beside.remove(name),
        };
    }

    /// All active uploads.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &str, &Upload)> {
        let all = Kind::ALL.iter().copied();
        all.flat_map(|kind| {
            let of_kind = self.of(kind).iter();
            of_kind.map(move |(name, upload)| (kind, name.as_str(), upload))
        })
    }
}

impl Manifest {
    /// A copy with these uploads and no others.
    #[must_use]
    pub fn with(&self, uploads: Uploads) -> Self {
        Self {
            uploads,
            ..self.clone()
        }
    }

    /// Whether the manifest itself, or this binary if there is none, has a plugin of this name.
    pub fn names(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Policy => self.policy_names().contains(&name),
            Kind::Llm => self.provider_names().contains(&name),
            Kind::Tools => self.tools.contains_key(name),
            Kind::Git => self.git_names().contains(&name),
        }
    }

    /// The upload that replaces a plugin.
    pub fn upload(&self, kind: Kind, name: &str) -> Option<&Upload> {
        self.uploads.of(kind).get(name)
    }

    /// The second build of a policy.
    pub fn beside(&self, name: &str) -> Option<&Beside> {
        self.uploads.beside.get(name)
    }

    /// The entry of the manifest, or of this binary, for a name.
    pub fn entry(&self, kind: Kind, name: &str) -> Option<PluginEntry> {
        let (stated, none, builtins) = match kind {
            Kind::Policy => (
                self.policies.get(name),
                self.policies.is_empty(),
                builtin::POLICIES,
            ),
            Kind::Llm => (
                self.providers.get(name).map(|provider| &provider.plugin),
                self.providers.is_empty(),
                builtin::PROVIDERS,
            ),
            Kind::Git => (
                self.git.get(name).map(|git| &git.plugin),
                self.git.is_empty(),
                builtin::GIT,
            ),
            // No tool component is built in, so there is none without the manifest.
            Kind::Tools => return self.tools.get(name).map(|tools| tools.plugin.clone()),
        };
        let known = || builtins.iter().find(|(known, _)| none && *known == name);
        let built_in = || known().map(|(name, _)| PluginEntry::builtin(name));
        stated.cloned().or_else(built_in)
    }

    /// The widest limits of any plugin of a kind here: whether an upload fits its own limits is
    /// checked when it is activated.
    pub fn widest_limits(&self) -> Limits {
        self.entries()
            .map(|entry| entry.limits.limits())
            .fold(Limits::default(), |widest, one| Limits {
                fuel: widest.fuel.max(one.fuel),
                memory_bytes: widest.memory_bytes.max(one.memory_bytes),
                output_bytes: widest.output_bytes.max(one.output_bytes),
                wall: widest.wall.max(one.wall),
            })
    }

    /// All policies with their entries, including those that were only uploaded.
    pub(crate) fn all_policies(&self) -> Vec<(String, PluginEntry)> {
        let names = self.policy_names();
        let stated = names.iter().filter_map(|name| {
            let entry = self.entry(Kind::Policy, name)?;
            Some(((*name).to_owned(), entry))
        });
        let uploads = self.uploads.policies.iter();
        let added =
            uploads.filter(|(name, upload)| upload.added && !names.contains(&name.as_str()));
        let added = added.map(|(name, upload)| {
            let source = Source::File(upload.file.clone());
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
        let candidates = self.uploads.beside.keys().map(String::as_str);
        let candidates = candidates.filter(|name| {
            self.upload(Kind::Policy, name).is_none() && !self.names(Kind::Policy, name)
        });
        let all = active.chain(candidates.map(|name| (Kind::Policy, name, "a candidate")));
        all.map(|(kind, name, what)| {
            format!(
                "An uploaded build is {what} for the {kind} plugin `{name}`, which the manifest no longer has: `lucid plugin rollback {kind} {name}` takes it back."
            )
        })
        .collect()
    }
}
