//! Builds the default plugins and the exec server, and writes them where `builtin.rs` embeds them:
//! one binary holds all that a first run needs. What `lucid plugin new` writes goes in as well.

#[path = "build/kit.rs"]
mod kit;

use std::path::PathBuf;

use lucid_guest_build::{Builder, Error, workspace_root};

/// A default plugin above this size is a mistake: every one is copied into the binary.
const MOST: usize = 400 * 1024;

fn main() -> Result<(), Error> {
    let builder = Builder::new(workspace_root(1)?)?;
    builder.watch(&[
        "plugins/build",
        "plugins/sdk",
        "plugins/mock",
        "plugins/coder",
        "plugins/anthropic",
        "plugins/google",
        "plugins/openai",
        "plugins/github",
        "plugins/gitlab",
        "sandbox-image/exec",
        "plugins/templates",
        "wit",
    ]);
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    kit::write(&workspace_root(1)?, &out.join("kit.rs"))?;
    for name in [
        "mock",
        "coder",
        "anthropic",
        "google",
        "openai",
        "github",
        "gitlab",
    ] {
        let component = builder.component(&format!("lucid-{name}"))?;
        if component.len() > MOST {
            return Err(format!(
                "plugins/{name} is {} bytes; at most {MOST} are allowed",
                component.len()
            )
            .into());
        }
        std::fs::write(out.join(format!("{name}.wasm")), component)?;
    }
    std::fs::write(out.join("lucid-exec"), builder.static_binary("lucid-exec")?)?;
    Ok(())
}
