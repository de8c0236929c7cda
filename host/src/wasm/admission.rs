//! Admission: what a component must satisfy before any of its code runs.
//!
//! One rule serves every toolchain, since the empty WASI gives nobody anything; a test shows that
//! this repository's own guests do without it.
//!
//! # Invariants
//! - An admitted component imports nothing but the log, type definitions and a WASI that leads
//!   nowhere, exports everything its kind requires, and is within the size limit.
//! - All of that is read from the component's type, before it is instantiated.
//! - Each refusal is a [`LoadError`] that names what is wrong.

use sha2::{Digest, Sha256};
use wasmtime::component::types::{Component as ComponentType, ComponentItem};
use wasmtime::component::{Component, InstancePre};

use super::engine::Engine;
use super::host_state::Guest;
use super::limits::CallError;
use super::wasi;
use crate::types::sanitize::clean;

/// All that a plugin may import, besides the parts of WASI 0.2 that lead nowhere.
pub const ALLOWED_IMPORTS: &[&str] = &["lucid:host/log@0.1.0", "lucid:types/types@0.1.0"];

/// What a plugin is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An agent.
    Policy,
    /// A model provider's API.
    Llm,
    /// Tools of a team's own.
    Tools,
    /// A git provider's API.
    Git,
}

impl Kind {
    /// All there are.
    pub const ALL: &[Self] = &[Self::Policy, Self::Llm, Self::Tools, Self::Git];

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|kind| kind.to_string() == name)
    }

    /// Their names, for a sentence.
    pub fn names() -> String {
        let names: Vec<String> = Self::ALL.iter().map(|kind| format!("`{kind}`")).collect();
        names.join(", ")
    }

    /// The interface it must export, and the functions that must be in it.
    fn exports(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Policy => (
                "lucid:policy/policy@0.1.0",
                &["describe", "step", "migrate"],
            ),
            Self::Llm => (
                "lucid:llm/provider@0.1.0",
                &[
                    "describe",
                    "models",
                    "encode",
                    "classify",
                    "decoder",
                    "[constructor]decoder",
                    "[method]decoder.push",
                    "[method]decoder.finish",
                ],
            ),
            Self::Tools => (
                "lucid:tools/tools@0.1.0",
                &["describe", "definitions", "step"],
            ),
            Self::Git => ("lucid:git/provider@0.1.0", &["describe", "step"]),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy",
            Self::Llm => "llm",
            Self::Tools => "tools",
            Self::Git => "git",
        })
    }
}

/// Why a plugin was not let in.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Larger than allowed.
    #[error("the plugin `{plugin}` has {size} bytes, and {limit} are allowed")]
    TooLarge {
        /// Its name.
        plugin: String,
        /// What it has.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Not WebAssembly, not a component, or one that this engine does not compile.
    #[error(
        "the plugin `{plugin}` is not a WebAssembly component that this host can compile: {detail}"
    )]
    NotAComponent {
        /// Its name.
        plugin: String,
        /// What the compiler said, cleaned and cut.
        detail: String,
    },
    /// It wants what a plugin is not given.
    #[error(
        "the plugin `{plugin}` imports `{import}`, which no plugin is given; allowed are {}, and of WASI 0.2 what can be empty: {}",
        ALLOWED_IMPORTS.join(", "),
        wasi::packages()
    )]
    ForbiddenImport {
        /// Its name.
        plugin: String,
        /// What it wants.
        import: String,
    },
    /// It lacks what its kind must have.
    #[error(
        "the plugin `{plugin}` does not export `{missing}`, so it is not a {kind} plugin; build it against wit/{kind}"
    )]
    MissingExport {
        /// Its name.
        plugin: String,
        /// What it was taken for.
        kind: Kind,
        /// What it lacks.
        missing: String,
    },
    /// Its imports or exports have the right names and other types.
    #[error(
        "the plugin `{plugin}` was built against another version of wit/{kind}: {detail}; build it again"
    )]
    OtherTypes {
        /// Its name.
        plugin: String,
        /// What it was taken for.
        kind: Kind,
        /// What differs, cleaned and cut.
        detail: String,
    },
    /// It could not say what it is.
    #[error("the plugin did not describe itself: {0}")]
    Describe(#[from] CallError),
    /// What it says of itself cannot be right.
    #[error("the plugin `{plugin}` describes itself wrongly: {detail}")]
    Descriptor {
        /// Its name.
        plugin: String,
        /// What is wrong.
        detail: String,
    },
    /// Two plugins of a kind have one name.
    #[error("there are two {kind} plugins with the name `{plugin}`; give one of them another")]
    SameName {
        /// The name.
        plugin: String,
        /// Their kind.
        kind: Kind,
    },
    /// The task that compiles came to an end early.
    #[error("compiling the plugin `{plugin}` was interrupted")]
    Interrupted {
        /// Its name.
        plugin: String,
    },
}

/// What was let in.
pub(super) struct Admitted {
    pub(super) pre: InstancePre<Guest>,
    pub(super) digest: String,
}

/// Compiles a component and checks its type. Takes a core for a while: not for an executor thread.
pub(super) fn admit(
    engine: &Engine,
    kind: Kind,
    plugin: &str,
    wasm: &[u8],
) -> Result<Admitted, LoadError> {
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
        .map_err(|error| LoadError::NotAComponent {
            plugin: plugin.to_owned(),
            detail: clean(&format!("{error:#}"), 500),
        })?;
    let shape = component.component_type();
    check_imports(engine, plugin, &shape)?;
    check_exports(engine, kind, plugin, &shape)?;
    let pre = engine
        .linker()
        .instantiate_pre(&component)
        .map_err(|error| other_types(plugin, kind, &error))?;
    let digest = digest(wasm);
    Ok(Admitted { pre, digest })
}

/// All that a component imports, by name.
pub(super) fn imports(engine: &Engine, component: &Component) -> Vec<String> {
    let shape = component.component_type();
    let imports = shape.imports(engine.wasmtime());
    imports.map(|(import, _)| clean(import, 200)).collect()
}

/// What names a component: its SHA-256, in lower-case hex.
pub(super) fn digest(wasm: &[u8]) -> String {
    Sha256::digest(wasm)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The names fit and the types do not.
pub(super) fn other_types(plugin: &str, kind: Kind, error: &wasmtime::Error) -> LoadError {
    LoadError::OtherTypes {
        plugin: plugin.to_owned(),
        kind,
        detail: clean(&format!("{error:#}"), 500),
    }
}

fn check_imports(engine: &Engine, plugin: &str, shape: &ComponentType) -> Result<(), LoadError> {
    for (import, _) in shape.imports(engine.wasmtime()) {
        if !ALLOWED_IMPORTS.contains(&import) && !wasi::provides(import) {
            return Err(LoadError::ForbiddenImport {
                plugin: plugin.to_owned(),
                import: clean(import, 200),
            });
        }
    }
    Ok(())
}

fn check_exports(
    engine: &Engine,
    kind: Kind,
    plugin: &str,
    shape: &ComponentType,
) -> Result<(), LoadError> {
    let missing = |missing: String| LoadError::MissingExport {
        plugin: plugin.to_owned(),
        kind,
        missing,
    };
    let (interface, items) = kind.exports();
    let export = shape.get_export(engine.wasmtime(), interface);
    let Some(ComponentItem::ComponentInstance(instance)) = export.map(|export| export.ty) else {
        return Err(missing(interface.to_owned()));
    };
    for item in items {
        if instance.get_export(engine.wasmtime(), item).is_none() {
            return Err(missing(format!("{interface}#{item}")));
        }
    }
    Ok(())
}
