//! The program inside a sandbox. It does only what its command line says:
//!
//! - `lucid-exec --serve JSON` serves one host over the Unix socket that is its standard input;
//! - `lucid-exec --serve-pipes JSON` serves one host over its standard input and output;
//! - `lucid-exec --connect SOCKET JSON` looks for a host at that socket, and for the next one when
//!   it is lost: the main process of a container;
//! - `lucid-exec --supervise JSON` serves one host in a child, and kills everything below it when
//!   the host goes;
//! - `lucid-exec --launch JSON -- PROGRAM ARGUMENTS` joins the sandbox's control groups, gives up the
//!   host's rights and becomes that program;
//! - `lucid-exec --probe` tells whether Landlock works on this kernel;
//! - `lucid-exec --version` tells which version of the protocol it speaks;
//! - called as `git-remote-lucid`, it is the git remote helper that talks to the host's gateway.
#![forbid(unsafe_code)]

mod children;
mod command;
mod confine;
mod connect;
mod git_remote;
mod interface;
mod launch;
mod live;
mod network;
mod pressure;
mod proxy;
mod root;
mod server;
mod supervise;
mod system_calls;

use std::ffi::OsString;
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use lucid_exec::protocol::{Serve, VERSION};
use serde::de::DeserializeOwned;

/// Why the exec server ended.
#[derive(Debug, thiserror::Error)]
enum RunError {
    /// The command line is unknown.
    #[error(
        "usage: lucid-exec --serve JSON | --serve-pipes JSON | --connect SOCKET JSON | --supervise JSON | --launch JSON -- PROGRAM ARGUMENTS | --probe | --version"
    )]
    Usage,
    /// The settings are no JSON, or lack something.
    #[error("the settings on the command line cannot be read: {0}")]
    Settings(#[source] serde_json::Error),
    /// It served one host.
    #[error(transparent)]
    Serve(#[from] server::ServeError),
    /// It served one host after another.
    #[error(transparent)]
    Connect(#[from] connect::ConnectHostError),
    /// It supervised a server.
    #[error(transparent)]
    Supervise(#[from] supervise::SuperviseError),
    /// It did not become the first process of a sandbox.
    #[error(transparent)]
    Launch(#[from] launch::LaunchError),
    /// It tried Landlock.
    #[error(transparent)]
    Probe(#[from] confine::ConfineError),
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    // The program's arguments are passed on as they are.
    if let [mode, json, separator, program @ ..] = &arguments[..]
        && mode == "--launch"
        && separator == "--"
    {
        let launched =
            parse(&json.to_string_lossy()).and_then(|json| Ok(launch::run(&json, program)?));
        return report("lucid-exec", launched);
    }
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    if Path::new(&name)
        .file_name()
        .is_some_and(|name| name == "git-remote-lucid")
    {
        return report("git-remote-lucid", git_remote::run(&arguments));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    report("lucid-exec", run(&arguments))
}

fn run(arguments: &[&str]) -> Result<(), RunError> {
    match arguments {
        ["--serve", json] => server::run(&parse(json)?)?,
        ["--serve-pipes", json] => server::run_on_pipes(&parse(json)?)?,
        ["--connect", socket, json] => connect::run(Path::new(socket), &parse(json)?)?,
        ["--supervise", json] => {
            parse::<Serve>(json)?;
            supervise::run(json)?;
        }
        ["--probe"] => {
            confine::probe()?;
            println!("Landlock works on this kernel.");
        }
        ["--version"] => println!("{VERSION}"),
        _ => return Err(RunError::Usage),
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, RunError> {
    serde_json::from_str(json).map_err(RunError::Settings)
}

fn report(name: &str, outcome: Result<(), impl Display>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}
