//! How many instructions one append to the log, one step of a policy and one frame take: `cargo bench --bench
//! instructions`, which needs valgrind. They repeat where times do not, so a change that makes one grow by more
//! than a tenth over `instructions.txt` fails. `-- --write` keeps what was counted.
//!
//! Counted are the instructions of the thread that asks. The file has them for each profile: the gate counts
//! with what the tests were built with.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

#[path = "common/coder.rs"]
mod coder;
#[path = "common/writer.rs"]
mod writer;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use tokio::runtime::{Builder, Runtime};

use lucid::builtin;
use lucid_session::{Features, render};
use lucid_store::Store;
use lucid_types::wit::policy::{Context, Input};
use lucid_wasm::{Engine, EngineOptions, PluginLimits, PolicyPlugin};

use coder::first_step;
use writer::WritingSession;

/// How often each is done before it is counted, and while it is. A multiple of the rounds that stay pending in
/// the log.
const UNCOUNTED: u64 = 64;
const COUNTED: u64 = 320;
/// Growth over what is in the file that fails, in percent.
const TOLERANCE: u64 = 10;

/// What is counted. Each is a function of its own, by whose name valgrind begins and ends to count.
const WHAT: [(&str, fn()); 3] = [("append", append), ("step", step), ("frame", frame)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((_, run)) = WHAT
        .iter()
        .find(|(name, _)| arguments.contains(&format!("--only={name}")))
    {
        run();
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches` only asks whether it works.
        for (_, run) in WHAT {
            run();
        }
        return ExitCode::SUCCESS;
    }
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "bench"
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let mut known = read(&file);
    let mut has_grown = false;
    for (name, _) in WHAT {
        let key = format!("{profile} {name}");
        let counted = count(name);
        let before = known.get(&key).copied();
        let growth = before.map(|before| (counted as f64 / before as f64 - 1.0) * 100.0);
        let shown = growth.map_or("new".to_owned(), |growth| format!("{growth:+.2} %"));
        println!("{key:16}{counted:>12} instructions  {shown}");
        has_grown |= before.is_some_and(|before| counted * 100 > before * (100 + TOLERANCE));
        known.insert(key, counted);
    }
    if arguments.iter().any(|argument| argument == "--write") {
        write(&file, &known);
        return ExitCode::SUCCESS;
    }
    if has_grown {
        eprintln!(
            "One takes over {TOLERANCE} % more instructions than in {}. Find out why; if it is worth it, keep the new figures with `-- --write`.",
            file.display()
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Has valgrind count the instructions of one.
fn count(name: &str) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // One instruction that fills or copies many bytes counts as one for each of them.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.x86_rep_stosb_threshold=1000000000:glibc.cpu.x86_rep_movsb_threshold=1000000000",
        )
        .arg(format!("--toggle-collect=*instructions::counted_{name}*"))
        .arg(std::env::current_exe().unwrap())
        .arg(format!("--only={name}"))
        .output()
        .expect("valgrind is installed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let collected = told
        .lines()
        .find_map(|line| line.split("Collected : ").nth(1));
    let all: u64 = collected.expect(&told).trim().parse().unwrap();
    all / COUNTED
}

fn read(file: &PathBuf) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.filter_map(|line| {
        let (key, count) = line.rsplit_once(' ')?;
        Some((key.trim().to_owned(), count.parse().ok()?))
    });
    parsed.collect()
}

fn write(file: &PathBuf, known: &BTreeMap<String, u64>) {
    let mut text = "# Instructions of one each, by profile; see instructions.rs.\n".to_owned();
    for (key, count) in known {
        text += &format!("{key} {count}\n");
    }
    std::fs::write(file, text).unwrap();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A round of an agent that runs a tool.
fn append() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.trust_the_disk();
    let runtime = runtime();
    let mut writer = runtime.block_on(WritingSession::new(&store, 0));
    for _ in 1..UNCOUNTED {
        runtime.block_on(writer.append());
    }
    for _ in 0..COUNTED {
        counted_append(&runtime, &mut writer);
    }
}

#[inline(never)]
fn counted_append(runtime: &Runtime, writer: &mut WritingSession) {
    runtime.block_on(writer.append());
}

/// The coder's first step.
fn step() {
    let runtime = runtime();
    // Few, since valgrind can reserve less memory than the system.
    let engine = Engine::new(EngineOptions {
        calls: 1,
        streams: 1,
        embedded: &builtin::EMBEDDED,
        ..EngineOptions::default()
    });
    let (engine, limits) = (engine.unwrap(), PluginLimits::default());
    let coder = PolicyPlugin::load(&engine, "coder", builtin::CODER, &limits);
    let coder = runtime.block_on(coder).unwrap();
    let (context, inputs) = first_step();
    for _ in 0..UNCOUNTED {
        runtime
            .block_on(coder.step(&context, None, &inputs))
            .result
            .unwrap();
    }
    for _ in 0..COUNTED {
        counted_step(&runtime, &coder, &context, &inputs);
    }
}

#[inline(never)]
fn counted_step(runtime: &Runtime, coder: &PolicyPlugin, context: &Context, inputs: &[Input]) {
    let called = runtime.block_on(coder.step(context, None, inputs));
    called.result.unwrap();
}

/// A tool's output, as two clients get it: one of today, and one that knows no features.
fn frame() {
    let output = "test result: ok. 12 passed; 0 failed; 0 ignored. ".repeat(4);
    let frame = format!(
        r#"{{"type":"agent_event","event":"observation","eventType":"CmdOutputObservation","content":"{output}","command":"cargo test","diff":"{output}","timestamp":"2026-11-23T10:30:00.000+00:00"}}"#
    );
    for seq in 0..COUNTED {
        counted_frame(seq, &frame);
    }
}

#[inline(never)]
fn counted_frame(seq: u64, frame: &str) {
    let today = Features {
        seq: true,
        deltas: true,
        diffs: true,
        usage: true,
    };
    for features in [today, Features::default()] {
        black_box(render(black_box(seq), black_box(frame), features));
    }
}
