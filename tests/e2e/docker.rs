//! Sessions in containers of a real Docker engine, over the running host.

use futures::future::join_all;
use serde_json::{Value, json};

use lucid_tests::docker::{self, ContainerNames};
use lucid_tests::{Host, Model, ModelTurn, Socket, call, event, eventually, kinds};

/// A session of the mock, played to its end, whose command really ran.
async fn played(host: &Host, user: &str, task: &str) -> (Socket, String) {
    let mut socket = Socket::open(host, user, json!({"task": task})).await;
    let session = socket.session().await;
    let frames = socket.completed().await;
    let ran: Vec<&Value> = frames
        .iter()
        .filter(|frame| frame["eventType"] == "CmdOutputObservation")
        .collect();
    assert!(
        ran.iter().all(|frame| frame["exitCode"] == 0) && ran.len() == 2,
        "{frames:#?}"
    );
    (socket, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_works_in_a_container_of_its_own_and_takes_it_along() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    let (host, containers) = ContainerNames::new(engine).await.start();
    let about = host.send("GET", "/", &[], None).await.ok();
    assert_eq!(about["sandbox"], "docker", "{about}");
    let (mut socket, session) = played(&host, "alice", "Say hello").await;

    let found = engine.until_named(&containers.prefix, 1).await;
    let seen = found[0].inspect().await.unwrap();
    assert_eq!(seen["Name"], format!("/{}{session}", containers.prefix));
    let (labels, limits) = (&seen["Config"]["Labels"], &seen["HostConfig"]);
    assert_eq!(labels["lucid.managed"], "true");
    assert_eq!(labels["lucid.session_id"], session.as_str());
    assert_eq!(labels["lucid.user_id"], "alice");
    assert_eq!(limits["ReadonlyRootfs"], true);
    assert_eq!(limits["CapDrop"], json!(["ALL"]));
    assert_eq!(limits["Memory"], limits["MemorySwap"]);
    assert_eq!(limits["NetworkMode"], "none");
    assert_eq!(limits["NanoCpus"], 1_000_000_000u64);

    socket.send(json!({"type": "stop"})).await;
    found[0].gone().await;
    engine.until_named(&containers.prefix, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_at_once_each_run_their_commands_and_leave_no_container() {
    const SESSIONS: usize = 50;
    let Some(engine) = docker::engine().await else {
        return;
    };
    let (mut host, containers) = ContainerNames::new(engine)
        .await
        .set("SANDBOX_POOL_SIZE", "2")
        .start();
    let sockets = join_all((0..SESSIONS).map(|number| {
        let host = &host;
        async move {
            played(
                host,
                &format!("user-{}", number % 5),
                &format!("Task {number}"),
            )
            .await
        }
    }))
    .await;
    let named = engine.named(&containers.prefix).await.len();
    assert!(
        named >= SESSIONS,
        "{named} containers for {SESSIONS} sessions"
    );
    // Half of them are stopped by their users, the others end with the host.
    for (socket, _) in sockets.into_iter().take(SESSIONS / 2) {
        let mut socket = socket;
        socket.send(json!({"type": "stop"})).await;
        while socket.next().await.is_some() {}
    }
    host.stop().await;
    engine.until_named(&containers.prefix, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_of_the_host_its_containers_go_on_with_their_sessions_and_others_go() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    let (mut host, containers) = ContainerNames::new(engine)
        .await
        .set("SANDBOX_POOL_SIZE", "1")
        .start();
    let (kept, session) = played(&host, "alice", "Stay").await;
    let before: Vec<String> = engine
        .named(&format!("{}{session}", containers.prefix))
        .await
        .into_iter()
        .map(|container| container.id)
        .collect();
    assert_eq!(before.len(), 1);
    // One that waits for a session, and one that is the session's.
    engine.until_named(&containers.prefix, 2).await;
    host.crash();
    drop(kept);
    host.start_again();

    let mut back = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    back.say("Are you there?").await;
    back.completed().await;
    let of_session = format!("{}{session}", containers.prefix);
    let after = engine.until_named(&of_session, 1).await;
    assert_eq!(after[0].id, before[0], "the session got another container");
    back.send(json!({"type": "stop"})).await;
    after[0].gone().await;
    host.stop().await;
    engine.until_named(&containers.prefix, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_on_one_engine_leave_each_others_containers_alone() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    let (mut one, of_one) = ContainerNames::new(engine).await.start();
    let (mut other, of_other) = ContainerNames::new(engine).await.start();
    let (_one, _) = played(&one, "alice", "Here").await;
    let (_other, _) = played(&other, "alice", "There").await;
    let theirs = engine.until_named(&of_other.prefix, 1).await;
    one.crash();
    one.start_again();
    one.stop().await;
    engine.until_named(&of_one.prefix, 0).await;
    let seen = theirs[0].inspect().await.expect("it is the other host's");
    assert_eq!(seen["State"]["Running"], true);
    other.stop().await;
    engine.until_named(&of_other.prefix, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_killed_is_replaced_over_the_same_files_and_the_user_is_told() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    let run = |command: &str| call("terminal", json!({"command": command}));
    let model = Model::start(move |number, _| match number {
        0 => run("echo kept >file && echo written"),
        2 => run("cat file"),
        _ => ModelTurn::Say("That is that.".into()),
    })
    .await;
    let (host, containers) = ContainerNames::new(engine)
        .await
        .set("LLM_API_KEY", "sk-a-key-of-this-test-alone")
        .set("LLM_BASE_URL", &model.url)
        .start();
    let first = json!({"task": "Write", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    socket.completed().await;
    let first = engine.until_named(&containers.prefix, 1).await.remove(0);
    first.kill().await;
    socket
        .until("word of the lost container", |frame| {
            frame["eventType"] == "AgentErrorObservation"
                && frame["content"].as_str().unwrap().contains("sandbox")
        })
        .await;
    socket.say("Read it again").await;
    let frames = socket.completed().await;
    let output = event(&frames, "CmdOutputObservation");
    assert!(
        output["content"].as_str().unwrap().contains("kept"),
        "{:?} {output}",
        kinds(&frames)
    );
    let second = eventually("another container", async || {
        let found = engine.named(&containers.prefix).await;
        found.into_iter().find(|container| container.id != first.id)
    })
    .await;
    assert!(second.inspect().await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_outlived_its_host_is_listened_to_again_before_any_command() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    let (mut host, containers) = ContainerNames::new(engine).await.start();
    let (socket, session) = played(&host, "alice", "Stay").await;
    let container = engine.until_named(&containers.prefix, 1).await.remove(0);
    host.crash();
    drop(socket);
    host.start_again();
    let mut back = Socket::open(&host, "alice", json!({"sessionId": session})).await;
    container.kill().await;
    back.until("word of the lost container", |frame| {
        frame["eventType"] == "AgentErrorObservation"
            && frame["content"]
                .as_str()
                .unwrap()
                .contains("The sandbox was lost")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_runs_out_of_memory_is_an_event_and_the_session_goes_on() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    let run = |command: &str| call("terminal", json!({"command": command}));
    let model = Model::start(move |number, _| match number {
        0 => run("python3 -c 'bytearray(300 << 20)'"),
        1 => run("echo well"),
        _ => ModelTurn::Say("That is that.".into()),
    })
    .await;
    let (host, _containers) = ContainerNames::new(engine)
        .await
        .set("LLM_API_KEY", "sk-a-key-of-this-test-alone")
        .set("LLM_BASE_URL", &model.url)
        .set("SANDBOX_MEMORY_LIMIT", "64m")
        .start();
    let first = json!({"task": "Eat", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    let frames = socket.completed().await;
    let told = event(&frames, "AgentErrorObservation");
    assert!(
        told["content"].as_str().unwrap().contains("memory limit"),
        "{told}"
    );
    let outputs: Vec<&Value> = frames
        .iter()
        .filter(|frame| frame["eventType"] == "CmdOutputObservation")
        .collect();
    assert_eq!(outputs[0]["exitCode"], 137, "{outputs:#?}");
    assert_eq!(outputs[1]["content"], "well\n", "{outputs:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_in_a_container_gives_the_engine_the_outer_path() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    // A link stands for the other name that the engine's machine has for the folder.
    let inner = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .tempdir()
        .unwrap();
    let outer = tempfile::tempdir().unwrap();
    let link = outer.path().join("outer");
    std::os::unix::fs::symlink(inner.path(), &link).unwrap();
    let (host, containers) = ContainerNames::new(engine)
        .await
        .set("WORKSPACE_BASE_PATH", inner.path().to_str().unwrap())
        .set("HOST_WORKSPACE_PATH", link.to_str().unwrap())
        .start();
    let (_socket, session) = played(&host, "alice", "Say hello").await;
    let container = engine.until_named(&containers.prefix, 1).await.remove(0);
    let seen = container.inspect().await.unwrap();
    let mounts = seen["Mounts"].as_array().unwrap();
    let workspace = mounts
        .iter()
        .find(|mount| mount["Destination"] == "/workspace")
        .unwrap();
    let source = workspace["Source"].as_str().unwrap();
    assert!(source.starts_with(link.to_str().unwrap()), "{source}");
    let hello = lucid_tests::find(inner.path(), "hello.py");
    assert!(
        hello.is_some(),
        "{session}: the container had another folder"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_comes_late_is_used_for_new_sessions_and_one_that_goes_is_noticed() {
    let Some(engine) = docker::engine().await else {
        return;
    };
    let address = std::env::var("DOCKER_HOST");
    let address = address.unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let real = address
        .strip_prefix("unix://")
        .expect("an engine on a Unix socket");
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let (host, containers) = ContainerNames::new(engine)
        .await
        .set("SANDBOX_BACKEND", "auto")
        .set("DOCKER_HOST", format!("unix://{}", socket.display()))
        .start();
    let uses = async |kind: &str| {
        let about = host.send("GET", "/", &[], None).await.ok();
        (about["sandbox"] == kind).then(|| about["sandbox_notice"].clone())
    };
    let notice = uses("bubblewrap").await.expect("no engine answers yet");
    assert!(notice.as_str().unwrap().contains("bubblewrap"), "{notice}");
    host.says("SANDBOX_BACKEND=auto uses bubblewrap").await;
    let (mut first, before) = played(&host, "alice", "Before").await;
    let kind_of = async |session: &str| {
        let path = format!("/api/v1/sessions/{session}");
        host.get("alice", &path).await.ok()["sandbox"].clone()
    };

    std::os::unix::fs::symlink(real, &socket).unwrap();
    let notice = eventually("the engine to be used", async || uses("docker").await).await;
    assert!(notice.is_null(), "{notice}");
    host.says("new sessions get another kind of sandbox").await;
    let (_second, session) = played(&host, "alice", "After").await;
    let found = engine.until_named(&containers.prefix, 1).await;
    let name = found[0].inspect().await.unwrap()["Name"].clone();
    assert_eq!(name, format!("/{}{session}", containers.prefix));
    assert_eq!(kind_of(&session).await, "docker");
    // One that runs keeps what it has.
    first.say("Again").await;
    first.completed().await;
    engine.until_named(&containers.prefix, 1).await;
    assert_eq!(kind_of(&before).await, "bubblewrap");

    std::fs::remove_file(&socket).unwrap();
    eventually("the engine to be missed", async || uses("bubblewrap").await).await;
    let mut third = Socket::open(&host, "alice", json!({"task": "Without"})).await;
    let frames = third.completed().await;
    let told = frames.iter().any(|frame| {
        let content = frame["content"].as_str().unwrap_or_default();
        content.contains("works in a bubblewrap sandbox instead")
    });
    assert!(told, "{frames:#?}");
}
