//! Builds the exec server, and writes it where `builtin.rs` embeds it: one binary holds all that a first
//! run needs. What `lucid plugin new` writes goes in as well.

#[path = "build/kit.rs"]
mod kit;

use std::path::PathBuf;

use lucid_guest_build::{Builder, Error, workspace_root};

fn main() -> Result<(), Error> {
    let workspace = workspace_root(1)?;
    let builder = Builder::new(&workspace)?;
    builder.watch(&[
        "plugins/build",
        "plugins/sdk",
        "plugins/templates",
        "sandbox-image/exec",
        "wit",
    ]);
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    kit::write(&workspace, &out.join("kit.rs"))?;
    std::fs::write(out.join("lucid-exec"), builder.static_binary("lucid-exec")?)?;
    Ok(())
}
