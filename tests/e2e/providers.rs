//! The adapters against somebody else's implementation of their providers' APIs: litellm's proxy, each
//! of its routes with a scripted model behind it.

use serde_json::json;

use lucid_tests::{
    GitServer, Host, LiteLlm, Model, ModelTurn, Socket, call, calls, event, kinds, repository,
};

/// For the proxy: only who puts it where the provider wants it is let in.
const KEY: &str = "sk-for-litellm-alone-0123456789";
const BROKEN: &str = "def add(a, b):\n    return a - b\n";
const TEST: &str = "import unittest\n\nfrom calc import add\n\n\nclass Calc(unittest.TestCase):\n    \
                    def test_add(self):\n        self.assertEqual(add(2, 3), 5)\n";
const THOUGHT: &str = "Größer — „jetzt“ stimmt es.";
const RUN: &str = "python3 -B -m unittest -q test_calc 2>&1";

/// The provider, the model's name at the proxy, and what stands behind the proxy's address.
const ROUTES: [(&str, &str, &str); 3] = [
    ("anthropic", "claude-opus-5-5", ""),
    ("google", "gemini-3.8-flash", ""),
    ("openai", "gpt-6.1-sol", "/v1"),
];

/// Finds the sign that is wrong: one call, two at once, the end.
async fn model() -> Model {
    Model::start(|number, _| match number {
        0 => call("terminal", json!({"command": RUN})),
        1 => calls([
            (
                "file_editor",
                json!({"command": "str_replace", "path": "/workspace/calc.py",
                    "old_str": "return a - b", "new_str": "return a + b"}),
            ),
            ("think", json!({"thought": THOUGHT})),
        ]),
        2 => call("terminal", json!({"command": RUN})),
        3 => call("finish", json!({"message": "add() adds now."})),
        _ => ModelTurn::Say("That was all.".into()),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_the_coder_goes_through_each_route_of_litellm() {
    let behind = [model().await, model().await, model().await];
    let named: Vec<_> = ROUTES
        .iter()
        .zip(&behind)
        .map(|((_, name, _), model)| (*name, model))
        .collect();
    let Some(proxy) = LiteLlm::start(KEY, &named).await else {
        return;
    };
    let git = GitServer::start().await;
    let source = repository(&[("calc.py", BROKEN), ("test_calc.py", TEST)]);
    let url = git.publish("calc", source.path());
    let mut settings = Host::with_defaults();
    for (provider, name, path) in ROUTES {
        let own = |setting| format!("{}_{setting}", provider.to_uppercase());
        settings = settings
            .set(&own("API_KEY"), KEY)
            .set(&own("BASE_URL"), format!("{}{path}", proxy.url()))
            .set(&own("MODEL"), name);
    }
    let host = settings.start();

    for ((provider, _, _), model) in ROUTES.iter().zip(&behind) {
        let first = json!({"task": "Make the tests pass.", "repoUrl": url, "branch": "main",
            "modelProvider": provider, "projectId": provider, "features": ["seq"]});
        let mut socket = Socket::open(&host, "alice", first).await;
        socket.session().await;
        socket.completed().await;
        let frames = &socket.frames;
        let kinds = kinds(frames);
        assert!(
            !kinds.iter().any(|kind| kind.contains("error")),
            "{provider}: {frames:#?}"
        );
        assert_eq!(
            event(frames, "FileEditAction")["path"],
            "/workspace/calc.py",
            "{provider}"
        );
        let ends: Vec<_> = frames
            .iter()
            .filter(|frame| frame["eventType"] == "CmdOutputObservation")
            .map(|frame| frame["exitCode"].as_i64())
            .collect();
        // Behind these come the agent's own looks at what git says.
        assert_eq!(ends[..2], [Some(1), Some(0)], "{provider}");

        // What came through two translations.
        let asked = model.completions();
        assert!(asked.len() >= 4, "{provider}: {} calls", asked.len());
        assert_eq!(asked[0].messages("system").len(), 1, "{provider}");
        assert!(
            asked[0]
                .messages("user")
                .concat()
                .contains("Make the tests pass."),
            "{provider}: {}",
            asked[0].body
        );
        let tools = asked[0].json()["tools"].as_array().map_or(0, Vec::len);
        assert!(tools >= 3, "{provider}: {tools} tools");
        assert!(
            asked[1].messages("tool")[0].contains("-1 != 5"),
            "{provider}: {}",
            asked[1].body
        );
        assert_eq!(asked[2].messages("tool").len(), 3, "{provider}");
        // The proxy writes the arguments anew: what they say is the same.
        let messages = asked[2].json()["messages"].clone();
        let thought = messages
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|message| {
                message["tool_calls"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
            })
            .filter(|call| call["function"]["name"] == "think")
            .filter_map(|call| call["function"]["arguments"].as_str().map(str::to_owned))
            .map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap())
            .next_back();
        assert_eq!(
            thought.map(|arguments| arguments["thought"].clone()),
            Some(json!(THOUGHT)),
            "{provider}: {messages}"
        );
        for request in model.seen() {
            assert!(
                !format!("{request:?}").contains(KEY),
                "{provider}: the key went on"
            );
        }
    }
    assert!(!host.log().contains(KEY), "the host's log holds the key");
}
