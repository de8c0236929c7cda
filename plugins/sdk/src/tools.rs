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

/// The tools of a component. It says what is to be run or asked, and never does anything itself.
pub trait Tools: 'static {
    /// What a deployment sets.
    type Settings: DeserializeOwned + Default;

    /// What a call remembers while it waits for a command or a server.
    type State: Serialize + DeserializeOwned;

    /// What this component is; [`describe`] fills in the usual.
    fn describe() -> Descriptor;

    /// The tools there are. An error is one of the settings: the deployment is not taken.
    fn definitions(settings: &Self::Settings) -> Result<Vec<ToolDefinition>, Error>;

    /// A model calls one of them. An error ends the call, and the model reads its message.
    fn call(settings: &Self::Settings, call: &ToolCall) -> Result<Next<Self::State>, Error>;

    /// What the call wanted was done, or could not be.
    fn resume(
        settings: &Self::Settings,
        call: &ToolCall,
        state: Self::State,
        answer: Answer,
    ) -> Result<Next<Self::State>, Error>;
}

/// What a call wants next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<S> {
    /// A command, and what to remember meanwhile.
    Run(Command, S),
    /// A request, and what to remember meanwhile.
    Send(HttpRequest, S),
    /// Nothing more.
    Done(Reply),
}

impl<S> Next<S> {
    /// The model reads this.
    pub fn done(text: impl Into<String>) -> Self {
        Self::Done(Reply {
            is_error: false,
            text: text.into(),
        })
    }

    /// The model reads that it did not work, and why.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Done(Reply {
            is_error: true,
            text: text.into(),
        })
    }
}

/// A descriptor of tools that take no settings and ask no server of their own choice; set what differs.
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
    /// The arguments, if the model wrote them as the tool's schema says.
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

    /// That there is no such tool, which a model may well call.
    pub fn unknown(&self) -> Error {
        Error::invalid(format!("There is no tool `{}`.", self.name))
    }
}

impl Command {
    /// A command line for the sandbox's shell. What a model wrote does not belong in it: see
    /// [`Command::argv`].
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(Program::Shell(line.into()))
    }

    /// A program and its arguments, which no shell reads.
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

    /// In this folder of the workspace.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<String>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// With one more variable in its environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// With this to read from standard input.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Killed after so many milliseconds.
    #[must_use]
    pub fn timeout_ms(mut self, millis: u32) -> Self {
        self.timeout_ms = Some(millis);
        self
    }
}

impl Output {
    /// It ran to its end, and its exit code says that all went well.
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

    /// The usual question.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    /// With one more name and value in the query; the host encodes them.
    #[must_use]
    pub fn query(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.query.push((name.into(), value.into()));
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push(Header {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    /// With this as its body.
    #[must_use]
    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.header("content-type", "application/json")
    }
}

impl HttpResponse {
    /// Its status is one of success.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as text, bytes that are not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, or an error of kind `upstream`.
    pub fn json(&self) -> Result<serde_json::Value, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Error::upstream(format!("The server's answer is not JSON: {e}.")))
    }
}

/// A text as one segment of a path, escaped. One that a host would not send, since it could lead
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

/// One step as the host makes it. For tests, too: see [`crate::testing::Call`].
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

/// What `export_tools!` exports in the name of a component.
#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

impl<T: Tools> wit::Guest for Exported<T> {
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

/// Exports [`Tools`] as the component's own. Once in a crate; natively it does nothing.
#[macro_export]
macro_rules! export_tools {
    ($tools:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::tools::Exported<$tools>;
            $crate::bindings::tools::export_tools_world!(
                Exported with_types_in $crate::bindings::tools
            );
        };
    };
}
