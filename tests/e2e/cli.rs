//! The command line, as a person at a terminal uses it.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::json;
use tempfile::TempDir;

use lucid_tests::{Host, Model, ModelTurn, binary, call, command, eventually, find, text_of};

/// Secrets that must never be printed. Each is long enough that nothing else looks like it.
const SECRETS: [(&str, &str); 4] = [
    (
        "SUPABASE_JWT_SECRET",
        "jwt-secret-that-must-not-be-printed-1",
    ),
    (
        "ENCRYPTION_KEY",
        "encryption-key-that-must-not-be-printed-2",
    ),
    (
        "INTERNAL_API_KEY",
        "internal-key-that-must-not-be-printed-3",
    ),
    ("OPENAI_API_KEY", "sk-openai-key-that-must-not-be-printed-4"),
];

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("lucid-cli-")
        .tempdir()
        .unwrap()
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

fn both(output: &Output) -> String {
    format!("{}\n{}", text_of(&output.stdout), text_of(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn run_with_nothing_configured_really_writes_and_runs_a_file() {
    let folder = folder();
    let mut run = command(folder.path(), &["run", "Write a hello world"]);
    run.env("MOCK_STEP_DELAY_SECONDS", "0");
    let output = output(run).await;
    let printed = both(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(
        text_of(&output.stdout).contains("Hello, World!"),
        "{printed}"
    );
    assert!(printed.contains("python /workspace/hello.py"), "{printed}");
    assert!(
        !printed.contains('\u{1b}'),
        "colours, and this is no terminal: {printed:?}"
    );
    let file = find(&folder.path().join("storage"), "hello.py")
        .unwrap_or_else(|| panic!("no hello.py: {printed}"));
    assert_eq!(
        std::fs::read_to_string(file).unwrap().trim_end(),
        "print(\"Hello, World!\")"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn run_says_with_its_exit_code_that_a_task_failed() {
    let model =
        Model::start(|_, _| ModelTurn::Refuse(400, "This model is on holiday.".into())).await;
    let folder = folder();
    let mut run = command(folder.path(), &["run", "Do something"]);
    run.env("LLM_API_KEY", "sk-test")
        .env("LLM_BASE_URL", &model.url);
    let output = output(run).await;
    let printed = both(&output);
    assert!(!output.status.success(), "{printed}");
    assert!(printed.contains("holiday"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_never_writes_to_the_terminal_that_run_was_started_at() {
    for backend in ["local", "landlock", "bubblewrap"] {
        let writes = "printf 'to%sall' x >/dev/tty && echo wrote || echo there is none";
        let model = Model::start(move |number, _| match number {
            0 => call("terminal", json!({"command": writes})),
            _ => call("finish", json!({"message": "Done."})),
        })
        .await;
        let folder = folder();
        // `script` gives it a terminal, and prints what is written there.
        let run = format!("{} run 'Write there'", binary().display());
        let mut at_terminal = Command::new("script");
        at_terminal
            .args(["-qec", &run, "/dev/null"])
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .env("SANDBOX_BACKEND", backend)
            .env("LLM_API_KEY", "sk-test")
            .env("LLM_BASE_URL", &model.url)
            .stdin(Stdio::null());
        let output = output(at_terminal).await;
        let printed = both(&output);
        let told = model.completions().last().unwrap().messages("tool");
        assert!(
            told[0].contains("there is none"),
            "{backend}: {told:?} {printed}"
        );
        assert!(!printed.contains("toxall"), "{backend}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_is_there_and_ends_well() {
    let folder = folder();
    let output = output(command(folder.path(), &["doctor"])).await;
    let printed = both(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    for word in [
        "bubblewrap",
        "landlock",
        "sqlite",
        "mock",
        "coder",
        "openai",
        "OPENAI_API_KEY",
    ] {
        assert!(
            printed.to_lowercase().contains(&word.to_lowercase()),
            "nothing on {word}: {printed}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_is_one_line_that_names_it_and_exit_code_2() {
    for (name, value) in [
        ("PORT", "eighty"),
        ("PORT", "70000"),
        ("HOST", "example.com"),
        ("MAX_ITERATIONS", "0"),
        ("CONVERSATION_TIMEOUT", "soon"),
        ("SANDBOX_BACKEND", "bubble"),
        ("SANDBOX_NETWORK", "some"),
        ("SANDBOX_MEMORY_LIMIT", "lots"),
        ("MOCK_STEP_DELAY_SECONDS", "-1"),
        ("ALLOWED_ORIGINS", "not an origin"),
        ("LLM_BASE_URL", "nonsense"),
        ("DEFAULT_POLICY", "magic"),
        ("WORKSPACE_MOUNT_PATH", "workspace"),
    ] {
        let folder = folder();
        for arguments in [&[][..], &["serve"], &["run", "A task"]] {
            let mut serve = command(folder.path(), arguments);
            serve.env(name, value);
            let output = output(serve).await;
            let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
            assert_eq!(output.status.code(), Some(2), "{name}={value}: {out}{err}");
            assert_eq!(err.trim_end().lines().count(), 1, "{name}={value}: {err}");
            assert!(
                err.contains(name) && err.contains(value),
                "{name}={value}: {err}"
            );
            assert_eq!(out, "", "{name}={value}");
        }
        assert!(
            !folder.path().join("storage").exists(),
            "{name}={value}: something was made before it was refused"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local_mode_listens_for_nobody_else() {
    let folder = folder();
    let mut serve = command(folder.path(), &["serve"]);
    serve.env("HOST", "0.0.0.0");
    let output = output(serve).await;
    let err = text_of(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(
        err.contains("HOST") && err.contains("SUPABASE_JWT_SECRET"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_for_others_does_not_start_with_a_secret_that_can_be_guessed() {
    let folder = folder();
    for name in ["SUPABASE_JWT_SECRET", "INTERNAL_API_KEY"] {
        let mut serve = command(folder.path(), &["serve"]);
        serve
            .env("SUPABASE_JWT_SECRET", lucid_tests::JWT_SECRET)
            .env(name, "hunter2");
        let output = output(serve).await;
        let err = text_of(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert_eq!(err.trim_end().lines().count(), 1, "{err}");
        assert!(
            err.contains(&format!(
                "{name} cannot be used: it must be at least 16 bytes"
            )),
            "{err}"
        );
        assert!(!both(&output).contains("hunter2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local_mode_prints_a_token_that_works_and_keeps_its_secret_to_itself() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::with_defaults().unset("SUPABASE_JWT_SECRET").start();
    assert!(
        host.address().starts_with("127.0.0.1:"),
        "{}",
        host.address()
    );
    let token = lucid_tests::eventually("a token in the log", async || jwt(&host.log())).await;
    let bearer = format!("Bearer {token}");
    host.send(
        "GET",
        "/api/v1/sessions",
        &[("authorization", &bearer)],
        None,
    )
    .await
    .ok();
    // A token for this test's usual secret is nothing here.
    host.get("alice", "/api/v1/sessions")
        .await
        .refused(401, "Invalid token");
    let secret =
        find(&host.folder().join("storage"), "local-secret").expect("no secret in storage");
    let mode = std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let secret = std::fs::read_to_string(secret).unwrap();
    assert!(
        !host.log().contains(secret.trim()),
        "the secret is in the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn token_makes_one_that_the_server_takes() {
    let host = Host::with_defaults().start();
    let mut token = command(host.folder(), &["token", "--user", "carol"]);
    token
        .env("SUPABASE_JWT_SECRET", lucid_tests::JWT_SECRET)
        .env("WORKSPACE_BASE_PATH", host.folder().join("storage"));
    let output = output(token).await;
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
    let token =
        jwt(&text_of(&output.stdout)).unwrap_or_else(|| panic!("no token: {}", both(&output)));
    let bearer = format!("Bearer {token}");
    host.send(
        "POST",
        "/api/v1/sessions",
        &[("authorization", &bearer)],
        Some(r#"{"task":"Mine"}"#.into()),
    )
    .await
    .ok();
    let sessions = host.get("carol", "/api/v1/sessions").await.ok();
    assert_eq!(sessions["sessions"][0]["userId"], "carol");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_holds_a_secret() {
    let folder = folder();
    let silent = |printed: &str, what: &str| {
        for (name, secret) in SECRETS {
            assert!(
                !printed.contains(secret),
                "{what} printed {name}: {printed}"
            );
        }
    };
    for arguments in [
        &["doctor"][..],
        &["token", "--user", "carol"],
        &["--help"],
        &["--version"],
    ] {
        let mut call = command(folder.path(), arguments);
        call.envs(SECRETS);
        // The doctor asks whether the provider answers; nobody outside this machine is asked here.
        call.env("OPENAI_BASE_URL", "http://127.0.0.1:9");
        let output = output(call).await;
        silent(&both(&output), &arguments.join(" "));
        assert_eq!(output.status.code(), Some(0), "{}", both(&output));
    }
    // Wrong ones are refused, and not shown either.
    for (name, secret) in [
        (
            "OPENAI_API_KEY",
            "sk-with a line\nbreak-that-must-not-be-printed",
        ),
        (
            "INTERNAL_API_KEY",
            "key-with-\u{7f}-that-must-not-be-printed",
        ),
        (
            "LLM_BASE_URL",
            "ftp://user:password-that-must-not-be-printed@example.com",
        ),
    ] {
        let mut serve = command(folder.path(), &["serve"]);
        serve.env(name, secret);
        let output = output(serve).await;
        assert_eq!(output.status.code(), Some(2), "{}", both(&output));
        assert!(text_of(&output.stderr).contains(name), "{}", both(&output));
        assert!(
            !both(&output).contains("must-not-be-printed"),
            "{}",
            both(&output)
        );
    }
    // A server with all of them, and a look at what it says of itself.
    let mut builder = Host::with_defaults();
    for (name, secret) in SECRETS {
        builder = builder.set(name, secret);
    }
    let host = builder.start();
    for path in ["/", "/health", "/api/v1/sessions", "/nothing"] {
        let answer = host.send("GET", path, &[], None).await;
        silent(&answer.text, path);
    }
    silent(&host.log(), "serve");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_storage_is_refused() {
    let host = Host::with_defaults().start();
    let mut second = command(host.folder(), &["serve"]);
    second
        .env("PORT", "0")
        .env("HOST", "127.0.0.1")
        .env("SUPABASE_JWT_SECRET", lucid_tests::JWT_SECRET)
        .env("WORKSPACE_BASE_PATH", host.folder().join("storage"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = output(second).await;
    assert!(!output.status.success());
    assert!(both(&output).contains("in use"), "{}", both(&output));
}

/// The first JWT in a text.
fn jwt(text: &str) -> Option<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c));
    text.split(word)
        .find(|word| word.starts_with("eyJ") && word.matches('.').count() == 2)
        .map(str::to_owned)
}

/// A model that asks, and says what it was answered.
async fn asks() -> Model {
    Model::start(|_, request| {
        let said = request.messages("user");
        let answer = |word: &str| said.iter().any(|text| text.contains(word));
        match (answer("tabs"), answer("four")) {
            (false, _) => call(
                "ask_user",
                json!({"question": "Tabs or spaces?", "options": ["tabs", "spaces"]}),
            ),
            (true, false) => call("ask_user", json!({"question": "How wide?"})),
            (true, true) => ModelTurn::Say("Tabs of four it is.".into()),
        }
    })
    .await
}

fn run_with(model: &Model, folder: &TempDir) -> Command {
    let mut run = command(folder.path(), &["run", "Indent it"]);
    run.env("LLM_API_KEY", "sk-test")
        .env("LLM_BASE_URL", &model.url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn run_answers_what_the_agent_asks_from_a_pipe() {
    let (model, folder) = (asks().await, folder());
    let mut child = run_with(&model, &folder)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // All at once, before the first question: each question gets its line.
    let mut input = child.stdin.take().unwrap();
    input
        .write_all("I like tabs\n\nfour\nnobody asked for this\n".as_bytes())
        .unwrap();
    drop(input);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = output.await.unwrap();
    let printed = both(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    for words in [
        "Tabs or spaces?",
        "I like tabs",
        "How wide?",
        "four",
        "Tabs of four it is.",
    ] {
        assert!(printed.contains(words), "no {words:?}: {printed}");
    }
    assert!(!printed.contains("nobody asked"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_answers_what_the_agent_asks_at_a_terminal() {
    const TYPIST: &str = r#"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
shown, answers = b"", [(b"Tabs or spaces?", b"tabs\n"), (b"How wide?", b"four\n")]
while True:
    try:
        piece = os.read(terminal, 4096)
    except OSError:
        break
    if not piece:
        break
    shown += piece
    # Where it asks for an answer, and not before.
    if answers and answers[0][0] in shown and shown.rstrip(b" ").endswith(b"answer"):
        os.write(terminal, answers.pop(0)[1])
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;
    let (model, folder) = (asks().await, folder());
    let run = run_with(&model, &folder);
    let mut typed = Command::new("python3");
    typed
        .args(["-c", TYPIST])
        .arg(run.get_program())
        .args(run.get_args())
        .current_dir(folder.path())
        .env_clear()
        .envs(
            run.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let output = output(typed).await;
    let printed = both(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("Tabs of four it is."), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_ends_with_a_code_of_its_own_where_nobody_answers() {
    let (model, folder) = (asks().await, folder());
    // Nothing at all; and one answer where two are wanted.
    let nothing = output(run_with(&model, &folder)).await;
    let mut child = run_with(&model, &folder)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"tabs").unwrap();
    let one = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    for output in [nothing, one.await.unwrap()] {
        let printed = both(&output);
        assert_eq!(output.status.code(), Some(3), "{printed}");
        assert!(
            text_of(&output.stderr).contains("standard input has no answer"),
            "{printed}"
        );
        assert!(printed.contains("Tabs or spaces?"), "{printed}");
    }
    let help = output(command(folder.path(), &["run", "--help"])).await;
    assert!(
        text_of(&help.stdout).contains("3 the agent asked something"),
        "{}",
        both(&help)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_which_provider_lacks_which_key_before_a_session_does() {
    let folder = folder();
    let check = async |settings: &[(&str, &str)]| {
        let mut check = command(folder.path(), &["check"]);
        check.envs(settings.iter().copied());
        output(check).await
    };
    let missing = check(&[("DEFAULT_POLICY", "coder")]).await;
    assert_eq!(missing.status.code(), Some(0), "{}", both(&missing));
    let (said, warned) = (text_of(&missing.stdout), text_of(&missing.stderr));
    assert!(said.contains("OPENAI_API_KEY is not set"), "{said}");
    assert!(
        warned.contains("set OPENAI_API_KEY, or `key = false`"),
        "{warned}"
    );
    let near = check(&[("LLM_BASE_URL", "127.0.0.1:9")]).await;
    let said = text_of(&near.stdout);
    assert!(
        said.contains("http://127.0.0.1:9/v1, without a key"),
        "{said}"
    );
    assert!(said.contains("gets the policy coder"), "{said}");
    assert!(
        !text_of(&near.stderr).contains("key = false"),
        "{}",
        both(&near)
    );
}

/// Output that goes to a disk without room, or to nobody.
fn nowhere(kind: &str) -> Stdio {
    match kind {
        "full" => std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
            .into(),
        _ => std::io::pipe().unwrap().1.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_cannot_be_printed_is_a_failure_and_no_panic() {
    for arguments in [
        &["manifest", "example"][..],
        &["token", "--user", "alice"],
        &["check"],
    ] {
        for (kind, code) in [("full", 1), ("gone", 0)] {
            let folder = folder();
            let mut command = command(folder.path(), arguments);
            command.stdout(nowhere(kind)).stderr(Stdio::piped());
            let child = command.spawn().unwrap();
            drop(command);
            let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
            let output = output.await.unwrap();
            let said = text_of(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{arguments:?} {kind}: {said}"
            );
            let told = said.contains("could not be printed: No space left on device");
            assert_eq!(told, kind == "full", "{arguments:?} {kind}: {said}");
        }
        // An error that nobody reads is one all the same.
        let folder = folder();
        let mut wrong = command(folder.path(), arguments);
        wrong
            .env("PORT", "eighty")
            .stdout(Stdio::null())
            .stderr(nowhere("gone"));
        let code = wrong.status().unwrap().code();
        let expected = if arguments[0] == "manifest" { 0 } else { 2 };
        assert_eq!(code, Some(expected), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_once_how_to_get_docker() {
    let folder = folder();
    let mut doctor = command(folder.path(), &["doctor"]);
    let socket = format!("unix://{}/docker.sock", folder.path().display());
    doctor.env("DOCKER_HOST", &socket);
    let printed = both(&output(doctor).await);
    assert_eq!(printed.matches("Install Docker").count(), 1, "{printed}");
    assert_eq!(printed.matches(&socket).count(), 1, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_ends_a_run_as_its_user_would_and_its_files_stay() {
    for signal in [rustix::process::Signal::HUP, rustix::process::Signal::TERM] {
        let model = Model::start(|_, _| {
            call(
                "terminal",
                json!({"command": "echo begun > begun.txt; sleep 612"}),
            )
        })
        .await;
        let folder = folder();
        let child = run_with(&model, &folder).spawn().unwrap();
        let begun = || find(&folder.path().join("storage"), "begun.txt");
        let file = eventually("the command to begin", async || begun()).await;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        let output = output.await.unwrap();
        let printed = both(&output);
        assert_eq!(output.status.code(), Some(1), "{signal:?}: {printed}");
        assert!(printed.contains("stopped  as you asked"), "{printed}");
        let workspace = file.parent().unwrap().display().to_string();
        assert!(
            printed.contains(&workspace) || printed.contains("files  "),
            "{printed}"
        );
        assert!(file.exists(), "{printed}");
        assert!(
            lucid_tests::process_with("sleep 612").is_none(),
            "the command runs on: {printed}"
        );
    }
}
