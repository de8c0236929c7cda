//! Tests with an engine that is missing, or intermittently available.

use tokio::net::{UnixListener, UnixStream};

use super::faulty::Faulty;
use super::*;

#[tokio::test]
async fn without_an_engine_or_its_image_the_next_kind_is_taken_and_the_reason_is_told() {
    let data = Data::new();
    let nowhere =
        |own: &mut DockerSettings| own.host = Some("unix:///nonexistent/docker.sock".to_owned());
    let error = Box::pin(Sandboxes::detect(
        BackendChoice::Docker,
        data.settings(nowhere),
        EXEC,
    ))
    .await
    .err()
    .unwrap()
    .to_string();
    assert!(
        error.contains("/nonexistent/docker.sock") && error.contains("Install Docker"),
        "{error}"
    );
    let host = Box::pin(Sandboxes::detect(
        BackendChoice::Auto,
        data.settings(nowhere),
        EXEC,
    ))
    .await
    .unwrap();
    assert_eq!(
        (host.kind(), host.transport()),
        (BackendKind::Bubblewrap, None)
    );
    assert_eq!(host.findings()[0].kind, BackendKind::Docker);
    assert!(host.findings()[0].problem.is_some());
    if image().is_none() {
        return;
    }
    let settings = data.settings(|own| own.image = "lucid-no-such-image:1".to_owned());
    let error = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("lucid-no-such-image:1") && error.contains("docker pull"),
        "{error}"
    );
    assert_eq!(data.containers(), [""; 0]);
}

/// Forwards another socket to the engine, until the task is aborted.
fn engine_at(socket: &std::path::Path) -> tokio::task::JoinHandle<()> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut from, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut to = UnixStream::connect(engine_socket()).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    })
}

fn id_of(name: &str) -> String {
    docker(&["inspect", "--format", "{{.Id}}", name])
}

#[tokio::test]
async fn a_container_that_cannot_be_removed_keeps_no_other_from_it() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let socket = data.dir.path().join("engine.sock");
    let faulty = Faulty::default();
    let _engine = faulty.engine_at(&socket);
    let settings = data.settings(|own| own.host = Some(format!("unix://{}", socket.display())));
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
        .await
        .unwrap();
    let (stuck, other) = (
        data.start(&host, "stuck").await,
        data.start(&host, "other").await,
    );
    // Neither can be removed at first, and then only one of them.
    faulty.refused().push("DELETE ".to_owned());
    stuck.close().await;
    other.close().await;
    assert_eq!(data.containers().len(), 2);
    let id = id_of(&data.name("stuck"));
    *faulty.refused() = vec![format!("/containers/{id}?")];
    data.until_containers(1).await;
    assert_eq!(data.containers(), [data.name("stuck")]);
    faulty.refused().clear();
    data.until_containers(0).await;
    until("no folder", || data.folders() == 0).await;
}

/// A host that dies with a session's container each time. Returns the names of the containers.
fn dead_hosts(data: &Data, sessions: [&'static str; 2]) {
    for session in sessions {
        let settings = data.settings(|_| {});
        let workspace = data.workspace(session);
        die(async move || {
            let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
                .await
                .unwrap();
            let spec = SandboxSpec {
                session: session_id(session),
                workspace: workspace.host_path(),
                repository: None,
            };
            std::mem::forget(Box::pin(host.start(spec)).await.unwrap());
            (host, ())
        });
    }
}

#[tokio::test]
async fn what_cannot_be_removed_at_a_take_over_is_removed_later_and_keeps_nothing_else_back() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    dead_hosts(&data, ["one", "two"]);
    assert_eq!(data.containers().len(), 2);
    let socket = data.dir.path().join("engine.sock");
    let faulty = Faulty::default();
    let _engine = faulty.engine_at(&socket);
    let settings = data.settings(|own| {
        own.host = Some(format!("unix://{}", socket.display()));
        own.pool = 1;
    });
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
        .await
        .unwrap();
    let id = id_of(&data.name("one"));
    *faulty.refused() = vec![format!("/containers/{id}?")];
    let done = host.adopt(|_| false).await.unwrap();
    assert_eq!((done.kept, done.removed), (0, 1));
    // The other host's is gone, this one's is not forgotten, and a container waits all the same.
    until("a container that waits", || {
        host.claim_warm(session_id("three"), &data.workspace_path("three"))
    })
    .await;
    let containers = data.containers();
    assert!(containers.contains(&data.name("one")), "{containers:?}");
    assert!(!containers.contains(&data.name("two")), "{containers:?}");
    faulty.refused().clear();
    until("no container of a dead host", || {
        !data.containers().contains(&data.name("one"))
    })
    .await;
    host.shut_down().await;
}

#[tokio::test]
async fn a_container_whose_process_has_no_folder_any_more_is_removed() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    dead_hosts(&data, ["one", "two"]);
    let docker_dir = data.dir.path().join("storage/.lucid/run/docker");
    for entry in std::fs::read_dir(docker_dir).unwrap().flatten() {
        if entry.path().is_dir() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    let host = data.host(|_| {}).await;
    let done = host.adopt(|_| true).await.unwrap();
    assert_eq!((done.kept, done.removed), (0, 2));
    assert_eq!(data.containers(), [""; 0]);
}

#[tokio::test]
async fn what_is_being_made_when_the_host_ends_is_waited_for_and_removed() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let socket = data.dir.path().join("engine.sock");
    let faulty = Faulty::default();
    let _engine = faulty.engine_at(&socket);
    let settings = data.settings(|own| {
        own.host = Some(format!("unix://{}", socket.display()));
        own.pool = 2;
    });
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
        .await
        .unwrap();
    faulty.make_slowly();
    host.adopt(|_| false).await.unwrap();
    until("one in the making", || faulty.making() > 0).await;
    host.shut_down().await;
    assert_eq!(faulty.making(), 0);
    assert_eq!(data.containers(), [""; 0]);
}

#[tokio::test]
async fn an_engine_that_is_restarted_is_waited_for() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let socket = data.dir.path().join("engine.sock");
    let engine = engine_at(&socket);
    let settings = data.settings(|own| own.host = Some(format!("unix://{}", socket.display())));
    let host = Box::pin(Sandboxes::detect(BackendChoice::Auto, settings, EXEC))
        .await
        .unwrap();
    engine.abort();
    let _ = engine.await;
    let mut again = None;
    let back = async {
        // Long enough for the start to have hit the outage; shorter would test less, not fail.
        tokio::time::sleep(Duration::from_secs(1)).await;
        again = Some(engine_at(&socket));
    };
    let (sandbox, ()) = tokio::join!(data.start(&host, "one"), back);
    assert!(again.is_some());
    assert_eq!(
        (sandbox.kind(), sandbox.notice()),
        (BackendKind::Docker, None)
    );
    assert_eq!(shell(&sandbox, "echo well").await.output, "well\n");
    sandbox.close().await;
}

#[tokio::test]
async fn a_session_that_starts_while_the_engine_is_dead_gets_another_box_and_is_told() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let socket = data.dir.path().join("engine.sock");
    let engine = engine_at(&socket);
    let settings = data.settings(|own| own.host = Some(format!("unix://{}", socket.display())));
    let host = Box::pin(Sandboxes::detect(BackendChoice::Auto, settings, EXEC))
        .await
        .unwrap();
    assert_eq!(host.kind(), BackendKind::Docker);
    let before = data.start(&host, "before").await;
    assert_eq!(
        (before.kind(), before.notice()),
        (BackendKind::Docker, None)
    );
    engine.abort();
    let _ = engine.await;
    let during = data.start(&host, "during").await;
    assert_eq!(during.kind(), BackendKind::Bubblewrap);
    let notice = during.notice().unwrap();
    assert!(
        notice.contains("does not answer") && notice.contains("bubblewrap"),
        "{notice}"
    );
    assert_eq!(shell(&during, "echo well").await.output, "well\n");
    // Its container works on without the engine.
    assert_eq!(shell(&before, "echo well").await.output, "well\n");
    during.close().await;
    // Once it works again, its next outage is waited for like the first.
    let engine = engine_at(&socket);
    data.start(&host, "after").await.close().await;
    engine.abort();
    let _ = engine.await;
    let mut back = None;
    let returning = async {
        // Long enough for the start to have hit the outage; shorter would test less, not fail.
        tokio::time::sleep(Duration::from_secs(1)).await;
        back = Some(engine_at(&socket));
    };
    let (again, ()) = tokio::join!(data.start(&host, "again"), returning);
    assert!(back.is_some());
    assert_eq!((again.kind(), again.notice()), (BackendKind::Docker, None));
    again.close().await;
    before.close().await;
}

#[tokio::test]
async fn a_container_that_cannot_be_removed_now_is_removed_when_the_engine_is_back() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let socket = data.dir.path().join("engine.sock");
    let engine = engine_at(&socket);
    let settings = data.settings(|own| own.host = Some(format!("unix://{}", socket.display())));
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
        .await
        .unwrap();
    let sandbox = data.start(&host, "one").await;
    engine.abort();
    let _ = engine.await;
    sandbox.close().await;
    assert_eq!(data.containers().len(), 1);
    let _engine = engine_at(&socket);
    data.until_containers(0).await;
    until("no folder", || data.folders() == 0).await;
}
