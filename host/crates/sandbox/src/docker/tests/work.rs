//! Tests that commands in a container behave as in any other sandbox, over either transport.

use super::*;

#[tokio::test]
async fn a_command_runs_in_the_workspace_as_a_user_with_output_in_order() {
    if image().is_none() {
        return;
    }
    for transport in BOTH {
        let data = Data::new();
        let host = data.host(|own| own.transport = Some(transport)).await;
        assert_eq!(
            (host.kind(), host.transport()),
            (BackendKind::Docker, Some(transport))
        );
        let sandbox = data.start(&host, "one").await;
        let mut live = Vec::new();
        let command = "echo out; echo err >&2; pwd; echo hello > made; exit 3";
        let result = sandbox
            .exec(ExecRequest::shell(command), |bytes| {
                live.extend_from_slice(bytes)
            })
            .await
            .unwrap();
        assert_eq!(
            (result.exit_code, result.output.as_str()),
            (3, "out\nerr\n/workspace\n"),
            "{transport}"
        );
        assert_eq!(live, result.output.as_bytes());
        let workspace = data.workspace("one");
        let made = workspace.path("made").unwrap();
        assert_eq!(workspace.read(&made, 100).unwrap(), b"hello\n");
        workspace
            .write(&workspace.path("sub/given").unwrap(), b"1")
            .unwrap();
        let result = shell(
            &sandbox,
            "echo 2 >> sub/given && rm made && python -c 'print(40 + 2)'",
        )
        .await;
        assert_eq!(result.output, "42\n");
        let result = shell(&sandbox, "id -u; id -G; echo $HOME; env").await;
        let own =
            crate::workspace::sandbox_user().unwrap_or_else(|| rustix::process::geteuid().as_raw());
        assert!(
            result
                .output
                .starts_with(&format!("{own}\n{own}\n/home/agent\n")),
            "{}",
            result.output
        );
        assert!(!result.output.contains("CARGO"), "{}", result.output);
        let request = ExecRequest::shell("echo $GREETING").env("GREETING", "hello");
        assert_eq!(
            sandbox.exec(request, |_| {}).await.unwrap().output,
            "hello\n"
        );
        let error = sandbox
            .exec(ExecRequest::argv(["no-such-program"]), |_| {})
            .await
            .unwrap_err();
        assert!(matches!(error, SandboxError::Refused(_)), "{error}");
        sandbox.close().await;
        sandbox.close().await;
        assert_eq!(data.containers(), [""; 0]);
        assert_eq!(data.folders(), 0);
    }
}

#[tokio::test]
async fn output_is_seen_as_it_comes_and_a_long_one_is_capped_and_counted() {
    if image().is_none() {
        return;
    }
    for transport in BOTH {
        let data = Data::new();
        let host = data.host(|own| own.transport = Some(transport)).await;
        let sandbox = data.start(&host, "one").await;
        // It ends only once its first line was seen outside.
        let workspace = data.workspace("one");
        let seen = workspace.path("seen").unwrap();
        let command = "echo first; until test -e seen; do sleep 0.02; done; echo last";
        let result = sandbox
            .exec(ExecRequest::shell(command), |bytes| {
                if bytes.starts_with(b"first") {
                    workspace.write(&seen, b"").unwrap();
                }
            })
            .await
            .unwrap();
        assert_eq!(result.output, "first\nlast\n", "{transport}");
        let command = "head -c 20000000 /dev/zero | tr '\\0' x";
        let request = ExecRequest::shell(command).keep_output(1000, 1000);
        let result = sandbox.exec(request, |_| {}).await.unwrap();
        assert_eq!(result.omitted, 20_000_000 - 2000);
        sandbox.close().await;
    }
}

#[tokio::test]
async fn a_time_out_and_a_dropped_future_kill_the_whole_process_group() {
    if image().is_none() {
        return;
    }
    for transport in BOTH {
        let data = Data::new();
        let host = data.host(|own| own.transport = Some(transport)).await;
        let sandbox = data.start(&host, "one").await;
        let command = "trap '' TERM; sleep 1111 & echo begun; sleep 1111";
        let request = ExecRequest::shell(command).timeout(Duration::from_secs(2));
        let result = sandbox.exec(request, |_| {}).await.unwrap();
        assert!(result.timed_out, "{transport}: {result:?}");
        assert_eq!(result.output, "begun\n");
        none_runs(&sandbox, "1111").await;
        let (begun, sees) = tokio::sync::oneshot::channel();
        let mut begun = Some(begun);
        let request = ExecRequest::shell("echo begun; sleep 2222; true");
        tokio::select! {
            _ = sandbox.exec(request, |_| { begun.take().map(|begun| begun.send(())); }) => panic!("it ended by itself"),
            _ = sees => {}
        }
        // The kill is sent before this command, on the same connection.
        let gone = "for i in $(seq 500); do ps -o args | grep -q 'sleep [2]222' || exit 0; sleep 0.02; done; exit 1";
        assert_eq!(shell(&sandbox, gone).await.exit_code, 0, "{transport}");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn a_background_process_survives_its_command() {
    if image().is_none() {
        return;
    }
    for transport in BOTH {
        let data = Data::new();
        let host = data.host(|own| own.transport = Some(transport)).await;
        let sandbox = data.start(&host, "one").await;
        let result = shell(&sandbox, "sleep 3333 & setsid sleep 3333 & echo done").await;
        assert_eq!(result.output, "done\n");
        assert_eq!(running(&sandbox, "3333").await, 2, "{transport}");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn nobody_else_in_a_container_can_speak_with_the_host_as_its_server() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let host = data.host(|_| {}).await;
    let sandbox = data.start(&host, "one").await;
    let result = shell(&sandbox, "ls /run/lucid; touch /run/lucid/x").await;
    assert_eq!(
        result.output.lines().next(),
        Some("bin"),
        "{}",
        result.output
    );
    assert_ne!(result.exit_code, 0, "the host's folder can be written");
    assert!(!sandbox.runtime_dir().join("exec.sock").exists());
    sandbox.close().await;
}

#[tokio::test]
async fn git_is_sent_to_the_gateway_in_a_container_that_is_older_than_its_session() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let host = data.host(|_| {}).await;
    let workspace = data.workspace("one");
    let spec = SandboxSpec {
        session: session_id("one"),
        workspace: workspace.host_path(),
        repository: Some("https://example.org/team/project.git"),
    };
    let sandbox = Box::pin(host.start(spec)).await.unwrap();
    let result = shell(
        &sandbox,
        "git config --get-regexp '^url\\.'; git ls-remote https://example.org/team/project",
    )
    .await;
    assert!(
        result
            .output
            .starts_with("url.lucid::https://example.org/team/project.insteadof"),
        "{}",
        result.output
    );
    // The helper is found; this test has no gateway.
    assert!(
        result
            .output
            .contains("git-remote-lucid: the host's git gateway cannot be reached"),
        "{}",
        result.output
    );
    sandbox.close().await;
}
