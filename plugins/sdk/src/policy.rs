//! Policies: the trait an agent implements, the commands it issues, and the glue to the exported
//! interface.
//!
//! # Invariants
//!
//! - The state is stored in the snapshot as JSON under `SCHEMA`, and a snapshot of another schema
//!   is never read as if it were this one.
//! - An error in a step discards all its commands.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use crate::bindings::policy::exports::lucid::policy::policy as wit;
use crate::types::{EffectId, Error, ErrorKind, Message, ToolCall, ToolDefinition, ToolResult};

pub use wit::{
    Answer, Command, Context, Descriptor, Event, Failure, Input, ModelCall, ModelOffer, ModelReply,
    Outcome, Part, Question, Snapshot, Span, Start, Timer, ToolReply, ToolRun, Transition,
    UserMessage,
};

/// An agent: decides what happens next, and never does anything itself.
pub trait Policy: 'static {
    /// The state from one step to the next.
    type State: Serialize + DeserializeOwned + Default;

    /// The version of the state's layout. Increment it if a build could not read the older JSON.
    const SCHEMA: u32;

    /// The oldest layout that [`Policy::migrate`] accepts.
    const OLDEST_SCHEMA: u32 = Self::SCHEMA;

    /// Describes this policy. [`describe`] fills in the defaults.
    fn describe() -> Descriptor;

    /// Handles one input. Must be pure: everything that varies is in `ctx`.
    fn step(
        ctx: &Context,
        state: &mut Self::State,
        input: Input,
        out: &mut Commands,
    ) -> Result<(), Error>;

    /// Called once after all inputs of a step: the place for what must happen once however many
    /// inputs came together, such as the next model call.
    fn settle(ctx: &Context, state: &mut Self::State, out: &mut Commands) -> Result<(), Error> {
        let _ = (ctx, state, out);
        Ok(())
    }

    /// Converts an older state to this build's. Never called for [`Policy::SCHEMA`] itself.
    fn migrate(schema: u32, old: serde_json::Value) -> Result<Self::State, Error> {
        let _ = old;
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("This build cannot take over a session with state of schema {schema}."),
        ))
    }
}

/// A descriptor for a policy that calls no model and needs no sandbox. Set what differs.
pub fn describe<P: Policy>(name: &str, version: &str, description: &str) -> Descriptor {
    Descriptor {
        name: name.into(),
        version: version.into(),
        description: description.into(),
        calls_models: false,
        needs_sandbox: false,
        schema: P::SCHEMA,
        oldest_schema: P::OLDEST_SCHEMA,
        settings_schema: None,
    }
}

/// The commands of a step, in order.
#[derive(Debug, Default)]
pub struct Commands(Vec<Command>);

impl Commands {
    /// No commands.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds any command.
    pub fn push(&mut self, command: Command) {
        self.0.push(command);
    }

    /// Calls a model.
    pub fn call_model(&mut self, call: ModelCall) {
        self.push(Command::CallModel(call));
    }

    /// Runs one of the host's tools.
    pub fn run_tool(&mut self, effect: impl Into<EffectId>, call: ToolCall) {
        self.push(Command::RunTool(ToolRun {
            effect: effect.into(),
            call,
            timeout_ms: None,
        }));
    }

    /// Asks the user.
    pub fn ask(&mut self, effect: impl Into<EffectId>, title: impl Into<String>) {
        self.push(Command::Ask(Question {
            effect: effect.into(),
            title: title.into(),
            detail: "{}".into(),
        }));
    }

    /// Sets a timer.
    pub fn set_timer(&mut self, effect: impl Into<EffectId>, delay_ms: u64) {
        self.push(Command::SetTimer(Timer {
            effect: effect.into(),
            delay_ms,
        }));
    }

    /// Cancels an effect.
    pub fn cancel(&mut self, effect: impl Into<EffectId>) {
        self.push(Command::Cancel(effect.into()));
    }

    /// Adds a message to the transcript.
    pub fn append(&mut self, message: Message) {
        self.push(Command::Append(message));
    }

    /// Adds a tool's result to the transcript.
    pub fn append_result(&mut self, result: ToolResult) {
        self.append(Message::tool(result));
    }

    /// Shows an event. `fields` is a JSON object.
    pub fn emit(
        &mut self,
        event_type: impl Into<String>,
        content: impl Into<String>,
        fields: &serde_json::Value,
    ) {
        self.push(Command::Emit(Event {
            event_type: event_type.into(),
            content: content.into(),
            fields: fields.to_string(),
        }));
    }

    /// Ends the task successfully.
    pub fn succeed(&mut self, text: impl Into<String>) {
        self.push(Command::Finish(Outcome::Succeeded(text.into())));
    }

    /// Ends the task with an error.
    pub fn fail(&mut self, error: Error) {
        self.push(Command::Finish(Outcome::Failed(error)));
    }

    /// Ends the task as cancelled by the user.
    pub fn cancelled(&mut self) {
        self.push(Command::Finish(Outcome::Cancelled));
    }

    /// The commands so far.
    pub fn as_slice(&self) -> &[Command] {
        &self.0
    }

    /// All commands.
    pub fn into_vec(self) -> Vec<Command> {
        self.0
    }
}

impl ModelCall {
    /// A call of the session's own model with default options.
    pub fn new(effect: impl Into<EffectId>, prompt: Vec<Part>, tools: Vec<ToolDefinition>) -> Self {
        Self {
            effect: effect.into(),
            model: String::new(),
            prompt,
            tools,
            max_output_tokens: None,
            params: "{}".into(),
            aside: false,
        }
    }
}

impl ModelOffer {
    /// A model of which only the name is known.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            context_tokens: 0,
            output_tokens: 0,
            images: false,
        }
    }
}

impl Part {
    /// The transcript from an entry to its end.
    pub fn history_from(first: u64) -> Self {
        Self::History(Span { first, last: None })
    }

    /// The entries of the transcript from `first` to `last`, inclusive.
    pub fn history(first: u64, last: u64) -> Self {
        Self::History(Span {
            first,
            last: Some(last),
        })
    }
}

impl Start {
    /// The deployment's settings. An empty text gives the defaults.
    pub fn parsed_settings<T: DeserializeOwned + Default>(&self) -> Result<T, Error> {
        let text = self.settings.trim();
        if text.is_empty() || text == "null" {
            return Ok(T::default());
        }
        // Parsed like a snapshot: one JSON reader in a component, not two.
        serde_json::from_slice(text.as_bytes())
            .map_err(|e| Error::invalid(format!("The policy's settings cannot be read: {e}.")))
    }

    /// Whether the host offers a tool of this name.
    pub fn offers(&self, tool: &str) -> bool {
        self.tools.iter().any(|t| t.name == tool)
    }
}

/// One step as the host runs it: reads the state, handles the inputs, writes the state. Also for
/// tests: pass the snapshot of one step to the next.
pub fn run<P: Policy>(
    ctx: &Context,
    snapshot: Option<Snapshot>,
    inputs: Vec<Input>,
) -> Result<Transition, Error> {
    let mut state: P::State = match snapshot {
        None => P::State::default(),
        Some(s) if s.schema == P::SCHEMA => read(&s.bytes)?,
        Some(s) => {
            return Err(Error::internal(format!(
                "The state has schema {}, this build writes {}: migrate it first.",
                s.schema,
                P::SCHEMA
            )));
        }
    };
    let mut out = Commands::new();
    for input in inputs {
        P::step(ctx, &mut state, input, &mut out)?;
    }
    P::settle(ctx, &mut state, &mut out)?;
    Ok(Transition {
        state: write::<P>(&state)?,
        commands: out.into_vec(),
    })
}

/// A migration as the host runs it.
pub fn migrate<P: Policy>(old: Snapshot) -> Result<Snapshot, Error> {
    if old.schema == P::SCHEMA {
        return Ok(old);
    }
    if old.schema < P::OLDEST_SCHEMA || old.schema > P::SCHEMA {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "The state has schema {}; this build takes {} to {}.",
                old.schema,
                P::OLDEST_SCHEMA,
                P::SCHEMA
            ),
        ));
    }
    write::<P>(&P::migrate(old.schema, read(&old.bytes)?)?)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::internal(format!("The session's state cannot be read: {e}.")))
}

fn write<P: Policy>(state: &P::State) -> Result<Snapshot, Error> {
    let bytes = serde_json::to_vec(state)
        .map_err(|e| Error::internal(format!("The session's state cannot be written: {e}.")))?;
    Ok(Snapshot {
        schema: P::SCHEMA,
        bytes,
    })
}

/// The type that `export_policy!` exports for a policy.
#[doc(hidden)]
pub struct ExportedPolicy<P>(PhantomData<P>);

impl<P: Policy> wit::Guest for ExportedPolicy<P> {
    fn describe() -> Descriptor {
        crate::panics::tell();
        P::describe()
    }

    fn step(
        ctx: Context,
        state: Option<Snapshot>,
        inputs: Vec<Input>,
    ) -> Result<Transition, Error> {
        crate::panics::tell();
        run::<P>(&ctx, state, inputs)
    }

    fn migrate(old: Snapshot) -> Result<Snapshot, Error> {
        crate::panics::tell();
        migrate::<P>(old)
    }
}

/// Exports a [`Policy`] as the component's own. Used once in a crate. Does nothing natively.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type ExportedPolicy = $crate::policy::ExportedPolicy<$policy>;
            $crate::bindings::policy::export_policy_world!(
                ExportedPolicy with_types_in $crate::bindings::policy
            );
        };
    };
}
