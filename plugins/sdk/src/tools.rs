//! Tool components: the trait they implement, the actions they request, and the glue to the
//! exported interface.
//!
//! # Invariants
//!
//! - A call's state is carried from one step to the next as JSON.
//! - Invalid arguments from a model are an error that the model can read and correct.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use crate::bindings::tools::exports::lucid::tools::tools as wit;
use crate::types::{Error, Header, HttpRequest, HttpResponse, ToolCall, ToolDefinition};

pub use wit::{
    Action, Answer, Command, Descriptor, KeyPlace, Output, Program, Progress, Reply, Turn,
};

/// The tools of a component. It says what to run or send, and never does anything itself.
pub trait Tools: 'static {
    /// The deployment's settings.
    type Settings: DeserializeOwned + Default;

    /// A call's state while it waits for a command or a server.
    type State: Serialize + DeserializeOwned;

    /// Describes this component. [`describe`] fills in the defaults.
    fn describe() -> Descriptor;

    /// The tools that exist with these settings. An error is a problem of the settings, and the
    /// deployment is refused.
    fn definitions(settings: &Self::Settings) -> Result<Vec<ToolDefinition>, Error>;

    /// A model calls a tool. An error ends the call, and the model reads its message.
    fn call(settings: &Self::Settings, call: &ToolCall) -> Result<Next<Self::State>, Error>;

    /// The requested action was carried out, or failed.
    fn resume(
        settings: &Self::Settings,
        call: &ToolCall,
        state: Self::State,
        answer: Answer,
    ) -> Result<Next<Self::State>, Error>;
}

/// The next action of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<S> {
    /// A command, and the state meanwhile.
    Run(Command, S),
    /// A request, and the state meanwhile.
    Send(HttpRequest, S),
    /// The reply: the call is complete.
    Done(Reply),
}

impl<S> Next<S> {
    /// A reply to the model.
    pub fn done(text: impl Into<String>) -> Self {
        Self::Done(Reply {
            is_error: false,
            text: text.into(),
        })
    }

    /// A reply that tells the model what failed.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Done(Reply {
            is_error: true,
            text: text.into(),
        })
    }
}

/// A descriptor for tools without settings and without a server address of their own. Set what
/// differs.
pub fn describe(name: &str, version: &str, description: &str) -> Descriptor {
    Descriptor {
        name: name.into(),
        version: version.into(),
        description: description.into(),
        default_base_url: None,
        key: KeyPlace::Bearer,
        settings_schema: None,
    }
}

impl ToolCall {
    /// Parses the arguments.
    ///
    /// # Errors
    ///
    /// Fails if the model did not follow the tool's schema.
    pub fn parsed<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let text = match self.arguments.trim() {
            "" => "{}",
            text => text,
        };
        serde_json::from_slice(text.as_bytes()).map_err(|e| {
            Error::invalid(format!(
                "The arguments of {} cannot be read: {e}. Give them as its schema says.",
                self.name
            ))
        })
    }

    /// The error for an unknown tool, which a model may well call.
    pub fn unknown(&self) -> Error {
        Error::invalid(format!("There is no tool `{}`.", self.name))
    }
}

impl Command {
    /// A command line for the sandbox's shell. Text from a model does not belong in it: see
    /// [`Command::argv`].
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(Program::Shell(line.into()))
    }

    /// A program and its arguments, without a shell.
    pub fn argv<I: IntoIterator<Item = S>, S: Into<String>>(argv: I) -> Self {
        Self::new(Program::Argv(argv.into_iter().map(Into::into).collect()))
    }

    fn new(program: Program) -> Self {
        Self {
            program,
            folder: None,
            environment: Vec::new(),
            stdin: None,
            timeout_ms: None,
        }
    }

    /// Sets the working directory, a folder of the workspace.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<String>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the standard input.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Sets the time after which it is killed, in milliseconds.
    #[must_use]
    pub fn timeout_ms(mut self, millis: u32) -> Self {
        self.timeout_ms = Some(millis);
        self
    }
}

impl Output {
    /// Whether it ran to its end with a successful exit code.
    pub fn is_success(&self) -> bool {
        self.exit_code == 0 && !self.timed_out
    }
}

impl HttpRequest {
    /// A request without a body, to a path below the deployment's base URL.
    pub fn new(method: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A GET request.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    /// Adds a query parameter. The host encodes it.
    #[must_use]
    pub fn query(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.query.push((name.into(), value.into()));
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push(Header {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    /// Sets a JSON body.
    #[must_use]
    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.header("content-type", "application/json")
    }
}

impl HttpResponse {
    /// Whether the status is a success.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as text, with invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, or an error of kind `upstream`.
    pub fn json(&self) -> Result<serde_json::Value, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Error::upstream(format!("The server's answer is not JSON: {e}.")))
    }
}

/// Escapes a text as one path segment. A segment that a host would not send, since it could lead
/// elsewhere, is an error that a model can read.
pub fn segment(text: &str) -> Result<String, Error> {
    let leads_away = |c: char| matches!(c, '/' | '\\' | '%') || c.is_control();
    if text.trim_matches('.').is_empty() || text.contains(leads_away) {
        return Err(Error::invalid(format!(
            "`{text}` cannot be a part of a path."
        )));
    }
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(escaped)
}

/// One step as the host runs it. For tests, too: see [`crate::testing::Call`].
pub fn run<T: Tools>(
    settings: &str,
    call: &ToolCall,
    progress: Option<Progress>,
) -> Result<Turn, Error> {
    let settings = settings_of::<T>(settings)?;
    let next = match progress {
        None => T::call(&settings, call)?,
        Some(Progress { state, answer }) => {
            let state = serde_json::from_slice(&state)
                .map_err(|e| Error::internal(format!("The call's state cannot be read: {e}.")))?;
            T::resume(&settings, call, state, answer)?
        }
    };
    let (action, state) = match next {
        Next::Run(command, state) => (Action::Run(command), Some(state)),
        Next::Send(request, state) => (Action::Send(request), Some(state)),
        Next::Done(reply) => (Action::Done(reply), None),
    };
    let state = state.map(|state| {
        serde_json::to_vec(&state)
            .map_err(|e| Error::internal(format!("The call's state cannot be written: {e}.")))
    });
    Ok(Turn {
        action,
        state: state.transpose()?.unwrap_or_default(),
    })
}

fn settings_of<T: Tools>(text: &str) -> Result<T::Settings, Error> {
    let text = text.trim();
    if text.is_empty() || text == "null" {
        return Ok(T::Settings::default());
    }
    serde_json::from_slice(text.as_bytes())
        .map_err(|e| Error::invalid(format!("The settings of the tools cannot be read: {e}.")))
}

/// The type that `export_tools!` exports for a component.
#[doc(hidden)]
pub struct ExportedTools<T>(PhantomData<T>);

impl<T: Tools> wit::Guest for ExportedTools<T> {
    fn describe() -> Descriptor {
        crate::panics::tell();
        T::describe()
    }

    fn definitions(settings: String) -> Result<Vec<ToolDefinition>, Error> {
        crate::panics::tell();
        T::definitions(&settings_of::<T>(&settings)?)
    }

    fn step(settings: String, call: ToolCall, progress: Option<Progress>) -> Result<Turn, Error> {
        crate::panics::tell();
        run::<T>(&settings, &call, progress)
    }
}

/// Exports [`Tools`] as the component's own. Used once in a crate. Does nothing natively.
#[macro_export]
macro_rules! export_tools {
    ($tools:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type ExportedTools = $crate::tools::ExportedTools<$tools>;
            $crate::bindings::tools::export_tools_world!(
                ExportedTools with_types_in $crate::bindings::tools
            );
        };
    };
}
