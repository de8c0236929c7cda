//! The deployment's manifest, `lucid.toml`: the policies, model providers, git providers and tools,
//! with their components, settings, limits, addresses and prices, and the assignment of policies to
//! users.
//!
//! `fields` reads single values of TOML, `plugins` the entry of one plugin, `mcp` and `registries`
//! the tables of those names, and `read` combines them into the `model`. `settings_schema`
//! validates a plugin's settings, `overrides` holds uploaded components that replace the
//! manifest's, `loaded` what was loaded for a manifest (by `deployment::load`), and `problem` reports
//! errors with their positions.
//!
//! `lucid.schema.json` is written by hand. The reader is not serde, since all problems are reported and each with its
//! position, so a schema could only be generated from structs that nothing else uses; and what makes up most of it
//! (patterns, names of tables, fields that need or exclude each other, defaults) would stand in them as JSON again.
//! Tests hold the schema to the reader's own fields, ranges and defaults.
//!
//! # Invariants
//!
//! - A [`Manifest`] that exists was validated in full, and never changes.
//! - All problems of an invalid manifest are reported, each with file, line and column and with
//!   what to do.
//! - No key is ever in it: a field names the variable that holds one.
//! - What it leaves open is read from the environment, under the same names as without a manifest.

mod fields;
pub(crate) mod loaded;
mod mcp;
pub(crate) mod model;
pub(crate) mod overrides;
mod plugins;
pub(crate) mod problem;
mod read;
mod registries;
pub(crate) mod settings_schema;
#[cfg(test)]
mod tests;

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub use self::loaded::{
    LoadedGit, LoadedPlugins, LoadedPolicy, LoadedProvider, LoadedSecondBuild, LoadedTools,
};
pub use self::mcp::{AllowedTools, McpEntry, McpTransport};
pub use self::model::{
    ComponentSource, GitEntry, KeyVariable, LimitOverrides, Located, Manifest, ModelPrices,
    PluginEntry, PluginSettings, PolicyAssignment, ProviderEntry, ToolsEntry,
};
pub use self::overrides::{SecondBuild, SecondBuildRole, UploadOverride, UploadOverrides};
pub(crate) use self::problem::suggest;
pub use self::problem::{ManifestProblem, ManifestProblems, SourcePosition};
pub(crate) use self::read::{is_name, is_source_name};
pub use self::registries::{RegistryCredentials, RegistryEntry};
pub(crate) use self::settings_schema::settings_fit;
use crate::config::Config;

/// The schema of a manifest, for editors.
pub const SCHEMA: &str = include_str!("lucid.schema.json");
/// An example manifest with every field and its explanation.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The default file if `LUCID_MANIFEST` names none.
const USUAL: &str = "lucid.toml";
/// The maximum size in bytes. A manifest is written by people.
const LARGEST: u64 = 1 << 20;

impl Manifest {
    /// Reads the manifest that `LUCID_MANIFEST` names, or `./lucid.toml` if it exists, or returns
    /// an empty one, which stands for the built-in plugins and the environment.
    pub fn find(config: &Config) -> Result<Self, ManifestProblems> {
        if let Some(path) = &config.manifest {
            return Self::read(path);
        }
        let usual = Self::path(config);
        // Any error other than its absence must be reported.
        match usual.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            _ => Self::read(&usual),
        }
    }

    /// The path of the manifest.
    pub fn path(config: &Config) -> PathBuf {
        let named = config.manifest.clone();
        named.unwrap_or_else(|| PathBuf::from(USUAL))
    }

    /// Reads a manifest from a file.
    pub fn read(path: &Path) -> Result<Self, ManifestProblems> {
        let wrong = |what: String| ManifestProblems::from(ManifestProblem::of_file(path, what));
        let text =
            text(path).map_err(|why| wrong(format!("the manifest cannot be read: {why}")))?;
        if text.trim().is_empty() {
            // Most likely truncated by an editor or a full disk, and it would mean other providers.
            return Err(wrong(
                "the manifest is empty: put back what was in it, or remove the file to run without one".to_owned(),
            ));
        }
        Self::parse(path, &text)
    }

    /// Parses a manifest's text. Paths in it are relative to the folder of `path`, which is not
    /// opened.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ManifestProblems> {
        read::manifest(path, text)
    }
}

fn text(path: &Path) -> io::Result<String> {
    // Checked before it is opened: opening a pipe would wait for a writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!(
            "it is larger than {LARGEST} bytes"
        )));
    }
    Ok(text)
}
