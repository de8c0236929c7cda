//! Reloading of the deployment: on request, and whenever the manifest or a component changes.
//!
//! # Invariants
//!
//! - Components are fetched from registries before the load lock is taken.
//! - A load that fails leaves the deployment as it is, or with the uploads that run already.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_util::task::AbortOnDropHandle;

use super::{DeploymentManager, Inner};
use crate::deployment::snapshot::DeploymentSnapshot;
use crate::deployment::watch::FileWatcher;
use crate::manifest::{Manifest, ManifestProblem, ManifestProblems, UploadOverrides};
use lucid_net::oci::TagResolution;
use lucid_wasm::ActivityKind;

impl DeploymentManager {
    /// Reloads the manifest, the files and the registries' tags, and returns the number of the
    /// generation that is current from then on: a new one if something changed.
    pub async fn reload(&self) -> Result<u64, Arc<ManifestProblems>> {
        let found = self.manifest(TagResolution::Refresh).await;
        self.load(found).await
    }

    /// Reloads whenever the manifest or a component changes, until the handle is dropped.
    pub fn watch_manifest(&self) -> AbortOnDropHandle<()> {
        let deployment = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            // Nothing else is written to its own folder. The one above it has the log.
            deployment.0.upload_store.prepare();
            let mut watch = FileWatcher::new();
            let own = Manifest::path(&deployment.0.config);
            loop {
                // Another process may roll back.
                watch.watch_only([own.clone(), deployment.0.upload_store.record_file()]);
                let found = deployment.manifest(TagResolution::Cached).await;
                // A manifest that cannot be read may still name the previous files.
                let named = match &found {
                    Ok(manifest) => manifest.files(),
                    Err(_) => deployment.now().snapshot.manifest.files(),
                };
                watch.watch_also(named);
                // Problems are logged, and kept.
                let _ = deployment.load(found).await;
                watch.changed().await;
            }
        }))
    }

    /// The current manifest file, with its components from registries fetched. Not called while the
    /// turn is held, since a registry may be slow.
    pub(super) async fn manifest(
        &self,
        tags: TagResolution,
    ) -> Result<Arc<Manifest>, ManifestProblems> {
        let works = self.0.engine.activities();
        let _work = works.begin("the manifest's components", ActivityKind::Fetching);
        let config = self.0.config.clone();
        let found = tokio::task::spawn_blocking(move || Manifest::find(&config)).await;
        match found {
            Ok(found) => {
                let (components, variables) = (&self.0.components, &self.0.config.variables);
                let whole = found?.fetch_components(components, variables, tags).await?;
                Ok(Arc::new(whole))
            }
            // The runtime is shutting down, and no further generation is needed.
            Err(_) => Ok(self.now().snapshot.manifest.clone()),
        }
    }

    pub(super) async fn load(
        &self,
        found: Result<Arc<Manifest>, ManifestProblems>,
    ) -> Result<u64, Arc<ManifestProblems>> {
        let _turn = self.0.load_lock.lock().await;
        self.load_serialized(found).await
    }

    async fn load_serialized(
        &self,
        found: Result<Arc<Manifest>, ManifestProblems>,
    ) -> Result<u64, Arc<ManifestProblems>> {
        let Inner {
            config,
            engine,
            blobs,
            upload_store,
            probations,
            ..
        } = &*self.0;
        let _work = engine
            .activities()
            .begin("the deployment", ActivityKind::Loading);
        let before = self.now();
        let known = Some(&*before.snapshot);
        let found = found.and_then(|manifest| match &before.snapshot.manifest.path {
            // Without the manifest there would be other providers, under the same names.
            Some(path) if manifest.path.is_none() => Err(ManifestProblems::from(ManifestProblem::of_file(
                path,
                "the manifest is gone: put it back, or start the server again to run without one",
            ))),
            _ => Ok(manifest),
        });
        let active = upload_store
            .record()
            .map(|record| upload_store.uploads(&record));
        let found =
            found.and_then(|manifest| Ok((manifest, active.map_err(ManifestProblem::from)?)));
        let (manifest, active) = match found {
            Ok(found) => found,
            Err(problems) => return Err(self.refuse(&before, problems)),
        };
        let make = async |uploads: UploadOverrides| {
            let manifest = Arc::new(manifest.with(uploads));
            let made = DeploymentSnapshot::new(
                manifest,
                config,
                engine,
                blobs.clone(),
                known,
                None,
                probations,
            );
            Box::pin(made).await
        };
        let running = before.snapshot.manifest.uploads.clone();
        let falls_back = active != running;
        let problems = match make(active).await {
            Ok(snapshot) => return Ok(self.publish(before, snapshot, None)),
            Err(problems) => problems,
        };
        // A build that could not be loaded at the start does not prevent other changes.
        if falls_back && let Ok(snapshot) = make(running).await {
            let refused = self.refuse(&before, problems);
            let refused = Some((SystemTime::now(), refused));
            return Ok(self.publish(before, snapshot, refused));
        }
        Err(self.refuse(&before, problems))
    }
}
