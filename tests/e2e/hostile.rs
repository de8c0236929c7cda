//! Guests that loop, allocate, trap, flood or want the network: each is stopped with its own error,
//! while another session's steps go on. And a look into the guests' memory for the API key.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use lucid::builtin::{CODER, MOCK, OPENAI};
use lucid_session::AvailableModels;
use lucid_tests::{
    HOSTILE, Host, Model, ModelTurn, Socket, binary, command, eventually, guest_memories, within,
};
use lucid_types::wit::llm::CompletionRequest;
use lucid_types::wit::policy::{Command, Context, Input, Start, Transition, UserMessage};
use lucid_types::wit::types::{Content, Message, Role};
use lucid_wasm::{
    COMPILE_COMMAND, CallError, CallOutcome, CompileLimits, Compiler, Engine, EngineOptions,
    LlmPlugin, LoadError, PluginLimits, PolicyPlugin,
};

fn limits() -> PluginLimits {
    PluginLimits {
        fuel: 500_000_000,
        memory_bytes: 32 << 20,
        output_bytes: 1 << 20,
        wall: Duration::from_secs(30),
    }
}

fn started(task: &str) -> Input {
    let models = AvailableModels::only("");
    Input::Started(Start {
        task: task.into(),
        entry: 0,
        workspace: "/workspace".into(),
        repository: None,
        branch: None,
        model: models.model,
        small_model: models.small,
        models: models.names,
        instructions: Vec::new(),
        tools: Vec::new(),
        settings: json!({"delay_ms": 0}).to_string(),
    })
}

fn context() -> Context {
    Context {
        session: "0198c0de-0000-7000-8000-000000000000".into(),
        step: 0,
        now_ms: 1_771_410_600_000,
        seed: 7,
        iterations_left: 50,
        tokens_left: None,
        cost_left: None,
        millis_left: None,
    }
}

async fn step(policy: &PolicyPlugin, task: &str) -> CallOutcome<Transition> {
    policy.step(&context(), None, &[started(task)]).await
}

/// Another session: it plays the mock's script again and again, and never waits long.
struct Neighbour {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    running: tokio::task::JoinHandle<Duration>,
}

impl Neighbour {
    fn new(mock: &PolicyPlugin) -> Self {
        let (stop, steps) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (mock, stopped, counted) = (mock.clone(), stop.clone(), steps.clone());
        let running = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let before = std::time::Instant::now();
                let called = step(&mock, "Be a good neighbour").await;
                longest = longest.max(before.elapsed());
                let transition = called.result.expect("the neighbour was disturbed");
                assert!(
                    matches!(transition.commands.last(), Some(Command::Finish(_))),
                    "{transition:?}"
                );
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
            longest
        });
        Self {
            stop,
            steps,
            running,
        }
    }

    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    async fn more(&self, than: u64) {
        within("the neighbour's next steps", async {
            while self.steps() <= than {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        within("the neighbour", self.running).await.unwrap()
    }
}

async fn both() -> (PolicyPlugin, PolicyPlugin) {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let hostile = PolicyPlugin::load(&engine, "hostile", HOSTILE, &limits())
        .await
        .unwrap();
    let mock = PolicyPlugin::load(&engine, "mock", MOCK, &PluginLimits::default())
        .await
        .unwrap();
    (hostile, mock)
}

/// Runs the hostile guest beside its neighbour, and gives its error.
async fn misbehaved(task: &str) -> CallError {
    let (hostile, mock) = both().await;
    let neighbour = Neighbour::new(&mock);
    neighbour.more(3).await;
    let before = neighbour.steps();
    let called = within(&format!("`{task}` to be stopped"), step(&hostile, task)).await;
    assert!(called.usage.fuel <= limits().fuel + 1, "{:?}", called.usage);
    assert!(
        called.usage.memory_bytes <= limits().memory_bytes as u64,
        "{:?}",
        called.usage
    );
    let error = called.result.expect_err(task);
    // Whoever is told must know which plugin, and what to do.
    assert!(error.to_string().contains("`hostile`"), "{error}");
    neighbour.more(before).await;
    // The guest that was stopped left nothing behind that stops the next call.
    let again = step(&hostile, task).await.result.expect_err(task);
    assert_eq!(
        std::mem::discriminant(&again),
        std::mem::discriminant(&error),
        "{again}"
    );
    let longest = neighbour.end().await;
    assert!(
        longest < Duration::from_secs(5),
        "the neighbour waited {longest:?} for one step"
    );
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_loops_for_ever_runs_out_of_fuel() {
    let error = misbehaved("loop").await;
    assert!(matches!(error, CallError::OutOfFuel { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_loops_for_ever_on_plenty_of_fuel_meets_the_clock() {
    let (_, mock) = both().await;
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let limits = PluginLimits {
        fuel: u64::MAX / 2,
        wall: Duration::from_millis(300),
        ..limits()
    };
    let hostile = PolicyPlugin::load(&engine, "hostile", HOSTILE, &limits)
        .await
        .unwrap();
    let neighbour = Neighbour::new(&mock);
    let called = within("the clock", step(&hostile, "loop")).await;
    let error = called.result.expect_err("loop");
    assert!(matches!(error, CallError::Deadline { .. }), "{error}");
    neighbour.more(neighbour.steps()).await;
    neighbour.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_allocates_for_ever_runs_out_of_memory() {
    let error = misbehaved("alloc").await;
    assert!(matches!(error, CallError::OutOfMemory { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_traps_is_a_fault_of_that_guest() {
    let error = misbehaved("trap").await;
    assert!(matches!(error, CallError::Trap { .. }), "{error}");
    // Its own words, and the place in its source.
    let said = error.to_string();
    let place = "panicked at tests/guests/hostile/src/lib.rs:";
    assert!(
        said.contains(place) && said.contains(": as asked; "),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_returns_a_gigabyte_of_commands_is_stopped_long_before() {
    // It needs the memory first, so that is the limit it meets.
    let error = misbehaved("flood").await;
    assert!(
        matches!(
            error,
            CallError::OutOfMemory { .. } | CallError::TooMuchOutput { .. }
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_returns_more_than_it_may_is_cut_off() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let limits = PluginLimits {
        output_bytes: 64 << 10,
        ..PluginLimits::default()
    };
    // The mock repeats what it is told.
    let mock = PolicyPlugin::load(&engine, "mock", MOCK, &limits)
        .await
        .unwrap();
    let told = |length: usize| {
        let content = vec![Content::Text("x".repeat(length))];
        [
            started("Listen"),
            Input::UserMessage(UserMessage { entry: 1, content }),
        ]
    };
    mock.step(&context(), None, &told(1 << 10))
        .await
        .result
        .expect("a little is no flood");
    let called = mock.step(&context(), None, &told(1 << 20)).await;
    let error = called.result.expect_err("a megabyte");
    assert!(matches!(error, CallError::TooMuchOutput { .. }), "{error}");
    mock.step(&context(), None, &told(1 << 10))
        .await
        .result
        .expect("the next call");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_a_hundred_thousand_log_lines_does_its_work_all_the_same() {
    let (hostile, _) = both().await;
    let transition = step(&hostile, "log").await.result.unwrap();
    assert!(
        matches!(transition.commands.last(), Some(Command::Finish(_))),
        "{transition:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_wants_the_network_is_refused_by_name() {
    const IMPORT: &str = "wasi:http/types@0.2.0";
    // A component with one type, an instance that exports nothing, and one import of that type.
    let mut wasm = b"\0asm\x0d\0\x01\0".to_vec();
    wasm.extend([7, 3, 1, 0x42, 0]);
    let length = u8::try_from(IMPORT.len()).unwrap();
    wasm.extend([10, length + 5, 1, 0, length]);
    wasm.extend(IMPORT.as_bytes());
    wasm.extend([5, 0]);

    let engine = Engine::new(EngineOptions::default()).unwrap();
    let policy = PolicyPlugin::load(&engine, "greedy", &wasm, &limits())
        .await
        .expect_err("it was let in");
    let llm = LlmPlugin::load(&engine, "greedy", &wasm, &limits())
        .await
        .expect_err("it was let in");
    for refused in [policy, llm] {
        assert!(
            matches!(&refused, LoadError::ForbiddenImport { import, .. } if import == IMPORT),
            "{refused}"
        );
        let told = refused.to_string();
        assert!(told.contains(IMPORT) && told.contains("greedy"), "{told}");
    }
    // What is no component at all is refused as such.
    for wasm in [&b""[..], b"\0asm\x01\0\0\0", b"#!/bin/sh\n"] {
        let refused = PolicyPlugin::load(&engine, "odd", wasm, &limits())
            .await
            .expect_err("it was let in");
        assert!(
            matches!(refused, LoadError::NotAComponent { .. }),
            "{refused}"
        );
    }
    // And one of the wrong kind: the mock is no model adapter.
    let refused = LlmPlugin::load(&engine, "mock", MOCK, &limits())
        .await
        .expect_err("it was let in");
    assert!(
        matches!(refused, LoadError::MissingExport { .. }),
        "{refused}"
    );
}

/// An honest component under limits that it cannot meet.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_compiles_ends_at_its_limits_and_the_components_fault_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let enough = CompileLimits {
        memory: 2 << 30,
        processor: Duration::from_secs(600),
        wall: Duration::from_secs(600),
    };
    let load = async |cache: &str, limits| {
        let engine = Engine::new(EngineOptions {
            cache: Some(folder.path().join(cache)),
            compiler: Compiler::lucid_at(binary(), limits),
            ..EngineOptions::default()
        });
        let limits = PluginLimits::default();
        PolicyPlugin::load(&engine.unwrap(), "coder", CODER, &limits).await
    };
    // The stacks of its threads, of which there are as many as processors, count as well.
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(8));
    let mebibytes = 16 + 2 * threads as u64;
    let small = CompileLimits {
        memory: mebibytes << 20,
        ..enough
    };
    let refused = load("large", small).await.unwrap_err();
    let reason = format!("it took more than {mebibytes} MiB of memory");
    assert_eq!(
        refused.to_string(),
        format!("compiling the plugin `coder` failed: {reason}; report it to the plugin's author")
    );
    let again = load("large", enough).await.unwrap_err();
    let LoadError::KnownToFail { why, file, .. } = again else {
        panic!("{again}");
    };
    assert_eq!(why, reason);
    std::fs::remove_file(file).unwrap();
    load("large", enough).await.unwrap();
    // From the cache, for which no process is needed.
    load("large", small).await.unwrap();
    // Of two at once the second is told what the first one ended with.
    let engine = Engine::new(EngineOptions {
        cache: Some(folder.path().join("twice")),
        compiler: Compiler::lucid_at(binary(), small),
        ..EngineOptions::default()
    })
    .unwrap();
    let own = PluginLimits::default();
    let load_once = || PolicyPlugin::load(&engine, "coder", CODER, &own);
    let (one, two) = tokio::join!(load_once(), load_once());
    let refused = [one, two].map(Result::unwrap_err);
    let known = |error: &&LoadError| matches!(error, LoadError::KnownToFail { .. });
    assert_eq!(refused.iter().filter(known).count(), 1, "{refused:?}");
    // How long it takes is the machine's doing, which is not remembered.
    let wall = Duration::from_millis(5);
    let refused = load("slow", CompileLimits { wall, ..enough }).await;
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the plugin `coder` was not compiled: the process that compiles plugins took longer than \
         0.005 s; try again when the machine is less busy"
    );
    load("slow", enough).await.unwrap();
    let nowhere = Engine::new(EngineOptions {
        compiler: Compiler::lucid_at(&folder.path().join("lucid"), enough),
        ..EngineOptions::default()
    });
    let refused = PolicyPlugin::load(&nowhere.unwrap(), "mock", MOCK, &limits()).await;
    assert!(matches!(refused, Err(LoadError::NoCompiler { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_compiles_is_confined_before_it_reads_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), &[COMPILE_COMMAND, "1073741824", "60"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let about = |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", child.id()));
    eventually("the system call filter", async || {
        let status = about("status").unwrap();
        (status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1")).then_some(())
    })
    .await;
    let limits = about("limits").unwrap();
    for (limit, value) in [
        ("Max data size", "1073741824"),
        ("Max cpu time", "60"),
        ("Max core file size", "0"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
        assert_eq!(line[limit.len()..].split_whitespace().next(), Some(value));
    }
    assert_eq!(about("oom_score_adj").unwrap(), "1000\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapters_request_has_a_path_and_no_credential() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let openai = LlmPlugin::load(&engine, "openai", OPENAI, &PluginLimits::default())
        .await
        .unwrap();
    let request = CompletionRequest {
        model: "scripted".into(),
        messages: vec![Message {
            role: Role::User,
            content: vec![Content::Text("Hello there".into())],
        }],
        tools: Vec::new(),
        max_output_tokens: None,
        params: "{}".into(),
        streaming: true,
    };
    let encoded = openai.encode("{}", &request).await.result.unwrap();
    let http = encoded.request;
    assert!(
        http.path.starts_with('/') && !http.path.contains("//"),
        "{}",
        http.path
    );
    let own = [
        "authorization",
        "host",
        "cookie",
        "proxy-authorization",
        "x-api-key",
        "api-key",
    ];
    assert!(
        http.headers
            .iter()
            .all(|header| !own.contains(&header.name.to_lowercase().as_str()))
    );
    assert!(String::from_utf8_lossy(&http.body).contains("Hello there"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_key_is_in_no_guests_memory() {
    let key = format!("sk-{}", uuid::Uuid::new_v4().simple());
    let marker = format!("marker-{}", uuid::Uuid::new_v4().simple());
    let said = marker.clone();
    let model = Model::start(move |_, _| ModelTurn::Hang(said.clone())).await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", &key)
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Look at me", "modelProvider": "openai", "features": ["deltas"]});
    let mut socket = Socket::open(&host, "alice", first).await;
    // The adapter has decoded the beginning, and its instance lives until the answer is over.
    socket
        .until("the first delta", |frame| frame["type"] == "delta")
        .await;
    assert_eq!(
        model.completions()[0].headers["authorization"],
        format!("Bearer {key}").as_str()
    );

    let guests = guest_memories(host.pid());
    let holding = |text: &str| {
        guests
            .iter()
            .filter(|memory| {
                memory
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            })
            .count()
    };
    // That the marker is there proves that these are the guests' memories.
    assert!(
        holding(&marker) > 0,
        "none of {} memories holds what the model said",
        guests.len()
    );
    assert_eq!(holding(&key), 0, "a guest's memory holds the key");
}
