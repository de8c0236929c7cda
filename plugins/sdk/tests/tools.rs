//! Tools from their author's view: a small component, run natively.

use std::cell::Cell;

use lucid_plugin::testing::{Call, definitions};
use lucid_plugin::tools::Answer;
use lucid_plugin::tools::{self, Command, Descriptor, Next, Program, Tools, segment};
use lucid_plugin::types::{Error, ErrorKind, HttpRequest, ToolCall, ToolDefinition};
use serde::{Deserialize, Serialize};
use serde_json::json;

struct Shop;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    shelves: Vec<String>,
}

#[derive(Deserialize)]
struct Wanted {
    item: String,
}

#[derive(Serialize, Deserialize)]
struct Asked {
    times: u32,
}

thread_local! {
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

impl Tools for Shop {
    type Settings = Settings;
    type State = Asked;

    fn describe() -> Descriptor {
        tools::describe("shop", "1.0.0", "Finds things.")
    }

    fn definitions(settings: &Settings) -> Result<Vec<ToolDefinition>, Error> {
        if settings.shelves.iter().any(String::is_empty) {
            return Err(Error::invalid("A shelf has no name."));
        }
        let names = ["find", "count", "impure", "rude"];
        let tool = |name: &&str| ToolDefinition::new(*name, "Does it.", &json!({"type": "object"}));
        Ok(names.iter().map(tool).collect())
    }

    fn call(settings: &Settings, call: &ToolCall) -> Result<Next<Asked>, Error> {
        match call.name.as_str() {
            "find" => {
                let wanted: Wanted = call.parsed()?;
                let path = format!("/items/{}", segment(&wanted.item)?);
                Ok(Next::Send(HttpRequest::get(path), Asked { times: 1 }))
            }
            "count" => {
                let count = Command::argv(["ls", "-1"]).folder("shelves").stdin("x");
                let count = count.variable("LANG", "C").timeout_ms(500);
                Ok(Next::Run(
                    count,
                    Asked {
                        times: settings.shelves.len() as u32,
                    },
                ))
            }
            "impure" => Ok(Next::done(COUNT.replace(COUNT.get() + 1).to_string())),
            "rude" => Ok(Next::Send(
                HttpRequest::get("/x").header("Authorization", "mine"),
                Asked { times: 0 },
            )),
            _ => Err(call.unknown()),
        }
    }

    fn resume(
        _: &Settings,
        _: &ToolCall,
        asked: Asked,
        answer: Answer,
    ) -> Result<Next<Asked>, Error> {
        match answer {
            Answer::Responded(found) if found.is_success() => Ok(Next::done(found.text())),
            Answer::Responded(busy) if busy.status == 503 => {
                let times = asked.times + 1;
                Ok(Next::Send(HttpRequest::get("/again"), Asked { times }))
            }
            Answer::Responded(other) => Ok(Next::failed(format!("status {}", other.status))),
            Answer::Ran(output) => Ok(Next::done(format!("{} of {}", output.text, asked.times))),
            Answer::Failed(error) => Err(error),
        }
    }
}

lucid_plugin::export_tools!(Shop);

#[test]
fn a_call_asks_and_tells_the_model_what_came_back() {
    let mut call = Call::<Shop>::begin("find", r#"{"item": "a b.é"}"#);
    assert_eq!(call.request().path, "/items/a%20b.%C3%A9");
    call.responds(503, "");
    assert_eq!(call.request().path, "/again");
    call.responds(200, "on the left");
    assert_eq!(
        (call.reply().text.as_str(), call.reply().is_error),
        ("on the left", false)
    );
    let mut call = Call::<Shop>::begin("find", r#"{"item": "x"}"#);
    call.responds(404, "");
    assert!(call.reply().is_error);
    let mut call = Call::<Shop>::begin("find", r#"{"item": "x"}"#);
    call.fails(ErrorKind::Upstream, "Nobody answers.");
    assert_eq!(call.error().message, "Nobody answers.");
}

#[test]
fn a_call_runs_a_command_with_what_it_remembered() {
    let settings = r#"{"shelves": ["a", "b"]}"#;
    let mut call = Call::<Shop>::begin_with(settings, "count", "");
    let command = call.command();
    assert_eq!(
        command.program,
        Program::Argv(vec!["ls".into(), "-1".into()])
    );
    assert_eq!(command.folder.as_deref(), Some("shelves"));
    assert_eq!(command.stdin.as_deref(), Some("x"));
    assert_eq!(command.environment, [("LANG".to_owned(), "C".to_owned())]);
    assert_eq!(command.timeout_ms, Some(500));
    call.prints("1", 0);
    assert_eq!(call.reply().text, "1 of 2");
}

#[test]
fn what_a_model_wrote_wrongly_is_an_error_that_it_can_mend() {
    for arguments in ["", "{", "[]", r#"{"item": 7}"#, r#"{"itme": "x"}"#] {
        let call = Call::<Shop>::begin("find", arguments);
        assert_eq!(call.error().kind, ErrorKind::InvalidInput, "{arguments}");
        assert!(call.error().message.contains("find"), "{arguments}");
    }
    for item in ["", ".", "..", "a/b", "a\\b", "%2e", "a\nb"] {
        let call = Call::<Shop>::begin("find", &json!({ "item": item }).to_string());
        assert!(call.error().message.contains("part of a path"), "{item}");
    }
}

#[test]
fn settings_that_the_tools_cannot_work_with_are_said() {
    assert_eq!(definitions::<Shop>("{}").len(), 4);
    let wrong = Shop::definitions(&Settings {
        shelves: vec![String::new()],
    });
    assert_eq!(wrong.unwrap_err().message, "A shelf has no name.");
}

#[test]
#[should_panic = "must depend on nothing but its arguments"]
fn a_step_that_counts_its_calls_fails_its_test() {
    Call::<Shop>::begin("impure", "{}");
}

#[test]
#[should_panic = "the host's own"]
fn a_request_that_a_host_would_not_send_fails_its_test() {
    Call::<Shop>::begin("rude", "{}");
}

#[test]
#[should_panic = "there is no tool `fnid`"]
fn a_tool_that_there_is_not_cannot_be_called_by_a_test() {
    Call::<Shop>::begin("fnid", "{}");
}
