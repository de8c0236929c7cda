//! Tests of tool calls, with a host side that records its calls and a component whose tools behave
//! and misbehave.

use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::call::{ToolHost, call_tool};
use lucid_tests::TOOLING;
use lucid_types::wit::tools::{Command, Output, Reply};
use lucid_types::wit::types::{Error, ErrorKind, HttpRequest, HttpResponse, ToolCall};
use lucid_wasm::testing::engine;
use lucid_wasm::{PluginLimits, ToolsPlugin};

/// A host side that performs every action and records it.
#[derive(Default)]
struct Diary {
    lines: Mutex<Vec<String>>,
    /// The duration of every action.
    pause: Duration,
    /// Every action fails, as if the sandbox were gone.
    gone: bool,
}

impl Diary {
    fn note(&self, line: String) -> Result<(), Error> {
        self.lines.lock().unwrap().push(line);
        if !self.gone {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, "There is no sandbox."))
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl ToolHost for Diary {
    fn run<'a>(
        &'a self,
        command: &'a Command,
        _: Duration,
    ) -> BoxFuture<'a, Result<Output, Error>> {
        async move {
            self.note(format!("run {:?}", command.program))?;
            tokio::time::sleep(self.pause).await;
            Ok(Output {
                exit_code: 0,
                timed_out: false,
                text: "7\n".into(),
                left_out: 0,
            })
        }
        .boxed()
    }

    fn send<'a>(
        &'a self,
        request: &'a HttpRequest,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpResponse, Error>> {
        async move {
            self.note(format!("{} {}", request.method, request.path))?;
            tokio::time::sleep(self.pause).await;
            let first = self.lines().len() == 1;
            Ok(HttpResponse {
                status: if first { 503 } else { 200 },
                headers: Vec::new(),
                body: b"found".to_vec(),
            })
        }
        .boxed()
    }
}

async fn plugin(limits: &PluginLimits) -> ToolsPlugin {
    ToolsPlugin::load(&engine(), "t", TOOLING, limits)
        .await
        .unwrap()
}

async fn called(tool: &str, host: &Diary) -> Reply {
    let call = ToolCall {
        id: "c1".into(),
        name: tool.into(),
        arguments: r#"{"name": "a.txt"}"#.into(),
    };
    let limits = PluginLimits {
        wall: Duration::from_secs(5),
        fuel: 500_000_000,
        ..PluginLimits::default()
    };
    let plugin = plugin(&limits).await;
    let time = Duration::from_secs(60);
    call_tool(&plugin, "{}", &call, host, time).await.reply
}

#[tokio::test]
async fn a_call_is_commands_and_requests_one_after_the_other() {
    let host = Diary::default();
    let reply = called("lines", &host).await;
    assert_eq!(reply.text, "7\n [0 after 1, 0 left out, in time]");
    assert!(!reply.is_error);
    assert!(host.lines()[0].contains(r#""grep", "-c", "", "--", "a.txt""#));

    let host = Diary::default();
    let reply = called("item", &host).await;
    assert_eq!((reply.text.as_str(), reply.is_error), ("found", false));
    assert_eq!(host.lines(), ["GET /items/a.txt", "GET /again"]);

    let host = Diary::default();
    called("both", &host).await;
    assert_eq!(host.lines().len(), 2, "{:?}", host.lines());
}

#[tokio::test]
async fn what_cannot_be_done_the_component_is_told() {
    let host = Diary {
        gone: true,
        ..Diary::default()
    };
    let reply = called("lines", &host).await;
    assert_eq!(
        (reply.text.as_str(), reply.is_error),
        ("There is no sandbox.", true)
    );
}

#[tokio::test]
async fn a_component_that_misbehaves_ends_its_own_call_and_the_model_is_told_why() {
    for (tool, says, actions) in [
        ("endless", "not done after 32 steps", 32),
        ("trap", "broke down", 0),
        ("spin", "fuel", 0),
        ("flood", "gave more than the", 0),
        ("hoard", "wanted 2097", 0),
        ("nothing", "The command is empty", 0),
        ("null", "null character", 0),
        ("no-such-tool", "There is no tool", 0),
    ] {
        let host = Diary::default();
        let reply = called(tool, &host).await;
        assert!(
            reply.is_error && reply.text.contains(says),
            "{tool}: {reply:?}"
        );
        assert_eq!(host.lines().len(), actions, "{tool}: {:?}", host.lines());
    }
    let reply = called("chatter", &Diary::default()).await;
    assert_eq!(
        reply.text, "said a lot",
        "its log lines are dropped, and it goes on"
    );
}

#[tokio::test]
async fn a_call_has_a_time_and_what_takes_longer_is_given_up() {
    let plugin = plugin(&PluginLimits::default()).await;
    let host = Diary {
        pause: Duration::from_secs(3_600),
        ..Diary::default()
    };
    let call = ToolCall {
        id: "c1".into(),
        name: "item".into(),
        arguments: r#"{"name": "x"}"#.into(),
    };
    let called = call_tool(&plugin, "{}", &call, &host, Duration::from_secs(1)).await;
    assert!(
        called
            .reply
            .text
            .contains("did not answer before the call's time was over"),
        "{called:?}"
    );
}
