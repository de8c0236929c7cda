//! The SDK from a plugin author's view: a small policy and a small adapter, run natively.
//!
//! These tests use only the crate's public API.

use lucid_plugin::bindings::llm::exports::lucid::llm::provider::{Guest, GuestDecoder};
use lucid_plugin::llm::{
    Adapter, Completion, CompletionRequest, Decoder, Delta, Encoded, ExportedAdapter, Frame,
    ModelInfo,
};
use lucid_plugin::policy::{Command, Commands, Context, Input, Outcome, Policy, Snapshot};
use lucid_plugin::types::{Error, ErrorKind, Header, Message, StopReason, ToolResult};
use lucid_plugin::{NO_USAGE, cut, policy};

struct Counter;

impl Policy for Counter {
    type State = Vec<u64>;
    const SCHEMA: u32 = 3;
    const OLDEST_SCHEMA: u32 = 2;

    fn describe() -> policy::Descriptor {
        policy::describe::<Self>("counter", "1.0.0", "Counts.")
    }

    fn step(
        ctx: &Context,
        seen: &mut Vec<u64>,
        input: Input,
        _: &mut Commands,
    ) -> Result<(), Error> {
        if let Input::CancelRequested(text) = input {
            return Err(Error::invalid(text));
        }
        seen.push(ctx.step);
        Ok(())
    }

    fn settle(_: &Context, seen: &mut Vec<u64>, out: &mut Commands) -> Result<(), Error> {
        out.succeed(format!("{seen:?}"));
        Ok(())
    }

    fn migrate(schema: u32, old: serde_json::Value) -> Result<Vec<u64>, Error> {
        assert_eq!(schema, 2);
        Ok(vec![old.as_u64().unwrap_or_default()])
    }
}

lucid_plugin::export_policy!(Counter);

fn context(step: u64) -> Context {
    Context {
        session: "s".into(),
        step,
        now_ms: 0,
        seed: 0,
        iterations_left: 1,
        tokens_left: None,
        cost_left: None,
        millis_left: None,
    }
}

fn finished(commands: &[Command]) -> &str {
    match commands {
        [Command::Finish(Outcome::Succeeded(text))] => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_state_goes_from_step_to_step_and_settles_once() {
    let two = vec![Input::Upgraded(1), Input::Upgraded(1)];
    let first = policy::run::<Counter>(&context(7), None, two).unwrap();
    assert_eq!(finished(&first.commands), "[7, 7]");
    assert_eq!(first.state.bytes, b"[7,7]");
    let second =
        policy::run::<Counter>(&context(8), Some(first.state), vec![Input::Upgraded(1)]).unwrap();
    assert_eq!(finished(&second.commands), "[7, 7, 8]");
}

#[test]
fn a_state_of_another_schema_is_not_read() {
    let old = Snapshot {
        schema: 2,
        bytes: b"[1]".to_vec(),
    };
    let error = policy::run::<Counter>(&context(0), Some(old), vec![]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
}

#[test]
fn an_error_in_a_step_comes_back_as_it_is() {
    let inputs = vec![Input::CancelRequested("no".into())];
    let error = policy::run::<Counter>(&context(0), None, inputs).unwrap_err();
    assert_eq!(error.message, "no");
}

#[test]
fn an_older_state_is_migrated_and_a_foreign_one_refused() {
    let at = |schema, bytes: &[u8]| Snapshot {
        schema,
        bytes: bytes.to_vec(),
    };
    assert_eq!(
        policy::migrate::<Counter>(at(2, b"5")).unwrap(),
        at(3, b"[5]")
    );
    assert_eq!(
        policy::migrate::<Counter>(at(3, b"[6]")).unwrap(),
        at(3, b"[6]")
    );
    for schema in [1, 4] {
        let error = policy::migrate::<Counter>(at(schema, b"5")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
    }
    assert!(policy::migrate::<Counter>(at(2, b"{")).is_err());
}

struct Echo;
struct EchoDecoder(String);

impl Adapter for Echo {
    type Decoder = EchoDecoder;

    fn describe() -> lucid_plugin::llm::Descriptor {
        unreachable!("not asked here")
    }

    fn models(_: &str) -> Vec<ModelInfo> {
        Vec::new()
    }

    fn encode(_: &str, _: CompletionRequest) -> Result<Encoded, Error> {
        Err(Error::internal("not asked here"))
    }

    fn classify(_: u16, _: &[Header], _: &[u8]) -> Error {
        Error::upstream("It failed.")
    }
}

impl Decoder for EchoDecoder {
    fn new(model: String) -> Self {
        Self(model)
    }

    fn push(&mut self, frame: Frame, deltas: &mut Vec<Delta>) -> Result<(), Error> {
        let Frame::Line(line) = frame else {
            return Err(Error::upstream("Lines only."));
        };
        self.0.push_str(&line);
        deltas.push(Delta::Text(line));
        Ok(())
    }

    fn finish(self) -> Result<Completion, Error> {
        Ok(Completion {
            message: Message::assistant(self.0),
            stop: StopReason::EndTurn,
            usage: NO_USAGE,
        })
    }
}

lucid_plugin::export_llm!(Echo);

type EchoExport = <ExportedAdapter<Echo> as Guest>::Decoder;

#[test]
fn a_decoder_reads_frames_and_ends_once() {
    let decoder = EchoExport::new("m:".into());
    let lines = vec![Frame::Line("a".into()), Frame::Line("b".into())];
    assert_eq!(decoder.push(lines).unwrap().len(), 2);
    assert_eq!(decoder.finish().unwrap().message.joined_text(), "m:ab");
    assert_eq!(decoder.finish().unwrap_err().kind, ErrorKind::Internal);
    assert!(decoder.push(vec![Frame::Line("c".into())]).is_err());
}

#[test]
fn a_decoder_that_failed_stays_failed() {
    let decoder = EchoExport::new(String::new());
    let error = decoder.push(vec![Frame::Body(Vec::new())]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Upstream);
    assert!(decoder.finish().is_err());
}

#[test]
fn text_is_cut_between_characters() {
    assert_eq!(cut("héllo", 5), "héllo");
    assert_eq!(cut("héllo", 2), "hé…");
}

#[test]
fn a_result_is_bad_when_the_tool_or_its_command_failed() {
    assert!(!ToolResult::ok("c", "").is_bad());
    assert!(ToolResult::failed("c", "").is_bad());
    let exit = |code| ToolResult {
        exit_code: Some(code),
        ..ToolResult::ok("c", "")
    };
    assert!(!exit(0).is_bad());
    assert!(exit(1).is_bad());
}
