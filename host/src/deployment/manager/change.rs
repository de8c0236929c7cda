//! Changes of one plugin's build: activation, a share of new sessions, rollback and confirmation.
//!
//! # Invariants
//!
//! - A change is recorded once its build was loaded, and before a session gets it.
//! - A change runs to completion even if the caller no longer waits.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::error::{BuildChangeError, available_names};
use super::{DeploymentManager, Inner};
use crate::deployment::snapshot::DeploymentSnapshot;
use crate::deployment::uploads::{Activation, AutoRollback, Candidate, UploadStoreLock};
use crate::manifest::is_name;
use lucid_net::oci::TagResolution;
use lucid_types::digest::Digest;
use lucid_wasm::{ActivityKind, Plugin, PluginKind, PolicyPlugin};

/// A change of one plugin's build.
#[derive(Debug, Clone)]
pub enum BuildChange {
    /// Activate this build, which was uploaded before.
    Activate {
        /// Its digest.
        digest: Digest,
        /// Who requested it.
        by: String,
        /// A percentage of new sessions, 1 to 99. `None` for all.
        share: Option<u8>,
        /// Whether a policy may be added under a new name.
        new: bool,
    },
    /// Return to the build before the active one, or to the active one alone if there is a
    /// candidate beside it.
    RollBack {
        /// Who requested it.
        by: String,
    },
    /// Roll back a build on probation that is worse than the previous one. Does nothing if it is
    /// gone.
    AutoRollBack {
        /// Its digest.
        digest: Digest,
        /// When it was activated.
        since: DateTime<Utc>,
        /// A sentence with the counts.
        why: String,
    },
    /// Confirm a build whose probation is over. Does nothing if it is on none any more.
    Confirm {
        /// Its digest.
        digest: Digest,
        /// When it was activated.
        since: DateTime<Utc>,
        /// A sentence with the counts.
        why: String,
    },
}

impl DeploymentManager {
    /// Changes one plugin's build, and returns the number of the generation with it. Runs to
    /// completion even if the caller no longer waits.
    pub(crate) async fn change(
        &self,
        kind: PluginKind,
        name: &str,
        change: BuildChange,
    ) -> Result<u64, BuildChangeError> {
        if !is_name(name) || name == "auto" {
            return Err(BuildChangeError::NoName);
        }
        let (this, name) = (self.clone(), name.to_owned());
        let changed = tokio::spawn(async move { this.apply_change(kind, &name, change).await });
        changed.await.unwrap_or(Err(BuildChangeError::Interrupted))
    }

    async fn apply_change(
        &self,
        kind: PluginKind,
        name: &str,
        change: BuildChange,
    ) -> Result<u64, BuildChangeError> {
        let Inner {
            config,
            engine,
            blobs,
            upload_store,
            probations,
            ..
        } = &*self.0;
        let turn = self.0.load_lock.lock().await;
        let _work = engine.activities().begin(name, ActivityKind::Loading);
        let writer = self.writer().await?;
        let mut record = upload_store.record()?;
        let before = self.now();
        // The running manifest, not the current file: a rollback must not wait until somebody has
        // corrected that.
        let manifest = &before.snapshot.manifest;
        let (back, what, by) = match change {
            BuildChange::Activate {
                digest,
                by,
                share,
                new,
            } => {
                let known = manifest.names(kind, name);
                let plugins = &before.snapshot.plugins;
                if !known && kind != PluginKind::Policy {
                    let (name, there) = (name.to_owned(), available_names(plugins, kind, name));
                    return Err(BuildChangeError::NoSuchPlugin {
                        kind,
                        name,
                        available: there,
                    });
                }
                if !known && !new && plugins.policy(name).is_none() {
                    let (name, there) = (name.to_owned(), available_names(plugins, kind, name));
                    return Err(BuildChangeError::NotNew {
                        name,
                        available: there,
                    });
                }
                if !upload_store.has(digest) {
                    return Err(BuildChangeError::NotUploaded(digest));
                }
                let active = before.snapshot.plugins.policy(name);
                let build = Activation {
                    digest,
                    by: by.clone(),
                    at: Utc::now(),
                    // If there is a build to return to.
                    probation: kind == PluginKind::Policy && active.is_some(),
                };
                match share {
                    None => {
                        record.push(kind, name, !known, build);
                        (false, "activated".to_owned(), by)
                    }
                    Some(share) => {
                        let share = shareable(kind, name, share, active, build.digest)?;
                        record.set_candidate(name, Candidate { build, share });
                        (
                            false,
                            format!("given {share} of a hundred new sessions"),
                            by,
                        )
                    }
                }
            }
            BuildChange::RollBack { by } => {
                let Some(taken) = record.roll_back(kind, name, &by, Utc::now()) else {
                    let plugins = &before.snapshot.plugins;
                    if !plugins
                        .list()
                        .iter()
                        .any(|one| one.kind == kind && one.name == name)
                    {
                        return Err(BuildChangeError::unknown_plugin(plugins, kind, name));
                    }
                    let name = name.to_owned();
                    return Err(BuildChangeError::NothingActive { kind, name });
                };
                let what = format!("rolled back (sha256:{})", taken.build().digest);
                (true, what, by)
            }
            BuildChange::AutoRollBack { digest, since, why } => {
                let what = format!("taken back by itself (sha256:{digest}): {why}");
                let at = Utc::now();
                let taken = AutoRollback { digest, at, why };
                if !record.auto_roll_back(name, since, taken) {
                    return Ok(before.number);
                }
                (true, what, String::new())
            }
            BuildChange::Confirm { digest, since, why } => {
                if !record.confirm(name, digest, since) {
                    return Ok(before.number);
                }
                (false, format!("settled: {why}"), String::new())
            }
        };
        let mut wrong = None;
        let (snapshot, digest) = loop {
            let active = record.builds(kind, name).last();
            let candidate = record.candidate(kind, name).map(|one| &one.build);
            let digest = candidate.or(active).map(|build| build.digest.to_string());
            let mut uploads = manifest.uploads.clone();
            upload_store.apply_active(&record, kind, name, &mut uploads);
            let (next, known) = (Arc::new(manifest.with(uploads)), Some(&*before.snapshot));
            let only = Some((kind, name));
            let made = DeploymentSnapshot::new(
                next,
                config,
                engine,
                blobs.clone(),
                known,
                only,
                probations,
            );
            match Box::pin(made).await {
                Ok(snapshot) => break (snapshot, digest),
                // The purpose of a rollback is to get away from a build, so it goes to the nearest
                // previous one that works.
                Err(problems)
                    if back && record.roll_back(kind, name, &by, Utc::now()).is_some() =>
                {
                    for problem in problems.iter() {
                        tracing::error!("a rollback passes a build over: {problem}");
                    }
                    wrong.get_or_insert(problems);
                }
                Err(problems) => {
                    let problems = wrong.unwrap_or(problems);
                    return Err(BuildChangeError::Refused(self.refuse(&before, problems)));
                }
            }
        };
        let writer = tokio::task::spawn_blocking(move || {
            let written = writer.write(&record);
            drop(writer);
            written
        });
        writer.await.map_err(|_| BuildChangeError::Interrupted)??;
        if back {
            tracing::warn!(%kind, name, digest, by, "a plugin's build was {what}");
        } else {
            tracing::info!(%kind, name, digest, by, "a plugin's build was {what}");
        }
        let unsettled = before.last_failure.is_some();
        let number = self.publish(before, snapshot, None);
        if !unsettled {
            return Ok(number);
        }
        // Earlier problems may persist, and a registry may be slow.
        drop(turn);
        let found = self.manifest(TagResolution::Cached).await;
        Ok(self.load(found).await.unwrap_or(number))
    }

    async fn writer(&self) -> Result<UploadStoreLock, BuildChangeError> {
        let upload_store = self.0.upload_store.clone();
        let locked = tokio::task::spawn_blocking(move || upload_store.lock()).await;
        Ok(locked.map_err(|_| BuildChangeError::Interrupted)??)
    }
}

/// Whether a build of a plugin can have a share beside the active one.
fn shareable(
    kind: PluginKind,
    name: &str,
    share: u8,
    active: Option<&PolicyPlugin>,
    digest: Digest,
) -> Result<u8, BuildChangeError> {
    if kind != PluginKind::Policy {
        return Err(BuildChangeError::NoShare);
    }
    if !(1..=99).contains(&share) {
        return Err(BuildChangeError::WrongShare);
    }
    match active {
        None => Err(BuildChangeError::NoSecondBuild(name.to_owned())),
        Some(active) if active.digest() == digest => {
            Err(BuildChangeError::IsActive(name.to_owned()))
        }
        Some(_) => Ok(share),
    }
}
