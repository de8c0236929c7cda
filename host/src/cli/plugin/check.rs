//! Owns `lucid plugin check`: a component before a host takes it.
//!
//! What always holds: it is let in as a host lets it in, and called as a host calls it, with the
//! limits of a deployment that sets none. Nothing it asks for is carried out.

mod llm;
mod policy;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::ExitCode;

use sha2::{Digest, Sha256};

use super::report::Report;
use super::{CheckArgs, KindArg, component, engine, refused};
use crate::cli::failed;
use crate::deployment::settings_fit;
use crate::plugins::{Kind, Limits, LlmPlugin, LoadError, PolicyPlugin};

/// A plugin that was let in.
enum Admitted {
    Policy(PolicyPlugin),
    Llm(LlmPlugin),
}

/// Checks it, and prints what was found.
pub(super) async fn main(args: &CheckArgs) -> ExitCode {
    let settings = match serde_json::from_str::<serde_json::Value>(&args.settings) {
        Ok(serde_json::Value::Object(settings)) => settings,
        _ => return refused("--settings must be a JSON object, such as '{\"name\": \"value\"}'."),
    };
    let wasm = match component(&args.file) {
        Ok(wasm) => wasm,
        Err(why) => return failed(&why),
    };
    let engine = match engine() {
        Ok(engine) => engine,
        Err(why) => return failed(&why),
    };
    let mut report = Report::new();
    let digest: String = Sha256::digest(&wasm)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    report.title(&format!(
        "{}, {} KB, sha256:{digest}",
        args.file.display(),
        wasm.len().div_ceil(1024)
    ));
    let name = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let limits = Limits::default();
    let admitted = match args.kind {
        Some(KindArg::Policy) => load_policy(&engine, &name, &wasm, &limits).await,
        Some(KindArg::Llm) => load_llm(&engine, &name, &wasm, &limits).await,
        None => match load_policy(&engine, &name, &wasm, &limits).await {
            Err(LoadError::MissingExport { .. }) => {
                match load_llm(&engine, &name, &wasm, &limits).await {
                    Err(LoadError::MissingExport { .. }) => {
                        report.bad(
                            "kind",
                            "it exports neither lucid:policy/policy@0.1.0 nor lucid:llm/provider@0.1.0, so it is no plugin: end the crate in `export_policy!` or `export_llm!`",
                        );
                        return report.exit_code();
                    }
                    other => other,
                }
            }
            other => other,
        },
    };
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            report.bad("admission", &error.to_string());
            return report.exit_code();
        }
    };
    let (kind, says, version, about, schema) = match &admitted {
        Admitted::Policy(plugin) => {
            let said = plugin.descriptor();
            (
                Kind::Policy,
                &said.name,
                &said.version,
                &said.description,
                &said.settings_schema,
            )
        }
        Admitted::Llm(plugin) => {
            let said = plugin.descriptor();
            (
                Kind::Llm,
                &said.name,
                &said.version,
                &said.description,
                &said.settings_schema,
            )
        }
    };
    report.good(
        "admission",
        &format!("kind {kind}; it imports nothing that it is not given"),
    );
    report.good("describe", &format!("{says} {version}: {about}"));
    match schema {
        None => report.note(
            "settings",
            "it gives no schema, so a wrong setting in a manifest is not found before it is used",
        ),
        Some(schema) => report.result(
            "settings",
            settings_fit(schema, &settings).map(|()| format!("its schema takes {}", args.settings)),
        ),
    }
    match &admitted {
        Admitted::Policy(plugin) => {
            policy::check(&mut report, plugin, &args.settings).await;
            report.figures(&plugin.figures(), plugin.limits());
        }
        Admitted::Llm(plugin) => {
            let beside = args
                .file
                .parent()
                .unwrap_or(Path::new(""))
                .join("tests/recorded");
            let recorded = args
                .recorded
                .clone()
                .or_else(|| beside.is_dir().then_some(beside));
            llm::check(&mut report, plugin, &args.settings, recorded.as_deref()).await;
            report.figures(&plugin.figures(), plugin.limits());
        }
    }
    report.exit_code()
}

async fn load_policy(
    engine: &crate::plugins::Engine,
    name: &str,
    wasm: &[u8],
    limits: &Limits,
) -> Result<Admitted, LoadError> {
    let loaded = Box::pin(PolicyPlugin::load(engine, name, wasm, limits)).await;
    loaded.map(Admitted::Policy)
}

async fn load_llm(
    engine: &crate::plugins::Engine,
    name: &str,
    wasm: &[u8],
    limits: &Limits,
) -> Result<Admitted, LoadError> {
    let loaded = Box::pin(LlmPlugin::load(engine, name, wasm, limits)).await;
    loaded.map(Admitted::Llm)
}
