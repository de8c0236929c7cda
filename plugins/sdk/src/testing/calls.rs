//! A tool call driven by a test, which checks and answers the requested actions.
//!
//! # Invariants
//!
//! - Each step is run twice and must give the same result, and a call's state is serialised in
//!   between.
//! - A request that the host would not send fails the test.

use std::marker::PhantomData;

use crate::tools::{self, Action, Answer, Command, Output, Progress, Reply, Tools, Turn};
use crate::types::{Error, ErrorKind, HttpRequest, HttpResponse, ToolCall, ToolDefinition};

/// The maximum number of steps that a host grants a call.
const MOST_STEPS: u32 = 32;
/// Headers that only the host may set.
const HOSTS: [&str; 4] = ["authorization", "host", "cookie", "content-length"];

/// A call of one of a component's tools.
///
/// ```no_run
/// # fn test<MyTools: lucid_plugin::tools::Tools>() {
/// use lucid_plugin::testing::Call;
///
/// let mut call = Call::<MyTools>::begin("find", r#"{"text": "bug"}"#);
/// assert_eq!(call.request().path, "/search");
/// call.responds(200, r#"[{"title": "It is a bug"}]"#);
/// assert_eq!(call.reply().text, "It is a bug");
/// # }
/// ```
pub struct Call<T> {
    settings: String,
    call: ToolCall,
    turn: Result<Turn, Error>,
    steps: u32,
    tools: PhantomData<T>,
}

impl<T: Tools> Call<T> {
    /// A model calls a tool, in a deployment without settings.
    #[track_caller]
    pub fn begin(tool: &str, arguments: &str) -> Self {
        Self::begin_with("{}", tool, arguments)
    }

    /// As [`Self::begin`], with settings, a JSON object. The tool must exist with them.
    #[track_caller]
    pub fn begin_with(settings: &str, tool: &str, arguments: &str) -> Self {
        let there = definitions::<T>(settings);
        assert!(
            there.iter().any(|definition| definition.name == tool),
            "there is no tool `{tool}` with these settings"
        );
        let call = ToolCall {
            id: "call-1".into(),
            name: tool.into(),
            arguments: arguments.into(),
        };
        let mut begun = Self {
            settings: settings.into(),
            turn: Err(Error::internal("It was not begun.")),
            call,
            steps: 0,
            tools: PhantomData,
        };
        begun.step(None);
        begun
    }

    /// The pending command.
    #[track_caller]
    pub fn command(&self) -> &Command {
        match self.action() {
            Action::Run(command) => command,
            other => panic!("no command is waited for: {other:?}"),
        }
    }

    /// The pending request.
    #[track_caller]
    pub fn request(&self) -> &HttpRequest {
        match self.action() {
            Action::Send(request) => request,
            other => panic!("no request is waited for: {other:?}"),
        }
    }

    /// The reply to the model.
    #[track_caller]
    pub fn reply(&self) -> &Reply {
        match self.action() {
            Action::Done(reply) => reply,
            other => panic!("the call is not over: {other:?}"),
        }
    }

    /// The error of the last step.
    #[track_caller]
    pub fn error(&self) -> &Error {
        match &self.turn {
            Err(error) => error,
            Ok(turn) => panic!("nothing went wrong: {turn:?}"),
        }
    }

    /// The command ends with this output.
    #[track_caller]
    pub fn prints(&mut self, text: &str, exit_code: i32) {
        self.command();
        self.answer(Answer::Ran(Output {
            exit_code,
            timed_out: false,
            text: text.into(),
            left_out: 0,
        }));
    }

    /// The server responds.
    #[track_caller]
    pub fn responds(&mut self, status: u16, body: &str) {
        self.request();
        self.answer(Answer::Responded(HttpResponse {
            status,
            headers: Vec::new(),
            body: body.into(),
        }));
    }

    /// The action fails.
    #[track_caller]
    pub fn fails(&mut self, kind: ErrorKind, message: &str) {
        self.answer(Answer::Failed(Error::new(kind, message)));
    }

    /// Any outcome, such as a response with headers or a command that was killed.
    #[track_caller]
    pub fn answer(&mut self, answer: Answer) {
        let state = match &self.turn {
            Ok(turn) => turn.state.clone(),
            Err(error) => panic!("the last step failed: {error:?}"),
        };
        assert!(
            !matches!(self.action(), Action::Done(_)),
            "the call is over, and nothing is waited for"
        );
        self.step(Some(Progress { state, answer }));
    }

    #[track_caller]
    fn action(&self) -> &Action {
        match &self.turn {
            Ok(turn) => &turn.action,
            Err(error) => panic!("the last step failed: {error:?}"),
        }
    }

    #[track_caller]
    fn step(&mut self, progress: Option<Progress>) {
        self.steps += 1;
        assert!(
            self.steps <= MOST_STEPS,
            "a host ends a call that is not over after {MOST_STEPS} steps"
        );
        let step = |progress| tools::run::<T>(&self.settings, &self.call, progress);
        let done = step(progress.clone());
        let again = step(progress);
        assert!(
            again == done,
            "the same step gave something else: it must depend on nothing but its arguments\n{done:?}\n{again:?}"
        );
        if let Ok(Turn {
            action: Action::Send(request),
            ..
        }) = &done
        {
            assert!(
                request.path.starts_with('/'),
                "a path begins with `/`, and this one is `{}`",
                request.path
            );
            for header in &request.headers {
                let name = header.name.to_ascii_lowercase();
                assert!(
                    !HOSTS.contains(&name.as_str()),
                    "the header `{name}` is the host's own"
                );
            }
        }
        self.turn = done;
    }
}

/// The tools that exist with these settings, a JSON object.
#[track_caller]
pub fn definitions<T: Tools>(settings: &str) -> Vec<ToolDefinition> {
    let settings = match serde_json::from_str(settings) {
        Ok(settings) => settings,
        Err(error) => panic!("the settings cannot be read: {error}"),
    };
    match T::definitions(&settings) {
        Ok(tools) => tools,
        Err(error) => panic!("the tools do not take these settings: {error:?}"),
    }
}
