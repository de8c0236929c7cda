//! The first generation of a deployment, and what it falls back to if an uploaded build no longer
//! loads.
//!
//! # Invariants
//!
//! - Uploaded builds do not prevent a start: without them the manifest alone decides.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{DeploymentManager, DeploymentStatus, Inner, generation};
use crate::config::Config;
use crate::deployment::rollout::probation::Probations;
use crate::deployment::snapshot::DeploymentSnapshot;
use crate::deployment::uploads::{Activation, Activations, UploadStore};
use crate::manifest::{Manifest, ManifestProblem, ManifestProblems, UploadOverrides};
use lucid_net::oci::{ComponentStore, TagResolution};
use lucid_store::blobs::Blobs;
use lucid_types::digest::Digest;
use lucid_wasm::{AnyPlugin, Engine, Plugin, PluginKind, PluginLimits};

impl DeploymentManager {
    /// Loads the first generation, from the current manifest, environment and upload store.
    pub(crate) async fn start(
        config: &Config,
        engine: Engine,
        blobs: Blobs,
        upload_store: UploadStore,
        components: ComponentStore,
    ) -> Result<Self, ManifestProblems> {
        let manifest = Manifest::find(config)?;
        let manifest = manifest
            .fetch_components(&components, &config.variables, TagResolution::Refresh)
            .await?;
        let record = upload_store.record().map_err(ManifestProblem::from)?;
        let uploads = upload_store.uploads(&record);
        let has_uploads = uploads != UploadOverrides::default();
        let (probations, decisions) = Probations::new();
        let whole = Arc::new(manifest.with(uploads));
        let made = DeploymentSnapshot::new(
            whole,
            config,
            &engine,
            blobs.clone(),
            None,
            None,
            &probations,
        );
        let (snapshot, refused) = match Box::pin(made).await {
            Ok(snapshot) => (snapshot, None),
            Err(problems) if !has_uploads => return Err(problems),
            Err(problems) => {
                let parts = (config, &engine, &blobs, &probations);
                let Some(left) =
                    Box::pin(load_fallback(&manifest, &upload_store, &record, parts)).await
                else {
                    return Err(problems);
                };
                for problem in problems.iter() {
                    tracing::error!("the server starts with the build before: {problem}");
                }
                (left, Some((SystemTime::now(), Arc::new(problems))))
            }
        };
        let snapshot = Arc::new(snapshot);
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            engine,
            blobs,
            upload_store,
            components,
            generations: watch::Sender::new(generation(1, &snapshot)),
            status: Mutex::new(DeploymentStatus {
                number: 1,
                snapshot,
                since: SystemTime::now(),
                last_failure: refused,
            }),
            load_lock: tokio::sync::Mutex::default(),
            probations,
            decisions: Mutex::new(Some(decisions)),
        })))
    }
}

/// The deployment without the builds that cannot be loaded, each replaced by its newest previous
/// build that can, or the manifest's component. `None` if that cannot be loaded either.
async fn load_fallback(
    manifest: &Manifest,
    upload_store: &UploadStore,
    record: &Activations,
    (config, engine, blobs, probations): (&Config, &Engine, &Blobs, &Probations),
) -> Option<DeploymentSnapshot> {
    let make = async |uploads: UploadOverrides, known: Option<&DeploymentSnapshot>, only| {
        let manifest = Arc::new(manifest.with(uploads));
        let made = DeploymentSnapshot::new(
            manifest,
            config,
            engine,
            blobs.clone(),
            known,
            only,
            probations,
        );
        Box::pin(made).await.ok()
    };
    let sound = async |kind, build: &Activation| {
        is_loadable(engine, kind, &upload_store.file(build.digest), build.digest).await
    };
    // As configured, without the builds that are themselves broken.
    let mut whole = UploadOverrides::default();
    for (kind, name, builds) in record.all() {
        let candidate = record.candidate(kind, name).map(|one| &one.build);
        let active = builds.first();
        let mut goes = true;
        for build in candidate.into_iter().chain(active.copied()) {
            goes &= sound(kind, build).await;
        }
        if goes {
            upload_store.apply_active(record, kind, name, &mut whole);
            continue;
        }
        for (at, build) in builds.iter().rev().enumerate().rev() {
            if sound(kind, build).await {
                upload_store.apply_build(record, (kind, name), Some(at), &mut whole);
                break;
            }
        }
    }
    if let Some(left) = make(whole, None, None).await {
        return Some(left);
    }
    // Some do not fit the manifest: add them one at a time.
    let mut left = make(UploadOverrides::default(), None, None).await?;
    for (kind, name, builds) in record.all() {
        let mut uploads = left.manifest.uploads.clone();
        upload_store.apply_active(record, kind, name, &mut uploads);
        let mut found = make(uploads, Some(&left), Some((kind, name))).await;
        for at in (0..builds.len()).rev() {
            if found.is_some() {
                break;
            }
            let mut uploads = left.manifest.uploads.clone();
            upload_store.apply_build(record, (kind, name), Some(at), &mut uploads);
            found = make(uploads, Some(&left), Some((kind, name))).await;
        }
        left = found.unwrap_or(left);
    }
    Some(left)
}

/// Whether an uploaded build is unmodified, and still a plugin of that kind.
async fn is_loadable(engine: &Engine, kind: PluginKind, file: &Path, digest: Digest) -> bool {
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let Ok(Ok(wasm)) = read else {
        return false;
    };
    // The manifest's limits apply when it is loaded for good.
    let limits = PluginLimits::default();
    let loaded = Box::pin(AnyPlugin::load(engine, "uploaded", &wasm, &limits)).await;
    loaded.is_ok_and(|plugin| plugin.kind() == kind && plugin.digest() == digest)
}
