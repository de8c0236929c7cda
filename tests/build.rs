//! Builds the guests and the exec server, which the harness embeds.

use std::path::PathBuf;

use lucid_guest_build::{Builder, Error, workspace_root};

fn main() -> Result<(), Error> {
    let builder = Builder::new(workspace_root(1)?)?;
    builder.watch(&[
        "plugins/build",
        "plugins/sdk",
        "sandbox-image/exec",
        "tests/guests",
        "wit",
    ]);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("lucid-exec"), builder.static_binary("lucid-exec")?)?;
    for name in ["hostile", "counting", "tooling", "exchanging"] {
        let component = builder.component(&format!("lucid-{name}"))?;
        std::fs::write(out.join(format!("{name}.wasm")), component)?;
    }
    Ok(())
}
