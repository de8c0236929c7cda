//! `lucid plugin`: the toolkit for plugin authors, and the operator's commands for a server's
//! plugins.
//!
//! # Invariants
//!
//! - No command of the toolkit needs a server or a setting, except `replay`, which reads a server's
//!   log.
//! - A plugin is held to the same rules here as by the host.
//! - The exit code is 0 for success, 1 for a build or a check that failed, 2 for a wrong command
//!   line.

mod admin;
mod build;
mod check;
mod dev;
mod error;
mod new;
mod replay;
mod report;
mod scaffold;
mod shadow;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use self::error::ComponentError;
use super::{WRONG, failed, wrong};
use crate::builtin;
use crate::cli::report::{Severity, is_json, print_message};
use crate::config::Config;
use lucid_wasm::{Compiler, Engine, EngineError, EngineOptions, PluginKind};

/// What a plugin's author does.
#[derive(Debug, Args)]
pub(super) struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// Write a new project, in a folder of its name
    New(NewArgs),
    /// Build a project to one component, NAME.wasm
    Build(FolderArgs),
    /// Hold a component to all that the host holds it to, and show what it uses
    Check(CheckArgs),
    /// Build and check whenever a file is saved
    Dev(FolderArgs),
    /// Put a recorded session's inputs through a policy, and compare its commands
    Replay(ReplayArgs),
    /// Show a server's plugins: builds, sessions, figures, uploads, the last error
    List(admin::ServerArgs),
    /// Send a component to a server, which keeps it
    Upload(admin::UploadArgs),
    /// Put a server's last sessions through an uploaded build of a policy, and show what it would have
    /// done differently
    Shadow(shadow::ShadowArgs),
    /// Let a server's new sessions run on an uploaded build
    Activate(admin::ActivateArgs),
    /// Go back to the build before, or to what the manifest names
    Rollback(admin::RollbackArgs),
    /// Let a server load its manifest and all components again
    Reload(admin::ServerArgs),
}

#[derive(Debug, Args)]
struct NewArgs {
    /// Lower-case letters, digits and hyphens
    name: String,
    /// What it is for
    #[arg(long, value_enum)]
    kind: KindArg,
    /// What it is written in
    #[arg(long, value_enum, default_value_t = Lang::Rust)]
    lang: Lang,
}

#[derive(Debug, Args)]
struct FolderArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    folder: PathBuf,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The component
    file: PathBuf,
    /// What it is for; without, what it exports says so
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// Its settings, a JSON object
    #[arg(long, default_value = "{}")]
    settings: String,
    /// A folder of recorded answers of an adapter's provider (NAME.sse, NAME.whole.json); without,
    /// tests/recorded beside the component
    #[arg(long, value_name = "FOLDER")]
    recorded: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// The component
    file: PathBuf,
    /// The session's id
    #[arg(long)]
    session: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArg {
    /// An agent
    Policy,
    /// A model provider's API
    Llm,
    /// Tools for agents
    Tools,
    /// A git provider's API
    Git,
}

impl From<KindArg> for PluginKind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Policy => Self::Policy,
            KindArg::Llm => Self::Llm,
            KindArg::Tools => Self::Tools,
            KindArg::Git => Self::Git,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lang {
    Rust,
    Javascript,
    Python,
}

/// Runs the command.
pub(super) fn main(args: PluginArgs) -> ExitCode {
    // A plugin's own log lines are for its author.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off")),
        )
        .with_writer(std::io::stderr);
    let _ = if is_json() {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return failed(&format!(
                "The threads for the work could not be started: {error}."
            ));
        }
    };
    match args.command {
        PluginCommand::New(args) => new::new(&args),
        PluginCommand::Build(args) => build::main(&args.folder),
        PluginCommand::Check(args) => runtime.block_on(check::main(&args)),
        PluginCommand::Dev(args) => runtime.block_on(dev::dev(&args.folder)),
        PluginCommand::List(args) => runtime.block_on(admin::list(&args)),
        PluginCommand::Upload(args) => runtime.block_on(admin::upload(&args)),
        PluginCommand::Shadow(args) => runtime.block_on(shadow::shadow(&args)),
        PluginCommand::Activate(args) => runtime.block_on(admin::activate(&args)),
        PluginCommand::Rollback(args) => runtime.block_on(admin::rollback(&args)),
        PluginCommand::Reload(args) => runtime.block_on(admin::reload(&args)),
        PluginCommand::Replay(args) => match Config::load() {
            Ok(config) => runtime.block_on(replay::replay(&config, &args)),
            Err(error) => wrong(&error),
        },
    }
}

/// The cache folder shared by all of an author's projects. `None` if there is no home folder.
fn cache() -> Option<PathBuf> {
    let own = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let own = own.filter(|path| path.is_absolute());
    let cache = own.or_else(|| Some(std::env::home_dir()?.join(".cache")));
    cache.map(|cache| cache.join("lucid"))
}

/// An engine for one plugin at a time. It caches what it compiled, since a component that embeds a
/// language's runtime takes many seconds.
fn engine() -> Result<Engine, ComponentError> {
    let compiled = cache().map(|cache| cache.join("compiled"));
    let options = |cache: Option<PathBuf>| EngineOptions {
        cache,
        cache_bytes: 512 << 20,
        calls: 2,
        streams: 2,
        compiler: Compiler::lucid(),
        embedded: &builtin::EMBEDDED,
        ..EngineOptions::default()
    };
    let kept = Engine::new(options(compiled));
    let engine = match kept {
        // Without a usable cache it only takes longer.
        Err(EngineError::Cache(_)) => Engine::new(options(None)),
        other => other,
    };
    Ok(engine?)
}

/// A component's bytes, up to the size that a host would read.
fn component(file: &Path) -> Result<Vec<u8>, ComponentError> {
    let most = EngineOptions::default().largest_component as u64;
    let path = || file.to_owned();
    let unread = |source| ComponentError::Read {
        path: path(),
        source,
    };
    let data = std::fs::metadata(file).map_err(unread)?;
    if !data.is_file() {
        return Err(ComponentError::NoFile(path()));
    }
    if data.len() > most {
        return Err(ComponentError::TooLarge {
            path: path(),
            size: data.len(),
            most,
        });
    }
    std::fs::read(file).map_err(unread)
}

/// Prints why a command was refused.
fn refused(sentence: &str) -> ExitCode {
    print_message(Severity::Error, sentence);
    ExitCode::from(WRONG)
}
