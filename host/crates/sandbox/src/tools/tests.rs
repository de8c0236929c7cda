//! Tests of the tools over a real sandbox and a real workspace.

use serde_json::json;

use super::*;
use crate::BackendChoice;
use crate::tests::SandboxFixture;

struct Tools {
    ground: SandboxFixture,
    tools: SandboxTools,
}

impl Tools {
    async fn new() -> Self {
        let context = SandboxFixture::new(BackendChoice::Bubblewrap).await;
        let workspace = Arc::new(context.workspace("one"));
        let tools = SandboxTools::new(context.start("one", None).await, workspace);
        Self {
            ground: context,
            tools,
        }
    }

    async fn run(&self, name: &str, arguments: Value) -> ToolOutcome {
        run(
            &self.tools,
            name,
            &arguments.to_string(),
            Duration::from_secs(30),
            |_| {},
        )
        .await
        .unwrap()
    }

    async fn edit(&self, command: &str, path: &str, mut rest: Value) -> ToolOutcome {
        rest["command"] = command.into();
        rest["path"] = path.into();
        self.run("file_editor", rest).await
    }

    fn content(&self, path: &str) -> String {
        std::fs::read_to_string(self.ground.workspace("one").host_path().join(path)).unwrap()
    }
}

#[tokio::test]
async fn the_terminal_gives_output_and_exit_code_and_a_failing_command_is_no_tool_error() {
    let tools = Tools::new().await;
    let outcome = tools
        .run("terminal", json!({"command": "echo hello; exit 4"}))
        .await;
    assert_eq!(
        (outcome.text.as_str(), outcome.exit_code, outcome.is_error),
        ("hello\n", Some(4), false)
    );
    let outcome = tools
        .run(
            "terminal",
            json!({"command": "echo begun; sleep 60", "timeout": 1}),
        )
        .await;
    assert!(
        outcome.is_error
            && outcome
                .text
                .starts_with("begun\n\n[The command was killed after 1 second."),
        "{outcome:?}"
    );
    let outcome = tools
        .run("terminal", json!({"command": "seq 1 100000"}))
        .await;
    assert!(outcome.text.len() <= MAX_RESULT + 100 && outcome.text.contains("bytes left out"));
    assert!(outcome.text.ends_with("100000\n"));
}

#[tokio::test]
async fn a_command_reads_its_input_and_its_end() {
    let tools = Tools::new().await;
    let asked = json!({"command": "cat; echo; read more || echo over", "input": "a\nb \u{e9}"});
    let outcome = tools.run("terminal", asked).await;
    assert_eq!(outcome.text, "a\nb \u{e9}\nover\n");
    let long = "x".repeat(2 << 20);
    let asked = json!({"command": "wc -c", "input": long});
    let outcome = tools.run("terminal", asked).await;
    assert_eq!(outcome.text, "2097152\n");
    let asked = json!({"command": "wc -c", "input": "x".repeat(17 << 20)});
    let outcome = tools.run("terminal", asked).await;
    assert!(outcome.is_error, "{outcome:?}");
    let outcome = tools.run("terminal", json!({"command": "echo well"})).await;
    assert_eq!(outcome.text, "well\n");
}

#[tokio::test]
async fn arguments_that_make_no_sense_are_outcomes_the_model_can_read() {
    let tools = Tools::new().await;
    for (name, arguments) in [
        ("terminal", json!({})),
        ("terminal", json!({"command": " "})),
        ("terminal", json!({"command": "true", "timeout": -1})),
        ("file_editor", json!({"command": "delete", "path": "x"})),
        ("file_editor", json!({"command": "create", "path": "x"})),
        ("file_editor", json!({"command": "view", "path": "../x"})),
        ("browser", json!({})),
    ] {
        let outcome = tools.run(name, arguments.clone()).await;
        assert!(
            outcome.is_error && !outcome.text.is_empty(),
            "{name} {arguments}: {outcome:?}"
        );
    }
    let outcome = run(
        &tools.tools,
        "terminal",
        "{not json",
        Duration::from_secs(1),
        |_| {},
    )
    .await
    .unwrap();
    assert!(outcome.is_error);
}

#[tokio::test]
async fn a_gone_sandbox_is_an_error_and_files_can_still_be_read() {
    let tools = Tools::new().await;
    tools.edit("create", "a", json!({"file_text": "x\n"})).await;
    tools.tools.sandbox().close().await;
    let error = run(
        &tools.tools,
        "terminal",
        r#"{"command":"true"}"#,
        Duration::from_secs(1),
        |_| {},
    )
    .await
    .unwrap_err();
    assert!(matches!(error, SandboxError::Gone(_)));
    assert_eq!(tools.edit("view", "a", json!({})).await.text, "     1\tx\n");
}

#[tokio::test]
async fn files_are_created_viewed_changed_and_changed_back() {
    let tools = Tools::new().await;
    let outcome = tools
        .edit(
            "create",
            "/workspace/src/a.py",
            json!({"file_text": "one\ntwo\nthree\n"}),
        )
        .await;
    assert_eq!(outcome.path.as_deref(), Some("/src/a.py"));
    assert!(
        outcome
            .diff
            .unwrap()
            .starts_with("--- /dev/null\n+++ b/src/a.py\n@@ -0,0 +1,3 @@\n+one\n")
    );
    assert_eq!(
        tools
            .edit("view", "src/a.py", json!({"view_range": [2, -1]}))
            .await
            .text,
        "     2\ttwo\n     3\tthree\n"
    );
    assert!(
        tools
            .edit("view", "src/a.py", json!({"view_range": [4, 9]}))
            .await
            .is_error
    );
    assert_eq!(
        tools.edit("view", "/workspace", json!({})).await.text,
        "src/"
    );

    let outcome = tools
        .edit(
            "str_replace",
            "src/a.py",
            json!({"old_str": "two\n", "new_str": "2\n2.5\n"}),
        )
        .await;
    assert_eq!(tools.content("src/a.py"), "one\n2\n2.5\nthree\n");
    assert!(outcome.diff.unwrap().contains("-two\n+2\n+2.5\n"));
    assert!(outcome.text.contains("     3\t2.5\n"));
    let outcome = tools
        .edit(
            "insert",
            "src/a.py",
            json!({"insert_line": 0, "new_str": "zero"}),
        )
        .await;
    assert!(!outcome.is_error);
    tools
        .edit(
            "insert",
            "src/a.py",
            json!({"insert_line": 5, "new_str": "four"}),
        )
        .await;
    assert_eq!(
        tools.content("src/a.py"),
        "zero\none\n2\n2.5\nthree\nfour\n"
    );
    assert!(
        tools
            .edit(
                "insert",
                "src/a.py",
                json!({"insert_line": 7, "new_str": "x"})
            )
            .await
            .is_error
    );
    // What the sandbox created belongs to its user, and so does what the host created.
    let outcome = tools
        .run(
            "terminal",
            json!({"command": "printf '' >> src/a.py && echo five"}),
        )
        .await;
    assert_eq!(outcome.text, "five\n");

    for expected in [
        "zero\none\n2\n2.5\nthree\n",
        "one\n2\n2.5\nthree\n",
        "one\ntwo\nthree\n",
    ] {
        assert!(
            !tools
                .edit("undo_edit", "src/a.py", json!({}))
                .await
                .is_error
        );
        assert_eq!(tools.content("src/a.py"), expected);
    }
    let outcome = tools.edit("undo_edit", "src/a.py", json!({})).await;
    assert!(outcome.text.contains("removed again"), "{outcome:?}");
    assert!(tools.edit("view", "src/a.py", json!({})).await.is_error);
    assert!(
        tools
            .edit("undo_edit", "src/a.py", json!({}))
            .await
            .is_error
    );
}

#[tokio::test]
async fn a_replacement_must_mean_one_place() {
    let tools = Tools::new().await;
    tools
        .edit(
            "create",
            "a",
            json!({"file_text": "x = 1\ny = 1\n\nx = 1\n"}),
        )
        .await;
    let outcome = tools
        .edit(
            "str_replace",
            "a",
            json!({"old_str": "x = 1", "new_str": "x = 2"}),
        )
        .await;
    assert!(
        outcome.is_error
            && outcome
                .text
                .contains("occurs 2 times in a, at the lines 1, 4."),
        "{outcome:?}"
    );
    let outcome = tools
        .edit("str_replace", "a", json!({"old_str": "z", "new_str": "x"}))
        .await;
    assert!(outcome.is_error && outcome.text.contains("does not occur"));
    assert!(
        tools
            .edit("str_replace", "a", json!({"old_str": "", "new_str": "x"}))
            .await
            .is_error
    );
    assert!(
        tools
            .edit("str_replace", "a", json!({"old_str": "y = 1\n"}))
            .await
            .diff
            .is_some()
    );
    assert_eq!(tools.content("a"), "x = 1\n\nx = 1\n");
    tools.edit("create", "b", json!({"file_text": "ééé"})).await;
    assert!(
        tools
            .edit("str_replace", "b", json!({"old_str": "éé", "new_str": "e"}))
            .await
            .text
            .contains("2 times")
    );
}

#[tokio::test]
async fn what_is_kept_for_undoing_is_bounded() {
    let tools = Tools::new().await;
    for number in 0..30 {
        tools
            .edit("create", "a", json!({"file_text": format!("{number}\n")}))
            .await;
    }
    let mut undone = 0;
    while !tools.edit("undo_edit", "a", json!({})).await.is_error {
        undone += 1;
    }
    assert_eq!((undone, tools.content("a").as_str()), (10, "19\n"));
}

#[tokio::test]
async fn an_edit_leaves_line_ends_and_encodings_as_they_are() {
    let tools = Tools::new().await;
    let root = tools.ground.workspace("one").host_path().to_owned();
    let put = |path: &str, bytes: &[u8]| std::fs::write(root.join(path), bytes).unwrap();
    let bytes = |path: &str| std::fs::read(root.join(path)).unwrap();
    put("dos.txt", b"\xef\xbb\xbfone\r\ntwo\r\nthree\r\n");
    let view = tools.edit("view", "dos.txt", json!({})).await.text;
    assert_eq!(view, "     1\tone\n     2\ttwo\n     3\tthree\n");
    let edit = json!({"old_str": "one\ntwo\n", "new_str": "one\n2\n2.5\n"});
    let outcome = tools.edit("str_replace", "dos.txt", edit).await;
    assert!(!outcome.is_error && outcome.diff.unwrap().contains("-two\n+2\n+2.5\n three\n"));
    let edit = json!({"insert_line": 0, "new_str": "zero"});
    tools.edit("insert", "dos.txt", edit).await;
    let all = b"\xef\xbb\xbfzero\r\none\r\n2\r\n2.5\r\nthree\r\n";
    assert_eq!(bytes("dos.txt"), all);
    let outcome = tools
        .edit("create", "dos.txt", json!({"file_text": "a\nb\n"}))
        .await;
    assert!(!outcome.is_error, "{outcome:?}");
    assert_eq!(bytes("dos.txt"), b"\xef\xbb\xbfa\r\nb\r\n");
    tools.edit("undo_edit", "dos.txt", json!({})).await;
    assert_eq!(bytes("dos.txt"), all);
    let same = json!({"old_str": "one\r\n", "new_str": "one\n"});
    let outcome = tools.edit("str_replace", "dos.txt", same).await;
    assert!(
        outcome.is_error && outcome.text.contains("line ends alone"),
        "{outcome:?}"
    );

    put("latin.txt", b"caf\xe9\n\xfcber\n");
    let view = tools.edit("view", "latin.txt", json!({})).await.text;
    assert_eq!(view, "     1\tcaf\u{e9}\n     2\t\u{fc}ber\n");
    let edit = json!({"old_str": "caf\u{e9}", "new_str": "th\u{e9}"});
    tools.edit("str_replace", "latin.txt", edit).await;
    assert_eq!(bytes("latin.txt"), b"th\xe9\n\xfcber\n");
    let edit = json!({"old_str": "th\u{e9}", "new_str": "\u{8336}"});
    let outcome = tools.edit("str_replace", "latin.txt", edit).await;
    assert!(
        outcome.is_error && outcome.text.contains("Windows-1252"),
        "{outcome:?}"
    );
    let outcome = tools
        .edit("create", "latin.txt", json!({"file_text": "\u{8336}\n"}))
        .await;
    assert!(outcome.text.contains("in UTF-8"), "{outcome:?}");
    assert_eq!(bytes("latin.txt"), "\u{8336}\n".as_bytes());
}

#[tokio::test]
async fn undoing_gives_back_the_exact_bytes_and_never_what_something_else_wrote() {
    let tools = Tools::new().await;
    let root = tools.ground.workspace("one").host_path().to_owned();
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe".to_vec();
    std::fs::write(root.join("a.png"), &png).unwrap();
    let outcome = tools
        .edit("create", "a.png", json!({"file_text": "text\n"}))
        .await;
    assert!(outcome.diff.unwrap().contains("differ"));
    let outcome = tools.edit("undo_edit", "a.png", json!({})).await;
    assert!(!outcome.is_error, "{outcome:?}");
    assert_eq!(std::fs::read(root.join("a.png")).unwrap(), png);

    tools
        .edit("create", "run.sh", json!({"file_text": "one\n"}))
        .await;
    tools
        .run("terminal", json!({"command": "chmod 755 run.sh"}))
        .await;
    let edit = json!({"old_str": "one", "new_str": "two"});
    tools.edit("str_replace", "run.sh", edit).await;
    let mode = tools
        .run("terminal", json!({"command": "stat -c %a run.sh"}))
        .await;
    assert_eq!(mode.text, "755\n");
    for change in ["echo three >> run.sh", "rm run.sh"] {
        tools.run("terminal", json!({"command": change})).await;
        let outcome = tools.edit("undo_edit", "run.sh", json!({})).await;
        assert!(
            outcome.is_error && outcome.text.contains("by something else"),
            "{outcome:?}"
        );
    }
    // With the content that the editor left, it can be undone after all.
    std::fs::write(root.join("run.sh"), "two\n").unwrap();
    let outcome = tools.edit("undo_edit", "run.sh", json!({})).await;
    assert!(!outcome.is_error, "{outcome:?}");
    assert_eq!(tools.content("run.sh"), "one\n");
}

#[tokio::test]
async fn large_files_can_be_replaced() {
    let tools = Tools::new().await;
    let root = tools.ground.workspace("one").host_path().to_owned();
    let large = "line\r\n".repeat(900_000);
    std::fs::write(root.join("large"), &large).unwrap();
    let outcome = tools
        .edit("create", "large", json!({"file_text": "a\nb\n"}))
        .await;
    assert!(!outcome.is_error, "{outcome:?}");
    assert_eq!(tools.content("large"), "a\r\nb\r\n");
    let outcome = tools.edit("undo_edit", "large", json!({})).await;
    assert!(!outcome.is_error, "{outcome:?}");
    assert!(tools.content("large") == large, "other bytes");
    std::fs::write(root.join("huge"), "line\r\n".repeat(3_000_000)).unwrap();
    let outcome = tools
        .edit("create", "huge", json!({"file_text": "a\nb\n"}))
        .await;
    assert!(outcome.text.contains("too many to be kept"), "{outcome:?}");
    assert_eq!(tools.content("huge"), "a\r\nb\r\n");
    let outcome = tools.edit("undo_edit", "huge", json!({})).await;
    assert!(
        outcome.is_error && outcome.text.contains("18000000"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_path_outside_the_workspace_is_refused_with_the_one_to_use() {
    let tools = Tools::new().await;
    for path in ["/tmp/repro.py", "/repro.py", "~/repro.py"] {
        let outcome = tools.edit("create", path, json!({"file_text": "x"})).await;
        assert!(
            outcome.is_error
                && outcome
                    .text
                    .contains("Use /workspace/repro.py, or the terminal"),
            "{outcome:?}"
        );
    }
    let listed = tools.run("terminal", json!({"command": "ls -A"})).await;
    assert_eq!(listed.text, "");
}

#[tokio::test]
async fn a_long_file_is_shown_with_its_middle_left_out() {
    let tools = Tools::new().await;
    tools
        .edit(
            "create",
            "a",
            json!({"file_text": "é".repeat(100) + "\n" + &"line\n".repeat(20_000)}),
        )
        .await;
    let outcome = tools.edit("view", "a", json!({})).await;
    assert!(outcome.text.len() < MAX_RESULT + 100 && outcome.text.contains("bytes left out"));
    assert!(
        outcome.text.ends_with(" 20001\tline\n"),
        "{}",
        &outcome.text[outcome.text.len() - 40..]
    );
}

#[test]
fn a_call_is_described_whatever_the_model_wrote() {
    let view = |name: &str, arguments: Value| describe_call(name, &arguments.to_string());
    let call = view("terminal", json!({"command": "pytest -q"}));
    assert_eq!(
        (
            call.event_type,
            call.content.as_str(),
            call.command.as_deref()
        ),
        ("CmdRunAction", "pytest -q", Some("pytest -q"))
    );
    let types = [
        ("view", "FileReadAction"),
        ("create", "FileWriteAction"),
        ("str_replace", "FileEditAction"),
        ("insert", "FileEditAction"),
        ("undo_edit", "FileEditAction"),
        ("nonsense", "FileEditAction"),
    ];
    for (command, event_type) in types {
        let call = view(
            "file_editor",
            json!({"command": command, "path": "/a", "file_text": "text"}),
        );
        assert_eq!(
            (call.event_type, call.path.as_deref()),
            (event_type, Some("/a")),
            "{command}"
        );
    }
    assert_eq!(
        view(
            "file_editor",
            json!({"command": "create", "path": "/a", "file_text": "text"})
        )
        .content,
        "text"
    );
    assert_eq!(describe_call("terminal", "{oops").content, "terminal {oops");
}

#[test]
fn every_definition_is_an_object_schema_with_what_it_requires() {
    for definition in definitions() {
        let schema = &definition.input_schema;
        assert_eq!(schema["type"], "object");
        for name in schema["required"].as_array().unwrap() {
            assert!(schema["properties"].get(name.as_str().unwrap()).is_some());
        }
    }
}

#[tokio::test]
async fn a_text_that_occurs_everywhere_is_refused_without_counting_all_places() {
    let tools = Tools::new().await;
    let file = "a".repeat(1 << 20);
    tools.edit("create", "a", json!({"file_text": file})).await;
    let edit = json!({"old_str": "a".repeat(30_000), "new_str": "b"});
    let outcome = tools.edit("str_replace", "a", edit).await;
    assert!(
        outcome.is_error && outcome.text.contains("occurs more than 20 times"),
        "{outcome:?}"
    );
}
