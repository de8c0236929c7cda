//! Tests of the engine with a scripted policy and no plugins, models, sandboxes or network.

mod crash;
mod life;
mod reading;
mod record;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};

use super::*;
use crate::plugins::policy_types::*;
use crate::plugins::types::*;
use crate::secret::Secret;
use crate::workspace::Workspace;

/// What a scripted policy does with its inputs.
type Script = fn(&Context, Option<&Snapshot>, &[Input]) -> Result<Vec<Command>, String>;

struct Scripted {
    info: PolicyInfo,
    script: Script,
}

impl Policy for Scripted {
    fn info(&self) -> &PolicyInfo {
        &self.info
    }

    fn step<'a>(
        &'a self,
        context: &'a Context,
        state: Option<&'a Snapshot>,
        inputs: &'a [Input],
    ) -> BoxFuture<'a, Stepped> {
        let result = (self.script)(context, state, inputs).map(|commands| {
            let mut bytes = state.map(|state| state.bytes.clone()).unwrap_or_default();
            bytes.push(inputs.len() as u8);
            Transition {
                state: Snapshot { schema: 1, bytes },
                commands,
            }
        });
        std::future::ready(Stepped {
            result,
            fuel: 1,
            memory: 2,
            micros: 3,
        })
        .boxed()
    }
}

/// Models, places and policies in one, and a diary of what was really done.
#[derive(Clone)]
pub(super) struct World {
    script: Script,
    pub(super) mock: bool,
    pub(super) models: bool,
    pub(super) sandbox: Arc<AtomicBool>,
    pub(super) diary: Arc<Mutex<Vec<String>>>,
    pub(super) prompts: Arc<Mutex<Vec<Vec<Message>>>>,
    pub(super) hold: Arc<AtomicBool>,
}

impl World {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            mock: false,
            models: true,
            sandbox: Arc::new(AtomicBool::new(true)),
            diary: Arc::default(),
            prompts: Arc::default(),
            hold: Arc::default(),
        }
    }

    fn note(&self, line: String) {
        self.diary.lock().unwrap().push(line);
    }

    pub(super) fn done(&self, line: &str) -> usize {
        self.diary
            .lock()
            .unwrap()
            .iter()
            .filter(|noted| *noted == line)
            .count()
    }
}

impl Policies for World {
    fn find(&self, name: Option<&str>) -> Result<Arc<dyn Policy>, CreateError> {
        match name {
            None | Some("scripted") => {
                let info = PolicyInfo {
                    name: "scripted".to_owned(),
                    digest: "d".to_owned(),
                    calls_models: self.models,
                    mock: self.mock,
                    settings: "{}".to_owned(),
                    ..PolicyInfo::default()
                };
                Ok(Arc::new(Scripted {
                    info,
                    script: self.script,
                }))
            }
            Some(other) => Err(CreateError::UnknownPolicy(other.to_owned())),
        }
    }
}

impl Models for World {
    fn find(&self, name: Option<&str>, has_key: bool) -> Result<Provider, CreateError> {
        match name {
            Some("nobody") => Err(CreateError::UnknownProvider("nobody".to_owned())),
            Some("keyless") if !has_key => Err(CreateError::MissingKey("keyless".to_owned())),
            _ => Ok(Provider {
                name: "fake".to_owned(),
                model: "m".to_owned(),
            }),
        }
    }

    fn call(
        &self,
        request: ModelRequest,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ModelAnswer, Error>> {
        self.note(format!(
            "model {} {}",
            request.call.effect, request.call.model
        ));
        self.prompts.lock().unwrap().push(request.messages);
        let hold = self.hold.clone();
        async move {
            while hold.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            deltas(DeltaKind::Text, "he");
            deltas(DeltaKind::Text, "llo");
            let call = |id: &str| Content::ToolCall(call(id));
            let message = Message {
                role: Role::Assistant,
                content: vec![Content::Text("hello".to_owned()), call("a"), call("b")],
            };
            let usage = Usage {
                input_tokens: 3,
                output_tokens: 2,
                cache_read_tokens: 0,
                cache_write_tokens: 0,
            };
            Ok(ModelAnswer {
                message,
                stop: StopReason::ToolUse,
                usage,
            })
        }
        .boxed()
    }
}

impl Places for World {
    fn refusal(&self) -> Option<String> {
        (!self.sandbox.load(Ordering::SeqCst)).then(|| "none here".to_owned())
    }

    fn describe(&self, call: &ToolCall) -> EventDraft {
        EventDraft {
            command: Some(call.arguments.clone()),
            ..EventDraft::text("CmdRunAction", &call.arguments)
        }
    }

    fn provision(&self, spec: PlaceSpec) -> BoxFuture<'static, Result<Arc<dyn Place>, String>> {
        self.note(format!(
            "provision {}",
            spec.git_token.map_or(0, |token| token.len())
        ));
        std::future::ready(Ok(Arc::new(self.clone()) as Arc<dyn Place>)).boxed()
    }

    fn reopen(&self, _: PlaceSpec) -> BoxFuture<'static, Result<Arc<dyn Place>, String>> {
        self.note("reopen".to_owned());
        std::future::ready(Ok(Arc::new(self.clone()) as Arc<dyn Place>)).boxed()
    }

    fn workspace(&self, _: &PlaceSpec) -> Option<Arc<Workspace>> {
        None
    }

    fn wipe(&self, _: PlaceSpec) -> BoxFuture<'static, ()> {
        self.note("wipe".to_owned());
        std::future::ready(()).boxed()
    }
}

impl Place for World {
    fn workspace(&self) -> Option<Arc<Workspace>> {
        None
    }

    fn root(&self) -> String {
        "/workspace".to_owned()
    }

    fn instructions(&self) -> Vec<String> {
        Vec::new()
    }

    fn definitions(&self) -> Vec<ToolDefinition> {
        vec![ToolDefinition {
            name: "sh".to_owned(),
            description: "d".to_owned(),
            input_schema: "{}".to_owned(),
        }]
    }

    fn run(
        &self,
        call: ToolCall,
        _: Option<u32>,
        _: DeltaSink,
    ) -> BoxFuture<'static, Result<ToolDone, Error>> {
        self.note(format!("tool {}", call.id));
        let hold = self.hold.clone();
        async move {
            while hold.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let text = format!("ran {}", call.id);
            let shown = EventDraft {
                exit_code: Some(0),
                ..EventDraft::text("CmdOutputObservation", &text)
            };
            let result = ToolResult {
                call_id: call.id,
                is_error: false,
                text,
                exit_code: Some(0),
                blobs: Vec::new(),
            };
            Ok(ToolDone { result, shown })
        }
        .boxed()
    }

    fn tree(&self) -> BoxFuture<'static, Option<String>> {
        let tools = self
            .diary
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.starts_with("tool"))
            .count();
        let tree = if tools == 0 {
            "[]".to_owned()
        } else {
            r#"[{"name":"a"}]"#.to_owned()
        };
        std::future::ready(Some(tree)).boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.note("close".to_owned());
        std::future::ready(()).boxed()
    }
}

pub(super) fn call(id: &str) -> ToolCall {
    ToolCall {
        id: id.to_owned(),
        name: "sh".to_owned(),
        arguments: format!("echo {id}"),
    }
}

pub(super) fn run(effect: &str) -> Command {
    Command::RunTool(ToolRun {
        effect: effect.to_owned(),
        call: call(effect),
        timeout_ms: None,
    })
}

pub(super) fn ask_model(effect: &str) -> Command {
    let prompt = vec![Part::History(Span {
        first: 0,
        last: None,
    })];
    Command::CallModel(ModelCall {
        effect: effect.to_owned(),
        model: String::new(),
        prompt,
        tools: Vec::new(),
        max_output_tokens: None,
        params: "{}".to_owned(),
    })
}

pub(super) fn finish(text: &str) -> Command {
    Command::Finish(Outcome::Succeeded(text.to_owned()))
}

pub(super) fn say(text: &str) -> Command {
    Command::Emit(Event {
        event_type: "ThinkAction".to_owned(),
        content: text.to_owned(),
        fields: "{}".to_owned(),
    })
}

/// A model call, two tools, a timer, the end; what is lost is passed over.
pub(super) fn worker(
    _: &Context,
    _: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    let timer = || {
        Command::SetTimer(Timer {
            effect: "w".to_owned(),
            delay_ms: 1,
        })
    };
    for input in inputs {
        match input {
            Input::Started(_) => commands.push(ask_model("m")),
            Input::ModelReplied(_) => commands.extend([run("a"), run("b")]),
            Input::ToolReplied(reply) if reply.effect == "b" => commands.push(timer()),
            Input::EffectLost(effect) if effect == "m" || effect == "b" => commands.push(timer()),
            Input::TimerFired(_) => commands.push(finish("done")),
            Input::UserMessage(_) => commands.push(finish("again")),
            _ => {}
        }
    }
    Ok(commands)
}

pub(super) fn sessions(folder: &Path, world: &World) -> Sessions {
    // The last host's tasks may hold the store for a moment after they were aborted.
    let mut tries = 0;
    let store = loop {
        match Store::open(folder) {
            Err(crate::store::StoreError::InUse(_)) if tries < 200 => tries += 1,
            other => break other.unwrap(),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    with_limits(store, world, |_| {})
}

pub(super) fn with_limits(store: Store, world: &World, change: fn(&mut Limits)) -> Sessions {
    let mut limits = Limits {
        iterations: 5,
        task_time: Duration::from_secs(20),
        grace: Duration::from_secs(60),
        sessions_per_user: 100,
    };
    change(&mut limits);
    Sessions::new(Deps {
        store,
        sealer: Sealer::new(&Secret::new("k")),
        policies: Arc::new(world.clone()),
        models: Arc::new(world.clone()),
        places: Arc::new(world.clone()),
        limits,
    })
}

pub(super) fn new(user: &str) -> NewSession {
    NewSession {
        user: user.into(),
        project_id: Some("p".to_owned()),
        task: "do it".to_owned(),
        repo_url: None,
        git_token: Some(Secret::new("token")),
        branch: None,
        git_user_name: None,
        git_user_email: None,
        provider: None,
        api_key: Some(Secret::new("sk-key")),
        policy: None,
    }
}

/// Reads until a frame holds a text, or the session ends.
pub(super) async fn until(subscription: &mut Subscription, text: &str) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    let read = async {
        loop {
            match subscription.next().await {
                Batch::Frames(frames) => {
                    let found = frames.iter().any(|(_, frame)| frame.contains(text));
                    seen.extend(
                        frames
                            .into_iter()
                            .map(|(seq, frame)| (seq, frame.to_string())),
                    );
                    if found {
                        return;
                    }
                }
                Batch::Ended(_) => return,
                Batch::Delta(_) => {}
                Batch::Gap(from, to) => panic!("gap {from} to {to}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("in time");
    seen
}

/// The types of frames, or their statuses.
pub(super) fn names(frames: &[(u64, String)]) -> Vec<String> {
    let name = |frame: &String| {
        let value: serde_json::Value = serde_json::from_str(frame).unwrap();
        let members = ["eventType", "status", "event", "type"];
        members
            .iter()
            .find_map(|member| value[*member].as_str().map(str::to_owned))
            .unwrap()
    };
    frames.iter().map(|(_, frame)| name(frame)).collect()
}

pub(super) fn assert_dense(frames: &[(u64, String)]) {
    let numbers: Vec<u64> = frames.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}
