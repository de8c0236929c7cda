//! A model that behaves like one: it follows a script, and reacts to what it is told as models do.
//!
//! What always holds: it knows only what stands in the requests, as a real model does. Its branch is
//! the one that the system prompt names, and it commits late unless its script says so.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::{Value, json};

use lucid_tests::{ModelRequestSeen, ModelTurn, call};

/// What the model does next.
pub(crate) enum Step {
    /// This, whatever it is told.
    Do(ModelTurn),
    /// Something that depends on what it is told.
    See(fn(&ModelRequestSeen) -> ModelTurn),
    /// Commits and pushes with this message.
    Commit(&'static str),
}

/// Runs a command.
pub(crate) fn run(command: &str) -> Step {
    Step::Do(call("terminal", json!({"command": command})))
}

/// Runs the repository's tests.
pub(crate) fn test() -> Step {
    run("sh test.sh")
}

/// Looks at a file.
pub(crate) fn view(path: &str) -> Step {
    editor(json!({"command": "view", "path": path}))
}

/// Replaces a text in a file.
pub(crate) fn edit(path: &str, old: &str, new: &str) -> Step {
    editor(json!({"command": "str_replace", "path": path, "old_str": old, "new_str": new}))
}

/// Takes the last change of a file back.
pub(crate) fn undo(path: &str) -> Step {
    editor(json!({"command": "undo_edit", "path": path}))
}

fn editor(arguments: Value) -> Step {
    Step::Do(call("file_editor", arguments))
}

/// Ends the task.
pub(crate) fn finish(message: &str) -> Step {
    Step::Do(call("finish", json!({"message": message})))
}

/// Says this and calls no tool.
pub(crate) fn say(text: &str) -> Step {
    Step::Do(ModelTurn::Say(text.to_owned()))
}

/// A tool call whose arguments are this text, with a reason to stop.
pub(crate) fn odd(tool: &str, arguments: &str, reason: &'static str) -> Step {
    let calls = vec![(tool.to_owned(), arguments.to_owned())];
    Step::Do(ModelTurn::Odd(String::new(), calls, reason))
}

/// Declines, as a filter does.
pub(crate) fn decline() -> Step {
    Step::Do(ModelTurn::Odd(String::new(), Vec::new(), "content_filter"))
}

/// Does not take a prompt of that length.
pub(crate) fn too_long() -> Step {
    let message = "This model's maximum context length is 8192 tokens. However, your messages \
                   resulted in 9131 tokens. Please reduce the length of the messages.";
    Step::Do(ModelTurn::Refuse(400, message.to_owned()))
}

/// The model. Behind its script it finishes, again and again.
pub(crate) fn model(
    steps: Vec<Step>,
) -> impl Fn(usize, &ModelRequestSeen) -> ModelTurn + Send + Sync + 'static {
    let steps = Mutex::new(VecDeque::from(steps));
    move |number, seen| {
        if number == usize::MAX {
            return ModelTurn::Say(String::new());
        }
        let last = last_message(seen);
        if last.contains("Write the notes now") {
            return ModelTurn::Say(
                "Task: make `sh test.sh` pass.\nKnown: the tests run with `sh test.sh`.".to_owned(),
            );
        }
        if last.contains("Commit what belongs to the task") {
            return commit(seen, "Fix what the tests find");
        }
        match steps.lock().unwrap().pop_front() {
            Some(Step::Do(turn)) => turn,
            Some(Step::See(see)) => see(seen),
            Some(Step::Commit(message)) => commit(seen, message),
            None => call("finish", json!({"message": "The tests pass."})),
        }
    }
}

/// All that a request tells the model.
pub(crate) fn told(seen: &ModelRequestSeen) -> String {
    ["system", "user", "tool", "assistant"]
        .map(|role| seen.messages(role).join("\n"))
        .join("\n")
}

fn last_message(seen: &ModelRequestSeen) -> String {
    let body = seen.json();
    let last = body["messages"].as_array().and_then(|all| all.last());
    last.map(|message| match &message["content"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
    .unwrap_or_default()
}

/// Commits all there is on the branch that the system prompt names, and pushes it.
pub(crate) fn commit(seen: &ModelRequestSeen, message: &str) -> ModelTurn {
    let system = seen.messages("system").concat();
    let (_, after) = system
        .split_once("git push -u origin ")
        .unwrap_or_else(|| panic!("the model was not told where to push: {system}"));
    let branch: String = after.chars().take_while(|c| *c != '`').collect();
    let command = format!(
        "git switch -q -c {branch} && git add --all && git commit -q -m '{message}' && \
         git push -q -u origin {branch} 2>&1"
    );
    call("terminal", json!({"command": command}))
}
