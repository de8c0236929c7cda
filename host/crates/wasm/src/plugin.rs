//! A plugin of one kind, and what plugins of all kinds have in common.
//!
//! [`TypedPlugin`] loads a component as its [`World`] wants it; what a kind can be asked for stands in its own
//! module. [`Plugin`] is the part that does not depend on the kind.
//!
//! # Invariants
//! - A plugin that exists was admitted, and its descriptor was validated and sanitized.

use std::future::Future;
use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::Lift;

use super::admission::{self, AdmittedComponent, DescriptorError, LoadError, other_types};
use super::call_stats::{CallFigures, CallStats};
use super::core::{PluginCore, PluginMetadata};
use super::engine::{Engine, PoolClass};
use super::exports::{ComponentExports, InstanceExports};
use super::extensions::Extensions;
use super::host_state::HostState;
use super::instance::{boxed, call};
use super::kind::PluginKind;
use super::limits::PluginLimits;
use lucid_types::digest::Digest;

/// What every loaded plugin has, whatever its kind.
pub trait Plugin {
    /// The state that plugins of all kinds have.
    fn core(&self) -> &PluginCore;

    /// The plugin's kind.
    fn kind(&self) -> PluginKind {
        self.core().kind
    }

    /// The name it was loaded under.
    fn name(&self) -> &str {
        &self.core().name
    }

    /// The name in the plugin's own descriptor.
    fn own_name(&self) -> &str {
        &self.core().about.name
    }

    /// The version in the plugin's own descriptor.
    fn version(&self) -> &str {
        &self.core().about.version
    }

    /// The description in the plugin's own descriptor.
    fn description(&self) -> &str {
        &self.core().about.description
    }

    /// The JSON schema of the plugin's settings, if it has one.
    fn settings_schema(&self) -> Option<&str> {
        self.core().about.settings_schema.as_deref()
    }

    /// The component's digest.
    fn digest(&self) -> Digest {
        self.core().digest
    }

    /// Whether loading this component with these limits would give the same plugin.
    fn is(&self, wasm: &[u8], limits: &PluginLimits) -> bool {
        self.limits() == limits && Digest::of(wasm) == self.digest()
    }

    /// The names of everything that the component imports.
    fn imports(&self) -> Vec<String> {
        let PluginCore {
            engine, component, ..
        } = self.core();
        admission::imports(engine, component)
    }

    /// The limits of one call.
    fn limits(&self) -> &PluginLimits {
        &self.core().limits
    }

    /// Statistics of the calls since the plugin was loaded, by function.
    fn figures(&self) -> Vec<CallFigures> {
        self.core().stats.figures()
    }

    /// State of the caller's own beside the plugin, for as long as the plugin is loaded. It is created when it is
    /// first asked for; there is one of each type.
    fn extension<T: Default + Send + Sync + 'static>(&self) -> Arc<T>
    where
        Self: Sized,
    {
        self.core().extensions.get()
    }
}

/// Sanitizes a kind's own descriptor for display, and takes an [`PluginMetadata`] out of it.
macro_rules! about {
    ($descriptor:expr) => {{
        $descriptor.description = lucid_types::sanitize::sanitize(&$descriptor.description, 500);
        $crate::core::PluginMetadata {
            name: $descriptor.name.clone(),
            version: $descriptor.version.clone(),
            description: $descriptor.description.clone(),
            settings_schema: $descriptor.settings_schema.clone(),
        }
    }};
}
pub(super) use about;

/// The WIT world of one kind: how a component is linked as one, and what it says of itself.
pub trait World: Sized + 'static {
    /// The kind.
    const KIND: PluginKind;
    /// What the component says of itself.
    type Descriptor: Lift + Send + Sync;
    /// What else it is asked when it is loaded.
    type Known: Send + Sync;

    /// Checks the types of all functions but `describe`.
    fn check_types(
        plugin: &InstanceExports<'_>,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<()>;

    /// The part of the descriptor that all kinds have, sanitized in the descriptor as well.
    fn about(descriptor: &mut Self::Descriptor) -> PluginMetadata;

    /// Validates and sanitizes the rest of the descriptor.
    fn check(descriptor: &mut Self::Descriptor) -> Result<(), DescriptorError>;

    /// Asks what else is to be known.
    fn known(
        core: &PluginCore,
        exports: &ComponentExports,
    ) -> impl Future<Output = Result<Self::Known, LoadError>> + Send;
}

/// An admitted plugin of one kind. A clone is the same plugin.
pub struct TypedPlugin<W: World>(pub(super) Arc<Inner<W>>);

/// What the clones of a plugin share.
pub(super) struct Inner<W: World> {
    pub(super) core: PluginCore,
    pub(super) exports: ComponentExports,
    pub(super) descriptor: W::Descriptor,
    pub(super) known: W::Known,
}

impl<W: World> TypedPlugin<W> {
    /// Compiles a component, checks it, and calls for its descriptor.
    pub async fn load(
        engine: &Engine,
        name: &str,
        wasm: &[u8],
        limits: &PluginLimits,
    ) -> Result<Self, LoadError> {
        let AdmittedComponent { exports, digest } = compile(engine, W::KIND, name, wasm).await?;
        let component = exports.component().clone();
        let mut core = PluginCore {
            engine: engine.clone(),
            kind: W::KIND,
            name: name.into(),
            digest,
            limits: limits.clone(),
            stats: CallStats::default(),
            component,
            about: PluginMetadata::default(),
            extensions: Extensions::default(),
        };
        let mut descriptor = describe::<W>(&core, &exports).await?;
        core.about = checked::<W>(&mut descriptor).map_err(|source| LoadError::Descriptor {
            plugin: name.to_owned(),
            source,
        })?;
        let known = W::known(&core, &exports).await?;
        Ok(Self(Arc::new(Inner {
            core,
            exports,
            descriptor,
            known,
        })))
    }

    /// The plugin's own descriptor.
    pub fn descriptor(&self) -> &W::Descriptor {
        &self.0.descriptor
    }
}

impl<W: World> Plugin for TypedPlugin<W> {
    fn core(&self) -> &PluginCore {
        &self.0.core
    }
}

impl<W: World> Clone for TypedPlugin<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: World> std::fmt::Debug for TypedPlugin<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({} {})", self.kind(), self.name(), self.digest())
    }
}

/// Admits a component on a thread that may be busy for a while.
async fn compile(
    engine: &Engine,
    kind: PluginKind,
    name: &str,
    wasm: &[u8],
) -> Result<AdmittedComponent, LoadError> {
    let (engine, plugin, wasm) = (engine.clone(), name.to_owned(), wasm.to_vec());
    tokio::task::spawn_blocking(move || admission::admit(&engine, kind, &plugin, &wasm))
        .await
        .unwrap_or_else(|_| {
            Err(LoadError::Interrupted {
                plugin: name.to_owned(),
            })
        })
}

async fn describe<W: World>(
    core: &PluginCore,
    exports: &ComponentExports,
) -> Result<W::Descriptor, LoadError> {
    boxed(async move {
        let mut live = core.open(PoolClass::Call, "describe").await?;
        let called = call!(core, live, "describe", {
            let store = &mut live.store;
            let plugin = exports.instantiate(store).await?;
            let checked = plugin.function::<(), W::Descriptor>(store, "describe");
            match checked.and_then(|_| W::check_types(&plugin, store)) {
                Ok(()) => plugin.call(store, "describe", ()).await.map(|d| Ok(Ok(d))),
                Err(error) => Ok(Ok(Err(other_types(&core.name, W::KIND, &error)))),
            }
        });
        called.result?
    })
    .await
}

/// Validates and sanitizes a descriptor.
fn checked<W: World>(descriptor: &mut W::Descriptor) -> Result<PluginMetadata, DescriptorError> {
    let about = W::about(descriptor);
    let PluginMetadata { name, version, .. } = &about;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(DescriptorError::Name);
    }
    if version.is_empty() || version.len() > 64 || version.chars().any(char::is_control) {
        return Err(DescriptorError::Version);
    }
    W::check(descriptor)?;
    Ok(about)
}
