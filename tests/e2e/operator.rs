//! What the server tells who runs it: slips in names, times and sizes as they are usually written, each error
//! once and in the operator's words, and a log of which every line is JSON.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use lucid_tests::{
    Host, Model, ModelTurn, SmallDisk, command, command_through, eventually, in_own_mounts, text_of,
};

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("lucid-operator-")
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

const SLIP: &str = "MAX_SESIONS_PER_USER is no setting of this server and does nothing: MAX_SESSIONS_PER_USER was probably meant.";

#[tokio::test(flavor = "multi_thread")]
async fn a_slip_in_a_settings_name_is_told_at_start_by_check_and_by_doctor() {
    let folder = folder();
    // In the file, as well as in the environment.
    std::fs::write(folder.path().join(".env"), "MAX_SESIONS_PER_USER=3\n").unwrap();
    for arguments in ["check", "doctor"] {
        let mut told = command(folder.path(), &[arguments]);
        told.env("SANDBOX_BACKEND", "none")
            .env("CONVERSATION_TIMEOUT_SECONDS", "60");
        let output = output(told).await;
        let printed = both(&output);
        assert_eq!(output.status.code(), Some(0), "{printed}");
        assert!(printed.contains(SLIP), "{printed}");
        assert!(
            printed.contains("CONVERSATION_TIMEOUT was probably meant"),
            "{printed}"
        );
    }
    let host = Host::with_defaults()
        .set("MAX_SESIONS_PER_USER", "3")
        .start();
    host.says(SLIP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_the_manifest_names_is_no_slip() {
    let folder = folder();
    std::fs::write(
        folder.path().join("lucid.toml"),
        "[policies.mock]\ncomponent = \"builtin:mock\"\n\n[providers.house]\ncomponent = \"builtin:openai\"\nbase_url = \"http://127.0.0.1:9\"\nkey = \"OPENAI_API_KEY2\"\n",
    )
    .unwrap();
    let mut check = command(folder.path(), &["check"]);
    check
        .env("OPENAI_API_KEY2", "sk-of-the-house-0123456789")
        .env("OPENAI_API_KEY3", "sk-of-nobody-0123456789");
    let output = output(check).await;
    let printed = both(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(
        !printed.contains("OPENAI_API_KEY2 is no setting"),
        "{printed}"
    );
    assert!(
        printed.contains("OPENAI_API_KEY3 is no setting"),
        "{printed}"
    );
    assert!(!printed.contains("sk-of"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn times_and_sizes_are_taken_as_they_are_usually_written() {
    let folder = folder();
    std::fs::write(
        folder.path().join("lucid.toml"),
        "[policies.mock]\ncomponent = \"builtin:mock\"\nlimits = { time = \"5s\", memory = \"64MiB\" }\n",
    )
    .unwrap();
    let mut check = command(folder.path(), &["check"]);
    for (name, value) in [
        ("CONVERSATION_TIMEOUT", "1h30m"),
        ("SESSION_GRACE_SECONDS", "5m"),
        ("GIT_TIMEOUT", "300s"),
        ("MOCK_STEP_DELAY_SECONDS", "500ms"),
        ("SANDBOX_MEMORY_LIMIT", "512MB"),
        ("SANDBOX_DISK_LIMIT", "2 GiB"),
        ("GIT_SIZE_LIMIT", "1.5g"),
    ] {
        check.env(name, value);
    }
    let output = output(check).await;
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_asked_is_not_shown_as_if_it_could() {
    let model = Model::start(|_, _| ModelTurn::Say("Done.".to_owned())).await;
    for arguments in ["check", "doctor"] {
        let run = async |url: Option<&str>| {
            let folder = folder();
            let mut told = command(folder.path(), &[arguments]);
            told.env("SANDBOX_BACKEND", "none");
            if let Some(url) = url {
                told.env("LLM_API_KEY", "sk-of-the-tests-0123456789")
                    .env("LLM_BASE_URL", url);
            }
            both(&output(told).await)
        };
        let without = run(None).await;
        assert!(
            without.contains("it can ask no model, since OPENAI_API_KEY is not set"),
            "{without}"
        );
        assert!(!without.contains("and the model"), "{without}");
        let with = run(Some(&model.url)).await;
        assert!(with.contains("and the model gpt"), "{with}");
        assert!(!with.contains("cannot be asked"), "{with}");
        // Whether it answers is what the doctor looks at; `check` asks nobody.
        let down = run(Some("http://127.0.0.1:9")).await;
        let said =
            "but it cannot be asked at the moment: 127.0.0.1 cannot be reached: Connection refused";
        assert_eq!(down.contains(said), arguments == "doctor", "{down}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_has_is_answered_with_those_that_there_are_once_and_for_the_operator() {
    let model = Model::start(|_, _| ModelTurn::Say("Done.".to_owned())).await;
    let run = async |arguments: &[&str], variables: &[(&str, &str)]| {
        let folder = folder();
        let mut all = vec!["run", "A task"];
        all.extend(arguments);
        let mut run = command(folder.path(), &all);
        run.env("SANDBOX_BACKEND", "none");
        run.envs(variables.iter().copied());
        let output = output(run).await;
        assert_eq!(output.status.code(), Some(1), "{}", both(&output));
        let printed = both(&output);
        let lines: Vec<_> = printed
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        assert_eq!(lines.len(), 1, "said once: {printed}");
        lines[0].to_owned()
    };
    assert_eq!(
        run(&["--policy", "nope"], &[]).await,
        "Unknown policy 'nope': there are: coder, mock."
    );
    assert_eq!(
        run(&["--policy", "codr"], &[]).await,
        "Unknown policy 'codr': did you mean `coder`? (there are: coder, mock)."
    );
    let key = [
        ("LLM_API_KEY", "sk-test"),
        ("LLM_BASE_URL", model.url.as_str()),
    ];
    assert_eq!(
        run(&["--provider", "nobody"], &key).await,
        "Unknown model provider 'nobody': there are: anthropic, google, openai."
    );
    assert_eq!(
        run(&["--policy", "coder"], &[]).await,
        "No API key for the model provider 'openai': set OPENAI_API_KEY."
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_task_is_shown_once_and_without_what_a_client_says_of_itself() {
    let model =
        Model::start(|_, _| ModelTurn::Refuse(400, "This model is on holiday.".into())).await;
    for (url, says) in [
        (model.url.as_str(), "This model is on holiday."),
        (
            "http://127.0.0.1:9",
            "127.0.0.1 cannot be reached: Connection refused",
        ),
    ] {
        let folder = folder();
        let mut run = command(folder.path(), &["run", "A task"]);
        run.env("LLM_API_KEY", "sk-test").env("LLM_BASE_URL", url);
        // Whatever patience there is with a provider that is down, none of it is for this test.
        run.env("MODEL_OUTAGE_PATIENCE", "0");
        let output = output(run).await;
        let printed = both(&output);
        assert_eq!(output.status.code(), Some(1), "{printed}");
        let errors = printed
            .lines()
            .filter(|line| line.trim_start().starts_with("error "));
        assert_eq!(errors.count(), 1, "{printed}");
        assert_eq!(printed.matches(says).count(), 1, "{printed}");
    }
}

/// Each line of a text as JSON, with its sentence.
fn sentences(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let line: Value = serde_json::from_str(line)
                .unwrap_or_else(|why| panic!("no JSON ({why}): {line}\nin:\n{text}"));
            assert!(
                line["timestamp"].is_string() && line["level"].is_string(),
                "{line}"
            );
            line["fields"]["message"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_log_format_json_every_line_is_json_whatever_goes_wrong() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().port().to_string();
    for (arguments, variables, code, says) in [
        (
            &["serve"][..],
            &[("PORT", "eighty")][..],
            2,
            "PORT is \"eighty\"",
        ),
        (
            &["serve"],
            &[("LUCID_MANIFEST", "nowhere.toml")],
            2,
            "nowhere.toml",
        ),
        (&["serve", "--nonsense"], &[], 2, "--nonsense"),
        (&["nonsense"], &[], 2, "nonsense"),
        (&["run"], &[], 2, "TASK"),
        (&["run", "t", "--policy", "nope"], &[], 1, "Unknown policy"),
        (&["token", "--user", ""], &[], 2, "--user"),
        (
            &["check"],
            &[("DEFAULT_POLICY", "coder")],
            0,
            "warning: a session that names none",
        ),
        (
            &["plugin", "check", "x.wasm", "--settings", "none"],
            &[],
            2,
            "must be a JSON object",
        ),
        (&["check"], &[("MAX_SESIONS_PER_USER", "3")], 0, SLIP),
        (
            &["serve"],
            &[("PORT", busy.as_str())],
            1,
            "Nothing can listen",
        ),
    ] {
        for in_file in [false, true] {
            let folder = folder();
            let mut command = command(folder.path(), arguments);
            command.env("SANDBOX_BACKEND", "none");
            command.envs(variables.iter().copied());
            if in_file {
                std::fs::write(folder.path().join(".env"), "LOG_FORMAT=json\n").unwrap();
            } else {
                command.env("LOG_FORMAT", "json");
            }
            let output = output(command).await;
            let printed = both(&output);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {printed}");
            let told = sentences(&text_of(&output.stderr));
            let about: Vec<_> = told.iter().filter(|one| one.contains(says)).collect();
            assert_eq!(about.len(), 1, "{says}, once: {printed}");
        }
    }
    // What helps is no log.
    let folder = folder();
    let mut help = command(folder.path(), &["--help"]);
    help.env("LOG_FORMAT", "json");
    let output = output(help).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text_of(&output.stdout).contains("Usage"),
        "{}",
        both(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_local_mode_says_all_in_json_from_its_first_line_to_its_last() {
    let folder = folder();
    let mut serve = command(folder.path(), &["serve"]);
    let mut serving = serve
        .env("LOG_FORMAT", "json")
        .env("PORT", "0")
        .env("SANDBOX_BACKEND", "none")
        .env("MAX_SESIONS_PER_USER", "3")
        .stdout(Stdio::from(
            std::fs::File::create(folder.path().join("out")).unwrap(),
        ))
        .stderr(Stdio::from(
            std::fs::File::create(folder.path().join("err")).unwrap(),
        ))
        .spawn()
        .unwrap();
    let said = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    eventually("the server to listen", async || {
        said("out").contains("listening on http://").then_some(())
    })
    .await;
    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    eventually("the server to end", async || serving.try_wait().unwrap()).await;
    let out = sentences(&said("out"));
    for begin in ["local mode:", "token: ", "listening on http://"] {
        let told = out.iter().filter(|one| one.starts_with(begin));
        assert_eq!(told.count(), 1, "{begin}: {out:?}");
    }
    let err = sentences(&said("err"));
    assert!(err.contains(&SLIP.to_owned()), "{err:?}");
}

/// A shell script after which no control group is to be found.
const NO_GROUPS: &str =
    "{ ! mountpoint -q /sys/fs/cgroup || umount --recursive --lazy /sys/fs/cgroup; }";

/// What is said where there are no control groups.
const INSTEAD: &str = "No control group limits the memory, processes and processors of a sandbox as a whole (no hierarchy is mounted that this process is in). The server counts their memory itself instead, and ends one that takes more than its limit.";

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_no_control_groups_the_log_the_api_and_the_doctor_say_what_holds_instead() {
    if !SmallDisk::possible() {
        return;
    }
    let host = Host::with_defaults()
        .through(in_own_mounts(NO_GROUPS))
        .start();
    host.says(INSTEAD).await;
    let about = host.get("alice", "/").await.ok();
    // Who may not know more is told where it is said.
    let notice = "Sandboxes are not as good as they could be: bubblewrap is used. The server's log and `lucid doctor` say why.";
    assert_eq!(about["sandbox_notice"], notice, "{about}");
    let folder = folder();
    let mut doctor = command_through(folder.path(), &in_own_mounts(NO_GROUPS), &["doctor"]);
    doctor.env("SANDBOX_BACKEND", "bubblewrap");
    let printed = both(&output(doctor).await);
    assert!(printed.contains(INSTEAD), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_from_which_processes_are_hidden_says_that_they_do_not_count() {
    if !SmallDisk::possible() {
        return;
    }
    // Without another group than root's, which sees all of them.
    let setpriv = "setpriv --regid 65534 --clear-groups --bounding-set=-sys_ptrace";
    let hidden =
        format!("{NO_GROUPS} && mount -t proc -o hidepid=2 proc /proc && set -- {setpriv} \"$@\"");
    let folder = folder();
    let mut doctor = command_through(folder.path(), &in_own_mounts(&hidden), &["doctor"]);
    doctor.env("SANDBOX_BACKEND", "bubblewrap");
    let printed = both(&output(doctor).await);
    let said = "/proc is mounted with hidepid: their memory does not count";
    assert!(printed.contains(said), "{printed}");
    let mut doctor = command(folder.path(), &["doctor"]);
    doctor.env("SANDBOX_BACKEND", "bubblewrap");
    let printed = both(&output(doctor).await);
    assert!(!printed.contains("hidepid"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_root_of_few_user_ids_says_that_all_sessions_share_one() {
    if !SmallDisk::possible() {
        return;
    }
    let folder = folder();
    let waiting = [
        "unshare",
        "--user",
        "sh",
        "-c",
        "read go && exec \"$@\"",
        "sh",
    ];
    let waiting = waiting.map(str::to_owned);
    let mut doctor = command_through(folder.path(), &waiting, &["doctor"]);
    let mut doctor = doctor
        .env("SANDBOX_BACKEND", "bubblewrap")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let process = doctor.id();
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{process}/{map}");
        // It cannot be written before there are such users.
        eventually("the users to be mapped", async || {
            std::fs::write(&path, "0 0 65536\n").ok()
        })
        .await;
    }
    doctor.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let ended = tokio::task::spawn_blocking(move || doctor.wait_with_output().unwrap());
    let printed = both(&ended.await.unwrap());
    let said = "All sessions share the user id 1000, since this server may not use 200000-265535";
    assert!(printed.contains(said), "{printed}");
}
