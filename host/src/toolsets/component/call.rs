//! One call of a component's tool from end to end: a step, the actions it requests, and the next
//! step, until it is done.
//!
//! # Invariants
//!
//! - A call terminates, after a bounded number of steps and a bounded time, whatever the component
//!   says.
//! - A requested action is checked before it is carried out.
//! - Any failure becomes text for the model and concerns nobody else.
//! - Dropping the future cancels the action in progress.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde::Serialize;

use lucid_types::plural;
use lucid_types::sanitize::sanitize;
use lucid_types::sentence::sentence;
use lucid_types::wit::tools::{Action, Answer, Command, Output, Program, Progress, Reply};
use lucid_types::wit::types::{Error, ErrorKind, HttpRequest, HttpResponse, ToolCall};
use lucid_wasm::{CallUsage, ToolsPlugin};

/// The maximum number of steps in a call.
pub(crate) const MOST_STEPS: usize = 32;
/// The maximum size of a component's state between two steps, in bytes.
pub(crate) const LARGEST_STATE: usize = 1 << 20;
/// The maximum size of a command as JSON, in bytes: the sandbox accepts no frame that is much
/// larger.
const LARGEST_COMMAND: usize = 512 << 10;
const MOST_VARIABLES: usize = 64;
/// The maximum size of a request's body, in bytes.
const LARGEST_BODY: usize = 4 << 20;
/// The maximum size of the rest of a request, in bytes.
const LARGEST_HEAD: usize = 32 << 10;

/// Carries out what a component requests. An error is passed to the component.
pub trait ToolHost: Send + Sync {
    /// Runs a command, with a time limit.
    fn run<'a>(
        &'a self,
        command: &'a Command,
        most: Duration,
    ) -> BoxFuture<'a, Result<Output, Error>>;

    /// Sends a request, with a time limit.
    fn send<'a>(
        &'a self,
        request: &'a HttpRequest,
        most: Duration,
    ) -> BoxFuture<'a, Result<HttpResponse, Error>>;
}

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCallOutcome {
    /// The model's reply, as the component made it.
    pub reply: Reply,
    /// The component's resource usage over all steps.
    pub usage: CallUsage,
    /// The number of steps.
    pub steps: usize,
}

/// Runs a call to completion. `time` is the total for everything that is run and sent. The call has
/// the tool's own name.
pub async fn call_tool(
    plugin: &ToolsPlugin,
    settings: &str,
    call: &ToolCall,
    host: &dyn ToolHost,
    time: Duration,
) -> ToolCallOutcome {
    let begun = Instant::now();
    let mut figures = CallUsage::default();
    let mut progress: Option<Progress> = None;
    for step in 1..=MOST_STEPS {
        let called = plugin.step(settings, call, progress.as_ref()).await;
        figures += called.usage;
        let over = |reply| ToolCallOutcome {
            reply,
            usage: figures,
            steps: step,
        };
        let turn = match called.result {
            Ok(turn) => turn,
            // A component's own message as it is, and the host's if the component failed.
            Err(error) => return over(failed(Error::from(error).message)),
        };
        if let Action::Done(reply) = turn.action {
            return over(reply);
        }
        if turn.state.len() > LARGEST_STATE {
            return over(failed(format!(
                "The tool was ended: it wanted {} bytes kept for it, and {LARGEST_STATE} are allowed.",
                turn.state.len()
            )));
        }
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return over(failed(format!(
                "The tool was ended: it took longer than its {}.",
                plural::count(time.as_secs(), "second")
            )));
        }
        let answer = carry_out(host, turn.action, left).await;
        progress = Some(Progress {
            state: turn.state,
            answer: answer.unwrap_or_else(Answer::Failed),
        });
    }
    ToolCallOutcome {
        reply: failed(format!(
            "The tool was ended: it was not done after {MOST_STEPS} steps."
        )),
        usage: figures,
        steps: MOST_STEPS,
    }
}

fn failed(text: String) -> Reply {
    Reply {
        is_error: true,
        text,
    }
}

async fn carry_out(host: &dyn ToolHost, action: Action, left: Duration) -> Result<Answer, Error> {
    check(&action).map_err(|why| Error::invalid(sentence(why)).with_code("tool-action"))?;
    match action {
        Action::Run(command) => host.run(&command, left).await.map(Answer::Ran),
        Action::Send(request) => {
            let sent = tokio::time::timeout(left, host.send(&request, left)).await;
            let late = |_| {
                Error::new(
                    ErrorKind::Deadline,
                    "The server did not answer before the call's time was over.",
                )
                .with_code("tool-time")
            };
            sent.map_err(late)?.map(Answer::Responded)
        }
        // The caller returned before.
        Action::Done(reply) => Err(Error::internal(reply.text)),
    }
}

/// Why an action that a component requests is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ActionError {
    /// It has no program.
    #[error("the command is empty")]
    Empty,
    /// It has a null character.
    #[error("the command holds a null character, which no program can be given")]
    Null,
    /// It has too many variables.
    #[error("the command has more than {MOST_VARIABLES} variables")]
    Variables,
    /// A variable's name is none.
    #[error("`{0}` cannot be a variable's name")]
    VariableName(String),
    /// A part is too large.
    #[error("the {what} has {size} bytes, and {most} are allowed")]
    TooLarge {
        /// The part.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        most: usize,
    },
}

/// Checks that a requested action is within bounds. The parts of a request that belong to the host
/// are refused by the egress.
pub(crate) fn check(action: &Action) -> Result<(), ActionError> {
    match action {
        Action::Run(command) => check_command(command),
        Action::Send(request) => check_request(request),
        Action::Done(_) => Ok(()),
    }
}

fn check_command(command: &Command) -> Result<(), ActionError> {
    let empty = match &command.program {
        Program::Argv(argv) => argv.first().is_none_or(String::is_empty),
        Program::Shell(line) => line.trim().is_empty(),
    };
    if empty {
        return Err(ActionError::Empty);
    }
    let texts = match &command.program {
        Program::Argv(argv) => argv.iter().collect(),
        Program::Shell(line) => vec![line],
    };
    let values = command.environment.iter().map(|(_, value)| value);
    let mut texts = texts.into_iter().chain(&command.folder).chain(values);
    if texts.any(|text| text.contains('\0')) {
        return Err(ActionError::Null);
    }
    if command.environment.len() > MOST_VARIABLES {
        return Err(ActionError::Variables);
    }
    for (name, _) in &command.environment {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(plain)
        {
            return Err(ActionError::VariableName(sanitize(name, 60)));
        }
    }
    within("command", size(command), LARGEST_COMMAND)
}

fn check_request(request: &HttpRequest) -> Result<(), ActionError> {
    within("request's body", request.body.len(), LARGEST_BODY)?;
    let headers = request.headers.iter();
    let headers: usize = headers.map(|one| one.name.len() + one.value.len()).sum();
    let query = request.query.iter();
    let query: usize = query.map(|(name, value)| name.len() + value.len()).sum();
    within("request's head", headers + query, LARGEST_HEAD)
}

fn within(what: &'static str, size: usize, most: usize) -> Result<(), ActionError> {
    if size > most {
        return Err(ActionError::TooLarge { what, size, most });
    }
    Ok(())
}

/// The size as JSON, the format it is sent in.
fn size(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::wit::types::Header;

    fn command(program: Program) -> Command {
        Command {
            program,
            folder: None,
            environment: Vec::new(),
            stdin: None,
            timeout_ms: None,
        }
    }

    fn shell(line: &str) -> Command {
        command(Program::Shell(line.to_owned()))
    }

    #[test]
    fn a_command_that_cannot_be_run_is_refused_before_anybody_tries() {
        let variable = |name: &str, value: &str| Command {
            environment: vec![(name.to_owned(), value.to_owned())],
            ..shell("true")
        };
        let stdin = |text: String| Command {
            stdin: Some(text),
            ..shell("cat")
        };
        for (wrong, said) in [
            (shell(" \n"), "is empty"),
            (command(Program::Argv(vec![])), "is empty"),
            (command(Program::Argv(vec![String::new()])), "is empty"),
            (shell("a\0b"), "null character"),
            (
                command(Program::Argv(vec!["a".into(), "\0".into()])),
                "null character",
            ),
            (variable("A", "\0"), "null character"),
            (variable("", "x"), "variable's name"),
            (variable("A=B", "x"), "variable's name"),
            (variable("1A", "x"), "variable's name"),
            (stdin("x".repeat(LARGEST_COMMAND)), "bytes"),
            // Six bytes each in JSON.
            (stdin("\u{1}".repeat(LARGEST_COMMAND / 5)), "bytes"),
        ] {
            let why = check(&Action::Run(wrong)).expect_err(said).to_string();
            assert!(why.contains(said), "{said}: {why}");
        }
        let good = Command {
            folder: Some("src".into()),
            stdin: Some("x".repeat(100_000)),
            ..variable("LANG_2", "C")
        };
        assert_eq!(check(&Action::Run(good)), Ok(()));
        assert_eq!(
            check(&Action::Run(command(Program::Argv(vec!["ls".into()])))),
            Ok(())
        );
    }

    #[test]
    fn a_request_that_is_too_large_is_refused() {
        let request = |body: usize, header: usize, query: usize| {
            Action::Send(HttpRequest {
                method: "POST".into(),
                path: "/x".into(),
                query: vec![("q".into(), "x".repeat(query))],
                headers: vec![Header {
                    name: "x".into(),
                    value: "x".repeat(header),
                }],
                body: vec![0; body],
            })
        };
        assert_eq!(check(&request(LARGEST_BODY, 100, 100)), Ok(()));
        for wrong in [
            request(LARGEST_BODY + 1, 0, 0),
            request(0, LARGEST_HEAD, 0),
            request(0, 0, LARGEST_HEAD),
        ] {
            assert!(check(&wrong).is_err());
        }
    }
}
