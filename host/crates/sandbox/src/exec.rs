//! Runs one command in a sandbox, and collects its output.
//!
//! # Invariants
//! - A command that was started is waited for or killed, even if the future that started it is
//!   dropped.
//! - Its output is bounded here too, whatever the sandbox sends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cgroup::SandboxGroup;
use crate::connection::{CommandEvent, Connection};
use crate::error::SandboxError;
use lucid_exec::protocol::{Exit, Start};
use lucid_types::exec::{ExecProgram, ExecRequest, ExecResult, LimitHit};
use lucid_types::plural;
use lucid_types::unicode::lossy;

/// How much longer than its timeout a command may take before the sandbox counts as dead.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest argument of a program, in bytes; Linux limits it to 128 KiB.
const LONGEST_ARGUMENT: usize = 120_000;

/// How many bytes a program that stays open may write before they are read.
const WINDOW: usize = 256 << 10;

/// The message that starts a command, with the sandbox's environment.
pub(super) fn start_message(
    mut request: ExecRequest,
    shell: &str,
    workspace: &str,
    environment: &BTreeMap<String, String>,
) -> Start {
    for (name, value) in environment {
        request
            .env
            .entry(name.clone())
            .or_insert_with(|| value.clone());
    }
    let (argv, script) = match request.program {
        ExecProgram::Shell(command) if command.len() > LONGEST_ARGUMENT => {
            (vec![shell.to_owned()], Some(command))
        }
        ExecProgram::Shell(command) => (vec![shell.to_owned(), "-c".to_owned(), command], None),
        ExecProgram::Argv(argv) => (argv, None),
    };
    Start {
        argv,
        script,
        cwd: Some(request.cwd.unwrap_or_else(|| workspace.to_owned())),
        env: request.env,
        timeout_ms: Some(u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX)),
        stdin: request.stdin,
        output_head: request.head,
        output_tail: request.tail,
        live: false,
    }
}

/// The same for a program that stays open: it has no timeout, and its output is granted piece
/// by piece.
pub(super) fn live_start_message(
    request: ExecRequest,
    shell: &str,
    workspace: &str,
    environment: &BTreeMap<String, String>,
) -> Start {
    Start {
        timeout_ms: None,
        stdin: None,
        output_head: WINDOW,
        live: true,
        ..start_message(request, shell, workspace, environment)
    }
}

fn limit_of(exit: &Exit) -> Option<LimitHit> {
    if exit.memory_kills > 0 {
        Some(LimitHit::Memory)
    } else {
        (exit.refused_processes > 0).then_some(LimitHit::Processes)
    }
}

/// Runs a command. `group` counts what the exec server cannot see.
pub(super) async fn run(
    connection: &Connection,
    group: Option<&SandboxGroup>,
    start: &Start,
    mut on_output: impl FnMut(&[u8]) + Send,
) -> Result<ExecResult, SandboxError> {
    let begun = Instant::now();
    let limit =
        Duration::from_millis(start.timeout_ms.unwrap_or(u64::MAX / 4)).saturating_add(TIMEOUT);
    let running = group.map(SandboxGroup::begin_command);
    // Kills the command when it is dropped before the end.
    let mut command = connection.start(start)?;
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let Ok(event) = tokio::time::timeout(left, command.next()).await else {
            connection.close_with_reason("It no longer answers.");
            return Err(connection.gone());
        };
        match event {
            Some(CommandEvent::Output(bytes)) => {
                on_output(&bytes);
                head.extend_from_slice(&bytes);
            }
            Some(CommandEvent::Tail(bytes)) => tail.extend_from_slice(&bytes),
            Some(CommandEvent::Exit(mut exit)) => {
                if let Some(running) = &running {
                    let hits = running.hits();
                    exit.memory_kills = exit.memory_kills.saturating_add(hits.memory_kills);
                    exit.refused_processes = exit
                        .refused_processes
                        .saturating_add(hits.refused_processes);
                }
                let exit_code = exit
                    .code
                    // The sandbox sent the number, so it may be any.
                    .or(exit.signal.map(|signal| 128_i32.saturating_add(signal)))
                    .unwrap_or(-1);
                let mut output = joined(&head, &tail, exit.omitted);
                let limit = limit_of(&exit);
                if let Some(limit) = limit {
                    if !output.is_empty() && !output.ends_with('\n') {
                        output.push('\n');
                    }
                    output.push_str(limit.sentence());
                }
                let (timed_out, omitted) = (exit.timed_out, exit.omitted);
                return Ok(ExecResult {
                    exit_code,
                    timed_out,
                    output,
                    bytes: (head, tail),
                    omitted,
                    duration: begun.elapsed(),
                    limit,
                });
            }
            Some(CommandEvent::Failed(sentence)) => return Err(SandboxError::Refused(sentence)),
            Some(CommandEvent::Full(sentence)) => return Err(SandboxError::Full(sentence)),
            None => return Err(connection.gone()),
        }
    }
}

fn joined(head: &[u8], tail: &[u8], omitted: u64) -> String {
    if omitted == 0 {
        // Decoded in one piece: a character may lie across the seam.
        return lossy(&[head, tail].concat()).into_owned();
    }
    let (head, tail) = (lossy(head), lossy(tail));
    format!(
        "{head}\n[… {} left out …]\n{tail}",
        plural::count(omitted, "byte")
    )
}
