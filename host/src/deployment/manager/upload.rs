//! Uploads of components, each admitted as a plugin before it is stored.

use chrono::Utc;

use super::DeploymentManager;
use super::error::UploadError;
use crate::deployment::uploads::UploadMetadata;
use lucid_wasm::{AnyPlugin, Plugin};

impl DeploymentManager {
    /// Stores a component that is admitted as a plugin of its kind. No session runs on it yet.
    pub(crate) async fn upload(
        &self,
        wasm: impl AsRef<[u8]> + Send + 'static,
        by: &str,
    ) -> Result<AnyPlugin, UploadError> {
        let limits = self.now().snapshot.manifest.widest_limits();
        let loaded = AnyPlugin::load(&self.0.engine, "uploaded", wasm.as_ref(), &limits);
        let plugin = Box::pin(loaded).await?;
        let label = UploadMetadata {
            kind: plugin.kind().to_string(),
            name: plugin.own_name().to_owned(),
            version: plugin.version().to_owned(),
            by: by.to_owned(),
            at: Utc::now(),
        };
        let upload_store = self.0.upload_store.clone();
        let kept =
            tokio::task::spawn_blocking(move || upload_store.lock()?.store(wasm.as_ref(), &label))
                .await;
        kept.map_err(|_| UploadError::Interrupted)??;
        tracing::info!(by, kind = %plugin.kind(), name = plugin.own_name(), digest = %plugin.digest(), "a plugin was uploaded");
        Ok(plugin)
    }
}
