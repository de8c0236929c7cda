//! Tests of how containers are created, lost, adopted and removed.

use super::*;

#[tokio::test]
async fn a_killed_container_is_noticed_and_replaced_over_the_same_workspace() {
    if image().is_none() {
        return;
    }
    for transport in BOTH {
        let data = Data::new();
        let host = data.host(|own| own.transport = Some(transport)).await;
        let sandbox = data.start(&host, "one").await;
        assert_eq!(sandbox.reaches_sockets(), transport == Transport::Socket);
        shell(&sandbox, "echo work > file").await;
        let ended = sandbox.ended();
        docker(&["kill", &data.containers()[0]]);
        let reason = tokio::time::timeout(TIMEOUT, ended).await.unwrap();
        assert_eq!(reason, "Its container was killed.", "{transport}");
        assert!(!sandbox.is_alive());
        let error = sandbox
            .exec(ExecRequest::shell("true"), |_| {})
            .await
            .unwrap_err();
        assert!(error.to_string().contains(&reason), "{error}");
        // The next one starts although nobody closed the last one yet.
        let next = data.start(&host, "one").await;
        assert_eq!(shell(&next, "cat file").await.output, "work\n");
        sandbox.close().await;
        assert_eq!(data.containers().len(), 1);
        next.close().await;
        assert_eq!(data.containers(), [""; 0]);
    }
}

#[tokio::test]
async fn the_container_of_a_dead_host_is_taken_over_with_what_runs_in_its_background() {
    if image().is_none() {
        return;
    }
    for transport in BOTH {
        let data = Data::new();
        let settings = data.settings(|own| own.transport = Some(transport));
        let (lost, kept) = (data.workspace("lost"), data.workspace("kept"));
        let again = settings.clone();
        die(async move || {
            let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
                .await
                .unwrap();
            for workspace in [&lost, &kept] {
                let path = workspace.host_path();
                let session = path.file_name().unwrap().to_str().unwrap();
                let spec = SandboxSpec {
                    session: session.parse().unwrap(),
                    workspace: path,
                    repository: None,
                };
                let sandbox = Box::pin(host.start(spec)).await.unwrap();
                shell(&sandbox, "setsid sleep 6666 & true").await;
                let (begun, sees) = tokio::sync::oneshot::channel();
                let mut begun = Some(begun);
                let running = sandbox.clone();
                tokio::spawn(async move {
                    let request = ExecRequest::shell("echo; sleep 7777; true");
                    let seen = |_: &[u8]| {
                        begun.take().map(|begun| begun.send(()));
                    };
                    running.exec(request, seen).await
                });
                sees.await.unwrap();
                std::mem::forget(sandbox);
            }
            (host, ())
        });
        let before = data.containers();
        assert_eq!(before.len(), 2);
        let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, again, EXEC))
            .await
            .unwrap();
        let done = host
            .adopt(|session| session == session_id("kept"))
            .await
            .unwrap();
        assert_eq!((done.kept, done.removed), (1, 1), "{transport}");
        assert_eq!(data.containers(), [data.name("kept")]);
        let sandbox = data.start(&host, "kept").await;
        assert_eq!(data.containers(), [data.name("kept")]);
        // The dead host's commands are over. An attached server takes its background processes
        // along.
        let survivors = usize::from(transport == Transport::Socket);
        assert_eq!(running(&sandbox, "6666").await, survivors);
        none_runs(&sandbox, "7777").await;
        assert_eq!(shell(&sandbox, "echo well").await.output, "well\n");
        sandbox.close().await;
        assert_eq!(data.containers(), [""; 0]);
        assert_eq!(data.folders(), 0);
    }
}

#[tokio::test]
async fn a_command_that_poses_as_the_exec_server_of_a_container_that_was_left_is_not_listened_to() {
    // With sockets of its own for its commands, the exec server is the container's first process.
    for direct in [false, true] {
        is_not_listened_to(direct).await;
    }
}

async fn is_not_listened_to(direct: bool) {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let mut settings = data.settings(|_| {});
    if direct {
        settings.direct = true;
        settings.network = Network::Proxy;
    }
    let workspace = data.workspace("one");
    // Tries to reach a host much more often than the exec server does.
    let impostor = "import os, socket, struct, time
os.setsid()
hello = b'{\"version\":%d}'
open('ready', 'w')
while True:
  try:
    host = socket.socket(socket.AF_UNIX)
    host.connect('/run/lucid/exec.sock')
    open('connected', 'w')
    host.sendall(struct.pack('>IBI', len(hello), 1, 0) + hello)
    host.recv(1)
  except OSError:
    time.sleep(0.001)
"
    .replace("%d", &lucid_exec::protocol::VERSION.to_string());
    let path = workspace.path("impostor.py").unwrap();
    workspace.write(&path, impostor.as_bytes()).unwrap();
    let again = settings.clone();
    die(async move || {
        let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
            .await
            .unwrap();
        let spec = SandboxSpec {
            session: session_id("one"),
            workspace: workspace.host_path(),
            repository: None,
        };
        let sandbox = Box::pin(host.start(spec)).await.unwrap();
        let begin = "python3 impostor.py & while ! [ -e ready ]; do sleep 0.1; done";
        assert_eq!(shell(&sandbox, begin).await.exit_code, 0);
        std::mem::forget(sandbox);
        (host, ())
    });
    let before = data.containers();
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, again, EXEC))
        .await
        .unwrap();
    let done = host.adopt(|_| true).await.unwrap();
    assert_eq!(done.kept, 1);
    let sandbox = data.start(&host, "one").await;
    assert_eq!(data.containers(), before);
    assert_eq!(shell(&sandbox, "ls connected").await.output, "connected\n");
    sandbox.close().await;
}

#[tokio::test]
async fn a_container_is_not_taken_over_for_another_workspace_or_other_settings() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let settings = data.settings(|_| {});
    let (wiped, mut changed) = (settings.clone(), data.settings(|_| {}));
    changed.processes += 1;
    for (second, wipe) in [(wiped, true), (changed, false)] {
        let workspace = data.workspace("one");
        let settings = settings.clone();
        die(async move || {
            let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
                .await
                .unwrap();
            let spec = SandboxSpec {
                session: session_id("one"),
                workspace: workspace.host_path(),
                repository: None,
            };
            std::mem::forget(Box::pin(host.start(spec)).await.unwrap());
            (host, ())
        });
        if wipe {
            data.workspace("one").remove().unwrap();
            data.workspace("one");
        }
        let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, second, EXEC))
            .await
            .unwrap();
        let done = host.adopt(|_| true).await.unwrap();
        assert_eq!((done.kept, done.removed), (0, 1), "wiped: {wipe}");
        assert_eq!(data.containers(), [""; 0]);
    }
}

#[tokio::test]
async fn two_hosts_on_one_engine_do_not_touch_each_others_containers() {
    if image().is_none() {
        return;
    }
    let (one, two) = (Data::new(), Data::new());
    let first = one.host(|_| {}).await;
    let second = two.host(|own| own.prefix.clone_from(&one.prefix)).await;
    let sandbox = one.start(&first, "session").await;
    // The same session's name on both: the container belongs to the first, and the other creates
    // another.
    let other = two.start(&second, "session").await;
    assert_eq!(one.containers(), [one.name("session")]);
    assert_eq!(two.containers().len(), 1);
    assert_ne!(one.containers(), two.containers());
    other.close().await;
    let done = second.adopt(|_| false).await.unwrap();
    assert_eq!(done, super::super::Adopted::default());
    second.shut_down().await;
    assert_eq!(shell(&sandbox, "echo well").await.output, "well\n");
    first.shut_down().await;
    assert_eq!(one.containers(), [""; 0]);
}

#[tokio::test]
async fn what_belongs_to_another_living_process_of_the_same_host_is_left_alone() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    // As `lucid run` beside a running server: only the server adopts.
    let run = data.host(|_| {}).await;
    let sandbox = data.start(&run, "one").await;
    let server = data.host(|_| {}).await;
    let done = server.adopt(|_| false).await.unwrap();
    assert_eq!(done, super::super::Adopted::default());
    server.shut_down().await;
    assert_eq!(shell(&sandbox, "echo well").await.output, "well\n");
    sandbox.close().await;
}

#[tokio::test]
async fn a_second_process_over_the_same_folder_takes_nothing_over() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let first = data.host(|_| {}).await;
    first.adopt(|_| false).await.unwrap();
    let sandbox = data.start(&first, "one").await;
    let second = data.host(|_| {}).await;
    assert!(second.adopt(|_| false).await.is_err());
    assert_eq!(shell(&sandbox, "echo well").await.output, "well\n");
    sandbox.close().await;
}

#[tokio::test]
async fn fifty_sessions_at_once_work_and_leave_nothing() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let host = data.host(|_| {}).await;
    let begun = Instant::now();
    let one = |number: usize| {
        let (data, host) = (&data, &host);
        async move {
            let sandbox = data.start(host, &format!("session-{number}")).await;
            let result = shell(&sandbox, &format!("echo {number} > mine; cat mine")).await;
            assert_eq!(result.output, format!("{number}\n"));
            sandbox
        }
    };
    let sandboxes = futures::future::join_all((0..50).map(one)).await;
    let up = begun.elapsed();
    assert_eq!(data.containers().len(), 50);
    futures::future::join_all(sandboxes.iter().map(Sandbox::close)).await;
    println!(
        "50 containers: up and one command each in {up:?}, gone after {:?}",
        begun.elapsed() - up
    );
    assert_eq!(data.containers(), [""; 0]);
    assert_eq!(data.folders(), 0);
}

#[tokio::test]
async fn dropping_a_box_or_giving_up_while_it_starts_removes_its_container() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let host = data.host(|_| {}).await;
    drop(data.start(&host, "one").await);
    data.until_containers(0).await;
    let start = data.start(&host, "two");
    tokio::select! {
        _ = start => panic!("a container came up in no time"),
        () = until("a container", || !data.containers().is_empty()) => {}
    }
    data.until_containers(0).await;
    until("no folder", || data.folders() == 0).await;
}

#[tokio::test]
async fn a_command_through_the_socket_is_much_faster_than_docker_exec() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let host = data.host(|_| {}).await;
    let begun = Instant::now();
    let sandbox = data.start(&host, "one").await;
    let cold = begun.elapsed();
    let count = 50;
    let begun = Instant::now();
    for _ in 0..count {
        let ran = sandbox.exec(ExecRequest::argv(["true"]), |_| {}).await;
        assert_eq!(ran.unwrap().exit_code, 0);
    }
    let socket = begun.elapsed() / count;
    let name = data.containers().remove(0);
    let begun = Instant::now();
    for _ in 0..5 {
        docker(&["exec", &name, "true"]);
    }
    let exec = begun.elapsed() / 5;
    println!(
        "cold start {cold:?}; a command: {socket:?} through the socket, {exec:?} by docker exec"
    );
    // Fifty times as fast on a quiet machine; a busy one blurs it.
    assert!(exec > socket * 3, "{exec:?} and {socket:?}");
    sandbox.close().await;
}
