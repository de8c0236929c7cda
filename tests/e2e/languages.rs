//! The templates of other languages, as an author builds them: a session of each on the running host,
//! and the same step twice.
//!
//! Their tools come from npm and PyPI. What was built is kept beside the binary, with its compiled code,
//! until a template or the WIT changes; where the test of the guide (`kit`) has built and compiled it by
//! the guide's commands, that is what runs here.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use lucid_session::AvailableModels;
use lucid_tests::{Host, Socket, Template, event, kinds};
use lucid_types::wit::policy::{Context, Input, Start, Transition};
use lucid_wasm::{CallOutcome, Engine, EngineOptions, PluginLimits, PolicyPlugin};

/// Leaves these tests out, where npm and PyPI cannot be reached.
const CHOICE: &str = "LUCID_LANGUAGES";

/// A template, and how its README says to build it.
struct Language {
    name: &'static str,
    commands: &'static [&'static [&'static str]],
    /// What that takes.
    why: &'static str,
}

const JAVASCRIPT: Language = Language {
    name: "javascript",
    commands: &[
        &["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        &["npm", "run", "build"],
    ],
    why: "Node.js 20 with npm, and npm's registry",
};

const PYTHON: Language = Language {
    name: "python",
    commands: &[
        &["python3", "-m", "venv", ".venv"],
        &[
            ".venv/bin/python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
            "requirements.txt",
        ],
        &["sh", "build.sh"],
    ],
    why: "Python 3.10 with venv, and PyPI",
};

fn run(folder: &Path, language: &Language, words: &[&str]) {
    let what = words.join(" ");
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "`{what}` does not start: {error}; it takes {}, or {CHOICE}=skip",
                language.why
            )
        });
    assert!(
        output.status.success(),
        "`{what}` failed; it takes {}, or {CHOICE}=skip:\n{}{}",
        language.why,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Builds a template by the commands of its README, unless somebody did. None, said aloud, where nobody
/// wants that.
fn build(language: &Language) -> Option<Template> {
    if std::env::var(CHOICE).is_ok_and(|choice| choice == "skip") {
        eprintln!(
            "{CHOICE}=skip: the template for {} is NOT tried",
            language.name
        );
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let template = Template::new(root, language.name);
    let _lock = template.lock();
    if !template.component.is_file() {
        template.clear();
        let place = tempfile::tempdir_in(template.folder()).unwrap();
        for (path, bytes) in &template.files {
            let path = place.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        for words in language.commands {
            run(place.path(), language, words);
        }
        std::fs::rename(place.path().join("my-agent.wasm"), &template.component).unwrap();
    }
    Some(template)
}

fn engine(built: &Template) -> Engine {
    Engine::new(EngineOptions {
        cache: Some(built.cache.clone()),
        ..EngineOptions::default()
    })
    .unwrap()
}

async fn load(engine: &Engine, built: &Template) -> PolicyPlugin {
    let wasm = std::fs::read(&built.component).unwrap();
    PolicyPlugin::load(engine, "greeter", &wasm, &PluginLimits::default())
        .await
        .unwrap()
}

async fn begin(plugin: &PolicyPlugin, now_ms: u64) -> CallOutcome<Transition> {
    let models = AvailableModels::only("");
    let context = Context {
        session: "0198c0de-0000-7000-8000-000000000000".into(),
        step: 0,
        now_ms,
        seed: 7,
        iterations_left: 50,
        tokens_left: None,
        cost_left: None,
        millis_left: None,
    };
    let start = Start {
        task: "Look around".into(),
        entry: 0,
        workspace: "/workspace".into(),
        repository: None,
        branch: None,
        model: models.model,
        small_model: models.small,
        models: models.names,
        instructions: Vec::new(),
        tools: Vec::new(),
        settings: "{}".into(),
    };
    plugin.step(&context, None, &[Input::Started(start)]).await
}

/// With the limits that every plugin has, in half of their memory; and on another engine the same
/// bytes for the same amount of fuel.
async fn the_same_step_twice(built: &Template) {
    let first = engine(built);
    let plugin = load(&first, built).await;
    let before = begin(&plugin, 1_700_000_000_000).await;
    let second = engine(built);
    let after = begin(&load(&second, built).await, 1_700_000_000_000).await;
    assert_eq!(before.usage.fuel, after.usage.fuel);
    assert_eq!(before.result, after.result);
    let (figures, limits) = (before.usage, PluginLimits::default());
    eprintln!("{}: {figures:?}", built.component.display());
    assert!(
        figures.memory_bytes < limits.memory_bytes as u64 / 2,
        "{figures:?}"
    );
    assert!(figures.fuel < limits.fuel / 20, "{figures:?}");

    let told = |called: &CallOutcome<Transition>| {
        format!("{:?}", called.result.as_ref().unwrap().commands)
    };
    assert!(
        told(&before).contains("2023-11-14T22:13:20"),
        "{}",
        told(&before)
    );
    let later = begin(&plugin, 1_800_000_000_000).await;
    assert!(
        told(&later).contains("2027-01-15T08:00:00"),
        "{}",
        told(&later)
    );
}

/// A session: it greets, looks, and answers; and a line of its own is in the host's log.
async fn a_session(language: &Language, built: &Template) {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("lucid.toml");
    let component = built.component.to_str().unwrap();
    let text = format!(
        "[policies.greeter]\ncomponent = {component:?}\n\n[defaults]\npolicy = \"greeter\"\n"
    );
    std::fs::write(&manifest, text).unwrap();
    // The host finds what was compiled above: no copy of some 40 MB, and none for other tests' hosts.
    let storage = folder.path().join("storage");
    let cache = storage.join(".lucid/cache");
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700).create(&cache).unwrap();
    for file in std::fs::read_dir(&built.cache).unwrap() {
        let file = file.unwrap();
        let to = cache.join(file.file_name());
        // Not where the one is on another file system.
        if std::fs::hard_link(file.path(), &to).is_err() {
            std::fs::copy(file.path(), &to).unwrap();
        }
    }
    let host = Host::with_defaults()
        .set("LUCID_MANIFEST", manifest.to_str().unwrap())
        .set("WORKSPACE_BASE_PATH", storage.to_str().unwrap())
        .start();

    let mut socket = Socket::open(&host, "alice", json!({"task": "Look around"})).await;
    socket.completed().await;
    let frames = socket.frames.clone();
    let thought = event(&frames, "ThinkAction");
    assert_eq!(
        thought["content"], "Hello! You asked for: Look around",
        "{thought}"
    );
    assert_eq!(event(&frames, "CmdRunAction")["command"], "ls");
    assert_eq!(event(&frames, "CmdOutputObservation")["exitCode"], 0);
    assert!(said(&frames, "I ran ls, and it gave:"), "{frames:#?}");

    socket.say("Thank you").await;
    socket.completed().await;
    socket.say("Goodbye").await;
    socket.completed().await;
    let frames = socket.frames.clone();
    assert!(
        said(&frames, "That was message 1, in step 3."),
        "{frames:#?}"
    );
    assert!(
        said(&frames, "That was message 2, in step 4."),
        "{frames:#?}"
    );
    assert!(
        !kinds(&frames).iter().any(|kind| kind.contains("error")),
        "{frames:#?}"
    );
    assert!(
        host.log().contains("a session with"),
        "{}: its own line is not in the log",
        language.name
    );
}

fn said(frames: &[Value], text: &str) -> bool {
    frames.iter().any(|frame| frame.to_string().contains(text))
}

async fn tried(language: Language) {
    let (language, built) = tokio::task::spawn_blocking(move || {
        let built = build(&language);
        (language, built)
    })
    .await
    .unwrap();
    if let Some(built) = built {
        the_same_step_twice(&built).await;
        a_session(&language, &built).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_template_for_javascript_builds_and_runs_a_session() {
    tried(JAVASCRIPT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_template_for_python_builds_and_runs_a_session() {
    tried(PYTHON).await;
}
