//! Builds plugin crates to WebAssembly components, for build scripts and for `lucid plugin build`.
//!
//! This crate wraps the nested cargo call and everything it needs.
//!
//! # Invariants
//!
//! - A component imports nothing but Lucid's own interfaces: the target has no WASI, so std cannot
//!   pull it in.
//! - A component contains no path of the machine it was built on, and is byte for byte the same
//!   wherever it is built.

#![forbid(unsafe_code)]

mod project;
mod remap;
mod sysroot;

pub use project::Project;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that every guest is built for.
pub const WASM: &str = "wasm32-unknown-unknown";

/// The stack of the plugins that come with Lucid, in bytes. It is the beginning of a guest's memory, which the
/// host cleans after each call, and the rest of which it gives back: what such a plugin uses is in that beginning.
const STACK: usize = 128 << 10;

/// The variable from which cargo takes flags for guests.
const FLAGS: &str = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS";

/// The reason why a guest could not be built. The text is for the person who runs cargo.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Builds guests of one cargo workspace, in a target folder beside the outer build's own.
pub struct Builder {
    workspace: PathBuf,
    target: PathBuf,
}

impl Builder {
    /// A builder for the build script of a crate in `workspace`. `OUT_DIR` gives the outer build's
    /// folder.
    pub fn new(workspace: impl Into<PathBuf>) -> Result<Self, Error> {
        let workspace = workspace.into().canonicalize()?;
        let out = PathBuf::from(std::env::var("OUT_DIR")?);
        // OUT_DIR is <target>/<profile>/build/<crate>-<hash>/out. The nested build shares <target>
        // but not its lock, so it has a folder of its own.
        let target = out
            .ancestors()
            .nth(4)
            .ok_or("OUT_DIR is not below a target folder")?;
        Ok(Self {
            workspace,
            target: target.to_path_buf(),
        })
    }

    /// Builds `package` as a component. Returns the component's bytes.
    pub fn component(&self, package: &str) -> Result<Vec<u8>, Error> {
        let std = sysroot::find(&self.target, &|text| {
            println!("cargo::warning=guests: {text}");
        })?;
        let mut cargo = self.cargo(package, WASM);
        cargo.arg("--lib");
        let flags = flags(std.as_deref(), &self.workspace, &self.target);
        cargo.env(FLAGS, format!("{flags} -Clink-arg=-zstack-size={STACK}"));
        run(&mut cargo, package)?;
        let file = format!("{}.wasm", package.replace('-', "_"));
        encode(&std::fs::read(
            self.guests().join(WASM).join("guest").join(file),
        )?)
    }

    /// Builds the binary of `package` for this machine, linked statically so that it runs in any
    /// root file system. Returns its bytes.
    pub fn static_binary(&self, package: &str) -> Result<Vec<u8>, Error> {
        let host = std::env::var("TARGET")?;
        let mut cargo = self.cargo(package, &host);
        let flags = format!(
            "CARGO_TARGET_{}_RUSTFLAGS",
            host.to_uppercase().replace('-', "_")
        );
        cargo.args(["--bin", package]).env(
            flags,
            "-Ctarget-feature=+crt-static -Crelocation-model=static",
        );
        run(&mut cargo, package)?;
        Ok(std::fs::read(
            self.guests().join(host).join("guest").join(package),
        )?)
    }

    /// Tells cargo to rerun the build script when anything below these folders of the workspace
    /// changes, and only then.
    pub fn watch(&self, folders: &[&str]) {
        for folder in folders {
            println!(
                "cargo::rerun-if-changed={}",
                self.workspace.join(folder).display()
            );
        }
        // The guests' profile is in the one, and what they are made of in the other.
        for file in ["Cargo.toml", "Cargo.lock"] {
            println!(
                "cargo::rerun-if-changed={}",
                self.workspace.join(file).display()
            );
        }
        println!("cargo::rerun-if-env-changed={}", sysroot::CHOICE);
    }

    fn guests(&self) -> PathBuf {
        self.target.join("guests")
    }

    fn cargo(&self, package: &str, target: &str) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // The outer cargo's variables for its own build (flags, clippy wrapper, features) are not
        // for the nested one.
        for (name, _) in std::env::vars() {
            let kept = matches!(
                name.as_str(),
                "CARGO_HOME"
                    | "CARGO_NET_OFFLINE"
                    | "CARGO_HTTP_CAINFO"
                    | "RUSTUP_HOME"
                    | "RUSTUP_TOOLCHAIN"
            ) || name.starts_with("CARGO_REGISTRIES_")
                || name.starts_with("CARGO_SOURCE_");
            if !kept && (name.starts_with("CARGO") || name.starts_with("RUST") || name == "TARGET")
            {
                cargo.env_remove(name);
            }
        }
        cargo
            .current_dir(&self.workspace)
            .args([
                "build",
                "--quiet",
                "--locked",
                "--profile",
                "guest",
                "--package",
                package,
            ])
            .args(["--target", target])
            .arg("--target-dir")
            .arg(self.guests());
        cargo
    }
}

/// The compiler flags of guests: the standard library, and the remapped folders.
fn flags(sysroot: Option<&Path>, project: &Path, target: &Path) -> String {
    let mut folders = Vec::new();
    let mut all = String::new();
    if let Some(sysroot) = sysroot {
        all = format!("--sysroot={} ", sysroot.display());
        folders.push((sysroot, "/rustc"));
    }
    // Files from build scripts are below the target folder, which may be in the project or
    // elsewhere.
    folders.extend([(project, "/project"), (target, "/target")]);
    all + &remap::flags(folders)
}

/// The workspace's root, from the folder of a crate that is `up` levels below it.
pub fn workspace_root(up: usize) -> Result<PathBuf, Error> {
    let here = std::env::var("CARGO_MANIFEST_DIR")?;
    Ok(Path::new(&here)
        .ancestors()
        .nth(up)
        .ok_or("no workspace above this crate")?
        .to_path_buf())
}

/// Converts a core module with the WIT bindings linked in to a component.
fn encode(module: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(wit_component::ComponentEncoder::default()
        .validate(true)
        .module(module)?
        .encode()?)
}

fn run(command: &mut Command, what: &str) -> Result<(), Error> {
    let output = command
        .output()
        .map_err(|e| format!("cargo could not be started for {what}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{what} did not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}
