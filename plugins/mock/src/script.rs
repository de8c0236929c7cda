//! The script itself: what is run where there is a terminal, and what is emitted where there is
//! none.
//!
//! # Invariants
//!
//! - Both forms name the same commands, the same file and the same content.

use lucid_plugin::cut;
use lucid_plugin::types::ToolResult;
use serde_json::{Value, json};

const PROGRAM: &str = r#"print("Hello, World!")"#;

/// The name of each step of the live script, for failures.
pub(crate) const LIVE_STEPS: [&str; 3] =
    ["Making the folder", "Writing hello.py", "Running hello.py"];

/// One event of the emitted script.
pub(crate) struct Scene {
    pub(crate) event_type: &'static str,
    pub(crate) content: String,
    pub(crate) fields: Value,
    /// Whether it is the last one.
    pub(crate) last: bool,
}

/// The tool run at a position of the live script, if there is one.
pub(crate) fn live(workspace: &str, at: usize) -> Option<(&'static str, Value)> {
    match at {
        0 => Some(("terminal", json!({ "command": make_folder(workspace) }))),
        1 => Some((
            "file_editor",
            json!({ "command": "create", "path": file(workspace), "file_text": PROGRAM }),
        )),
        2 => Some(("terminal", json!({ "command": run_file(workspace) }))),
        _ => None,
    }
}

/// The event at a position of the emitted script. Beyond its end, the last one.
pub(crate) fn told(workspace: &str, at: usize) -> Scene {
    let command = |content: String| Scene {
        event_type: "CmdRunAction",
        fields: json!({ "command": content }),
        content,
        last: false,
    };
    let output = |of: String, content: &str, last| Scene {
        event_type: "CmdOutputObservation",
        fields: json!({ "command": of, "exitCode": 0 }),
        content: content.into(),
        last,
    };
    let path = file(workspace);
    match at {
        0 => command(make_folder(workspace)),
        1 => output(make_folder(workspace), "", false),
        2 => Scene {
            event_type: "FileWriteAction",
            content: PROGRAM.into(),
            fields: json!({ "path": path }),
            last: false,
        },
        3 => Scene {
            event_type: "FileWriteObservation",
            content: format!("File written: {path}"),
            fields: json!({ "path": path }),
            last: false,
        },
        4 => command(run_file(workspace)),
        _ => output(run_file(workspace), "Hello, World!", true),
    }
}

/// A tool's message about its failure.
pub(crate) fn complaint(result: &ToolResult) -> String {
    let text = result.text.trim();
    match (result.exit_code, text.is_empty()) {
        (Some(code), true) => format!("exit code {code}."),
        (Some(code), false) => format!("exit code {code}: {}", cut(text, 300)),
        (None, true) => "the tool gave no reason.".into(),
        (None, false) => cut(text, 300),
    }
}

fn make_folder(workspace: &str) -> String {
    let folder = quoted(workspace);
    format!("mkdir -p {folder} && cd {folder}")
}

fn run_file(workspace: &str) -> String {
    format!("python {}", quoted(&file(workspace)))
}

fn file(workspace: &str) -> String {
    format!("{workspace}/hello.py")
}

/// Quotes a path for a shell. A plain path stays as it is, since a frontend shows the command.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.to_string()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_odd_characters_is_quoted_for_the_shell() {
        assert_eq!(
            make_folder("/workspace"),
            "mkdir -p /workspace && cd /workspace"
        );
        assert_eq!(run_file("/a b/it's"), r"python '/a b/it'\''s/hello.py'");
    }

    #[test]
    fn a_complaint_names_the_exit_code_and_the_output() {
        let mut result = ToolResult::ok("c", "python: not found\n");
        result.exit_code = Some(127);
        assert_eq!(complaint(&result), "exit code 127: python: not found");
        assert_eq!(
            complaint(&ToolResult::failed("c", "")),
            "the tool gave no reason."
        );
    }
}
