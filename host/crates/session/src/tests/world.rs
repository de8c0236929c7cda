//! A scripted policy, and a fake world that records calls in place of models and sandboxes.

use super::*;

/// A scripted policy: maps its inputs to commands.
pub(super) type Script = fn(&Context, Option<&Snapshot>, &[Input]) -> Result<Vec<Command>, String>;

struct Scripted {
    info: PolicyInfo,
    script: Script,
    refuses: bool,
}

impl SessionPolicy for Scripted {
    fn info(&self) -> &PolicyInfo {
        &self.info
    }

    fn step<'a>(
        &'a self,
        context: &'a Context,
        state: Option<&'a Snapshot>,
        inputs: &'a [Input],
    ) -> BoxFuture<'a, StepOutcome> {
        let result = (self.script)(context, state, inputs).map_err(StepError::call);
        let result = result.map(|commands| {
            let mut bytes = state.map(|state| state.bytes.clone()).unwrap_or_default();
            bytes.push(inputs.len() as u8);
            Transition {
                state: Snapshot {
                    schema: self.info.schema,
                    bytes,
                },
                commands,
            }
        });
        std::future::ready(StepOutcome {
            result,
            fuel: 1,
            memory: 2,
            micros: 3,
        })
        .boxed()
    }

    fn migrate<'a>(&'a self, old: &'a Snapshot) -> BoxFuture<'a, Result<Snapshot, MigrateError>> {
        let state = Snapshot {
            schema: self.info.schema,
            bytes: [b"moved", &old.bytes[..]].concat(),
        };
        std::future::ready(if self.refuses {
            Err(MigrateError::call("It cannot make sense of that state."))
        } else {
            Ok(state)
        })
        .boxed()
    }
}

/// A build of the scripted policy.
#[derive(Clone, Copy)]
pub(super) struct Build {
    /// Its digest is this text's.
    pub(super) digest: &'static str,
    pub(super) schema: u32,
    pub(super) oldest_schema: u32,
    /// Whether it refuses to take over any state.
    pub(super) refuses: bool,
}

/// The usage so far of a model that reports early.
pub(super) const EARLY: Usage = Usage {
    input_tokens: 3,
    output_tokens: 0,
    cache_read_tokens: 0,
    cache_write_tokens: 0,
};

/// Models, environments and policies in one, with a diary of what was really done.
#[derive(Clone)]
pub(super) struct World {
    pub(super) script: Script,
    pub(super) build: Build,
    /// The previous build, while `build` is on probation.
    pub(super) older: Option<(Build, Script)>,
    /// The reported steps: which build took each, and its outcome.
    pub(super) took: Arc<Mutex<Vec<(Digest, StepVerdict)>>>,
    pub(super) server: &'static str,
    pub(super) mock: bool,
    pub(super) models: bool,
    pub(super) sandbox: Arc<AtomicBool>,
    /// How much each user may write.
    pub(super) user_logs: UserLogLimits,
    pub(super) diary: Arc<Mutex<Vec<String>>>,
    pub(super) prompts: Arc<Mutex<Vec<Vec<Message>>>>,
    pub(super) hold: Arc<AtomicBool>,
    /// Tools take time, and models do not.
    pub(super) hold_tools: Arc<AtomicBool>,
    pub(super) hold_fetch: Arc<AtomicBool>,
    /// Git providers take time to open a pull request.
    pub(super) hold_changes: Arc<AtomicBool>,
    /// Models report their usage early.
    pub(super) tells: Arc<AtomicBool>,
    /// Sandboxes survive while the host is away.
    pub(super) lives: Arc<AtomicBool>,
    /// The sessions whose files were removed, in order.
    pub(super) wiped: Arc<Mutex<Vec<SessionId>>>,
    /// Workspaces are gone.
    pub(super) lost: Arc<AtomicBool>,
    /// The disk is short of space.
    pub(super) short: Arc<AtomicBool>,
    /// Workspaces cannot be removed.
    pub(super) stuck: Arc<AtomicBool>,
    /// No file descriptor is left to create an environment with.
    pub(super) no_room: Arc<AtomicBool>,
    /// Files that no tool made.
    pub(super) grown: Arc<AtomicUsize>,
    pub(super) stir: Arc<tokio::sync::Notify>,
    /// The deployment's tools beside the sandbox's.
    pub(super) tools: Arc<dyn ToolProvider>,
}

impl World {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            build: Build {
                digest: "d",
                schema: 1,
                oldest_schema: 1,
                refuses: false,
            },
            older: None,
            took: Arc::default(),
            server: "https://models.example",
            mock: false,
            models: true,
            sandbox: Arc::new(AtomicBool::new(true)),
            diary: Arc::default(),
            prompts: Arc::default(),
            user_logs: UserLogLimits::default(),
            hold: Arc::default(),
            hold_tools: Arc::default(),
            hold_fetch: Arc::default(),
            hold_changes: Arc::default(),
            tells: Arc::default(),
            lives: Arc::default(),
            wiped: Arc::default(),
            lost: Arc::default(),
            short: Arc::default(),
            stuck: Arc::default(),
            no_room: Arc::default(),
            grown: Arc::default(),
            stir: Arc::default(),
            tools: Arc::new(NoToolProvider),
        }
    }

    /// Sets the number of files that no tool made, and signals a possible change.
    pub(super) fn grow(&self, files: usize) {
        self.grown.store(files, Ordering::SeqCst);
        self.stir.notify_one();
    }

    pub(super) fn note(&self, line: String) {
        self.diary.lock().push(line);
    }

    /// The number of lines with this prefix.
    pub(super) fn any(&self, beginning: &str) -> usize {
        let diary = self.diary.lock();
        diary
            .iter()
            .filter(|line| line.starts_with(beginning))
            .count()
    }

    pub(super) fn done(&self, line: &str) -> usize {
        self.diary
            .lock()
            .iter()
            .filter(|noted| *noted == line)
            .count()
    }
}

impl World {
    fn policy(&self, build: Build, script: Script) -> Arc<dyn SessionPolicy> {
        let info = PolicyInfo {
            name: "scripted".to_owned(),
            digest: Digest::of(build.digest),
            schema: build.schema,
            oldest_schema: build.oldest_schema,
            calls_models: self.models,
            mock: self.mock,
            settings: "{}".to_owned(),
            needs_sandbox: false,
        };
        Arc::new(Scripted {
            info,
            script,
            refuses: build.refuses,
        })
    }
}

impl Policies for World {
    fn find(&self, name: Option<&str>) -> Result<Arc<dyn SessionPolicy>, CreateError> {
        match name {
            None | Some("scripted") => Ok(self.policy(self.build, self.script)),
            Some(other) => Err(CreateError::UnknownPolicy(
                other.to_owned(),
                "there are none".to_owned(),
            )),
        }
    }

    fn successor(&self, name: &str, _: Option<Digest>) -> Option<Arc<dyn SessionPolicy>> {
        Policies::find(self, Some(name)).ok()
    }

    fn assign(&self, name: Option<&str>) -> Result<BuildAssignment, CreateError> {
        Policies::find(self, name).map(BuildAssignment::from)
    }

    fn assigned(&self, _: &UserId, _: Option<&str>) -> Option<&str> {
        None
    }

    fn fallback(&self, _: &str, digest: Digest) -> Option<Arc<dyn SessionPolicy>> {
        let (build, script) = self
            .older
            .filter(|_| digest == Digest::of(self.build.digest))?;
        Some(self.policy(build, script))
    }

    fn record_step(&self, _: &str, digest: Digest, _: SessionId, verdict: StepVerdict) {
        self.took.lock().push((digest, verdict));
    }
}

impl Models for World {
    fn find(
        &self,
        name: Option<&str>,
        _: Option<&str>,
        has_key: bool,
    ) -> Result<ModelSelection, CreateError> {
        match name {
            Some("nobody") => Err(CreateError::UnknownProvider(
                "nobody".to_owned(),
                "there are none".to_owned(),
            )),
            Some("keyless") if !has_key => Err(CreateError::MissingKey {
                provider: "keyless".to_owned(),
                variable: "LLM_API_KEY".to_owned(),
            }),
            _ => Ok(ModelSelection {
                name: "fake".to_owned(),
                model: "m".to_owned(),
            }),
        }
    }

    fn check_priced(&self, _: &str, _: &str, _: bool) -> Option<CreateError> {
        None
    }

    fn server(&self, _: &str) -> Option<String> {
        Some(self.server.to_owned())
    }

    fn available(&self, _: &str, model: &str, _: bool, _: bool) -> AvailableModels {
        AvailableModels::only(model)
    }

    fn check(&self, _: &str, _: Option<Secret>) -> BoxFuture<'static, Result<(), CreateError>> {
        Box::pin(async { Ok(()) })
    }

    fn call(
        &self,
        request: ModelRequest,
        deltas: DeltaSink,
    ) -> BoxFuture<'static, Result<ModelAnswer, ModelFailure>> {
        self.note(format!(
            "model {} {}",
            request.call.effect, request.call.model
        ));
        self.prompts.lock().push(request.messages);
        let (hold, aside) = (self.hold.clone(), request.call.aside);
        let grief = request.call.effect == "grief";
        if self.tells.load(Ordering::SeqCst) {
            request.meter.report(CallCost {
                usage: EARLY,
                cost: Some(4),
                provider: "fake".to_owned(),
                model: "m".to_owned(),
                tries: 1,
            });
        }
        async move {
            assert!(!grief, "a test panics on purpose");
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
                cost: CallCost {
                    usage,
                    cost: Some(7),
                    provider: "fake".to_owned(),
                    model: "m".to_owned(),
                    tries: 1,
                },
                aside,
            })
        }
        .boxed()
    }
}

impl EnvironmentProvider for World {
    fn refusal(&self) -> Option<String> {
        (!self.sandbox.load(Ordering::SeqCst)).then(|| "none here".to_owned())
    }

    fn describe(&self, call: &ToolCall) -> EventDraft {
        EventDraft {
            command: Some(call.arguments.clone()),
            ..EventDraft::text("CmdRunAction", &call.arguments)
        }
    }

    fn provision(
        &self,
        spec: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, EnvironmentError>> {
        self.note(format!(
            "provision {}",
            spec.git_token.map_or(0, |token| token.len())
        ));
        if self.no_room.load(Ordering::SeqCst) {
            let full: std::io::Error = rustix::io::Errno::MFILE.into();
            return std::future::ready(Err(EnvironmentError::failed(full))).boxed();
        }
        std::future::ready(Ok(Arc::new(self.clone()) as Arc<dyn Environment>)).boxed()
    }

    fn reopen(
        &self,
        _: EnvironmentSpec,
    ) -> BoxFuture<'static, Result<Arc<dyn Environment>, EnvironmentError>> {
        self.note("reopen".to_owned());
        std::future::ready(Ok(Arc::new(self.clone()) as Arc<dyn Environment>)).boxed()
    }

    fn is_alive(&self, _: &EnvironmentSpec) -> bool {
        self.lives.load(Ordering::SeqCst)
    }

    fn sandbox_of(&self, _: SessionId) -> Option<String> {
        None
    }

    fn has_workspace(&self, _: &EnvironmentSpec) -> bool {
        !self.lost.load(Ordering::SeqCst)
    }

    fn recreate_workspace(&self, _: &EnvironmentSpec) -> bool {
        self.note("renew".to_owned());
        true
    }

    fn release(&self, _: EnvironmentSpec) -> BoxFuture<'static, ()> {
        self.note("release".to_owned());
        std::future::ready(()).boxed()
    }

    fn is_disk_short(&self) -> BoxFuture<'static, bool> {
        std::future::ready(self.short.load(Ordering::SeqCst)).boxed()
    }

    fn remove(&self, spec: EnvironmentSpec) -> BoxFuture<'static, Result<(), EnvironmentError>> {
        self.note("wipe".to_owned());
        self.wiped.lock().push(spec.session);
        let stuck = self.stuck.load(Ordering::SeqCst);
        std::future::ready(if stuck {
            Err(EnvironmentError::failed("it is stuck"))
        } else {
            Ok(())
        })
        .boxed()
    }
}

fn no_program() -> ExecError {
    ExecError::Refused("No program can be run in this world.".to_owned())
}

impl Environment for World {
    fn root(&self) -> String {
        "/workspace".to_owned()
    }

    fn fetch(&self) -> BoxFuture<'static, Result<(), EnvironmentError>> {
        self.note("fetch".to_owned());
        let hold = self.hold_fetch.clone();
        async move {
            while hold.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        }
        .boxed()
    }

    fn instructions(&self) -> BoxFuture<'static, Vec<String>> {
        std::future::ready(Vec::new()).boxed()
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
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        self.note(format!("tool {}", call.id));
        let (hold, hold_tools) = (self.hold.clone(), self.hold_tools.clone());
        async move {
            while hold.load(Ordering::SeqCst) || hold_tools.load(Ordering::SeqCst) {
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
            Ok(ToolResultWithEvent {
                result,
                event: shown,
                notices: Vec::new(),
            })
        }
        .boxed()
    }

    fn exec(
        &self,
        _: ExecRequest,
        _: OutputSink,
    ) -> BoxFuture<'static, Result<ExecResult, ExecError>> {
        std::future::ready(Err(no_program())).boxed()
    }

    fn spawn(&self, _: ExecRequest) -> BoxFuture<'static, Result<Process, ExecError>> {
        std::future::ready(Err(no_program())).boxed()
    }

    fn notice(&self) -> BoxFuture<'static, Option<String>> {
        std::future::ready(None).boxed()
    }

    fn pushed(&self) -> BoxFuture<'static, Option<String>> {
        let diary = self.diary.lock();
        let tool = diary
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix("tool "));
        let pushed = tool.filter(|tool| tool.starts_with("push"));
        std::future::ready(pushed.map(|tool| format!("lucid/{tool}"))).boxed()
    }

    fn tree(&self) -> BoxFuture<'static, Option<String>> {
        let tools = self
            .diary
            .lock()
            .iter()
            .filter(|line| line.starts_with("tool"))
            .count();
        let by_tools = (tools > 0).then(|| r#"{"name":"a"}"#.to_owned());
        let others =
            (0..self.grown.load(Ordering::SeqCst)).map(|n| format!(r#"{{"name":"g{n}"}}"#));
        let nodes: Vec<String> = by_tools.into_iter().chain(others).collect();
        std::future::ready(Some(format!("[{}]", nodes.join(",")))).boxed()
    }

    fn tree_can_wait(&self) -> bool {
        false
    }

    fn changed(&self) -> BoxFuture<'static, bool> {
        let stir = self.stir.clone();
        async move {
            stir.notified().await;
            true
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.note("close".to_owned());
        std::future::ready(()).boxed()
    }
}

impl PullRequests for World {
    fn open(
        &self,
        request: NewPullRequest,
    ) -> BoxFuture<'static, Result<OpenedPullRequest, PullRequestError>> {
        let (world, hold) = (self.clone(), self.hold_changes.clone());
        async move {
            while hold.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(request.token.is_some(), "the session's token goes along");
            let NewPullRequest {
                branch,
                base,
                draft: builder,
                body,
                ..
            } = request;
            let (base, builder) = (base.unwrap(), if builder { " draft" } else { "" });
            world.note(format!("change {branch} to {base}{builder}: {body}"));
            Ok(OpenedPullRequest {
                url: "https://git.example/changes/1".to_owned(),
                number: 1,
                title: request.title,
                existed: false,
            })
        }
        .boxed()
    }
}
