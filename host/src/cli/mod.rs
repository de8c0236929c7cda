//! The command line: its arguments, and the exit codes.
//!
//! # Invariants
//!
//! - The exit code is 0 for success, 1 for a task or a start that failed, 2 for a wrong command
//!   line or setting, 3 for a task that asked a question nobody answered.
//! - An error is a sentence on stderr. Results go to stdout and the log goes to stderr.

/// Prints to stdout, and does not panic if the reader is gone or the disk is full: `report` keeps
/// the error.
macro_rules! out {
    ($($words:tt)*) => {
        $crate::cli::report::print(format_args!($($words)*))
    };
}

/// `out!` with a line break.
macro_rules! outln {
    () => { out!("\n") };
    ($($words:tt)*) => {
        out!("{}\n", format_args!($($words)*))
    };
}

/// Prints to stderr, which may be closed.
macro_rules! err {
    ($($words:tt)*) => {
        $crate::cli::report::complain(format_args!($($words)*))
    };
}

/// `err!` with a line break.
macro_rules! errln {
    () => { err!("\n") };
    ($($words:tt)*) => {
        err!("{}\n", format_args!($($words)*))
    };
}

mod answers;
mod check;
mod core_dump;
mod descriptors;
mod doctor;
mod plugin;
mod render;
mod report;
mod run;
mod serve;
mod signals;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use self::report::{Severity, print_message};
use self::signals::interrupted;
use crate::auth::{Authenticator, IssueError};
use crate::config::{Config, ConfigError, LogFormat};
use crate::manifest::{self, ManifestProblems};
use crate::server::{ResumeMode, StartError};
use lucid_types::sentence::full_stop;
use lucid_types::user::UserId;
use lucid_wasm::LOG_TARGET;

/// A server that runs AI coding agents for many users.
#[derive(Debug, Parser)]
#[command(
    name = "lucid",
    version,
    about,
    after_help = "Settings are read from the environment and from .env."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients over HTTP and WebSocket (the default)
    Serve(ServeArgs),
    /// Work on one task here, without a server, and show what happens
    Run(RunArgs),
    /// Print a token for a user
    Token(TokenArgs),
    /// Say what was found on this machine, and what to do about what is missing
    Doctor,
    /// Read a deployment's manifest, load all of it, and say what is wrong
    Check(CheckArgs),
    /// Write, build and check plugins of your own
    Plugin(plugin::PluginArgs),
    /// Print an example of a manifest, or its schema for editors
    Manifest(ManifestArgs),
    /// Compile the component on standard input, for a server that keeps its distance from compilers
    #[command(hide = true)]
    CompileComponent(CompileArgs),
}

#[derive(Debug, Args)]
struct CompileArgs {
    /// Memory for it, in bytes
    memory: u64,
    /// Processor time for it, in seconds
    seconds: u64,
}

/// What becomes of the sessions of the last run.
#[derive(Debug, Default, Args)]
struct ServeArgs {
    /// Leave them until their users come back
    #[arg(long, conflicts_with = "resume")]
    no_resume: bool,
    /// Go on with them, also where the database comes from another machine or folder
    #[arg(long)]
    resume: bool,
}

impl ServeArgs {
    fn resume(&self) -> ResumeMode {
        match (self.resume, self.no_resume) {
            (true, _) => ResumeMode::All,
            (false, true) => ResumeMode::None,
            (false, false) => ResumeMode::Default,
        }
    }
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The manifest, in place of LUCID_MANIFEST
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ManifestArgs {
    /// Which of them
    what: ManifestText,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ManifestText {
    /// Every field and its reason
    Example,
    /// The JSON schema
    Schema,
}

/// One task, in the terminal.
#[derive(Debug, Args)]
#[command(
    after_help = "What the agent asks is answered here: by typing, or by lines of standard input, one for each question.\nExit codes: 0 the task succeeded, 1 it failed, 2 a wrong command line or setting, 3 the agent asked something and standard input had no answer."
)]
struct RunArgs {
    /// What to do
    task: String,
    /// A repository to clone into the workspace
    #[arg(long, value_name = "URL")]
    repo: Option<String>,
    /// The branch to check out
    #[arg(long, requires = "repo")]
    branch: Option<String>,
    /// The model, in place of LLM_MODEL
    #[arg(long)]
    model: Option<String>,
    /// The model's provider, in place of DEFAULT_MODEL_PROVIDER
    #[arg(long)]
    provider: Option<String>,
    /// The policy, in place of DEFAULT_POLICY
    #[arg(long)]
    policy: Option<String>,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// The user's id
    #[arg(long)]
    user: String,
    /// How long it is good for
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The user may also change the deployment: upload plugins, activate and roll back
    #[arg(long)]
    admin: bool,
}

impl ManifestText {
    fn text(self) -> &'static str {
        match self {
            Self::Example => manifest::EXAMPLE,
            Self::Schema => manifest::SCHEMA,
        }
    }
}

const DAY: u64 = 24 * 60 * 60;

/// How long threads that are still running may take at the end.
const LAST_THREADS: Duration = Duration::from_millis(500);

/// The exit code for a wrong setting or command line.
const WRONG: u8 = 2;
/// The exit code for a task that asked a question nobody answered.
const UNANSWERED: u8 = 3;

/// Runs the requested command.
pub fn main() -> ExitCode {
    // Before a key is read.
    core_dump::forbid();
    // Before anything is opened.
    descriptors::raise_limit();
    report::begin();
    let code = execute();
    // The requested output is incomplete.
    match report::print_error() {
        Some(cause) if code == ExitCode::SUCCESS => {
            failed(&format!("The result could not be printed: {cause}."))
        }
        _ => code,
    }
}

fn execute() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(parsed) => parsed
            .command
            .unwrap_or_else(|| Command::Serve(ServeArgs::default())),
        Err(error) => return report::usage(&error),
    };
    if let Command::Manifest(args) = &command {
        out!("{}", args.what.text());
        return ExitCode::SUCCESS;
    }
    if let Command::CompileComponent(args) = &command {
        return lucid_wasm::compile_stdin(args.memory, args.seconds);
    }
    if let Command::Plugin(args) = command {
        return plugin::main(args);
    }
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    log(
        &config,
        if matches!(command, Command::Serve(_)) {
            "info"
        } else {
            "warn"
        },
    );
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
    let code = match command {
        Command::Serve(args) => runtime.block_on(serve::serve(config, args.resume())),
        Command::Run(args) => runtime.block_on(run::run(config, args)),
        Command::Token(args) => token(&config, &args),
        Command::Doctor => runtime.block_on(doctor::doctor(config)),
        Command::Check(args) => runtime.block_on(check::check(config, args.file)),
        // These were done before anything else could fail.
        Command::Manifest(_) | Command::Plugin(_) | Command::CompileComponent(_) => {
            ExitCode::SUCCESS
        }
    };
    // A thread that waits for a file system would otherwise block the exit.
    runtime.shutdown_timeout(LAST_THREADS);
    code
}

fn token(config: &Config, args: &TokenArgs) -> ExitCode {
    let keys = match config.keys() {
        Ok(keys) => keys,
        Err(error) => return wrong(&error),
    };
    let auth = Authenticator::new(keys.jwt.as_ref(), None)
        .expecting(&config.jwt_audiences, config.jwt_issuer.as_deref());
    let user = UserId::from(args.user.as_str());
    let ttl = Duration::from_secs(u64::from(args.days) * DAY);
    let issued = if args.admin {
        auth.issue_admin(&user, ttl)
    } else {
        auth.issue(&user, ttl)
    };
    match issued {
        Ok(token) => {
            outln!("{token}");
            ExitCode::SUCCESS
        }
        Err(error @ IssueError::User) => {
            print_message(Severity::Error, &format!("--user cannot be used: {error}."));
            ExitCode::from(WRONG)
        }
        Err(error) => failed(&format!("There is no token: {error}.")),
    }
}

/// Prints a configuration error, one line for the operator.
fn wrong(error: &ConfigError) -> ExitCode {
    // Its first word may be a path's.
    print_message(Severity::Error, &full_stop(error));
    ExitCode::from(WRONG)
}

/// Prints why there is nothing to run.
fn not_started(error: &StartError) -> ExitCode {
    match error {
        StartError::Config(error) => wrong(error),
        StartError::Deployment(problems) => wrong_manifest(problems),
        error => failed(&error.sentence()),
    }
}

/// Prints a deployment's problems, a line each.
fn wrong_manifest(problems: &ManifestProblems) -> ExitCode {
    for problem in problems.iter() {
        print_message(Severity::Error, &problem.to_string());
    }
    ExitCode::from(WRONG)
}

/// Prints a failure, one line.
fn failed(sentence: &str) -> ExitCode {
    print_message(Severity::Error, sentence);
    ExitCode::FAILURE
}

/// Sends the log to stderr. `RUST_LOG` selects its content, and `PLUGIN_LOG_LEVEL` that of plugins.
fn log(config: &Config, default: &str) {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // rmcp repeats what MCP servers say, as often and as long as they like. The host logs what
    // matters.
    let named = std::env::var("RUST_LOG").is_ok_and(|said| said.contains("rmcp"));
    if !named && let Ok(quiet) = "rmcp=off".parse() {
        filter = filter.add_directive(quiet);
    }
    if let Some(level) = config.plugin_log_level
        && let Ok(plugins) = format!("{LOG_TARGET}={level}").parse()
    {
        filter = filter.add_directive(plugins);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error means that there is a subscriber already, which is just as good.
    let _ = match config.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => {
            let ansi = render::colours(std::io::stderr().is_terminal());
            builder.with_ansi(ansi).with_target(false).try_init()
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_process_that_compiles_is_started_by_a_command_that_nobody_is_shown() {
        let command = Cli::command();
        let compile = command.find_subcommand(lucid_wasm::COMPILE_COMMAND);
        assert!(compile.is_some_and(clap::Command::is_hide_set));
    }

    #[test]
    fn no_command_means_serve() {
        assert!(Cli::try_parse_from(["lucid"]).unwrap().command.is_none());
        assert!(matches!(
            Cli::try_parse_from(["lucid", "serve"]).unwrap().command,
            Some(Command::Serve(_))
        ));
        assert!(Cli::try_parse_from(["lucid", "serve", "--resume", "--no-resume"]).is_err());
    }

    #[test]
    fn run_takes_a_task_and_its_options() {
        let parsed = Cli::try_parse_from([
            "lucid",
            "run",
            "fix it",
            "--repo",
            "https://x/y",
            "--model",
            "m",
        ])
        .unwrap();
        let Some(Command::Run(args)) = parsed.command else {
            panic!()
        };
        assert_eq!(
            (
                args.task.as_str(),
                args.repo.as_deref(),
                args.model.as_deref()
            ),
            ("fix it", Some("https://x/y"), Some("m"))
        );
        assert!(Cli::try_parse_from(["lucid", "run"]).is_err());
        assert!(Cli::try_parse_from(["lucid", "run", "t", "--branch", "b"]).is_err());
    }

    #[test]
    fn a_token_needs_a_user_and_lasts_at_least_a_day() {
        assert!(Cli::try_parse_from(["lucid", "token"]).is_err());
        assert!(Cli::try_parse_from(["lucid", "token", "--user", "u", "--days", "0"]).is_err());
        assert!(Cli::try_parse_from(["lucid", "token", "--user", "u", "--days", "7"]).is_ok());
    }
}
