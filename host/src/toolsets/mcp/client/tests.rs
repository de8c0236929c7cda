//! A server in a real sandbox, and requests that are not sent to it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::builtin;
use lucid_sandbox::workspace::Workspace;
use lucid_sandbox::{
    BackendChoice, Network, PROCESSES, Sandbox, SandboxSettings, SandboxSpec, Sandboxes,
    UserIdChoice,
};
use lucid_session::{DeltaSink, EnvironmentError, OutputSink};
use lucid_types::exec::{ExecError, ExecRequest, ExecResult, Process};
use lucid_types::ids::SessionId;
use lucid_types::wit::types::{Error, ErrorKind};

const SERVER: &str = include_str!("../../../../../tests/e2e/mcp/server.py");

/// A sandbox over a new workspace, and the folder that both live in.
async fn sandbox() -> (tempfile::TempDir, Sandbox) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let settings = SandboxSettings {
        run_dir: folder.path().join("run"),
        memory_bytes: 512 << 20,
        cpus: 2.0,
        processes: PROCESSES,
        users: UserIdChoice::Auto,
        network: Network::None,
        direct: false,
        several_users: false,
        workspace_mount: "/workspace".to_owned(),
        docker: None,
    };
    let sandboxes = Sandboxes::detect(BackendChoice::Landlock, settings, builtin::EXEC);
    let sandboxes = sandboxes
        .await
        .expect("this test needs a kernel with Landlock");
    let session = SessionId::new();
    let storage = folder.path().join("storage");
    let workspace = Workspace::create(&storage, &"user".into(), session).unwrap();
    let spec = SandboxSpec {
        session,
        workspace: workspace.host_path(),
        repository: None,
    };
    let sandbox = sandboxes.start(spec).await.unwrap();
    (folder, sandbox)
}

/// An environment that starts programs, and does nothing else.
struct TestEnvironment(Sandbox);

impl Environment for TestEnvironment {
    fn root(&self) -> String {
        self.0.workspace_path().to_owned()
    }

    fn fetch(&self) -> BoxFuture<'static, Result<(), EnvironmentError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn instructions(&self) -> BoxFuture<'static, Vec<String>> {
        std::future::ready(Vec::new()).boxed()
    }

    fn definitions(&self) -> Vec<ToolDefinition> {
        Vec::new()
    }

    fn run(
        &self,
        _: ToolCall,
        _: Option<u32>,
        _: DeltaSink,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        let error = Error::new(ErrorKind::Unsupported, "It has no tools.");
        std::future::ready(Err(error)).boxed()
    }

    fn exec(
        &self,
        _: ExecRequest,
        _: OutputSink,
    ) -> BoxFuture<'static, Result<ExecResult, ExecError>> {
        let refused = ExecError::Refused("It only starts programs that stay open.".to_owned());
        std::future::ready(Err(refused)).boxed()
    }

    fn spawn(&self, request: ExecRequest) -> BoxFuture<'static, Result<Process, ExecError>> {
        std::future::ready(self.0.spawn(request).map_err(ExecError::from)).boxed()
    }

    fn notice(&self) -> BoxFuture<'static, Option<String>> {
        std::future::ready(None).boxed()
    }

    fn pushed(&self) -> BoxFuture<'static, Option<String>> {
        std::future::ready(None).boxed()
    }

    fn changed(&self) -> BoxFuture<'static, bool> {
        std::future::ready(false).boxed()
    }

    fn tree_can_wait(&self) -> bool {
        false
    }

    fn tree(&self) -> BoxFuture<'static, Option<String>> {
        std::future::ready(None).boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let sandbox = self.0.clone();
        async move { sandbox.close().await }.boxed()
    }
}

fn server(tools: &[&str]) -> McpServer {
    let names = tools.iter().map(|tool| (*tool).to_owned());
    McpServer {
        name: "s".to_owned(),
        transport: ServerTransport::Program {
            argv: ["python3", "-u", "-c", SERVER].map(str::to_owned).into(),
            env: BTreeMap::new(),
        },
        allowed: AllowedTools::These(names.collect()),
        time: Duration::from_secs(20),
        start_time: Duration::from_secs(20),
    }
}

async fn said(client: &McpClient, tool: &str, arguments: &str) -> (String, bool) {
    let call = ToolCall {
        id: "c".to_owned(),
        name: tool.to_owned(),
        arguments: arguments.to_owned(),
    };
    let done = client.call(call, None).await;
    assert_eq!(done.result.call_id, "c");
    (done.result.text, done.result.is_error)
}

#[tokio::test]
async fn what_may_not_be_asked_never_reaches_the_server() {
    let (_folder, sandbox) = sandbox().await;
    let environment: Arc<dyn Environment> = Arc::new(TestEnvironment(sandbox));
    let client = McpClient::open(
        server(&["count", "no-such-tool"]),
        Some(environment.clone()),
    )
    .await;
    let client = Arc::new(client.unwrap());
    let told: Vec<_> = client
        .definitions()
        .into_iter()
        .map(|tool| tool.name)
        .collect();
    assert_eq!(
        told,
        ["count"],
        "one that the server does not list is not there"
    );
    for (tool, arguments, why) in [
        ("secret", "{}", "no tool \"secret\" that may be called here"),
        ("no-such-tool", "{}", "that may be called here"),
        ("", "{}", "that may be called here"),
        ("count", "[1]", "no JSON object"),
        ("count", "{", "no JSON object"),
    ] {
        let (text, failed) = said(&client, tool, arguments).await;
        assert!(failed && text.contains(why), "{tool} {arguments}: {text}");
    }
    // Missing arguments are the same as none.
    assert_eq!(
        said(&client, "count", "").await,
        ("count 1".to_owned(), false)
    );
    client.clone().close().await;
    client.clone().close().await;
    let (text, failed) = said(&client, "count", "{}").await;
    assert!(failed && text.contains("ended with the session"), "{text}");
    environment.close().await;
}

#[tokio::test]
async fn a_server_whose_sandbox_is_lost_is_said_to_be() {
    let (_folder, sandbox) = sandbox().await;
    let environment = Arc::new(TestEnvironment(sandbox));
    let opened: Arc<dyn Environment> = environment.clone();
    let client = McpClient::open(server(&["count"]), Some(opened))
        .await
        .unwrap();
    environment.close().await;
    let (text, failed) = said(&client, "count", "{}").await;
    assert!(failed && text.contains("sandbox is gone"), "{text}");
}

#[tokio::test]
async fn without_a_sandbox_a_program_is_refused_with_the_reason() {
    let refused = McpClient::open(server(&["count"]), None)
        .await
        .err()
        .unwrap();
    let refused = refused.to_string();
    assert!(
        refused.contains("runs in the session's sandbox"),
        "{refused}"
    );
}
