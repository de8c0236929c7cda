//! `lucid plugin check`: tests a component before it is deployed.
//!
//! # Invariants
//!
//! - The component is admitted and called as by a host, with the limits of a deployment that sets
//!   none.
//! - Nothing it requests is carried out.

mod git;
mod llm;
mod policy;
#[cfg(test)]
mod tests;
mod tools;
mod violation;

use std::path::Path;
use std::process::ExitCode;

use super::report::CheckReport;
use super::{CheckArgs, component, engine, refused};
use crate::cli::failed;
use crate::manifest::settings_fit;
use lucid_types::digest::Digest;
use lucid_types::sentence::sentence;
use lucid_wasm::{AnyPlugin, AnyPluginError, Plugin, PluginLimits};

/// Checks a component, and prints the findings.
pub(super) async fn main(args: &CheckArgs) -> ExitCode {
    let settings = match serde_json::from_str::<serde_json::Value>(&args.settings) {
        Ok(serde_json::Value::Object(settings)) => settings,
        _ => return refused("--settings must be a JSON object, such as '{\"name\": \"value\"}'."),
    };
    let wasm = match component(&args.file) {
        Ok(wasm) => wasm,
        Err(why) => return failed(&sentence(why)),
    };
    let engine = match engine() {
        Ok(engine) => engine,
        Err(why) => return failed(&sentence(why)),
    };
    let mut report = CheckReport::new();
    let digest = Digest::of(&wasm);
    report.title(&format!(
        "{}, {} KB, sha256:{digest}",
        args.file.display(),
        wasm.len().div_ceil(1024)
    ));
    let name = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let limits = PluginLimits::default();
    let admitted = match args.kind {
        Some(kind) => {
            let loaded = AnyPlugin::load_as(&engine, kind.into(), &name, &wasm, &limits);
            loaded.await.map_err(AnyPluginError::from)
        }
        None => AnyPlugin::load(&engine, &name, &wasm, &limits).await,
    };
    let plugin = match admitted {
        Ok(plugin) => plugin,
        Err(error) => {
            let what = match error {
                AnyPluginError::NoKind => "kind",
                AnyPluginError::Load(_) => "admission",
            };
            report.fail(what, &error.to_string());
            return report.exit_code();
        }
    };
    report.pass(
        "admission",
        &format!(
            "kind {}; it imports nothing that it is not given",
            plugin.kind()
        ),
    );
    let says = (plugin.own_name(), plugin.version(), plugin.description());
    report.pass("describe", &format!("{} {}: {}", says.0, says.1, says.2));
    match plugin.settings_schema() {
        None => report.note(
            "settings",
            "it gives no schema, so a wrong setting in a manifest is not found before it is used",
        ),
        Some(schema) => report.result(
            "settings",
            settings_fit(schema, &settings).map(|()| format!("its schema takes {}", args.settings)),
        ),
    }
    match &plugin {
        AnyPlugin::Policy(plugin) => policy::check(&mut report, plugin, &args.settings).await,
        AnyPlugin::Llm(plugin) => {
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
        }
        AnyPlugin::Git(plugin) => git::check(&mut report, plugin, &args.settings).await,
        AnyPlugin::Tools(plugin) => tools::check(&mut report, plugin, &args.settings).await,
    }
    report.figures(&plugin.figures(), plugin.limits());
    report.exit_code()
}
