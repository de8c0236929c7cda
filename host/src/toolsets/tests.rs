use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use lucid_types::ids::SessionId;
use lucid_types::wit::types::{ErrorKind, ToolResult};

/// A source controlled by the test.
#[derive(Clone, Default)]
struct Fake {
    name: &'static str,
    identity: &'static str,
    tools: Vec<ToolDefinition>,
    broken: Arc<AtomicBool>,
    panics: bool,
    opened: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

fn tool(name: &str) -> ToolDefinition {
    ToolDefinition {
        name: name.to_owned(),
        description: "d".to_owned(),
        input_schema: r#"{"type":"object"}"#.to_owned(),
    }
}

fn fake(name: &'static str, tools: &[&str]) -> Fake {
    Fake {
        name,
        identity: name,
        tools: tools.iter().map(|name| tool(name)).collect(),
        ..Fake::default()
    }
}

impl ToolSource for Fake {
    fn name(&self) -> &str {
        self.name
    }

    fn identity(&self) -> String {
        self.identity.to_owned()
    }

    fn serves(&self, policy: &str) -> bool {
        policy != "plain"
    }

    fn describe(&self, tool: &str, arguments: &str) -> EventDraft {
        EventDraft::text("CmdRunAction", format!("{tool} {arguments}"))
    }

    fn open(
        &self,
        _: ToolsSpec,
        _: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Result<Arc<dyn OpenToolSource>, ToolSourceError>> {
        let this = self.clone();
        async move {
            this.opened.fetch_add(1, Ordering::SeqCst);
            assert!(!this.panics, "a test panics on purpose");
            if this.broken.load(Ordering::SeqCst) {
                return Err(McpConnectError::Closed.into());
            }
            Ok(Arc::new(this) as Arc<dyn OpenToolSource>)
        }
        .boxed()
    }
}

impl OpenToolSource for Fake {
    fn definitions(&self) -> Vec<ToolDefinition> {
        self.tools.clone()
    }

    fn run(
        &self,
        call: ToolCall,
        _: Option<u32>,
        _: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        let text = match call.name.as_str() {
            "grief" => panic!("a test panics on purpose"),
            "much" => "x".repeat(10 * MAX_RESULT),
            name => format!("{name} of {}", self.name),
        };
        let done = ToolResultWithEvent {
            event: EventDraft::text("CmdOutputObservation", &text),
            result: ToolResult {
                call_id: "somebody else's".to_owned(),
                is_error: false,
                text,
                exit_code: None,
                blobs: Vec::new(),
            },
            notices: Vec::new(),
        };
        std::future::ready(Ok(done)).boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.closed.fetch_add(1, Ordering::SeqCst);
        std::future::ready(()).boxed()
    }
}

fn toolsets(sources: &[Fake]) -> Toolsets {
    let all = sources.iter().cloned();
    Toolsets::new(
        all.map(|source| Arc::new(source) as Arc<dyn ToolSource>)
            .collect(),
    )
}

async fn open(toolsets: &Toolsets) -> Arc<dyn SessionTools> {
    let spec = ToolsSpec {
        session: SessionId::new(),
        user: "u".into(),
        policy: "coder".to_owned(),
    };
    toolsets.open(spec, None).await
}

async fn run(tools: &Arc<dyn SessionTools>, name: &str) -> Result<ToolResultWithEvent, Error> {
    let call = ToolCall {
        id: "c".to_owned(),
        name: name.to_owned(),
        arguments: "{}".to_owned(),
    };
    let output = ToolOutput {
        deltas: Arc::new(|_, _: &str| {}),
        events: Arc::new(|_| std::future::ready(true).boxed()),
    };
    tools.run(call, None, output).await
}

fn names(tools: &Arc<dyn SessionTools>) -> Vec<String> {
    let all = tools.definitions().into_iter();
    all.map(|tool| tool.name).collect()
}

#[tokio::test]
async fn each_source_has_its_tools_under_its_name_and_gets_its_own_calls() {
    let toolsets = toolsets(&[fake("a", &["x", "_y"]), fake("a_b", &["x"])]);
    let tools = open(&toolsets).await;
    assert_eq!(names(&tools), ["a__x", "a___y", "a_b__x"]);
    for (name, text) in [
        ("a__x", "x of a"),
        ("a___y", "_y of a"),
        ("a_b__x", "x of a_b"),
    ] {
        let done = run(&tools, name).await.unwrap();
        assert_eq!(done.result.text, text);
        assert_eq!(
            done.result.call_id, "c",
            "an answer belongs to the call that was made"
        );
    }
    for unknown in ["terminal", "b__x", "__x", "a_x", ""] {
        let done = run(&tools, unknown).await.unwrap();
        assert!(done.result.is_error, "{unknown}: {done:?}");
    }
}

#[tokio::test]
async fn a_source_that_fails_is_left_out_and_tried_again_when_it_is_called() {
    let broken = fake("broken", &["x"]);
    broken.broken.store(true, Ordering::SeqCst);
    let grief = Fake {
        panics: true,
        ..fake("grief", &["x"])
    };
    let toolsets = toolsets(&[fake("fine", &["x"]), broken.clone(), grief]);
    let tools = open(&toolsets).await;
    assert_eq!(names(&tools), ["fine__x"]);
    let notices = tools.notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(
        notices[0].contains("broken") && notices[0].contains("it ended the connection."),
        "{notices:?}"
    );
    assert_eq!(
        tools.notices(),
        Vec::<String>::new(),
        "what was said is said once"
    );
    let done = run(&tools, "broken__x").await.unwrap();
    assert!(
        done.result.is_error && done.result.text.contains("it ended the connection."),
        "{done:?}"
    );
    broken.broken.store(false, Ordering::SeqCst);
    let done = run(&tools, "broken__x").await.unwrap();
    assert_eq!(done.result.text, "x of broken");
    assert_eq!(broken.opened.load(Ordering::SeqCst), 3);
    tools.close().await;
    tools.close().await;
    assert_eq!(
        broken.closed.load(Ordering::SeqCst),
        1,
        "what is open is closed once"
    );
}

#[tokio::test]
async fn a_call_that_comes_to_grief_or_says_too_much_harms_nothing_else() {
    let tools = open(&toolsets(&[fake("a", &["grief", "much", "x"])])).await;
    let error = run(&tools, "a__grief").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    let done = run(&tools, "a__much").await.unwrap();
    for text in [&done.result.text, &done.event.content] {
        assert!(
            text.len() < MAX_RESULT + 100 && text.contains("bytes left out"),
            "{}",
            text.len()
        );
    }
    assert_eq!(run(&tools, "a__x").await.unwrap().result.text, "x of a");
}

#[tokio::test]
async fn a_policy_that_is_not_named_has_no_part_in_it() {
    let toolsets = toolsets(&[fake("a", &["x"])]);
    assert!(toolsets.any_for("coder") && !toolsets.any_for("plain"));
    let call = ToolCall {
        id: "c".to_owned(),
        name: "a__x".to_owned(),
        arguments: "{".to_owned(),
    };
    let shown = toolsets.describe("coder", &call).expect("it is coder's");
    assert_eq!(shown.content, "x {", "what a model wrote is shown as it is");
    assert_eq!(toolsets.describe("plain", &call), None);
}

#[test]
fn only_what_changes_makes_another_set() {
    let one = |identity| {
        toolsets(&[
            fake("a", &[]),
            Fake {
                identity,
                ..fake("b", &[])
            },
        ])
    };
    assert!(one("1").is_same(&one("1")));
    assert!(!one("1").is_same(&one("2")));
    assert!(!one("1").is_same(&toolsets(&[fake("a", &[])])));
}

#[test]
fn a_tool_that_no_model_could_be_told_of_is_left_out_and_counted() {
    let with_schema = |name: &str, schema: &str| ToolDefinition {
        input_schema: schema.to_owned(),
        ..tool(name)
    };
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(500), "]".repeat(500));
    let (fit, left) = fitting(
        "a",
        vec![
            tool("fine"),
            tool("fine"),
            tool(""),
            tool("with space"),
            tool("ä"),
            tool(&"x".repeat(62)),
            with_schema("text", "\"object\""),
            with_schema("array", r#"{"type":"array"}"#),
            with_schema("broken", "{"),
            with_schema("deep", &deep),
            with_schema(
                "large",
                &format!(r#"{{"a":"{}"}}"#, "x".repeat(input_schema::LARGEST)),
            ),
            with_schema("open", "{}"),
            with_schema(
                "any",
                r#"{"type":"object","anyOf":[{}],"properties":{"a":{"anyOf":[{}]}}}"#,
            ),
        ],
    );
    let told: Vec<_> = fit
        .iter()
        .map(|tool| (&*tool.name, &*tool.input_schema))
        .collect();
    assert_eq!(
        told,
        [
            ("a__fine", r#"{"type":"object"}"#),
            ("a__open", r#"{"type":"object"}"#),
            (
                "a__any",
                r#"{"properties":{"a":{"anyOf":[{}]}},"type":"object"}"#
            ),
        ]
    );
    assert!(left.unwrap().starts_with("10 of the 13 tools of a "));
    let many: Vec<_> = (0..300).map(|n| tool(&n.to_string())).collect();
    assert_eq!(fitting("a", many).0.len(), MOST_TOOLS);
    let long = |n: usize| ToolDefinition {
        description: "x".repeat(1 << 20),
        ..tool(&n.to_string())
    };
    let (fit, left) = fitting("a", (0..MOST_TOOLS).map(long).collect());
    let size: usize = fit.iter().map(|tool| tool.description.len()).sum();
    assert!(
        size <= LARGEST_ALL && left.is_some(),
        "{size} bytes are told"
    );
}

proptest! {
    #[test]
    fn whatever_a_source_calls_its_tools_the_whole_name_leads_back_to_it(
        source in "[a-z0-9][a-z0-9_-]{0,40}",
        tools in proptest::collection::vec("[A-Za-z0-9_ .é-]{0,70}", 0..8),
    ) {
        prop_assume!(is_source_name(&source));
        let offered: Vec<_> = tools.iter().map(|name| tool(name)).collect();
        let (fit, _) = fitting(&source, offered);
        for told in fit {
            prop_assert!(told.name.len() <= 64);
            prop_assert!(told.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            let (found, own) = split(&told.name).expect("it has a source");
            prop_assert_eq!(found, source.as_str());
            prop_assert!(tools.iter().any(|name| name == own));
        }
    }
}
