//! `lucid plugin list`, `upload`, `activate`, `rollback` and `reload`: administration of a running
//! server's plugins.
//!
//! # Invariants
//!
//! - A token signed on this machine is sent to this machine only. A token for another server comes
//!   from the environment, since other users can read a command line.
//! - A server's response cannot move the cursor.

mod client;
mod offline;
mod render;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(super) use self::client::{AdminClient, read};
use self::offline::roll_back_offline;
use self::render::{changed, last_error, listed, uploaded};
use super::error::ServerError;
use super::{KindArg, component};
use crate::api::plugins::{Activate, ReloadedView, UploadedView};
use crate::cli::failed;
use crate::cli::render::strip_controls;
use lucid_types::sentence::sentence;
use lucid_wasm::PluginKind;

/// Which server.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Where it listens, such as `https://lucid.example.org`; without, the server of these settings on
    /// this machine. For another one LUCID_TOKEN holds an administrator's token
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct UploadArgs {
    /// The component
    file: PathBuf,
    /// Activate it at once, in place of the plugin of this name
    #[arg(long, value_name = "NAME")]
    activate: Option<String>,
    /// The name is a new one: add a policy
    #[arg(long, requires = "activate")]
    new: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ActivateArgs {
    /// What it is for
    #[arg(value_enum)]
    kind: KindArg,
    /// The plugin's name in the deployment
    name: String,
    /// What the upload was answered with, with or without `sha256:`
    digest: String,
    /// Give it so many of a hundred new sessions, beside the active build; 1 to 99, of a policy only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=99))]
    share: Option<u8>,
    /// The name is a new one: add a policy
    #[arg(long)]
    new: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// What it is for
    #[arg(value_enum)]
    kind: KindArg,
    /// The plugin's name in the deployment
    name: String,
    /// Without asking a server: it does so at its next start, or when it notices
    #[arg(long, conflicts_with_all = ["server", "json"])]
    offline: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Lists the plugins.
pub(super) async fn list(args: &ServerArgs) -> ExitCode {
    let answer = async {
        let server = AdminClient::find(args)?;
        server.ask(Method::GET, &[]).await
    };
    print_result(args, answer.await, listed)
}

/// Uploads a component, and activates it if that is wanted.
pub(super) async fn upload(args: &UploadArgs) -> ExitCode {
    let answer = async {
        let wasm = component(&args.file)?;
        let server = AdminClient::find(&args.server)?;
        let kept = server.upload(wasm).await?;
        Ok((server, kept))
    };
    let (server, kept) = match answer.await {
        Ok(answered) => answered,
        Err(why) => return refused(&why),
    };
    let Some(name) = &args.activate else {
        return print_result(&args.server, Ok(kept), uploaded);
    };
    let answer = async {
        let kept: UploadedView = read(&kept)?;
        if !args.server.json {
            out!("{}", strip_controls(&uploaded(&kept)));
        }
        let wanted = Activate {
            digest: kept.digest,
            share: None,
            new: args.new,
        };
        server.activate(&kept.kind, name, &wanted).await
    };
    print_result(&args.server, answer.await, changed)
}

/// Activates a build.
pub(super) async fn activate(args: &ActivateArgs) -> ExitCode {
    let answer = async {
        let server = AdminClient::find(&args.server)?;
        let kind = PluginKind::from(args.kind).to_string();
        let wanted = Activate {
            digest: args.digest.clone(),
            share: args.share,
            new: args.new,
        };
        server.activate(&kind, &args.name, &wanted).await
    };
    print_result(&args.server, answer.await, changed)
}

/// Rolls back the active build.
pub(super) async fn rollback(args: &RollbackArgs) -> ExitCode {
    let kind = PluginKind::from(args.kind);
    if args.offline {
        return match roll_back_offline(kind, &args.name) {
            Ok(text) => {
                out!("{text}");
                ExitCode::SUCCESS
            }
            Err(why) => refused(&why),
        };
    }
    let answer = async {
        let server = AdminClient::find(&args.server)?;
        let kind = kind.to_string();
        server
            .post(&[&kind, &args.name, "rollback"], &json!({}))
            .await
    };
    print_result(&args.server, answer.await, changed)
}

/// Reloads everything.
pub(super) async fn reload(args: &ServerArgs) -> ExitCode {
    let answer = async {
        let server = AdminClient::find(args)?;
        server.post(&["reload"], &json!({})).await
    };
    print_result(args, answer.await, |answer: &ReloadedView| {
        let holds = format!("Generation {} holds.\n", answer.generation);
        holds + &last_error(answer.last_error.as_ref())
    })
}

/// Prints why a command had no success.
pub(super) fn refused(why: &ServerError) -> ExitCode {
    failed(&sentence(why))
}

fn print_result<T: DeserializeOwned>(
    args: &ServerArgs,
    answer: Result<Value, ServerError>,
    show: impl Fn(&T) -> String,
) -> ExitCode {
    let text = match answer {
        Ok(answer) if args.json => {
            outln!("{answer}");
            return ExitCode::SUCCESS;
        }
        Ok(answer) => read(&answer).map(|answer| show(&answer)),
        Err(why) => Err(why),
    };
    match text {
        Ok(text) => out!("{}", strip_controls(&text)),
        Err(why) => return refused(&why),
    }
    ExitCode::SUCCESS
}
