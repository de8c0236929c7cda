//! Tests of containers that wait for sessions.

use super::*;

#[tokio::test]
async fn a_container_that_waits_becomes_one_sessions_with_its_workspace() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let host = data.host(|own| own.pool = 2).await;
    assert!(!host.claim_warm(session_id("early"), &data.workspace_path("early")));
    host.adopt(|_| false).await.unwrap();
    data.until_containers(2).await;
    until("a container that is ready", || {
        host.claim_warm(session_id("one"), &data.workspace_path("one"))
    })
    .await;
    let begun = Instant::now();
    let sandbox = data.start(&host, "one").await;
    let result = shell(&sandbox, "echo hello > file; ls -A").await;
    println!("warm start and a first command: {:?}", begun.elapsed());
    assert_eq!(result.output, "file\n");
    let workspace = data.workspace("one");
    let file = workspace.path("file").unwrap();
    assert_eq!(workspace.read(&file, 100).unwrap(), b"hello\n");
    workspace
        .write(&workspace.path("given").unwrap(), b"x")
        .unwrap();
    assert_eq!(shell(&sandbox, "cat given").await.output, "x");
    until("its name", || data.containers().contains(&data.name("one"))).await;
    // Its slot in the pool is refilled, and an existing workspace is left alone.
    data.until_containers(3).await;
    assert!(!host.claim_warm(session_id("one"), &data.workspace_path("one")));
    until("another that is ready", || {
        host.claim_warm(session_id("two"), &data.workspace_path("two"))
    })
    .await;
    let second = data.start(&host, "two").await;
    assert_eq!(shell(&second, "ls -A").await.output, "");
    sandbox.close().await;
    second.close().await;
    host.shut_down().await;
    data.until_containers(0).await;
}

#[tokio::test]
async fn what_waited_at_a_crash_is_removed_and_what_was_given_stays_that_sessions() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let settings = data.settings(|own| own.pool = 2);
    let (again, path) = (settings.clone(), data.workspace_path("one"));
    die(async move || {
        let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
            .await
            .unwrap();
        host.adopt(|_| false).await.unwrap();
        until("a container that is ready", || {
            host.claim_warm(session_id("one"), &path)
        })
        .await;
        (host, ())
    });
    let mut again = again;
    if let Some(docker) = &mut again.docker {
        docker.pool = 0;
    }
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, again, EXEC))
        .await
        .unwrap();
    let done = host
        .adopt(|session| session == session_id("one"))
        .await
        .unwrap();
    assert_eq!(done.kept, 1, "{done:?}");
    assert_eq!(data.containers().len(), 1);
    let sandbox = data.start(&host, "one").await;
    assert_eq!(data.containers().len(), 1);
    shell(&sandbox, "echo 1 > file").await;
    assert!(data.workspace_path("one").join("file").exists());
    sandbox.close().await;
    assert_eq!(data.folders(), 0);
}

#[tokio::test]
async fn one_that_dies_while_it_waits_is_replaced_before_anybody_comes() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let host = data.host(|own| own.pool = 1).await;
    host.adopt(|_| false).await.unwrap();
    let running = || data.containers_that("running");
    until("one that waits", || running().len() == 1).await;
    let first = running();
    // Killed once it waits, or earlier: then it is created again as well.
    docker(&["kill", &first[0]]);
    until("another that waits", || {
        let now = running();
        now.len() == 1 && now != first
    })
    .await;
    host.shut_down().await;
}
