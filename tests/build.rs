//! Builds the hostile guest, which the harness embeds.

use std::path::PathBuf;

use lucid_guest_build::{Builder, Error, workspace_root};

fn main() -> Result<(), Error> {
    let builder = Builder::new(workspace_root(1)?)?;
    builder.watch(&["plugins/build", "plugins/sdk", "tests/guests", "wit"]);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("hostile.wasm"),
        builder.component("lucid-hostile")?,
    )?;
    Ok(())
}
