//! Tests of the plugins in this binary.

use std::path::Path;

use super::{ANTHROPIC, CODER, GOOGLE, MOCK, OPENAI};
use lucid_session::AvailableModels;
use lucid_types::wit::llm::{CompletionRequest, Frame, Sse};
use lucid_types::wit::policy::{Context, Input, Start};
use lucid_types::wit::types::{Content, Message, Role, ToolCall, ToolDefinition};
use lucid_wasm::{
    ALLOWED_IMPORTS, CallError, CallOutcome, Engine, EngineOptions, LlmPlugin, PluginLimits,
    PolicyPlugin,
};

#[test]
fn no_component_in_this_binary_names_a_folder_of_who_built_it() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let home = std::env::home_dir().unwrap().join(".cargo");
    let cargo = std::env::var_os("CARGO_HOME").map_or(home, Into::into);
    let folders = [workspace.to_owned(), cargo];
    let all = super::POLICIES.iter().chain(super::PROVIDERS);
    for (name, wasm) in all {
        for folder in &folders {
            let folder = folder.display().to_string();
            let found = wasm
                .windows(folder.len())
                .any(|part| part == folder.as_bytes());
            assert!(!found, "the component `{name}` names {folder}");
        }
        let named = b"/crates/serde_json-";
        let named = wasm.windows(named.len()).any(|part| part == named);
        assert!(
            named,
            "`{name}` names no source at all, so nothing was looked at"
        );
    }
}

#[test]
fn the_built_in_guests_import_no_wasi_at_all() {
    for wasm in [ANTHROPIC, CODER, GOOGLE, MOCK, OPENAI] {
        let wit_component::DecodedWasm::Component(resolve, world) =
            wit_component::decode(wasm).unwrap()
        else {
            panic!("a built-in guest is no component");
        };
        for key in resolve.worlds[world].imports.keys() {
            let import = resolve.name_world_key(key);
            assert!(ALLOWED_IMPORTS.contains(&import.as_str()), "{import}");
        }
    }
}

/// Asserts that a call did not break down, whatever it returned.
fn stands<T>(what: &str, called: CallOutcome<T>) -> Option<T> {
    match called.result {
        Ok(value) => Some(value),
        Err(CallError::Plugin { .. }) => None,
        Err(error) => panic!("{what}: {error}"),
    }
}

#[tokio::test]
async fn json_as_deep_as_plugins_read_it_fits_their_stack() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let limits = PluginLimits::default();
    let (mut providers, mut policies) = (Vec::new(), Vec::new());
    for (name, wasm) in super::PROVIDERS {
        let plugin = LlmPlugin::load(&engine, name, wasm, &limits).await;
        providers.push(plugin.unwrap());
    }
    for (name, wasm) in super::POLICIES {
        let plugin = PolicyPlugin::load(&engine, name, wasm, &limits).await;
        policies.push(plugin.unwrap());
    }
    for depth in [100, 120, 126, 127, 128, 10_000] {
        let objects = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let lists = format!(
            r#"{{"a":{}{}}}"#,
            "[".repeat(depth - 1),
            "]".repeat(depth - 1)
        );
        for json in [objects, lists] {
            let tool = ToolDefinition {
                name: "tool".to_owned(),
                description: String::new(),
                input_schema: json.clone(),
            };
            let call = Content::ToolCall(ToolCall {
                id: "c".to_owned(),
                name: "tool".to_owned(),
                arguments: json.clone(),
            });
            let request = CompletionRequest {
                model: "m".to_owned(),
                messages: vec![Message {
                    role: Role::Assistant,
                    content: vec![call],
                }],
                tools: vec![tool.clone()],
                max_output_tokens: None,
                params: json.clone(),
                streaming: true,
            };
            for plugin in &providers {
                let what = format!("{plugin:?} with {depth} levels");
                stands(&what, plugin.encode("{}", &request).await);
                stands(&what, plugin.encode(&json, &request).await);
                stands(&what, plugin.classify(400, &[], json.as_bytes()).await);
                let frame = Frame::Sse(Sse {
                    event: None,
                    data: json.clone(),
                    id: None,
                });
                let mut decoder = stands(&what, plugin.decoder("m").await).expect("a decoder");
                stands(&what, decoder.push(&[frame]).await);
            }
            let models = AvailableModels::only("m");
            let start = Input::Started(Start {
                task: "t".to_owned(),
                entry: 0,
                workspace: "/workspace".to_owned(),
                repository: None,
                branch: None,
                model: models.model,
                small_model: models.small,
                models: models.names,
                instructions: Vec::new(),
                tools: vec![tool],
                settings: json.clone(),
            });
            let context = Context {
                session: "s".to_owned(),
                step: 0,
                now_ms: 0,
                seed: 1,
                iterations_left: 1,
                tokens_left: None,
                cost_left: None,
                millis_left: None,
            };
            for plugin in &policies {
                let what = format!("{plugin:?} with {depth} levels");
                let inputs = std::slice::from_ref(&start);
                stands(&what, plugin.step(&context, None, inputs).await);
            }
        }
    }
}
