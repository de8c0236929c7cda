//! Components from OCI registries: references, fetching and caching.
//!
//! A tag is resolved when a server starts and when somebody asks for it, never by the clock: what
//! runs changes when a person wants it to, and a slow or missing registry holds up no other change.
//! If a tag cannot be resolved, its last known digest is used and a warning says why.
//!
//! `reference` parses names, `client` makes the requests, `auth_challenge` reads how a registry
//! asks for authentication, `manifest` reads an artifact's contents, `cache` is the folder on
//! disk, and `error` has the errors.
//!
//! # Invariants
//! - A component has the digest that its manifest states, and the manifest the digest that the
//!   reference states.
//! - A component is fetched once and then read from disk, so a restart needs no registry.
//! - A reference with a digest is never fetched again.

mod auth_challenge;
mod cache;
mod client;
mod error;
mod manifest;
mod reference;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;

use self::cache::ComponentCache;
use self::client::{RegistryClient, RegistryLimits};
use self::manifest::Layer;
use lucid_types::digest::Digest;

pub use self::client::RegistryAccess;
pub use self::error::OciError;
pub use self::reference::{Reference, ReferenceError, RegistryHost, SCHEME};

/// How many components are fetched concurrently.
const AT_ONCE: usize = 4;

/// The store of fetched components. A clone is a handle to the same store.
#[derive(Debug, Clone)]
pub struct ComponentStore {
    folder: ComponentCache,
    limits: RegistryLimits,
    /// Maximum size of a component, in bytes.
    largest: u64,
    /// References that need not be resolved again while this process runs, each with any warning
    /// from when it was.
    resolved: Arc<Mutex<HashMap<Reference, ResolvedComponent>>>,
}

/// A component that is wanted.
#[derive(Debug, Clone)]
pub struct ComponentRequest {
    /// Its reference.
    pub reference: Reference,
    /// The digest that the component must have, if one is given.
    pub component: Option<Digest>,
}

/// A component on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedComponent {
    /// Its path.
    pub file: PathBuf,
    /// Its digest.
    pub digest: Digest,
}

/// The results for some references. Two are equal if the components are, whatever the warnings.
#[derive(Debug, Clone, Default)]
pub struct FetchResults {
    /// The result for each reference.
    pub by_reference: BTreeMap<Reference, Result<FetchedComponent, Arc<OciError>>>,
    /// Warnings for the operator, a sentence each.
    pub warnings: Vec<String>,
}

impl PartialEq for FetchResults {
    fn eq(&self, other: &Self) -> bool {
        // Errors hold errors of the system, which cannot be compared.
        let results = |brought: &Self| -> Vec<_> {
            let each = brought.by_reference.iter();
            each.map(|(reference, came)| {
                (
                    reference.clone(),
                    came.clone().map_err(|why| why.to_string()),
                )
            })
            .collect()
        };
        results(self) == results(other)
    }
}

/// Whether tags are resolved again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagResolution {
    /// Use what this process last resolved, and resolve only what it never did.
    Cached,
    /// Resolve all tags again.
    Refresh,
}

impl ComponentStore {
    /// A store in this folder, which is created with the first component.
    pub fn new(folder: PathBuf, largest: u64) -> Self {
        Self {
            folder: ComponentCache::new(folder),
            limits: RegistryLimits::default(),
            largest,
            resolved: Arc::default(),
        }
    }

    /// Fetches everything that is wanted. `registries` configures access to some registries; the
    /// others are accessed anonymously.
    pub async fn fetch_all(
        &self,
        wanted: &[ComponentRequest],
        mut registries: BTreeMap<RegistryHost, RegistryAccess>,
        tags: TagResolution,
    ) -> FetchResults {
        let mut results = FetchResults::default();
        if wanted.is_empty() {
            return results;
        }
        for one in wanted {
            let registry = one.reference.registry().clone();
            registries.entry(registry).or_default();
        }
        let client = RegistryClient::new(registries, self.limits.clone());
        let client = &client.map_err(Arc::new);
        // Two plugins may use the same component.
        let each: BTreeMap<&Reference, &ComponentRequest> =
            wanted.iter().map(|one| (&one.reference, one)).collect();
        let one = |wanted| {
            let results = async move {
                let client = client.as_ref().map_err(Arc::clone);
                (wanted, self.one(wanted, client, tags).await)
            };
            results.boxed()
        };
        let tasks: Vec<BoxFuture<'_, _>> = each.into_values().map(one).collect();
        let mut tasks = futures::stream::iter(tasks).buffered(AT_ONCE);
        let mut needed = BTreeSet::new();
        while let Some((wanted, came)) = tasks.next().await {
            let came = came.map(|found| {
                let tag = cache::tag_name(&wanted.reference);
                needed.extend([found.manifest, found.component.digest, tag]);
                results.warnings.extend(found.warning);
                found.component
            });
            let reference = wanted.reference.clone();
            results.by_reference.insert(reference, came);
        }
        let folder = self.folder.clone();
        // Best effort: nothing depends on it.
        let _ = tokio::task::spawn_blocking(move || folder.evict(&needed)).await;
        results
    }

    async fn one(
        &self,
        wanted: &ComponentRequest,
        client: Result<&RegistryClient, Arc<OciError>>,
        tags: TagResolution,
    ) -> Result<ResolvedComponent, Arc<OciError>> {
        let reference = &wanted.reference;
        let meant = wanted.component;
        let before = self.resolved.lock().get(reference).cloned();
        if let Some(found) = before.filter(|found| found.component.file.is_file())
            && tags == TagResolution::Cached
            // A different expected digest means that another build is wanted.
            && meant.is_none_or(|meant| meant == found.component.digest)
        {
            return Ok(found);
        }
        let cached = self.cached(reference).await;
        let is_meant = |cached: &&ResolvedComponent| {
            reference.digest().is_some() || Some(cached.component.digest) == meant
        };
        if let Some(cached) = cached.as_ref().filter(is_meant) {
            self.resolved
                .lock()
                .insert(reference.clone(), cached.clone());
            return Ok(cached.clone());
        }
        let came = match client {
            Ok(client) => self.fetch(reference, client).await.map_err(Arc::new),
            Err(why) => Err(why),
        };
        let (found, warning) = match (came, cached) {
            (Ok(found), _) => (found, None),
            (Err(why), Some(cached)) => {
                let warning = format!(
                    "{reference} could not be asked for, and is what it last was (sha256:{}): {why}. `lucid plugin reload` asks again.",
                    cached.component.digest
                );
                (cached, Some(warning))
            }
            (Err(why), None) => return Err(why),
        };
        let found = ResolvedComponent { warning, ..found };
        self.resolved
            .lock()
            .insert(reference.clone(), found.clone());
        Ok(found)
    }

    /// The component on disk for a reference.
    async fn cached(&self, reference: &Reference) -> Option<ResolvedComponent> {
        let (folder, reference, largest) = (self.folder.clone(), reference.clone(), self.largest);
        let looked = tokio::task::spawn_blocking(move || {
            let manifest = reference.digest().or_else(|| folder.tag(&reference))?;
            let layer = manifest::layer(&folder.manifest(manifest)?, largest).ok()?;
            let file = folder.component(layer.digest)?;
            let digest = layer.digest;
            let component = FetchedComponent { file, digest };
            Some(ResolvedComponent {
                manifest,
                component,
                warning: None,
            })
        });
        looked.await.ok().flatten()
    }

    async fn fetch(
        &self,
        reference: &Reference,
        client: &RegistryClient,
    ) -> Result<ResolvedComponent, OciError> {
        let mut pull = client.pull(reference)?;
        let (text, manifest) = pull.manifest().await?;
        let layer = manifest::layer(&text, self.largest)?;
        self.component(&mut pull, &layer).await?;
        let (folder, digest, of) = (self.folder.clone(), manifest, reference.clone());
        let noted = tokio::task::spawn_blocking(move || {
            folder.store_manifest(&text, digest)?;
            // Stored last, since it says that the rest is there.
            if of.digest().is_none() {
                folder.store_tag(&of, digest)?;
            }
            Ok::<_, std::io::Error>(())
        });
        noted.await.map_err(std::io::Error::other)??;
        tracing::info!(%reference, digest = %layer.digest, "a component came from its registry");
        let file = self.folder.component_file(layer.digest);
        let digest = layer.digest;
        let component = FetchedComponent { file, digest };
        Ok(ResolvedComponent {
            manifest,
            component,
            warning: None,
        })
    }

    /// Makes a layer's component available on disk, from the cache or else from the registry.
    async fn component(&self, pull: &mut client::Pull<'_>, layer: &Layer) -> Result<(), OciError> {
        let (folder, digest) = (self.folder.clone(), layer.digest);
        let begun = tokio::task::spawn_blocking(move || match folder.component(digest) {
            Some(_) => Ok(None),
            None => folder.temporary_file().map(Some),
        });
        let Some(draft) = begun.await.map_err(std::io::Error::other)?? else {
            return Ok(());
        };
        pull.component(layer, draft.as_file().try_clone()?).await?;
        let (folder, digest) = (self.folder.clone(), layer.digest);
        let kept = tokio::task::spawn_blocking(move || folder.store_component(draft, digest));
        Ok(kept.await.map_err(std::io::Error::other)??)
    }
}

/// A component and the manifest that led to it.
#[derive(Debug, Clone)]
struct ResolvedComponent {
    /// The manifest's digest.
    manifest: Digest,
    component: FetchedComponent,
    warning: Option<String>,
}
