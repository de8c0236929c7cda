//! A policy that misbehaves in the way its task names, to see that the host holds.
//!
//! Always holds: each misbehaviour does only what it is named after, so that a test that passes
//! shows which limit it was; a task with no such name is carried out as a good policy would.

use std::hint::black_box;

use lucid_plugin::policy::{self, Commands, Context, Descriptor, Input, Policy, Start};
use lucid_plugin::types::Error;
use lucid_plugin::{Level, log};
use serde_json::json;

/// The policy.
pub struct Hostile;

const MIB: usize = 1 << 20;
/// About 1 GB of commands.
const FLOOD_MIB: usize = 1_000;
/// Log lines.
const LINES: usize = 100_000;

impl Policy for Hostile {
    type State = ();
    const SCHEMA: u32 = 1;

    fn describe() -> Descriptor {
        let text = "Misbehaves: loop, alloc, trap, flood, log.";
        policy::describe::<Self>("hostile", env!("CARGO_PKG_VERSION"), text)
    }

    fn step(_: &Context, (): &mut (), input: Input, out: &mut Commands) -> Result<(), Error> {
        match input {
            Input::Started(Start { task, .. }) => misbehave(task.trim(), out),
            Input::UserMessage(said) => {
                misbehave(lucid_plugin::joined_text(&said.content).trim(), out);
            }
            _ => {}
        }
        Ok(())
    }
}

fn misbehave(how: &str, out: &mut Commands) {
    match how {
        "loop" => spin(),
        "alloc" => allocate(),
        "trap" => panic!("as asked"),
        "flood" => flood(FLOOD_MIB, out),
        "log" => chatter(LINES, out),
        _ => behave(out),
    }
}

fn behave(out: &mut Commands) {
    out.emit(
        "ThinkAction",
        "well behaved",
        &json!({ "thought": "well behaved" }),
    );
    out.succeed("well behaved");
}

/// For ever. The counter is opaque to the optimiser, so the loop stays.
fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// For ever, or until there is no more. Each block is written to, so it is really there.
fn allocate() -> ! {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(black_box(vec![1; MIB]));
    }
}

fn flood(mebibytes: usize, out: &mut Commands) {
    for _ in 0..mebibytes {
        out.emit("ThinkAction", "x".repeat(MIB), &json!({}));
    }
    out.succeed("flooded");
}

fn chatter(lines: usize, out: &mut Commands) {
    for line in 0..lines {
        log(
            Level::Error,
            &format!("line {line} of a plugin that does not know when to stop"),
        );
    }
    behave(out);
}

lucid_plugin::export_policy!(Hostile);

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_plugin::policy::{Command, Outcome};

    fn did(how: &str) -> Vec<Command> {
        let mut out = Commands::new();
        misbehave(how, &mut out);
        out.into_vec()
    }

    #[test]
    fn a_task_with_no_such_name_is_carried_out() {
        let commands = did("Fix the bug");
        assert!(matches!(&commands[0], Command::Emit(e) if e.content == "well behaved"));
        assert_eq!(
            commands[1],
            Command::Finish(Outcome::Succeeded("well behaved".into()))
        );
        assert_eq!(commands, did("log"));
    }

    #[test]
    fn a_flood_is_as_large_as_it_says() {
        let mut out = Commands::new();
        flood(3, &mut out);
        let size: usize = out
            .as_slice()
            .iter()
            .map(|c| match c {
                Command::Emit(e) => e.content.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(size, 3 * MIB);
    }

    #[test]
    #[should_panic = "as asked"]
    fn a_trap_is_a_panic() {
        did("trap");
    }
}
