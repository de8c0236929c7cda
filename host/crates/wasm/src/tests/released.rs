//! Guests that were built against earlier versions of the interfaces, and still work as they did.
//!
//! Each is the component as built at the time, and is never rebuilt: it proves that a current host
//! runs what a team built back then.

use super::*;
use lucid_types::wit::git::{Next, Operation, Reply};
use lucid_types::wit::llm::{CompletionRequest, Delta, Frame, Framing, Sse};
use lucid_types::wit::policy::{Command, ModelOffer, Outcome, Start};
use lucid_types::wit::tools::{Action, Answer, Output, Program, Progress};
use lucid_types::wit::types::{
    Content, ErrorKind, Header, HttpResponse, Message, Role, StopReason, ToolCall,
};

/// `tests/guests/counting`, at 0.1.0.
const POLICY: &[u8] = include_bytes!("../../../../../wit/released/0.1.0/policy.wasm");
/// `plugins/openai`, at 0.1.0.
const LLM: &[u8] = include_bytes!("../../../../../wit/released/0.1.0/llm.wasm");
/// `plugins/github`, at 0.1.0.
const GIT: &[u8] = include_bytes!("../../../../../wit/released/0.1.0/git.wasm");
/// `tests/guests/tooling`, at 0.1.0.
pub(super) const TOOLS: &[u8] = include_bytes!("../../../../../wit/released/0.1.0/tools.wasm");

fn model(name: &str) -> ModelOffer {
    ModelOffer {
        name: name.into(),
        context_tokens: 1,
        output_tokens: 1,
        images: false,
    }
}

fn started(task: &str) -> Input {
    Input::Started(Start {
        task: task.into(),
        entry: 0,
        workspace: "/workspace".into(),
        repository: None,
        branch: None,
        model: model("m"),
        small_model: model("s"),
        models: vec!["m".into()],
        instructions: Vec::new(),
        tools: Vec::new(),
        settings: "{}".into(),
    })
}

#[tokio::test]
async fn a_git_provider_of_the_first_release_asks_and_reads() {
    let limits = PluginLimits::default();
    let plugin = GitPlugin::load(&engine(), "old", GIT, &limits)
        .await
        .unwrap();
    let said = plugin.descriptor();
    assert_eq!((&*said.name, &*said.api_path), ("github", "/api/v3"));
    let operation = Operation::CurrentUser;
    let first = plugin.step("{}", &operation, None, None).await;
    let Next::Send(sending) = first.result.unwrap() else {
        panic!("nothing was asked")
    };
    assert_eq!(
        (&*sending.request.method, &*sending.request.path),
        ("GET", "/user")
    );
    let answer = types::HttpResponse {
        status: 200,
        headers: vec![Header {
            name: "x-oauth-scopes".into(),
            value: "repo".into(),
        }],
        body: br#"{"id": 7, "login": "octocat"}"#.to_vec(),
    };
    let state = Some(sending.state);
    let done = plugin.step("{}", &operation, state, Some(answer)).await;
    let Next::Done(Reply::Account(account)) = done.result.unwrap() else {
        panic!("no account")
    };
    assert_eq!(account.login, "octocat");
    assert_eq!(account.scopes, ["repo"]);
}

#[tokio::test]
async fn a_policy_of_the_first_release_steps_and_takes_over() {
    let limits = PluginLimits::default();
    let plugin = PolicyPlugin::load(&engine(), "old", POLICY, &limits)
        .await
        .unwrap();
    let descriptor = plugin.descriptor();
    assert_eq!(
        (
            &*descriptor.name,
            &*descriptor.version,
            descriptor.schema,
            descriptor.calls_models
        ),
        ("counting", "build-0000", 1, false)
    );
    let first = plugin
        .step(&context(), None, &[started("count to 1")])
        .await;
    let first = first.result.unwrap();
    assert_eq!(first.state.schema, 1);
    assert!(
        matches!(&first.commands[..], [Command::Emit(event), Command::SetTimer(timer)]
            if event.content == "begun by build-0000" && timer.delay_ms == 50),
        "{:?}",
        first.commands
    );
    let state = plugin.migrate(&first.state).await.result.unwrap();
    assert_eq!(
        state, first.state,
        "a state of its own schema stays as it is"
    );
    let inputs = [Input::Upgraded(1), Input::TimerFired("tick-0".into())];
    let second = plugin
        .step(&context(), Some(&state), &inputs)
        .await
        .result
        .unwrap();
    let said: Vec<&str> = second
        .commands
        .iter()
        .map(|command| match command {
            Command::Emit(event) => &*event.content,
            Command::Finish(Outcome::Succeeded(text)) => text,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        said,
        [
            "moved to build-0000",
            "1 by build-0000",
            "counted by build-0000"
        ]
    );
}

#[tokio::test]
async fn an_adapter_of_the_first_release_encodes_decodes_and_tells_errors() {
    let plugin = LlmPlugin::load(&engine(), "old", LLM, &PluginLimits::default())
        .await
        .unwrap();
    assert_eq!(plugin.descriptor().name, "openai");
    assert!(plugin.descriptor().settings_schema.is_some());
    assert!(!plugin.known_models().is_empty());
    let request = CompletionRequest {
        model: "m".into(),
        messages: vec![Message {
            role: Role::User,
            content: vec![Content::Text("Hello?".into())],
        }],
        tools: Vec::new(),
        max_output_tokens: Some(5),
        params: "{}".into(),
        streaming: true,
    };
    let encoded = plugin.encode("{}", &request).await.result.unwrap();
    assert_eq!(encoded.request.path, "/chat/completions");
    assert_eq!(encoded.framing, Framing::ServerSentEvents);
    let body = String::from_utf8(encoded.request.body.clone()).unwrap();
    assert!(body.contains("Hello?"), "{body}");

    let header = Header {
        name: "retry-after".into(),
        value: "2".into(),
    };
    let refused = plugin.classify(429, &[header], b"{}").await.result.unwrap();
    assert_eq!(refused.kind, ErrorKind::RateLimited);

    let frame = |data: &str| {
        Frame::Sse(Sse {
            event: None,
            data: data.into(),
            id: None,
        })
    };
    let mut decoder = plugin.decoder("m").await.result.unwrap();
    let delta = r#"{"choices":[{"index":0,"delta":{"content":"Hi."}}]}"#;
    let deltas = decoder.push(&[frame(delta)]).await.result.unwrap();
    assert_eq!(deltas, [Delta::Text("Hi.".into())]);
    let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    decoder
        .push(&[frame(end), frame("[DONE]")])
        .await
        .result
        .unwrap();
    let done = decoder.finish().await.result.unwrap();
    assert_eq!(done.message.content, [Content::Text("Hi.".into())]);
    assert_eq!(done.stop, StopReason::EndTurn);
}

#[tokio::test]
async fn tools_of_the_first_release_want_commands_and_requests_and_answer() {
    let limits = PluginLimits::default();
    let plugin = ToolsPlugin::load(&engine(), "old", TOOLS, &limits)
        .await
        .unwrap();
    let descriptor = plugin.descriptor();
    assert_eq!(
        (&*descriptor.name, &*descriptor.version),
        ("tooling", "build-0000")
    );
    assert!(descriptor.settings_schema.is_some() && descriptor.default_base_url.is_none());
    let tools = plugin.definitions("{}").await.result.unwrap();
    assert!(tools.iter().any(|tool| tool.name == "lines"), "{tools:?}");

    let step = async |tool: &str, progress: Option<Progress>| {
        let call = ToolCall {
            id: "c".into(),
            name: tool.into(),
            arguments: r#"{"name": "a"}"#.into(),
        };
        let settings = r#"{"greeting": "Hello. "}"#;
        let stepped = plugin.step(settings, &call, progress.as_ref()).await;
        stepped.result.unwrap()
    };
    let first = step("lines", None).await;
    let Action::Run(command) = &first.action else {
        panic!("{first:?}")
    };
    let argv = ["grep", "-c", "", "--", "a"].map(str::to_owned);
    assert_eq!(command.program, Program::Argv(argv.into()));
    let output = Output {
        exit_code: 0,
        timed_out: false,
        text: "7".into(),
        left_out: 0,
    };
    let answer = Answer::Ran(output);
    let state = first.state;
    let last = step("lines", Some(Progress { state, answer })).await;
    assert!(
        matches!(&last.action, Action::Done(reply) if reply.text.starts_with("Hello. 7 [0 after 1")),
        "{last:?}"
    );

    let first = step("item", None).await;
    let Action::Send(request) = &first.action else {
        panic!("{first:?}")
    };
    assert_eq!((&*request.method, &*request.path), ("GET", "/items/a"));
    let answer = Answer::Responded(HttpResponse {
        status: 404,
        headers: Vec::new(),
        body: b"none".to_vec(),
    });
    let state = first.state;
    let last = step("item", Some(Progress { state, answer })).await;
    assert!(
        matches!(&last.action, Action::Done(reply) if reply.is_error && reply.text == "none"),
        "{last:?}"
    );
}
