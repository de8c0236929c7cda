//! Admission: what a component must satisfy before any of its code runs.
//!
//! One rule serves every toolchain, since the empty WASI gives nobody anything; a test shows that
//! this repository's own guests do without it.
//!
//! # Invariants
//! - An admitted component imports nothing but the log, type definitions and a WASI that leads
//!   nowhere, exports everything its kind requires, and is within the limits of size and complexity.
//! - All of that is read from the component's type, before it is instantiated.
//! - Each refusal is a [`LoadError`] that names what is wrong.

use std::path::PathBuf;

use lucid_precompiled::{CompileDeath, KnownFailure, ProcessFailure};
use wasmtime::component::Component;
use wasmtime::component::types::Component as ComponentType;

use super::bounds::BoundsError;
use super::compiler::{CompileError, CompileRefusal};
use super::engine::Engine;
use super::exports::{self, ComponentExports, MissingExport};
use super::kind::PluginKind;
use super::limits::CallError;
use super::wasi;
use lucid_types::digest::Digest;
use lucid_types::sanitize::sanitize;

/// The interfaces that a plugin may import, besides the parts of WASI 0.2 that lead nowhere.
pub const ALLOWED_IMPORTS: &[&str] = &["lucid:host/log@0.1.0", "lucid:types/types@0.1.0"];

/// The refusal of a plugin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The component is larger than allowed.
    #[error("the plugin `{plugin}` has {size} bytes, and {limit} are allowed")]
    TooLarge {
        /// The plugin's name.
        plugin: String,
        /// The component's size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The bytes are not WebAssembly, not a component, or a component that this engine cannot
    /// compile.
    #[error(
        "the plugin `{plugin}` is not a WebAssembly component that this host can compile: {detail}"
    )]
    NotAComponent {
        /// The plugin's name.
        plugin: String,
        /// The compiler's message, sanitized and truncated.
        detail: String,
    },
    /// The component has more of something than is compiled.
    #[error("the plugin `{plugin}` has {source}; report it to the plugin's author")]
    TooComplex {
        /// The plugin's name.
        plugin: String,
        /// What it has too much of.
        source: BoundsError,
    },
    /// The process that compiled the component did not survive it.
    #[error("compiling the plugin `{plugin}` failed: {source}; report it to the plugin's author")]
    CompilerDied {
        /// The plugin's name.
        plugin: String,
        /// The limit or signal.
        source: CompileDeath,
    },
    /// Compiling this component failed before, with this version of the host.
    #[error(
        "compiling the plugin `{plugin}` failed before ({why}), so it is not tried again: use another build of it or another version of Lucid, or delete {} to try again",
        .file.display()
    )]
    KnownToFail {
        /// The plugin's name.
        plugin: String,
        /// How it failed.
        why: String,
        /// The file that remembers it.
        file: PathBuf,
    },
    /// There was no process to compile the component in.
    #[error("the plugin `{plugin}` was not compiled: {source}")]
    NoCompiler {
        /// The plugin's name.
        plugin: String,
        /// The cause.
        source: ProcessFailure,
    },
    /// The component imports something that plugins are not given.
    #[error(
        "the plugin `{plugin}` imports `{import}`, which no plugin is given; allowed are {}, and of WASI 0.2 what can be empty: {}",
        ALLOWED_IMPORTS.join(", "),
        wasi::packages()
    )]
    ForbiddenImport {
        /// The plugin's name.
        plugin: String,
        /// The refused import.
        import: String,
    },
    /// The component lacks an export that its kind requires.
    #[error(
        "the plugin `{plugin}` does not export `{missing}`, so it is not a {kind} plugin; build it against wit/{kind}"
    )]
    MissingExport {
        /// The plugin's name.
        plugin: String,
        /// The kind it was loaded as.
        kind: PluginKind,
        /// The missing export.
        missing: MissingExport,
    },
    /// An import or export has the right name and another type.
    #[error(
        "the plugin `{plugin}` was built against another version of wit/{kind}: {detail}; build it again"
    )]
    OtherTypes {
        /// The plugin's name.
        plugin: String,
        /// The kind it was loaded as.
        kind: PluginKind,
        /// The difference, sanitized and truncated.
        detail: String,
    },
    /// The call for the plugin's descriptor failed.
    #[error("the plugin did not describe itself: {0}")]
    Describe(#[from] CallError),
    /// The plugin's descriptor is invalid.
    #[error("the plugin `{plugin}` describes itself wrongly: {source}")]
    Descriptor {
        /// The plugin's name.
        plugin: String,
        /// The problem with the descriptor.
        source: DescriptorError,
    },
    /// Two plugins of one kind have the same name.
    #[error("there are two {kind} plugins with the name `{plugin}`; give one of them another")]
    SameName {
        /// The shared name.
        plugin: String,
        /// Their kind.
        kind: PluginKind,
    },
    /// The compiling task ended early.
    #[error("compiling the plugin `{plugin}` was interrupted")]
    Interrupted {
        /// The plugin's name.
        plugin: String,
    },
}

/// What is wrong with a plugin's descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The plugin's own name.
    #[error("its name must be 1 to 64 lower-case letters, digits and hyphens")]
    Name,
    /// The plugin's version.
    #[error("its version must be 1 to 64 characters")]
    Version,
    /// A policy that cannot migrate what it writes itself.
    #[error("it migrates from schema {oldest} on, and writes the older schema {written}")]
    Schema {
        /// The oldest schema that it migrates from.
        oldest: u32,
        /// The schema that it writes.
        written: u32,
    },
    /// The user name for git.
    #[error("the user name for git must be 1 to 64 letters, digits, hyphens, points and _")]
    GitUser,
    /// The path of a git provider's API.
    #[error("the path of its API must begin with / and be plain, such as /api/v4")]
    ApiPath,
}

/// A component that passed admission.
pub(super) struct AdmittedComponent {
    pub(super) exports: ComponentExports,
    pub(super) digest: Digest,
}

/// Compiles a component and checks its type. CPU-bound for a while, so not for an executor thread.
pub(super) fn admit(
    engine: &Engine,
    kind: PluginKind,
    plugin: &str,
    wasm: &[u8],
) -> Result<AdmittedComponent, LoadError> {
    let limit = engine.largest_component();
    if wasm.len() > limit {
        return Err(LoadError::TooLarge {
            plugin: plugin.to_owned(),
            size: wasm.len(),
            limit,
        });
    }
    let component = engine
        .compile(plugin, wasm)
        .map_err(|error| not_compiled(plugin, error))?;
    let shape = component.component_type();
    check_imports(engine, plugin, &shape)?;
    let functions =
        exports::find(&component, kind).map_err(|missing| LoadError::MissingExport {
            plugin: plugin.to_owned(),
            kind,
            missing,
        })?;
    let pre = engine
        .linker()
        .instantiate_pre(&component)
        .map_err(|error| other_types(plugin, kind, &error))?;
    let digest = Digest::of(wasm);
    let exports = ComponentExports::new(pre, functions);
    Ok(AdmittedComponent { exports, digest })
}

fn not_compiled(plugin: &str, error: CompileError) -> LoadError {
    let plugin = plugin.to_owned();
    match error {
        CompileError::Refused(
            CompileRefusal::Component(detail)
            | CompileRefusal::Bounds(BoundsError::Malformed(detail)),
        ) => LoadError::NotAComponent {
            plugin,
            detail: sanitize(&detail, 500),
        },
        CompileError::Refused(CompileRefusal::Bounds(source)) => {
            LoadError::TooComplex { plugin, source }
        }
        CompileError::Died(source) => LoadError::CompilerDied { plugin, source },
        CompileError::KnownToFail(KnownFailure { why, file }) => {
            LoadError::KnownToFail { plugin, why, file }
        }
        CompileError::Process(source) => LoadError::NoCompiler { plugin, source },
    }
}

/// The names of everything that a component imports.
pub(super) fn imports(engine: &Engine, component: &Component) -> Vec<String> {
    let shape = component.component_type();
    let imports = shape.imports(engine.wasmtime());
    imports.map(|(import, _)| sanitize(import, 200)).collect()
}

/// The error for exports whose names fit and whose types do not.
pub(super) fn other_types(plugin: &str, kind: PluginKind, error: &wasmtime::Error) -> LoadError {
    LoadError::OtherTypes {
        plugin: plugin.to_owned(),
        kind,
        detail: sanitize(&format!("{error:#}"), 500),
    }
}

fn check_imports(engine: &Engine, plugin: &str, shape: &ComponentType) -> Result<(), LoadError> {
    for (import, _) in shape.imports(engine.wasmtime()) {
        if !ALLOWED_IMPORTS.contains(&import) && !wasi::provides(import) {
            return Err(LoadError::ForbiddenImport {
                plugin: plugin.to_owned(),
                import: sanitize(import, 200),
            });
        }
    }
    Ok(())
}
