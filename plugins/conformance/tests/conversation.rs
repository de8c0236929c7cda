//! The conversation sent for a transcript, beyond the checks of the adapters' suites.

use lucid_conformance::transcript;
use lucid_plugin::llm::conversation::{
    Conversation, ConversationTurn, GO_ON, NO_RESULT, Rules, UserContent,
};
use lucid_plugin::llm::extra::CallExtra;
use lucid_plugin::types::{Content, Message, Role, ToolCall, ToolResult};
use proptest::prelude::*;

const RULES: Rules = Rules {
    sent_back: |_| true,
    in_ids: |c| c.is_ascii_alphanumeric(),
    longest_id: 8,
};

fn call(id: &str) -> Content {
    Content::ToolCall(ToolCall {
        id: id.into(),
        name: "view".into(),
        arguments: "{}".into(),
    })
}

fn calls(ids: &[&str]) -> Message {
    Message {
        role: Role::Assistant,
        content: ids.iter().map(|id| call(id)).collect(),
    }
}

fn results(turn: &ConversationTurn) -> Vec<(&str, &str)> {
    match turn {
        ConversationTurn::User(user) => user
            .results
            .iter()
            .map(|r| (r.call_id.as_str(), r.text.as_str()))
            .collect(),
        ConversationTurn::Model(_) => panic!("not the user's"),
    }
}

#[test]
fn an_id_that_a_server_used_again_is_told_apart() {
    let messages = [
        Message::user("Go"),
        calls(&["call_0"]),
        Message::tool(ToolResult::ok("call_0", "first")),
        calls(&["call_0", "call_0"]),
        Message::tool(ToolResult::ok("call_0", "second")),
        Message::tool(ToolResult::ok("call_0", "third")),
        Message::tool(ToolResult::ok("call_0", "of nothing")),
    ];
    let turns = Conversation::new(&messages, &RULES).turns;
    assert_eq!(results(&turns[2]), [("call_0", "first")]);
    assert_eq!(
        results(&turns[4]),
        [("call_0_2", "second"), ("call_0_3", "third")]
    );
    assert_eq!(turns.len(), 5);
}

#[test]
fn an_id_that_is_its_servers_own_goes_back_whole_and_is_answered() {
    let own = CallExtra {
        own_id: true,
        ..CallExtra::default()
    };
    let own = own.piece().unwrap();
    let long = "call_1__thought__".to_owned() + &"Ab+/".repeat(200);
    let content = vec![own, call(&long), call(&long)];
    let messages = [
        Message::user("Go"),
        Message {
            role: Role::Assistant,
            content,
        },
        Message::tool(ToolResult::ok(&long, "first")),
    ];
    let turns = Conversation::new(&messages, &RULES).turns;
    assert_eq!(
        results(&turns[2]),
        [(long.as_str(), "first"), ("call_1__", NO_RESULT)]
    );
}

#[test]
fn nothing_at_all_is_a_users_turn() {
    let turns = Conversation::new(&[], &RULES).turns;
    let [ConversationTurn::User(user)] = turns.as_slice() else {
        panic!("{turns:?}")
    };
    assert_eq!(user.said, [UserContent::Text(GO_ON.into())]);
}

#[test]
fn a_call_that_nobody_answered_is_answered_before_what_came_next() {
    let messages = [Message::user("Go"), calls(&["a"]), Message::user("Hello?")];
    let turns = Conversation::new(&messages, &RULES).turns;
    assert_eq!(results(&turns[2]), [("a", NO_RESULT)]);
}

proptest! {
    #[test]
    fn a_transcript_that_goes_on_begins_the_same(before in transcript(), after in transcript()) {
        // An answer that comes late belongs to its call, wherever that is.
        let late = |message: &Message| {
            message.content.iter().any(|piece| matches!(piece, Content::ToolResult(_)))
        };
        let after = after.into_iter().filter(|message| !late(message));
        let shorter = Conversation::new(&before, &RULES).turns;
        let longer: Vec<Message> = before.into_iter().chain(after).collect();
        let longer = Conversation::new(&longer, &RULES).turns;
        // The last turn may have been put in, and the one before it may grow.
        let same = shorter.len().saturating_sub(2);
        prop_assert_eq!(&shorter[..same], &longer[..same]);
    }
}
