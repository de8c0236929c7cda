//! The kit as a plugin's author meets it: the guide in `plugins/README.md`, its commands run in an
//! empty folder, and what they lead to.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use lucid_tests::{
    DEADLINE, HOSTILE, Host, Model, ModelTurn, Socket, TOOLING, Template, binary, call, command,
    counting, event, text_of,
};

const GUIDE: &str = include_str!("../../plugins/README.md");

/// The commands of the guide below a heading: its blocks of shell.
fn commands(heading: &str) -> String {
    let (_, below) = GUIDE.split_once(&format!("\n{heading}\n")).unwrap();
    let section = below.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1);
    let blocks: Vec<&str> = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(!blocks.is_empty(), "{heading} has no commands");
    blocks.concat()
}

/// Cargo's target folder of these tests.
fn target() -> &'static Path {
    binary().ancestors().nth(2).unwrap()
}

/// One build at a time: there are few cores, and they share a target folder.
fn building() -> std::sync::MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A home for what an author has: `lucid` on the path, and a cache. The standard library for guests
/// that this repository's own build made or found is used again.
fn author() -> &'static (TempDir, PathBuf) {
    static AUTHOR: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    AUTHOR.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (bin, cache) = (folder.path().join("bin"), folder.path().join("cache"));
        std::fs::create_dir_all(cache.join("lucid")).unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        symlink(binary(), bin.join("lucid")).unwrap();
        let sysroots = target().join("wasm-sysroot");
        std::fs::create_dir_all(&sysroots).unwrap();
        symlink(sysroots, cache.join("lucid/wasm-sysroot")).unwrap();
        (folder, bin)
    })
}

/// With an author's environment: what cargo and its registry need, and no setting of Lucid's.
fn as_author(mut command: Command) -> Command {
    let (home, bin) = author();
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        let upper = text.to_ascii_uppercase();
        let cargos = [
            "CARGO_HOME",
            "CARGO_NET_",
            "CARGO_HTTP_",
            "CARGO_REGISTR",
            "CARGO_SOURCE_",
        ];
        if cargos.iter().any(|start| text.starts_with(start))
            || ["RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "LUCID_WASM_STD"].contains(&&*text)
            || upper.ends_with("_PROXY")
            || upper.starts_with("SSL_CERT_")
            || upper.starts_with("PIP_")
            || upper.starts_with("NPM_CONFIG_")
        {
            command.env(name, value);
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = vec![bin.clone()];
    all.extend(std::env::split_paths(&path));
    command
        .env("PATH", std::env::join_paths(all).unwrap())
        .env("XDG_CACHE_HOME", home.path().join("cache"))
        .env("CARGO_TARGET_DIR", target().join("kit"));
    command
}

/// A shell in a folder, as its author's.
fn shell(folder: &Path, script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-euc", script])
        .current_dir(folder)
        .env_clear()
        .stdin(Stdio::null());
    for name in ["HOME", "LANG", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            shell.env(name, value);
        }
    }
    as_author(shell)
}

#[track_caller]
fn went_well(output: &Output) -> String {
    let said = format!("{}{}", text_of(&output.stdout), text_of(&output.stderr));
    assert!(output.status.success(), "{}:\n{said}", output.status);
    said
}

/// A call of `lucid plugin`, and all it said.
fn plugin(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let arguments = [&["plugin"], arguments].concat();
    let output = as_author(command(folder, &arguments)).output().unwrap();
    let said = format!("{}{}", text_of(&output.stdout), text_of(&output.stderr));
    (output.status.code().unwrap_or(-1), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_leads_from_an_empty_folder_to_an_agent_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::start(|number, _| match number {
        0 => ModelTurn::Say("Hello from the reviewer.".into()),
        1 => call("remember", json!({"note": "the answer is 42"})),
        2 => call("terminal", json!({"command": "echo $((40 + 2))"})),
        _ => ModelTurn::Say("It is 42.".into()),
    })
    .await;

    // New, tested, built, checked, and spoken to in the terminal.
    let script = commands("## An agent in Rust");
    for command in ["new", "build", "check"] {
        let named = format!("lucid plugin {command}");
        assert!(script.contains(&named), "`{named}` is not in the guide");
    }
    let mut guide = shell(folder.path(), &script);
    guide.env("LLM_BASE_URL", &model.url);
    let said = {
        let _one = building();
        tokio::task::block_in_place(|| went_well(&guide.output().unwrap()))
    };
    assert!(
        said.contains("4 passed"),
        "its own tests did not run:\n{said}"
    );
    assert!(said.contains("Nothing is wrong with it."), "{said}");
    assert!(
        said.contains("Hello from the reviewer."),
        "it did not answer:\n{said}"
    );
    let project = folder.path().join("reviewer");
    let wasm = std::fs::read(project.join("reviewer.wasm")).unwrap();
    for place in [folder.path(), target(), &std::env::home_dir().unwrap()] {
        let place = place.display().to_string();
        let found = wasm
            .windows(place.len())
            .any(|part| part == place.as_bytes());
        assert!(!found, "the component names its author's {place}");
    }

    // Served, by the project's own manifest.
    let host = Host::with_defaults()
        .set("LLM_BASE_URL", &model.url)
        .set(
            "LUCID_MANIFEST",
            project.join("lucid.toml").to_str().unwrap(),
        )
        .start();
    let first = json!({"task": "What is 40 + 2?", "projectId": "p1"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let session = socket.session().await;
    let frames = socket.completed().await;
    let shown = serde_json::to_string(&frames).unwrap();
    assert!(
        shown.contains("the answer is 42"),
        "its note was not shown: {shown}"
    );
    let said = &event(&frames, "AgentMessageAction")["content"];
    assert_eq!(said, "It is 42.", "{shown}");
    let prompt = model.seen().last().unwrap().messages("system").concat();
    assert!(
        prompt.contains("Be brief."),
        "its settings did not reach it: {prompt}"
    );

    // That session is a test, while the host runs.
    let storage = host.folder().join("storage");
    let replay = |file: &str| {
        let arguments = ["plugin", "replay", file, "--session", &session];
        let mut replay = as_author(command(&project, &arguments));
        replay.env("WORKSPACE_BASE_PATH", &storage);
        let output = replay.output().unwrap();
        (
            output.status.code(),
            text_of(&output.stdout) + &text_of(&output.stderr),
        )
    };
    let (code, said) = replay("reviewer.wasm");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("all with the same commands"), "{said}");

    // A change is built when it is saved, and the replay shows it.
    let (code, said) = tokio::task::block_in_place(|| {
        let _one = building();
        let dev = Dev::start(&project);
        dev.wait_for("Waiting for a change");
        let source = project.join("src/lib.rs");
        let text = std::fs::read_to_string(&source).unwrap();
        let changed = text.replace("You noted: ", "Do not forget: ");
        assert_ne!(text, changed);
        std::fs::write(&source, changed).unwrap();
        dev.wait_for("takes the new build by itself");
        dev.wait_for("Waiting for a change");
        dev.interrupt();
        replay("reviewer.wasm")
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Do not forget: the answer is 42"), "{said}");

    let (code, said) = plugin(folder.path(), &["new", "reviewer", "--kind", "policy"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("nothing is written over it"), "{said}");
}

#[test]
fn the_guide_leads_to_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let _one = building();
    let said = went_well(
        &shell(folder.path(), &commands("## An adapter"))
            .output()
            .unwrap(),
    );
    assert!(
        said.contains("4 passed"),
        "its own tests did not run:\n{said}"
    );
    assert!(said.contains("2 answers, cut in"), "{said}");
    assert!(said.contains("Nothing is wrong with it."), "{said}");
}

#[test]
fn the_guide_leads_to_a_git_provider() {
    let folder = tempfile::tempdir().unwrap();
    let _one = building();
    let said = went_well(
        &shell(folder.path(), &commands("## A git provider"))
            .output()
            .unwrap(),
    );
    assert!(
        said.contains("4 passed"),
        "its own tests did not run:\n{said}"
    );
    assert!(said.contains("kind git"), "{said}");
    assert!(said.contains("Nothing is wrong with it."), "{said}");
}

#[test]
fn the_guide_leads_to_tools() {
    let folder = tempfile::tempdir().unwrap();
    let _one = building();
    let said = went_well(
        &shell(folder.path(), &commands("## Tools for agents"))
            .output()
            .unwrap(),
    );
    assert!(
        said.contains("5 passed"),
        "its own tests did not run:\n{said}"
    );
    assert!(said.contains("open_work, ticket"), "{said}");
    assert!(said.contains("1 command, 1 request"), "{said}");
    assert!(said.contains("Nothing is wrong with it."), "{said}");
}

#[test]
fn the_guide_leads_to_agents_in_javascript_and_python() {
    if std::env::var("LUCID_LANGUAGES").is_ok_and(|choice| choice == "skip") {
        eprintln!("LUCID_LANGUAGES=skip: the guide's other languages are NOT tried");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = commands("## An agent in JavaScript or Python");
    let said = went_well(&shell(folder.path(), &script).output().unwrap());
    let passed = said.matches("Nothing is wrong with it.").count();
    assert_eq!(passed, 2, "{said}");
    // Those of the languages' own tests, which run after these.
    let compiled = author().0.path().join("cache/lucid/compiled");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (language, built) in [
        ("javascript", "greeter/greeter.wasm"),
        ("python", "parrot/parrot.wasm"),
    ] {
        Template::new(root, language).keep(&folder.path().join(built), &compiled);
    }
}

/// `lucid plugin dev`, and what it prints.
struct Dev {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Dev {
    fn start(project: &Path) -> Self {
        let mut command = as_author(command(project, &["plugin", "dev"]));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (send, lines) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    #[track_caller]
    fn wait_for(&self, what: &str) {
        let mut seen = String::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) if line.contains(what) => return,
                Ok(line) => seen += &(line + "\n"),
                Err(why) => panic!("`{what}` did not come ({why}), but:\n{seen}"),
            }
        }
    }

    fn interrupt(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A component of a world of this repository, from a core module in text.
fn component(module: &str, package: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let mut resolve = Resolve::default();
    for shared in ["types", "host"] {
        resolve.push_path(wit.join(shared)).unwrap();
    }
    let (package, _) = resolve.push_path(wit.join(package)).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    let mut encoder = ComponentEncoder::default();
    encoder.module(&module).unwrap().encode().unwrap()
}

/// A policy whose `describe` traps.
fn traps_in_describe() -> Vec<u8> {
    let at = "lucid:policy/policy@0.1.0";
    let module = format!(
        r#"(module
    (memory (export "memory") 1)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
    (func (export "{at}#describe") (result i32) unreachable)
    (func (export "{at}#migrate") (param i32 i32 i32) (result i32) unreachable)
    (func (export "{at}#step") (param i32) (result i32) unreachable))"#
    );
    component(&module, "policy", "policy-plugin")
}

#[test]
fn a_broken_component_is_refused_with_the_reason_and_a_good_one_passes() {
    let folder = tempfile::tempdir().unwrap();
    let other_world =
        r#"(component (instance $i) (export "acme:review/review@1.0.0" (instance $i)))"#;
    let forbidden = r#"(component (import "acme:net/sockets@1.0.0" (instance)))"#;
    for (name, wasm, code, reason) in [
        ("good", HOSTILE.to_vec(), 0, "Nothing is wrong with it."),
        ("tools", TOOLING.to_vec(), 1, "was not done after 32 steps"),
        (
            "half",
            HOSTILE[..HOSTILE.len() / 2].to_vec(),
            1,
            "not a WebAssembly component",
        ),
        ("empty", Vec::new(), 1, "not a WebAssembly component"),
        ("text", b"Hello.".to_vec(), 1, "not a WebAssembly component"),
        (
            "core",
            b"\0asm\x01\0\0\0".to_vec(),
            1,
            "not a WebAssembly component",
        ),
        (
            "other",
            wat::parse_str(other_world).unwrap(),
            1,
            "so it is no plugin",
        ),
        (
            "forbidden",
            wat::parse_str(forbidden).unwrap(),
            1,
            "imports `acme:net/sockets@1.0.0`",
        ),
        ("trap", traps_in_describe(), 1, "broke down"),
        (
            "panics",
            counting(1, "trap"),
            1,
            "panicked at tests/guests/counting/src/lib.rs:",
        ),
    ] {
        let file = format!("{name}.wasm");
        std::fs::write(folder.path().join(&file), wasm).unwrap();
        let (was, said) = plugin(folder.path(), &["check", &file]);
        assert_eq!(was, code, "{name}: {said}");
        assert!(said.contains(reason), "{name}: {said}");
    }
    let (code, said) = plugin(folder.path(), &["check", "good.wasm", "--kind", "llm"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is not a llm plugin"), "{said}");
    let (code, said) = plugin(folder.path(), &["check", "nothing.wasm"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nothing.wasm cannot be read"), "{said}");
    let (code, said) = plugin(folder.path(), &["check", "good.wasm", "--settings", "[]"]);
    assert_eq!(code, 2, "{said}");
}

#[test]
fn what_cannot_be_made_or_built_is_said_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["../elsewhere", "Upper", "-x", "a b", "test", ""] {
        let (code, said) = plugin(folder.path(), &["new", "--kind", "policy", "--", name]);
        assert_eq!(code, 2, "`{name}` was taken: {said}");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    let (code, said) = plugin(folder.path(), &["build"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("lucid plugin new"), "{said}");
    let (code, said) = plugin(folder.path(), &["dev", "no-such-folder"]);
    assert_eq!(code, 1, "{said}");
    let (code, said) = plugin(folder.path(), &["replay", "x.wasm", "--session", "none"]);
    assert_eq!(code, 1, "{said}");
}
