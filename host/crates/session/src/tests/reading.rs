//! How clients read, and how models are prompted.

use super::*;
use crate::round::prompt::arrange;

fn chatty(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands: Vec<_> = (0..20)
        .map(|n| say(&format!("{n} {}", "x".repeat(700))))
        .collect();
    if let [Input::UserMessage(_)] | [Input::Started(_)] = inputs {
        commands.push(finish("done"));
    }
    Ok(commands)
}

#[tokio::test]
async fn a_slow_reader_loses_nothing_and_keeps_nothing_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(chatty));
    let session = sessions.create(new("u")).await.unwrap();
    let (mut fast, mut slow) = (session.subscribe(0), session.subscribe(0));
    sessions.start(&session);
    let mut all = until(&mut fast, "completed").await;
    for round in 0..20 {
        session.message(format!("go on {round}")).await.unwrap();
        all.extend(until(&mut fast, "completed").await);
    }
    assert_dense(&all);
    assert!(all.len() > 400);
    let mut late = Vec::new();
    while late.len() < all.len() {
        late.extend(until(&mut slow, "x").await);
    }
    assert_eq!(late, all);
    let mut middle = session.subscribe(37);
    assert_eq!(until(&mut middle, "x").await[0], all[37]);
}

#[tokio::test]
async fn a_client_that_has_seen_more_than_there_is_hears_of_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(chatty));
    let session = sessions.create(new("u")).await.unwrap();
    assert_eq!(
        session.subscribe(9).next().await,
        SubscriptionItem::Gap(2, 9)
    );
}

#[tokio::test]
async fn deltas_go_to_those_who_ask() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(worker));
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0).with_deltas();
    sessions.start(&session);
    let mut deltas = Vec::new();
    loop {
        match frames.next().await {
            SubscriptionItem::Delta(delta) => deltas.push(delta.to_string()),
            SubscriptionItem::Frames(frames)
                if frames.iter().any(|(_, frame)| frame.contains("completed")) =>
            {
                break;
            }
            _ => {}
        }
    }
    let delta =
        |text| format!(r#"{{"type":"delta","kind":"text","effect":"m","content":"{text}"}}"#);
    assert_eq!(deltas, [delta("he"), delta("llo")]);
}

fn result(id: &str, text: &str) -> Message {
    let result = ToolResult {
        call_id: id.to_owned(),
        is_error: false,
        text: text.to_owned(),
        exit_code: None,
        blobs: vec![],
    };
    Message {
        role: Role::Tool,
        content: vec![Content::ToolResult(result)],
    }
}

fn text(role: Role, text: &str) -> Message {
    Message {
        role,
        content: vec![Content::Text(text.to_owned())],
    }
}

#[test]
fn a_result_stands_right_behind_its_call_whatever_came_between() {
    let calls = Message {
        role: Role::Assistant,
        content: vec![
            Content::ToolCall(call("a")),
            Content::ToolCall(call("b")),
            Content::ToolCall(call("c")),
        ],
    };
    let messages = vec![
        text(Role::User, "task"),
        calls.clone(),
        result("b", "two"),
        text(Role::User, "and?"),
        result("a", "one"),
        result("stray", "none asked"),
    ];
    let arranged = arrange(messages);
    assert_eq!(arranged[..2], [text(Role::User, "task"), calls]);
    let answers: Vec<_> = arranged[2]
        .content
        .iter()
        .map(|content| match content {
            Content::ToolResult(result) => (result.call_id.as_str(), result.is_error),
            _ => panic!("not a result"),
        })
        .collect();
    assert_eq!(answers, [("a", false), ("b", false), ("c", true)]);
    assert_eq!(arranged[3..], [text(Role::User, "and?")]);
}

#[test]
fn an_id_that_comes_twice_is_answered_in_order() {
    let calls = || Message {
        role: Role::Assistant,
        content: vec![Content::ToolCall(call("0"))],
    };
    let arranged = arrange(vec![
        calls(),
        result("0", "first"),
        calls(),
        result("0", "second"),
    ]);
    assert_eq!(
        arranged,
        [
            calls(),
            result("0", "first"),
            calls(),
            result("0", "second")
        ]
    );
}

#[test]
fn a_frame_is_cut_on_a_characters_boundary_and_the_record_is_not() {
    let long = "é".repeat(3000);
    let builder = EventDraft {
        thought: Some(long.clone()),
        ..EventDraft::text("ThinkAction", &long)
    };
    let frame: serde_json::Value = serde_json::from_str(&builder.frame(0)).unwrap();
    assert_eq!(
        frame["content"].as_str().unwrap().chars().count(),
        CONTENT_LENGTH
    );
    assert_eq!(
        frame["thought"].as_str().unwrap().chars().count(),
        THOUGHT_LENGTH
    );
    assert_eq!(frame["timestamp"], "1970-01-01T00:00:00.000+00:00");
    let line = builder.into_line().unwrap();
    assert_eq!(line.content, long);
    assert!(line.metadata.unwrap().contains(&long));
}

#[test]
fn a_client_sees_only_what_it_asked_for() {
    let builder = EventDraft {
        diff: Some("+a".to_owned()),
        path: Some("/a".to_owned()),
        ..EventDraft::text("FileEditAction", "a")
    };
    let stored = builder.frame(0);
    let plain = render(7, &stored, Features::default())
        .unwrap()
        .into_owned();
    assert_eq!(
        plain,
        EventDraft {
            diff: None,
            ..builder
        }
        .frame(0)
    );
    let rich = render(
        7,
        &stored,
        Features {
            seq: true,
            diffs: true,
            ..Features::default()
        },
    )
    .unwrap();
    let value: serde_json::Value = serde_json::from_str(&rich).unwrap();
    assert_eq!(
        (value["seq"].as_u64(), value["diff"].as_str()),
        (Some(7), Some("+a"))
    );
    assert!(
        render(
            7,
            r#"{"type":"usage","inputTokens":1}"#,
            Features::default()
        )
        .is_none()
    );
}

#[test]
fn a_command_stands_on_its_action_only_unless_a_feature_is_asked_for() {
    let builder = |event_type: &str| EventDraft {
        command: Some("ls".to_owned()),
        exit_code: Some(0),
        ..EventDraft::text(event_type, r#"a text with "command": in it"#)
    };
    let shown = |builder: &EventDraft, features| {
        let stored = builder.frame(0);
        let frame = render(7, &stored, features).unwrap();
        serde_json::from_str::<serde_json::Value>(&frame).unwrap()
    };
    let usage = Features {
        usage: true,
        ..Features::default()
    };
    for event_type in [
        "CmdOutputObservation",
        "AgentErrorObservation",
        "AgentStateChanged",
        "AgentMessageAction",
        "CmdRunAction",
    ] {
        let builder = builder(event_type);
        let is_action = event_type.ends_with("Action");
        let old = shown(&builder, Features::default());
        assert_eq!(old.get("command").is_some(), is_action, "{event_type}");
        assert_eq!(
            (old["exitCode"].as_i64(), old["content"].as_str()),
            (Some(0), Some(builder.content.as_str()))
        );
        assert_eq!(shown(&builder, usage)["command"], "ls", "{event_type}");
    }
}

#[test]
fn the_kind_of_an_event_is_in_its_name() {
    let kinds = [
        "CmdRunAction",
        "CmdOutputObservation",
        "AgentErrorObservation",
        "AgentStateChanged",
        "MockResponse",
    ];
    assert_eq!(
        kinds.map(kind_of),
        ["action", "observation", "error", "state", "observation"]
    );
}
