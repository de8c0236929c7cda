//! The record of uploaded builds: which are active, which can be rolled back to, and which have a
//! share of new sessions.
//!
//! # Invariants
//!
//! - A host that does not know a record's format does not guess. A record without new features is
//!   written in the previous format.
//! - A build is rolled back or confirmed only while it is on the very probation that the counts are
//!   from.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::manifest::is_name;
use lucid_types::digest::Digest;
use lucid_wasm::PluginKind;

/// The format version of the record. A host that does not know it must not guess.
const VERSION: u32 = 1;
/// How many builds of one plugin can be rolled back through.
const DEEPEST: usize = 10;
/// How many automatic, and how many manual, rollbacks are remembered for one plugin.
const REMEMBERED: usize = 5;

/// The active builds, by the plugin they replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activations {
    version: u32,
    #[serde(default)]
    policies: BTreeMap<String, PluginActivations>,
    #[serde(default)]
    providers: BTreeMap<String, PluginActivations>,
    /// Omitted if empty, so that an older host can read a record without it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tools: BTreeMap<String, PluginActivations>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    git: BTreeMap<String, PluginActivations>,
}

/// The builds of one plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginActivations {
    /// Whether the manifest had no such name when the first was activated.
    #[serde(default)]
    added: bool,
    /// The last one is active. Those before it can be rolled back to.
    builds: Vec<Activation>,
    /// The candidate that a share of new sessions gets. Only policies have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    candidate: Option<Candidate>,
    /// Automatic rollbacks, the most recent last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    taken_back: Vec<AutoRollback>,
    /// Manual rollbacks, the most recent last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rolled_back: Vec<RolledBack>,
}

/// A build that was activated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activation {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Who activated it.
    pub(crate) by: String,
    /// When it was activated.
    pub(crate) at: DateTime<Utc>,
    /// Whether it is on probation, and is rolled back if it fails. Older hosts did not write this,
    /// and what they activated is confirmed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) probation: bool,
}

/// A build that a share of new sessions gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Candidate {
    /// The build.
    pub(crate) build: Activation,
    /// A percentage of new sessions, 1 to 99.
    pub(crate) share: u8,
}

/// A build that was rolled back automatically.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AutoRollback {
    /// Its digest.
    pub(crate) digest: Digest,
    /// When it was rolled back.
    pub(crate) at: DateTime<Utc>,
    /// A sentence with the counts.
    pub(crate) why: String,
}

/// A build that somebody rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolledBack {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Who rolled it back.
    pub(crate) by: String,
    /// When it was rolled back.
    pub(crate) at: DateTime<Utc>,
}

/// The build that a rollback removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeactivatedBuild {
    /// A candidate. The active build stays.
    Candidate(Activation),
    /// The active build.
    Active(Activation),
}

impl DeactivatedBuild {
    /// The build.
    pub(crate) fn build(&self) -> &Activation {
        match self {
            Self::Candidate(build) | Self::Active(build) => build,
        }
    }
}

impl Activation {
    fn matches(&self, digest: Digest, at: DateTime<Utc>) -> bool {
        self.digest == digest && self.at == at
    }
}

impl Default for Activations {
    fn default() -> Self {
        Self {
            version: VERSION,
            policies: BTreeMap::new(),
            providers: BTreeMap::new(),
            tools: BTreeMap::new(),
            git: BTreeMap::new(),
        }
    }
}

impl Activations {
    fn of(&self, kind: PluginKind) -> &BTreeMap<String, PluginActivations> {
        match kind {
            PluginKind::Policy => &self.policies,
            PluginKind::Llm => &self.providers,
            PluginKind::Tools => &self.tools,
            PluginKind::Git => &self.git,
        }
    }

    fn of_mut(&mut self, kind: PluginKind) -> &mut BTreeMap<String, PluginActivations> {
        match kind {
            PluginKind::Policy => &mut self.policies,
            PluginKind::Llm => &mut self.providers,
            PluginKind::Tools => &mut self.tools,
            PluginKind::Git => &mut self.git,
        }
    }

    /// Whether the manifest had no such name when the first build was activated.
    pub(super) fn is_added(&self, kind: PluginKind, name: &str) -> bool {
        self.of(kind).get(name).is_some_and(|one| one.added)
    }

    /// The builds of a plugin, the active one last.
    pub(crate) fn builds(&self, kind: PluginKind, name: &str) -> &[Activation] {
        self.of(kind).get(name).map_or(&[], |one| &one.builds)
    }

    /// The candidate that a share of new sessions gets.
    pub(crate) fn candidate(&self, kind: PluginKind, name: &str) -> Option<&Candidate> {
        self.of(kind).get(name)?.candidate.as_ref()
    }

    /// Automatic rollbacks, the most recent last.
    pub(crate) fn auto_rollbacks(&self, kind: PluginKind, name: &str) -> &[AutoRollback] {
        self.of(kind).get(name).map_or(&[], |one| &one.taken_back)
    }

    /// Manual rollbacks, the most recent last.
    pub(crate) fn rollbacks(&self, kind: PluginKind, name: &str) -> &[RolledBack] {
        self.of(kind).get(name).map_or(&[], |one| &one.rolled_back)
    }

    /// Activates a build, which also ends the candidate. `added` says that the manifest has no such
    /// name.
    pub(crate) fn push(&mut self, kind: PluginKind, name: &str, added: bool, build: Activation) {
        let one = self.of_mut(kind).entry(name.to_owned()).or_default();
        if one.builds.is_empty() {
            one.added = added;
        }
        one.candidate = None;
        if one
            .builds
            .last()
            .is_some_and(|last| last.digest == build.digest)
        {
            one.builds.pop();
        }
        one.builds.push(build);
        if one.builds.len() > DEEPEST {
            one.builds.remove(0);
        }
    }

    /// Gives a build a share of a policy's new sessions, beside the active one. That one is the
    /// baseline, so its own probation is over. The same candidate with another share keeps its
    /// state.
    pub(crate) fn set_candidate(&mut self, name: &str, candidate: Candidate) {
        let one = self.policies.entry(name.to_owned()).or_default();
        if let Some(active) = one.builds.last_mut() {
            active.probation = false;
        }
        match &mut one.candidate {
            Some(known) if known.build.digest == candidate.build.digest => {
                known.share = candidate.share;
            }
            other => *other = Some(candidate),
        }
    }

    /// Rolls back the candidate of a plugin, or else its active build, and records who did it.
    pub(crate) fn roll_back(
        &mut self,
        kind: PluginKind,
        name: &str,
        by: &str,
        at: DateTime<Utc>,
    ) -> Option<DeactivatedBuild> {
        let one = self.of_mut(kind).get_mut(name)?;
        let taken = match one.candidate.take() {
            Some(candidate) => DeactivatedBuild::Candidate(candidate.build),
            None => DeactivatedBuild::Active(one.builds.pop()?),
        };
        one.rolled_back.push(RolledBack {
            digest: taken.build().digest,
            by: by.to_owned(),
            at,
        });
        if one.rolled_back.len() > REMEMBERED {
            one.rolled_back.remove(0);
        }
        Some(taken)
    }

    /// Rolls back a build on probation, and records why. Returns false if it is on none any more.
    pub(crate) fn auto_roll_back(
        &mut self,
        name: &str,
        since: DateTime<Utc>,
        taken: AutoRollback,
    ) -> bool {
        let Some(one) = self.policies.get_mut(name) else {
            return false;
        };
        let on_probation =
            |build: &Activation| build.probation && build.matches(taken.digest, since);
        if one
            .candidate
            .as_ref()
            .is_some_and(|one| on_probation(&one.build))
        {
            one.candidate = None;
        } else if one.builds.last().is_some_and(on_probation) {
            one.builds.pop();
        } else {
            return false;
        }
        one.taken_back.push(taken);
        if one.taken_back.len() > REMEMBERED {
            one.taken_back.remove(0);
        }
        true
    }

    /// Ends a build's probation. Returns false if it is on none.
    pub(crate) fn confirm(&mut self, name: &str, digest: Digest, since: DateTime<Utc>) -> bool {
        let Some(one) = self.policies.get_mut(name) else {
            return false;
        };
        let candidate = one.candidate.as_mut().map(|one| &mut one.build);
        let mut builds = candidate.into_iter().chain(one.builds.last_mut());
        let found = builds.find(|build| build.probation && build.matches(digest, since));
        found.is_some_and(|build| std::mem::replace(&mut build.probation, false))
    }

    /// Every build of every plugin, the active one of each first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (PluginKind, &str, Vec<&Activation>)> {
        let kinds = PluginKind::ALL.iter().copied();
        kinds.flat_map(|kind| {
            let of_kind = self.of(kind).iter();
            of_kind.map(move |(name, one)| (kind, name.as_str(), one.builds.iter().rev().collect()))
        })
    }

    pub(super) fn digests(&self) -> BTreeSet<Digest> {
        let all = PluginKind::ALL
            .iter()
            .flat_map(|kind| self.of(*kind).values());
        all.flat_map(|one| {
            let candidate = one.candidate.iter().map(|candidate| &candidate.build);
            one.builds.iter().chain(candidate)
        })
        .map(|build| build.digest)
        .collect()
    }

    pub(super) fn check(&self) -> Result<(), ActivationsError> {
        if self.version != VERSION {
            return Err(ActivationsError::Version(self.version));
        }
        let mut names = PluginKind::ALL
            .iter()
            .flat_map(|kind| self.of(*kind).keys());
        if !names.all(|name| is_name(name)) {
            return Err(ActivationsError::Name);
        }
        let shares = self
            .policies
            .values()
            .filter_map(|one| one.candidate.as_ref());
        if shares.into_iter().any(|one| !(1..=99).contains(&one.share)) {
            return Err(ActivationsError::Share);
        }
        let mut others = PluginKind::ALL
            .iter()
            .filter(|kind| **kind != PluginKind::Policy);
        let has_candidate =
            |kind: &PluginKind| self.of(*kind).values().any(|one| one.candidate.is_some());
        if others.any(has_candidate) {
            return Err(ActivationsError::Candidate);
        }
        Ok(())
    }
}

/// Why a record cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ActivationsError {
    /// It is not text.
    #[error(transparent)]
    Text(#[from] io::Error),
    /// It is not JSON of a record's form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It was written by another version of the host.
    #[error("it is of version {0}, and this host knows version {VERSION}")]
    Version(u32),
    /// A name in it is none.
    #[error("a plugin's name in it cannot be one")]
    Name,
    /// A candidate's share is none.
    #[error("a share in it is not 1 to 99")]
    Share,
    /// A plugin that is no policy has a candidate.
    #[error("it has a candidate that is no policy, and only policies have any")]
    Candidate,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn activation(digest: Digest) -> Activation {
        Activation {
            digest,
            by: "alice".to_owned(),
            at: DateTime::UNIX_EPOCH,
            probation: false,
        }
    }

    fn on_probation(digest: Digest, seconds: i64) -> Activation {
        Activation {
            at: DateTime::from_timestamp(seconds, 0).unwrap(),
            probation: true,
            ..activation(digest)
        }
    }

    fn taken(digest: Digest) -> AutoRollback {
        AutoRollback {
            digest,
            at: DateTime::UNIX_EPOCH,
            why: "It failed 3 of 9 steps.".to_owned(),
        }
    }

    #[test]
    fn a_candidate_goes_first_and_a_build_is_taken_back_only_while_it_is_on_probation() {
        let (a, b, c) = (Digest::of("a"), Digest::of("b"), Digest::of("c"));
        let since = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let mut record = Activations::default();
        record.push(PluginKind::Policy, "coder", false, on_probation(a, 1));
        let candidate = |share| Candidate {
            build: on_probation(b, 2),
            share,
        };
        record.set_candidate("coder", candidate(10));
        assert!(
            !record.builds(PluginKind::Policy, "coder")[0].probation,
            "what a candidate is set beside is settled"
        );
        assert!(record.digests().contains(&b), "a candidate makes no room");
        let more = Candidate {
            build: on_probation(b, 9),
            share: 50,
        };
        record.set_candidate("coder", more);
        assert_eq!(
            record.candidate(PluginKind::Policy, "coder"),
            Some(&candidate(50)),
            "it is the same"
        );

        // Counts of another build, or of an earlier time, roll nothing back.
        let untouched = record.clone();
        assert!(!record.auto_roll_back("coder", since(1), taken(b)));
        assert!(!record.auto_roll_back("coder", since(2), taken(a)));
        assert!(!record.auto_roll_back("other", since(2), taken(b)));
        assert!(
            !record.confirm("coder", a, since(1)),
            "it is settled already"
        );
        assert_eq!(record, untouched);

        let mut back = record.clone();
        assert!(back.auto_roll_back("coder", since(2), taken(b)));
        assert_eq!(back.candidate(PluginKind::Policy, "coder"), None);
        assert_eq!(back.builds(PluginKind::Policy, "coder").len(), 1);
        assert_eq!(back.auto_rollbacks(PluginKind::Policy, "coder"), [taken(b)]);

        let mut settled = record.clone();
        assert!(settled.confirm("coder", b, since(2)));
        assert!(
            !settled.auto_roll_back("coder", since(2), taken(b)),
            "it is settled"
        );
        assert_eq!(
            settled
                .candidate(PluginKind::Policy, "coder")
                .unwrap()
                .share,
            50
        );

        assert_eq!(
            record.roll_back(PluginKind::Policy, "coder", "ann", since(4)),
            Some(DeactivatedBuild::Candidate(on_probation(b, 2)))
        );
        record.set_candidate("coder", candidate(10));
        record.push(PluginKind::Policy, "coder", false, on_probation(c, 3));
        assert_eq!(
            record.candidate(PluginKind::Policy, "coder"),
            None,
            "another has all"
        );
        for number in 0..9 {
            record.push(PluginKind::Policy, "coder", false, on_probation(c, number));
            assert!(record.auto_roll_back("coder", since(number), taken(c)));
        }
        assert_eq!(
            record.auto_rollbacks(PluginKind::Policy, "coder").len(),
            REMEMBERED
        );
        assert_eq!(record.builds(PluginKind::Policy, "coder").len(), 1);
        record.roll_back(PluginKind::Policy, "coder", "bob", since(5));
        assert_eq!(
            record.roll_back(PluginKind::Policy, "coder", "bob", since(6)),
            None
        );
        let who = record.rollbacks(PluginKind::Policy, "coder").iter();
        let who: Vec<_> = who.map(|one| (one.digest, one.by.as_str())).collect();
        assert_eq!(who, [(b, "ann"), (a, "bob")]);
        assert_eq!(
            record.auto_rollbacks(PluginKind::Policy, "coder").len(),
            REMEMBERED,
            "what was taken back is remembered also where nothing is active"
        );
        assert!(record.check().is_ok());
    }

    proptest! {
        /// Compared with a plain list for each name.
        #[test]
        fn a_rollback_undoes_the_last_activation(
            steps in proptest::collection::vec((0..3_u8, 0..4_u8, any::<bool>()), 0..60)
        ) {
            let mut record = Activations::default();
            let mut model: BTreeMap<u8, Vec<Digest>> = BTreeMap::new();
            for (name, digest, push) in steps {
                let (list, digest) = (model.entry(name).or_default(), Digest::of([digest]));
                let name = format!("p{name}");
                if push {
                    record.push(PluginKind::Policy, &name, false, activation(digest));
                    if list.last() != Some(&digest) {
                        list.push(digest);
                    }
                    if list.len() > DEEPEST {
                        list.remove(0);
                    }
                } else {
                    let popped = record.roll_back(PluginKind::Policy, &name, "alice", DateTime::UNIX_EPOCH);
                    let meant = list.pop().map(|digest| DeactivatedBuild::Active(activation(digest)));
                    prop_assert_eq!(popped, meant);
                }
                let found: Vec<Digest> =
                    record.builds(PluginKind::Policy, &name).iter().map(|build| build.digest).collect();
                prop_assert_eq!(&found, list);
                prop_assert!(record.check().is_ok());
                let text = serde_json::to_string(&record).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Activations>(&text).unwrap(), &record);
            }
        }
    }
}
