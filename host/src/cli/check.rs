//! `lucid check`: validates a manifest and the environment before a server is started with them.
//!
//! # Invariants
//!
//! - Nothing is served and no database is opened, so it can run beside a server.
//! - Each problem is a line on stderr, with exit code 2. The summary goes to stdout.

use std::path::PathBuf;
use std::process::ExitCode;

use super::doctor::token_ways;
use super::not_started;
use super::render::one_line;
use super::report::{Severity, print_message};
use crate::config::Config;
use crate::server::{self, DataDirs};
use lucid_store::blobs::Blobs;

/// Loads the deployment and describes it.
pub(super) async fn check(mut config: Config, file: Option<PathBuf>) -> ExitCode {
    if file.is_some() {
        config.manifest = file;
    }
    let folders = DataDirs::under(&config.workspace_base_path);
    // No model is called, so there are no files.
    let blobs = Blobs::new(&config.workspace_base_path);
    let deployed = match Box::pin(server::deploy(&config, &folders, blobs)).await {
        Ok(deployed) => deployed,
        Err(error) => return not_started(&error),
    };
    for warning in config.notes().iter().chain(&deployed.warnings) {
        print_message(Severity::Warn, &format!("warning: {warning}"));
    }
    match &deployed.manifest.path {
        Some(path) => outln!("{} is fine.", one_line(&path.display().to_string())),
        None => outln!("There is no manifest: the built-in plugins, and the environment."),
    }
    outln!("Users: {}.", one_line(&token_ways(&config)));
    for plugin in deployed.plugins.list() {
        outln!(
            "  {:<7} {:<16} {:<8} sha256:{}",
            plugin.kind.to_string(),
            plugin.name,
            plugin.version,
            plugin.digest
        );
    }
    let providers = deployed.providers();
    outln!("Model providers:");
    for provider in &providers {
        outln!("  {}", one_line(&provider.to_string()));
    }
    let (policy, _) = deployed.defaults();
    if let Some(default) = providers.first()
        && deployed.default_calls_models()
        && !default.is_usable
    {
        let missing = format!(
            "warning: a session that names none gets the policy {policy}, which asks the provider {}, and that has no key: set {}, or `key = false` in its entry where its server wants none.",
            default.name, default.variable
        );
        print_message(Severity::Warn, &missing);
    }
    let (gets, _) = deployed.describe_defaults();
    outln!("{}.", one_line(&gets).replacen('a', "A", 1));
    ExitCode::SUCCESS
}
