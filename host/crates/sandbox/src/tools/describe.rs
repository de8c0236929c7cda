//! Describes a tool call to clients. The host derives the description from the call alone, so that
//! a policy can neither hide nor misrepresent what it does.

use serde_json::Value;

/// A client's view of a call, before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallView {
    /// The event's type.
    pub event_type: &'static str,
    /// The type of the event that reports the result.
    pub observation_type: &'static str,
    /// The text of the event.
    pub content: String,
    /// The command line, for commands.
    pub command: Option<String>,
    /// The file or folder, for the editor.
    pub path: Option<String>,
}

/// Describes a call. Pure, and total over whatever a model may have written.
#[must_use]
pub fn describe_call(name: &str, arguments: &str) -> CallView {
    let value: Value = serde_json::from_str(arguments).unwrap_or_default();
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let plain = || format!("{name} {arguments}");
    if name != "file_editor" {
        let command = text("command").filter(|_| name == "terminal");
        return CallView {
            event_type: "CmdRunAction",
            observation_type: "CmdOutputObservation",
            content: command.clone().unwrap_or_else(plain),
            command,
            path: None,
        };
    }
    let path = text("path");
    let named = path.clone().unwrap_or_default();
    let (event_type, observation_type, content) = match text("command").as_deref() {
        Some("view") => (
            "FileReadAction",
            "FileReadObservation",
            format!("Read {named}"),
        ),
        Some("create") => (
            "FileWriteAction",
            "FileWriteObservation",
            text("file_text").unwrap_or_default(),
        ),
        Some("str_replace") => {
            let (old, new) = (
                text("old_str").unwrap_or_default(),
                text("new_str").unwrap_or_default(),
            );
            (
                "FileEditAction",
                "FileEditObservation",
                format!("Replace in {named}\n--- old\n{old}\n+++ new\n{new}"),
            )
        }
        Some("insert") => {
            let line = value
                .get("insert_line")
                .map(Value::to_string)
                .unwrap_or_default();
            let new = text("new_str").unwrap_or_default();
            (
                "FileEditAction",
                "FileEditObservation",
                format!("Insert into {named} behind line {line}\n{new}"),
            )
        }
        Some("undo_edit") => (
            "FileEditAction",
            "FileEditObservation",
            format!("Undo the last change of {named}"),
        ),
        _ => ("FileEditAction", "FileEditObservation", plain()),
    };
    CallView {
        event_type,
        observation_type,
        content,
        command: None,
        path,
    }
}
