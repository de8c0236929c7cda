//! Builds the default plugins, and compiles them to native code for the target of this build, so that the
//! first start of a server compiles nothing.

use std::fs::File;
use std::path::PathBuf;

use lucid_guest_build::{Builder, Error, workspace_root};
use lucid_precompiled::CompiledCode;

/// A default plugin above this size is a mistake: every one is copied into the binary.
const MOST: usize = 400 * 1024;

const PLUGINS: [&str; 7] = [
    "mock",
    "coder",
    "anthropic",
    "google",
    "openai",
    "github",
    "gitlab",
];

fn main() -> Result<(), Error> {
    let builder = Builder::new(workspace_root(2)?)?;
    let folders = PLUGINS.map(|name| format!("plugins/{name}"));
    let mut watched = vec!["plugins/build", "plugins/sdk", "wit"];
    watched.extend(folders.iter().map(String::as_str));
    builder.watch(&watched);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let target = std::env::var("TARGET")?;
    for name in PLUGINS {
        let component = builder.component(&format!("lucid-{name}"))?;
        if component.len() > MOST {
            return Err(format!(
                "plugins/{name} is {} bytes; at most {MOST} are allowed",
                component.len()
            )
            .into());
        }
        let code = out.join(format!("{name}.cwasm"));
        match CompiledCode::compile_for(&target, &component) {
            Ok(compiled) => compiled.write(File::create(code)?)?,
            Err(error) => {
                println!(
                    "cargo::warning=plugins/{name} is not compiled for {target}, so servers do it when they start: {error:#}"
                );
                std::fs::write(code, [])?;
            }
        }
        std::fs::write(out.join(format!("{name}.wasm")), component)?;
    }
    Ok(())
}
