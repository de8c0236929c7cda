//! The program inside a sandbox. It does only what its command line says:
//!
//! - `lucid-exec --serve JSON` serves one host over the Unix socket that is its standard input;
//! - `lucid-exec --serve-pipes JSON` serves one host over its standard input and output;
//! - `lucid-exec --connect SOCKET JSON` looks for a host at that socket, and for the next one when
//!   it is lost: the main process of a container;
//! - `lucid-exec --supervise JSON` serves one host in a child, and kills everything below it when
//!   the host goes;
//! - `lucid-exec --probe` tells whether Landlock works on this kernel;
//! - called as `git-remote-lucid`, it is the git remote helper that talks to the host's gateway.
#![forbid(unsafe_code)]

mod children;
mod command;
mod confine;
mod connect;
mod git_remote;
mod live;
mod pressure;
mod root;
mod server;
mod supervise;

use std::path::Path;
use std::process::ExitCode;

use lucid_exec::protocol::Serve;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    if Path::new(&name)
        .file_name()
        .is_some_and(|name| name == "git-remote-lucid")
    {
        return report("git-remote-lucid", git_remote::run(&arguments));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["--serve", json] => parse(json).and_then(|serve| server::run(&serve)),
        ["--serve-pipes", json] => parse(json).and_then(|serve| server::run_on_pipes(&serve)),
        ["--connect", socket, json] => {
            parse(json).and_then(|serve| connect::run(Path::new(socket), &serve))
        }
        ["--supervise", json] => parse(json).and_then(|_| supervise::run(json)),
        ["--probe"] => confine::probe().map(|()| println!("Landlock works on this kernel.")),
        _ => Err("usage: lucid-exec --serve JSON | --serve-pipes JSON | --connect SOCKET JSON | --supervise JSON | --probe".to_owned()),
    };
    report("lucid-exec", outcome)
}

fn parse(json: &str) -> Result<Serve, String> {
    serde_json::from_str(json)
        .map_err(|error| format!("the settings on the command line cannot be read: {error}"))
}

fn report(name: &str, outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{name}: {sentence}");
            ExitCode::FAILURE
        }
    }
}
