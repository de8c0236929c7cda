//! Builds an author's own project: a crate anywhere on the author's machine.
//!
//! # Invariants
//!
//! - The module is the one that cargo reports, wherever that is.
//! - The author's compiler flags for the native target are not used for the guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Error, FLAGS, WASM, encode, flags, sysroot};

/// A plugin crate outside of this workspace.
pub struct Project {
    folder: PathBuf,
    cache: PathBuf,
}

impl Project {
    /// The crate in `folder`. A standard library built from source is kept in `cache`, for all
    /// projects.
    pub fn new(folder: impl Into<PathBuf>, cache: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            cache: cache.into(),
        }
    }

    /// Builds it in release mode as a component. Returns the component's bytes. Messages of cargo
    /// and the compiler go to stderr. `say` reports steps that take longer.
    pub fn component(&self, say: &dyn Fn(&str)) -> Result<Vec<u8>, Error> {
        let manifest = self.folder.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(format!("{} is not there", manifest.display()).into());
        }
        let std = sysroot::find(&self.cache, say)?;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(&self.folder)
            .args(["build", "--release", "--lib", "--target", WASM])
            .arg("--message-format=json-render-diagnostics")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        // They take precedence over those of the target, and are for another one.
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            cargo.env_remove(name);
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| self.folder.join("target"));
        let project = std::path::absolute(&self.folder)?;
        let target = std::path::absolute(target)?;
        cargo.env(FLAGS, flags(std.as_deref(), &project, &target));
        let output = cargo.output().map_err(|e| {
            format!("cargo could not be started ({e}); install Rust 1.95 or newer with its cargo")
        })?;
        if !output.status.success() {
            return Err("cargo did not build it; what is wrong is above".into());
        }
        let module = module(&String::from_utf8_lossy(&output.stdout), &manifest)?;
        let bytes = std::fs::read(&module).map_err(|e| format!("{}: {e}", module.display()))?;
        encode(&bytes).map_err(|e| {
            format!("the crate is no plugin ({e:#}); it ends in `export_policy!` or `export_llm!`")
                .into()
        })
    }
}

/// The library module that cargo built for this manifest.
fn module(messages: &str, manifest: &Path) -> Result<PathBuf, Error> {
    let own = manifest.canonicalize()?;
    let of_crate = |message: &Value| {
        let path = message.get("manifest_path").and_then(Value::as_str);
        path.is_some_and(|path| Path::new(path).canonicalize().is_ok_and(|path| path == own))
    };
    let files = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && of_crate(message))
        .filter_map(|message| message["filenames"].as_array().cloned())
        .flatten();
    let mut modules = files.filter_map(|file| Some(PathBuf::from(file.as_str()?)));
    modules
        .find(|file| file.extension().is_some_and(|e| e == "wasm"))
        .ok_or_else(|| {
            "the crate has no module; its Cargo.toml needs `crate-type = [\"cdylib\", \"rlib\"]` under [lib]"
                .into()
        })
}
