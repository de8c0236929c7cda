//! Arbitrary transcripts: what a session may contain after crashes, lost effects and odd models.
//!
//! Nothing here is made valid, since that is the adapters' work.

use lucid_plugin::types::{
    BlobRef, Content, Custom, Message, Role, Thinking, ToolCall, ToolResult,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Few ids, so that calls and results match, even repeatedly. Some are in a form that no provider
/// accepts.
const IDS: [&str; 8] = [
    "a",
    "toolu_01",
    "call 2",
    "",
    "ü:é/…",
    "functions.view:0",
    "lucid_1",
    "a-very-long-identifier-that-a-server-made-up-of-many-parts-and-a-hash-0123456789abcdef",
];
const TEXTS: [&str; 6] = [
    "Hello",
    "",
    "  \n",
    "Grüße — 😀",
    "\"quoted\" \\",
    "{\"a\":1}",
];
const NAMES: [&str; 5] = ["view", "terminal", "", "functions.view", "1 ü"];

/// Up to a dozen messages, each of any role with any pieces.
pub fn transcript() -> impl Strategy<Value = Vec<Message>> {
    vec(message(), 0..12)
}

fn message() -> impl Strategy<Value = Message> {
    let role = prop_oneof![
        1 => Just(Role::System),
        3 => Just(Role::User),
        4 => Just(Role::Assistant),
        3 => Just(Role::Tool),
    ];
    (role, vec(piece(), 0..5)).prop_map(|(role, content)| Message { role, content })
}

fn one_of<const N: usize>(of: [&'static str; N]) -> impl Strategy<Value = String> {
    (0..N).prop_map(move |at| of[at].to_owned())
}

fn piece() -> impl Strategy<Value = Content> {
    prop_oneof![
        3 => one_of(TEXTS).prop_map(Content::Text),
        1 => blob().prop_map(Content::Image),
        1 => thinking().prop_map(Content::Thinking),
        4 => call().prop_map(Content::ToolCall),
        4 => result().prop_map(Content::ToolResult),
        1 => custom().prop_map(Content::Other),
    ]
}

fn call() -> impl Strategy<Value = ToolCall> {
    let arguments = one_of(["{}", "", "{\"path\":\"a\"}", "{\"path\":", "[1]", "null"]);
    (one_of(IDS), one_of(NAMES), arguments).prop_map(|(id, name, arguments)| ToolCall {
        id,
        name,
        arguments,
    })
}

fn result() -> impl Strategy<Value = ToolResult> {
    let parts = (
        one_of(IDS),
        any::<bool>(),
        one_of(TEXTS),
        option::of(any::<i32>()),
        vec(blob(), 0..3),
    );
    parts.prop_map(|(call_id, is_error, text, exit_code, blobs)| ToolResult {
        call_id,
        is_error,
        text,
        exit_code,
        blobs,
    })
}

fn blob() -> impl Strategy<Value = BlobRef> {
    let media_type = one_of(["image/png", "image/jpeg", "application/pdf"]);
    (0..3_u8, media_type).prop_map(|(digit, media_type)| BlobRef {
        digest: format!("sha256:{}", digit.to_string().repeat(64)),
        media_type,
        size: 10,
    })
}

fn thinking() -> impl Strategy<Value = Thinking> {
    let signature = option::of(one_of(["EqQBCgIYAhIM1gbcDa9GJwZA2b3h", ""]));
    (one_of(TEXTS), signature).prop_map(|(text, signature)| Thinking {
        text,
        signature: signature.filter(|s| !s.is_empty()),
    })
}

fn custom() -> impl Strategy<Value = Custom> {
    let kind = one_of([
        "anthropic.redacted-thinking",
        "google.thought-signature",
        "acme.review",
    ]);
    let body = one_of([
        "\"EmwKAhgBEgy3va3p\"",
        "{\"signature\":\"CiQBVKhc7g==\",\"alone\":false}",
        "{\"signature\":\"CiQBVKhc7g==\",\"alone\":true}",
        "not JSON",
        "{}",
    ]);
    (kind, body).prop_map(|(kind, body)| Custom { kind, body })
}
