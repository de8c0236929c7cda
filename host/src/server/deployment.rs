//! The start of the deployment: its engine, its components and its uploads.

use std::sync::Arc;

use super::error::StartError;
use super::folders::{DataDirs, create_dir};
use crate::builtin;
use crate::config::Config;
use crate::deployment::manager::DeploymentManager;
use crate::deployment::snapshot::DeploymentSnapshot;
use crate::deployment::uploads::UploadStore;
use lucid_net::oci::ComponentStore;
use lucid_store::blobs::Blobs;
use lucid_wasm::{Compiler, Engine, EngineOptions};

/// The deployment that the manifest and the environment say, with the plugins compiled or taken from
/// the cache. `blobs` has the files of conversations.
pub(super) async fn start_deployment(
    config: &Config,
    folders: &DataDirs,
    blobs: Blobs,
) -> Result<DeploymentManager, StartError> {
    let engine = engine(folders)?;
    let largest = EngineOptions::default().largest_component as u64;
    let components = ComponentStore::new(folders.data.join("components"), largest);
    let first = DeploymentManager::start(
        config,
        engine,
        blobs,
        open_upload_store(folders),
        components,
    );
    Ok(Box::pin(first).await?)
}

/// What was uploaded on this machine.
pub(crate) fn open_upload_store(folders: &DataDirs) -> UploadStore {
    UploadStore::new(folders.data.join("plugins"))
}

/// The same for a look at it: nothing takes its place.
pub(crate) async fn deploy(
    config: &Config,
    folders: &DataDirs,
    blobs: Blobs,
) -> Result<Arc<DeploymentSnapshot>, StartError> {
    let now = start_deployment(config, folders, blobs).await?.now();
    match now.last_failure {
        // A server would start without it, and whoever looks is to know.
        Some((_, problems)) => Err(StartError::Deployment((*problems).clone())),
        None => Ok(now.snapshot),
    }
}

fn engine(folders: &DataDirs) -> Result<Engine, StartError> {
    create_dir(&folders.root)?;
    Ok(Engine::new(EngineOptions {
        cache: Some(folders.cache.clone()),
        compiler: Compiler::lucid(),
        embedded: &builtin::EMBEDDED,
        ..EngineOptions::default()
    })?)
}
