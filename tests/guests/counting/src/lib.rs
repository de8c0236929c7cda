//! A policy that counts, and tells which build of it does: for tests in which builds follow one another.
//!
//! Always holds: its words on itself stand once in the component, so that a test makes another build of
//! it by writing over them. What a build does differently is said in these words as well.

use std::hint::black_box;

use lucid_plugin::policy::{self, Commands, Context, Descriptor, Input, Policy, Timer};
use lucid_plugin::types::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Number and manners; a test finds them by what stands behind.
static BUILD: &str = "build-0000-good-of-the-guest-that-counts";

/// The policy.
pub struct Counting;

/// How far it has counted, and how far it is to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    counted: u32,
    wanted: u32,
}

/// Between two numbers.
const PAUSE_MS: u64 = 50;

fn build() -> (&'static str, &'static str) {
    let words = black_box(BUILD);
    let (name, rest) = words.split_at("build-0000".len());
    (name, rest.split('-').nth(1).unwrap_or_default())
}

impl Policy for Counting {
    type State = State;
    const SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        let (name, manners) = build();
        assert_ne!(manners, "trap", "as its words say");
        policy::describe::<Self>("counting", name, "Counts to the number in its task.")
    }

    fn step(_: &Context, state: &mut State, input: Input, out: &mut Commands) -> Result<(), Error> {
        let (name, manners) = build();
        let say = |what: String, out: &mut Commands| {
            out.emit("ThinkAction", &what, &json!({ "thought": what }))
        };
        match input {
            Input::Started(_) if manners == "spin" => loop {
                black_box(());
            },
            Input::Started(start) => {
                let words = start.task.split(|c: char| !c.is_ascii_digit());
                state.wanted = words
                    .filter_map(|word| word.parse().ok())
                    .next()
                    .unwrap_or(0);
                say(format!("begun by {name}"), out);
            }
            Input::Upgraded(_) if manners == "evil" => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "It will not go on with that.",
                ));
            }
            Input::Upgraded(_) => {
                say(format!("moved to {name}"), out);
                return Ok(());
            }
            Input::TimerFired(_) => {
                state.counted += 1;
                assert!(state.counted != 3 || manners != "bugs", "as its words say");
                say(format!("{} by {name}", state.counted), out);
            }
            Input::UserMessage(_) => {
                say(format!("asked {name}"), out);
                out.succeed(format!("answered by {name}"));
                return Ok(());
            }
            _ => return Ok(()),
        }
        if state.counted < state.wanted {
            out.push(policy::Command::SetTimer(Timer {
                effect: format!("tick-{}", state.counted),
                delay_ms: PAUSE_MS,
            }));
        } else {
            out.succeed(format!("counted by {name}"));
        }
        Ok(())
    }
}

lucid_plugin::export_policy!(Counting);
